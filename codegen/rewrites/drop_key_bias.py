"""Drops the key's bias: it adds the same q . b to every score of a row, and that does not change the softmax.

This holds whatever the row sees, with or without a bias of distances. Under rotary the bias stays, as the position of
each key turns it. So it does where queries of distances meet keys: a row has another one for each key.
"""

from __future__ import annotations

from dataclasses import replace

from ..graph import Attention, Graph, Mlp


def drop_key_bias(graph: Graph) -> Graph:
    """Keys have a bias just where scores depend on it."""
    return graph.map_bodies(_drop)


def _drop(body: Attention | Mlp) -> Attention | Mlp:
    if not isinstance(body, Attention) or body.bias_of_keys:
        return body
    return replace(body, key=replace(body.key, bias=None))
