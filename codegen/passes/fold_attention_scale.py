"""The scale of query . key into the query: s (q . k) = (s q) . k."""

from __future__ import annotations

from dataclasses import replace

from ..graph import Block, Graph, Linear


def fold_attention_scale(graph: Graph) -> Graph:
    """Every block's attn_scale is 1."""
    return replace(graph, blocks=tuple(_fold(block) for block in graph.blocks))


def _fold(block: Block) -> Block:
    scale = block.attn_scale
    bias = block.query.bias
    query = Linear(
        block.query.weight.map(lambda rows: rows * scale),
        bias.map(lambda rows: rows * scale) if bias is not None else None,
    )
    return replace(block, query=query, attn_scale=1.0)
