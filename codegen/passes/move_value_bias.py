"""The value's bias into the bias of the projection behind it: probabilities sum to 1, so it reaches every output."""

from __future__ import annotations

from dataclasses import replace

from ..graph import Array, Block, Graph, Tensor, matvec, merge_sources


def move_value_bias(graph: Graph) -> Graph:
    """No value has a bias."""
    return replace(graph, blocks=tuple(_move(block) for block in graph.blocks))


def _move(block: Block) -> Block:
    value_bias, out = block.value.bias, block.attn_out
    if value_bias is None:
        return block

    def moved(start: int, stop: int) -> Array:
        through = matvec(out.weight, value_bias.load(), start, stop)
        return through if out.bias is None else through + out.bias.rows(start, stop)

    sources = merge_sources(*(tensor for tensor in (out.bias, out.weight, value_bias) if tensor is not None))
    bias = Tensor((out.weight.shape[0],), sources, moved)
    return replace(block, value=replace(block.value, bias=None), attn_out=replace(out, bias=bias))
