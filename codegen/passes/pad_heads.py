"""Every head to a multiple of 16 dimensions, with zeros: rows of query, key and value, columns of what reads them.

Zero dimensions change neither query . key nor what that reads, and every head then starts on a panel.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ..graph import Array, Attention, Graph, Linear, Sublayer, Tensor
from ..layout import round_up


def pad_heads(graph: Graph) -> Graph:
    """The width of every attention is heads * round_up(head_dim, 16)."""
    return graph.map(_pad)


def _pad(sublayer: Sublayer) -> Sublayer:
    body = sublayer.body
    if not isinstance(body, Attention) or body.head_dim == round_up(body.head_dim):
        return sublayer
    padded = replace(
        body,
        query=_pad_outputs(body, body.query),
        key=_pad_outputs(body, body.key),
        value=_pad_outputs(body, body.value),
        out=replace(body.out, weight=_pad_inputs(body, body.out.weight)),
    )
    return replace(sublayer, body=padded)


def _pad_outputs(attention: Attention, linear: Linear) -> Linear:
    bias = linear.bias
    return Linear(_pad_rows(attention, linear.weight), bias if bias is None else _pad_rows(attention, bias))


def _pad_rows(attention: Attention, tensor: Tensor) -> Tensor:
    """[heads * head_dim, ...] -> [heads * padded, ...]."""
    head_dim, padded = attention.head_dim, round_up(attention.head_dim)

    def rows(start: int, stop: int) -> Array:
        head, dim = np.divmod(np.arange(start, stop), padded)
        real = dim < head_dim
        sources = (head * head_dim + dim)[real]
        result = np.zeros((stop - start, *tensor.shape[1:]))
        if sources.size:
            result[real] = tensor.rows(int(sources[0]), int(sources[-1]) + 1)
        return result

    return Tensor((attention.heads * padded, *tensor.shape[1:]), tensor.sources, rows)


def _pad_inputs(attention: Attention, weight: Tensor) -> Tensor:
    """[outputs, heads * head_dim] -> [outputs, heads * padded]."""
    heads, head_dim, padded = attention.heads, attention.head_dim, round_up(attention.head_dim)

    def rows(start: int, stop: int) -> Array:
        result = np.zeros((stop - start, heads, padded))
        result[:, :, :head_dim] = weight.rows(start, stop).reshape(-1, heads, head_dim)
        return result.reshape(stop - start, -1)

    return Tensor((weight.shape[0], heads * padded), weight.sources, rows)
