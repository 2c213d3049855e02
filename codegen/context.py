"""Fewer positions than a checkpoint has: what `context` of a bake makes of its graph."""

from __future__ import annotations

from dataclasses import replace

from .errors import InputError
from .graph import Array, Attention, Graph, Mlp, Tensor, part


def shorten(graph: Graph, context: int | None) -> Graph:
    """A decoder for sequences of up to `context` positions, which computes for them what it did; None: as it is.

    Raises InputError for none or more positions than the checkpoint has, and for models that are no decoders.
    """
    if context is None:
        return graph
    if graph.decoder is None or graph.encoder is not None:
        raise InputError(f"context={context} is for decoders, and this model is an {graph.kind}: leave it out")
    stack = graph.decoder
    if not 1 <= context <= stack.limit:
        raise InputError(
            f"context={context} is not a part of the {stack.limit} positions that the checkpoint has: give 1 to "
            f"{stack.limit}, or leave it out"
        )
    biases: dict[int, Tensor] = {}  # that blocks share stay one

    def body(each: Attention | Mlp) -> Attention | Mlp:
        if isinstance(each, Mlp):
            return each
        window = each.window if each.window is not None and each.window < context else None
        bias = each.distance_bias
        if bias is not None:
            bias = biases.setdefault(id(bias), _shorten_bias(bias, stack.limit, context))
        return replace(each, window=window, distance_bias=bias)

    positions = stack.embeddings.positions
    embeddings = replace(stack.embeddings, positions=positions and part(positions, 0, context))
    return replace(graph, decoder=replace(stack.map_bodies(body), embeddings=embeddings, limit=context))


def _shorten_bias(bias: Tensor, limit: int, context: int) -> Tensor:
    """[heads, 2 * limit] -> [heads, 2 * context], both by distances from their middle."""

    def rows(start: int, stop: int) -> Array:
        return bias.rows(start, stop)[:, limit - context : limit + context]

    return Tensor((bias.shape[0], 2 * context), bias.sources, rows)
