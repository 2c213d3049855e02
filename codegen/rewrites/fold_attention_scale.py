"""Folds the scale of query . key into the query: s (q . k) = (s q) . k. A bias of distances is added after it.

Queries of distances are scaled as the others are, and keys of distances meet queries that are scaled.
"""

from __future__ import annotations

from dataclasses import replace

from ..graph import Attention, Graph, Mlp


def fold_attention_scale(graph: Graph) -> Graph:
    """Every attention's scale is 1."""
    return graph.map_bodies(_fold)


def _fold(body: Attention | Mlp) -> Attention | Mlp:
    if not isinstance(body, Attention):
        return body
    scale, relative = body.scale, body.relative
    if relative is not None and relative.queries is not None:
        relative = replace(relative, queries=relative.queries.map(lambda rows: rows * scale))
    return replace(body, query=body.query.scaled(scale), scale=1.0, relative=relative)
