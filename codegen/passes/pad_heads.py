"""Every head to a multiple of 16 dimensions, with zeros: query, key and value rows, and the projection's columns.

Zero dimensions change neither query . key nor what the projection reads, and every head then starts on a panel.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ..graph import Array, Block, Graph, Linear, Tensor
from ..layout import round_up


def pad_heads(graph: Graph) -> Graph:
    """The attention width of every block is n_head * round_up(head_dim, 16)."""
    return replace(graph, blocks=tuple(_pad(block) for block in graph.blocks))


def _pad(block: Block) -> Block:
    if block.spec.head_dim == round_up(block.spec.head_dim):
        return block
    return replace(
        block,
        query=_pad_outputs(block, block.query),
        key=_pad_outputs(block, block.key),
        value=_pad_outputs(block, block.value),
        attn_out=replace(block.attn_out, weight=_pad_inputs(block, block.attn_out.weight)),
    )


def _pad_outputs(block: Block, linear: Linear) -> Linear:
    bias = linear.bias
    return Linear(_pad_rows(block, linear.weight), bias if bias is None else _pad_rows(block, bias))


def _pad_rows(block: Block, tensor: Tensor) -> Tensor:
    """[n_head * head_dim, ...] -> [n_head * padded, ...]."""
    head_dim, padded = block.spec.head_dim, round_up(block.spec.head_dim)

    def rows(start: int, stop: int) -> Array:
        head, dim = np.divmod(np.arange(start, stop), padded)
        real = dim < head_dim
        sources = (head * head_dim + dim)[real]
        result = np.zeros((stop - start, *tensor.shape[1:]))
        if sources.size:
            result[real] = tensor.rows(int(sources[0]), int(sources[-1]) + 1)
        return result

    return Tensor((block.spec.n_head * padded, *tensor.shape[1:]), tensor.sources, rows)


def _pad_inputs(block: Block, weight: Tensor) -> Tensor:
    """[outputs, n_head * head_dim] -> [outputs, n_head * padded]."""
    n_head, head_dim, padded = block.spec.n_head, block.spec.head_dim, round_up(block.spec.head_dim)

    def rows(start: int, stop: int) -> Array:
        result = np.zeros((stop - start, n_head, padded))
        result[:, :, :head_dim] = weight.rows(start, stop).reshape(-1, n_head, head_dim)
        return result.reshape(stop - start, -1)

    return Tensor((weight.shape[0], n_head * padded), weight.sources, rows)
