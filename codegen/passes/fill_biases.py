"""Zeros for the biases that a checkpoint lacks, so that the kernels need no other way.

The value has none, as the linear behind it takes it in, nor has the key without rotary.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ..graph import Attention, Graph, Linear, Sublayer, Tensor


def fill_biases(graph: Graph) -> Graph:
    """Every linear that kernels add a bias of has one."""
    return graph.map(_fill)


def _fill(sublayer: Sublayer) -> Sublayer:
    body = sublayer.body
    if isinstance(body, Attention):
        key = body.key if body.rotary is None else _with_bias(body.key)
        return replace(sublayer, body=replace(body, query=_with_bias(body.query), key=key, out=_with_bias(body.out)))
    gate = None if body.gate is None else _with_bias(body.gate)
    return replace(sublayer, body=replace(body, up=_with_bias(body.up), down=_with_bias(body.down), gate=gate))


def _with_bias(linear: Linear) -> Linear:
    if linear.bias is not None:
        return linear
    outputs = linear.weight.shape[0]
    return replace(linear, bias=Tensor((outputs,), (), lambda start, stop: np.zeros(stop - start)))
