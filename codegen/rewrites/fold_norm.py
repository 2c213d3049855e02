"""Folds a norm's weight and bias into the linears that read it: W (g x + b) = (W g) x + W b.

This holds where nothing else reads the norm. So a norm stays as it is
- where its result goes into the residual stream: behind a sublayer, and before one with `replaces`;
- at the end of an encoder, as every cross attention and the caller read it;
- at the end of a decoder whose head is tied, as the head's weight is also the token table.
Where attention sees the source, the norm goes into the query alone, as keys and values do not read it.

A matrix may keep its columns as they are, as in some types another factor for each would cost accuracy. Then the norm
keeps its weight, and its bias alone is folded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from ..graph import Array, Attention, Graph, Linear, Norm, Stack, Sublayer, Tensor, matvec, merge_sources

Keeps = Callable[[Linear], bool]


def fold_norm(graph: Graph, keeps: Keeps = lambda linear: False) -> Graph:
    """Norms that only a body, a head or a projection reads have no bias and, unless one of those `keeps` its columns,
    no weight."""
    folded = graph.map(partial(_fold_before, keeps)).map_stacks(_fold_embeddings)
    decoder, head = folded.decoder, folded.head
    if decoder is None or decoder.norm is None or head is None or head.output is None or head.layers or folded.tied:
        return folded
    norm, (output,) = _divide(decoder.norm, [head.output], keeps)
    return replace(folded, decoder=replace(decoder, norm=norm), head=replace(head, output=output))


def _fold_before(keeps: Keeps, sublayer: Sublayer) -> Sublayer:
    norm, body = sublayer.before, sublayer.body
    if norm is None or sublayer.replaces:
        return sublayer
    names = [name for name in body.linears if name not in ("out", "down")]
    if isinstance(body, Attention) and body.sees == "source":
        names = ["query"]
    norm, linears = _divide(norm, [body.linears[name] for name in names], keeps)
    changes: dict[str, Any] = dict(zip(names, linears, strict=True))
    return replace(sublayer, body=replace(body, **changes), before=norm)


def _divide(norm: Norm, linears: list[Linear], keeps: Keeps) -> tuple[Norm, list[Linear]]:
    """What stays of the norm, and the linears with the rest of it."""
    if norm.weight is None or not any(map(keeps, linears)):
        return _bare(norm), [_fold(norm, linear) for linear in linears]
    return replace(norm, bias=None), [_fold_bias(norm.bias, linear) for linear in linears]


def _fold_embeddings(stack: Stack) -> Stack:
    """Nothing but the projection reads the norm of embeddings that are projected."""
    norm, projection = stack.embeddings.norm, stack.embeddings.projection
    if norm is None or projection is None:
        return stack
    return replace(stack, embeddings=replace(stack.embeddings, norm=_bare(norm), projection=_fold(norm, projection)))


def _bare(norm: Norm) -> Norm:
    return replace(norm, weight=None, bias=None)


def _fold(norm: Norm, linear: Linear) -> Linear:
    return _fold_weight(norm.weight, _fold_bias(norm.bias, linear))


def _fold_weight(gain: Tensor | None, linear: Linear) -> Linear:
    if gain is None:
        return linear
    return replace(linear, weight=linear.weight.map(lambda rows: rows * gain.load(), gain))


def _fold_bias(shift: Tensor | None, linear: Linear) -> Linear:
    if shift is None:
        return linear
    weight, bias = linear.weight, linear.bias

    def moved(start: int, stop: int) -> Array:
        through = matvec(weight, shift.load(), start, stop)
        return through if bias is None else through + bias.rows(start, stop)

    sources = merge_sources(*(tensor for tensor in (bias, weight, shift) if tensor is not None))
    return replace(linear, bias=Tensor((weight.shape[0],), sources, moved))
