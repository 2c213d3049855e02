"""Folds the scale of query . key into the query: s (q . k) = (s q) . k. A bias of distances is added after it.

Queries of distances are scaled as the others are, and keys of distances meet queries that are scaled. A norm cancels
a scale in what it reads, so where there is one of queries its weight is scaled.
"""

from __future__ import annotations

from dataclasses import replace

from ..graph import Attention, Graph, Mlp, Norm, constant


def fold_attention_scale(graph: Graph) -> Graph:
    """Every attention's scale is 1."""
    return graph.map_bodies(_fold)


def _fold(body: Attention | Mlp) -> Attention | Mlp:
    if not isinstance(body, Attention):
        return body
    scale, relative = body.scale, body.relative
    if relative is not None and relative.queries is not None:
        relative = replace(relative, queries=relative.queries.map(lambda rows: rows * scale))
    if body.query_norm is not None:
        scaled = _scaled(body.query_norm, scale, body.norm_widths[0])
        return replace(body, query_norm=scaled, scale=1.0, relative=relative)
    return replace(body, query=body.query.scaled(scale), scale=1.0, relative=relative)


def _scaled(norm: Norm, scale: float, width: int) -> Norm:
    weight = constant(width, 1.0) if norm.weight is None else norm.weight
    return replace(norm, weight=weight.map(lambda rows: rows * scale))
