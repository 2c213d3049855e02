"""Adds zeros for the biases that a checkpoint lacks and ones for the weights of norms, so that kernels need one way.

Values get no bias, as the linear behind them has taken it in. Keys get one just where scores depend on it. Norms are
filled where their results are kept: the norm of the embeddings, the last norm of an encoder, those that replace the
residual stream, those of branches, of queries and of keys, and those of a head. Kernels apply the other norms bare.
"""

from __future__ import annotations

from dataclasses import replace

from ..graph import Attention, Graph, Layer, Linear, Mlp, Norm, Stack, Sublayer, constant


def fill_biases(graph: Graph) -> Graph:
    """Every linear and every norm has the bias that kernels add."""
    filled = graph.map_bodies(_fill).map(_fill_norm).map_stacks(_fill_embeddings)
    if filled.head is not None:
        filled = replace(filled, head=replace(filled.head, layers=tuple(map(_fill_layer, filled.head.layers))))
    if filled.encoder is None:
        return filled
    return replace(filled, encoder=replace(filled.encoder, norm=_filled(filled.encoder.norm, filled.encoder.width)))


def _fill(body: Attention | Mlp) -> Attention | Mlp:
    if isinstance(body, Attention):
        key = _with_bias(body.key) if body.bias_of_keys else body.key
        filled = replace(body, query=_with_bias(body.query), key=key, out=_with_bias(body.out))
        of_queries, of_keys = body.norm_widths
        query_norm, key_norm = _filled(body.query_norm, of_queries), _filled(body.key_norm, of_keys)
        return replace(filled, query_norm=query_norm, key_norm=key_norm)
    gate = None if body.gate is None else _with_bias(body.gate)
    return replace(body, up=_with_bias(body.up), down=_with_bias(body.down), gate=gate)


def _fill_norm(sublayer: Sublayer) -> Sublayer:
    width = _width(sublayer.body)
    before = _filled(sublayer.before, width) if sublayer.replaces else sublayer.before
    return replace(sublayer, before=before, branch=_filled(sublayer.branch, width))


def _fill_embeddings(stack: Stack) -> Stack:
    embeddings = stack.embeddings
    if embeddings.projection is not None:  # which has taken the norm's in
        return replace(stack, embeddings=replace(embeddings, projection=_with_bias(embeddings.projection)))
    return replace(stack, embeddings=replace(embeddings, norm=_filled(embeddings.norm, stack.width)))


def _fill_layer(layer: Layer) -> Layer:
    return replace(layer, linear=_with_bias(layer.linear), norm=_filled(layer.norm, layer.linear.weight.shape[0]))


def _width(body: Attention | Mlp) -> int:
    """The width of the residual stream."""
    return (body.out if isinstance(body, Attention) else body.down).weight.shape[0]


def _filled(norm: Norm | None, width: int) -> Norm | None:
    if norm is None:
        return None
    bias = constant(width, 0.0) if norm.bias is None and norm.kind == "layer" else norm.bias
    return replace(norm, weight=norm.weight or constant(width, 1.0), bias=bias)


def _with_bias(linear: Linear) -> Linear:
    if linear.bias is not None:
        return linear
    return replace(linear, bias=constant(linear.weight.shape[0], 0.0))
