"""Drops the key's bias: it adds the same q . b to every score of a row, and that does not change the softmax.

This holds whatever the row sees, with or without a bias of distances. Under rotary the bias stays, as the position of
each key turns it.
"""

from __future__ import annotations

from dataclasses import replace

from ..graph import Attention, Graph, Sublayer


def drop_key_bias(graph: Graph) -> Graph:
    """No key without rotary has a bias."""
    return graph.map(_drop)


def _drop(sublayer: Sublayer) -> Sublayer:
    body = sublayer.body
    if not isinstance(body, Attention) or body.rotary is not None:
        return sublayer
    return replace(sublayer, body=replace(body, key=replace(body.key, bias=None)))
