"""Moves the value's bias into that of the linear behind it: probabilities sum to 1, so it reaches every output whole.

This holds for attention to the past, to everything, and to a source, each of at least one position.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ..graph import Array, Attention, Graph, Mlp, Tensor, matvec, merge_sources


def move_value_bias(graph: Graph) -> Graph:
    """No value has a bias."""
    return graph.map_bodies(_move)


def _move(body: Attention | Mlp) -> Attention | Mlp:
    if not isinstance(body, Attention) or body.value.bias is None:
        return body
    value_bias, out, shared = body.value.bias, body.out, body.heads // body.kv_heads

    def moved(start: int, stop: int) -> Array:
        of_heads = np.repeat(value_bias.load().reshape(body.kv_heads, -1), shared, axis=0).ravel()
        through = matvec(out.weight, of_heads, start, stop)
        return through if out.bias is None else through + out.bias.rows(start, stop)

    sources = merge_sources(*(tensor for tensor in (out.bias, out.weight, value_bias) if tensor is not None))
    bias = Tensor((out.weight.shape[0],), sources, moved)
    return replace(body, value=replace(body.value, bias=None), out=replace(out, bias=bias))
