"""Pads every head with zeros to whole panels of 16 dimensions: rows of query, key and value, and columns of `out`.
Keys and queries of distances are padded likewise, and weights of norms, which divide by the real dimensions.

Zero dimensions change neither query . key nor what `out` gives, and every head then starts on a panel. Under rotary
each half of a head starts on a panel, so that kernels can turn one half by the other.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ..graph import Array, Attention, Graph, Linear, Mlp, Norm, Tensor


def pad_heads(graph: Graph) -> Graph:
    """The dims of every attention are its padded_dims."""
    return graph.map_bodies(_pad)


def _pad(body: Attention | Mlp) -> Attention | Mlp:
    if not isinstance(body, Attention) or body.dims == body.padded_dims:
        return body
    return replace(
        body,
        query=_pad_outputs(body, body.query),
        key=_pad_outputs(body, body.key),
        value=_pad_outputs(body, body.value),
        out=replace(body.out, weight=_pad_inputs(body, body.out.weight)),
        query_norm=_pad_norm(body, body.query_norm),
        key_norm=_pad_norm(body, body.key_norm),
        relative=body.relative and body.relative.map(lambda table: _pad_table(body, table)),
    )


def _places(attention: Attention) -> NDArray[np.int64]:
    """Where each dimension of a head goes, [head_dim]."""
    places = np.arange(attention.head_dim)
    if attention.rotary is not None:
        half = attention.head_dim // 2
        places[half:] += attention.padded_dims // 2 - half
    return places


def _pad_outputs(attention: Attention, linear: Linear) -> Linear:
    bias = linear.bias
    return Linear(_pad_rows(attention, linear.weight), bias if bias is None else _pad_rows(attention, bias))


def _pad_norm(attention: Attention, norm: Norm | None) -> Norm | None:
    if norm is None or norm.weight is None:
        return norm
    return replace(norm, weight=_pad_rows(attention, norm.weight))


def _pad_rows(attention: Attention, tensor: Tensor) -> Tensor:
    """[n * head_dim, ...] -> [n * padded_dims, ...]."""
    head_dim, padded = attention.head_dim, attention.padded_dims
    source = np.full(padded, -1)
    source[_places(attention)] = np.arange(head_dim)

    def rows(start: int, stop: int) -> Array:
        head, dim = np.divmod(np.arange(start, stop), padded)
        real = source[dim] >= 0
        wanted = (head * head_dim + source[dim])[real]
        result = np.zeros((stop - start, *tensor.shape[1:]))
        if wanted.size:
            result[real] = tensor.rows(int(wanted[0]), int(wanted[-1]) + 1)
        return result

    return Tensor((tensor.shape[0] // head_dim * padded, *tensor.shape[1:]), tensor.sources, rows)


def _pad_table(attention: Attention, table: Tensor) -> Tensor:
    """[heads, count, head_dim] -> [heads, count, padded_dims]."""

    def rows(start: int, stop: int) -> Array:
        result = np.zeros((stop - start, table.shape[1], attention.padded_dims))
        result[:, :, _places(attention)] = table.rows(start, stop)
        return result

    return Tensor((*table.shape[:2], attention.padded_dims), table.sources, rows)


def _pad_inputs(attention: Attention, weight: Tensor) -> Tensor:
    """[outputs, heads * head_dim] -> [outputs, heads * padded_dims]."""
    heads, head_dim, padded = attention.heads, attention.head_dim, attention.padded_dims

    def rows(start: int, stop: int) -> Array:
        result = np.zeros((stop - start, heads, padded))
        result[:, :, _places(attention)] = weight.rows(start, stop).reshape(-1, heads, head_dim)
        return result.reshape(stop - start, -1)

    return Tensor((weight.shape[0], heads * padded), weight.sources, rows)
