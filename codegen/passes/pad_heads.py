"""Every head to a multiple of 16 dimensions, with zeros: query, key and value rows, and the projection's columns.

Zero dimensions change neither query . key nor what the projection reads, and every head then starts on a panel.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ..graph import Array, Block, Graph, Linear, Tensor, computed
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
    weight, bias = linear.weight, linear.bias
    width = block.spec.n_head * round_up(block.spec.head_dim)
    return Linear(
        computed((width, weight.shape[1]), weight.sources, lambda: _pad_axis(block, weight.load())),
        computed((width,), bias.sources, lambda: _pad_axis(block, bias.load())) if bias is not None else None,
    )


def _pad_inputs(block: Block, weight: Tensor) -> Tensor:
    width = block.spec.n_head * round_up(block.spec.head_dim)
    return computed((weight.shape[0], width), weight.sources, lambda: _pad_axis(block, weight.load().T).T)


def _pad_axis(block: Block, array: Array) -> Array:
    """[n_head * head_dim, ...] -> [n_head * padded, ...]."""
    n_head, head_dim = block.spec.n_head, block.spec.head_dim
    padded = np.zeros((n_head, round_up(head_dim), *array.shape[1:]))
    padded[:, :head_dim] = array.reshape(n_head, head_dim, *array.shape[1:])
    return padded.reshape(-1, *array.shape[1:])
