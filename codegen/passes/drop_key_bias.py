"""The key's bias away: it adds the same q . b to every score of a row, and softmax does not see that."""

from __future__ import annotations

from dataclasses import replace

from ..graph import Graph


def drop_key_bias(graph: Graph) -> Graph:
    """No key has a bias."""
    blocks = tuple(replace(block, key=replace(block.key, bias=None)) for block in graph.blocks)
    return replace(graph, blocks=blocks)
