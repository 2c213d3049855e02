"""The value's bias into the bias of the linear behind it: probabilities sum to 1, so it reaches every output."""

from __future__ import annotations

from dataclasses import replace

from ..graph import Array, Attention, Graph, Sublayer, Tensor, matvec, merge_sources


def move_value_bias(graph: Graph) -> Graph:
    """No value has a bias."""
    return graph.map(_move)


def _move(sublayer: Sublayer) -> Sublayer:
    body = sublayer.body
    if not isinstance(body, Attention) or body.value.bias is None:
        return sublayer
    value_bias, out = body.value.bias, body.out

    def moved(start: int, stop: int) -> Array:
        through = matvec(out.weight, value_bias.load(), start, stop)
        return through if out.bias is None else through + out.bias.rows(start, stop)

    sources = merge_sources(*(tensor for tensor in (out.bias, out.weight, value_bias) if tensor is not None))
    bias = Tensor((out.weight.shape[0],), sources, moved)
    return replace(sublayer, body=replace(body, value=replace(body.value, bias=None), out=replace(out, bias=bias)))
