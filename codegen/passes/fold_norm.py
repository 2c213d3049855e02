"""A norm's weight and bias into the linears that read it: W (g x + b) = (W g) x + W b.

The final norm stays as it is where the head is tied: the head's weight is also the token table.
"""

from __future__ import annotations

from dataclasses import replace

from ..graph import Array, Attention, Graph, Linear, Norm, Sublayer, Tensor, matvec, merge_sources


def fold_norm(graph: Graph) -> Graph:
    """No norm before a body keeps a weight or a bias, nor the final one where the head is its own matrix."""
    folded = graph.map(_fold_before)
    if graph.tied:
        return folded
    norm = graph.decoder.norm
    return replace(folded, decoder=replace(folded.decoder, norm=_bare(norm)), head=_fold(norm, graph.head))


def _fold_before(sublayer: Sublayer) -> Sublayer:
    norm, body = sublayer.before, sublayer.body
    if isinstance(body, Attention):
        query, key, value = (_fold(norm, linear) for linear in (body.query, body.key, body.value))
        return Sublayer(replace(body, query=query, key=key, value=value), _bare(norm))
    gate = None if body.gate is None else _fold(norm, body.gate)
    return Sublayer(replace(body, up=_fold(norm, body.up), gate=gate), _bare(norm))


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
