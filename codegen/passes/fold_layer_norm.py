"""LayerNorm's weight and bias into the linears that read it: W (g x + b) = (W g) x + W b.

The final norm stays as it is where the head is tied: the head's weight is also the token table.
"""

from __future__ import annotations

from dataclasses import replace

from ..graph import Array, Block, Graph, LayerNorm, Linear, Tensor, matvec, merge_sources


def fold_layer_norm(graph: Graph) -> Graph:
    """No block's norm keeps a weight or a bias, nor the final one where the head is its own matrix."""
    blocks = tuple(_fold_block(block) for block in graph.blocks)
    if graph.spec.tie_word_embeddings:
        return replace(graph, blocks=blocks)
    return replace(graph, blocks=blocks, ln_f=_bare(graph.ln_f), head=_fold(graph.ln_f, graph.head))


def _fold_block(block: Block) -> Block:
    return replace(
        block,
        ln_1=_bare(block.ln_1),
        query=_fold(block.ln_1, block.query),
        key=_fold(block.ln_1, block.key),
        value=_fold(block.ln_1, block.value),
        ln_2=_bare(block.ln_2),
        mlp_in=_fold(block.ln_2, block.mlp_in),
    )


def _bare(norm: LayerNorm) -> LayerNorm:
    return replace(norm, weight=None, bias=None)


def _fold(norm: LayerNorm, linear: Linear) -> Linear:
    gain, shift = norm.weight, norm.bias
    if gain is None or shift is None:
        return linear
    weight, bias = linear.weight, linear.bias

    def folded_bias(start: int, stop: int) -> Array:
        moved = matvec(weight, shift.load(), start, stop)
        return moved if bias is None else moved + bias.rows(start, stop)

    sources = merge_sources(*(tensor for tensor in (bias, weight, shift) if tensor is not None))
    return Linear(
        weight.map(lambda rows: rows * gain.load(), gain),
        Tensor((weight.shape[0],), sources, folded_bias),
    )
