"""Divides what matrices read by a factor for each channel, and multiplies their columns by it.

That changes no output but for rounding, and moves what is hard to quantize from inputs to weights (SmoothQuant,
arXiv:2211.10438). It costs nothing where the channels are made by something that takes the factors in:
- the norm in front of a body, where nothing else reads it ("norm");
- the up projection of an MLP whose inner values are proportional to it: with a gate, or under relu ("inner").

The factors come from a recipe (codegen/recipe.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import CheckpointError
from .graph import Attention, Graph, Linear, Mlp, Norm, Stack, Sublayer, Tensor, constant

Factors = Mapping[str, NDArray[np.floating[Any]]]


@dataclass(frozen=True)
class Site:
    """Channels that may have factors."""

    name: str  # "decoder.3.1.inner": the stack, the block, the sublayer in it, and what makes the channels
    width: int  # channels
    readers: tuple[Linear, ...]  # that read them, which are all


def own_sublayers(stack: Stack) -> set[int]:
    """The ids of the sublayers whose channels are their own: those that no two blocks share."""
    counts = Counter(key for each in stack.sublayers for key in {id(each), id(each.body)})
    return {id(each) for each in stack.sublayers if counts[id(each)] == counts[id(each.body)] == 1}


def sites_of(sublayer: Sublayer, name: str) -> Iterator[Site]:
    """Those of one sublayer, `name` being "decoder.3.1"."""
    body = sublayer.body
    if sublayer.before is not None and not sublayer.replaces:
        readers = tuple(body.linears[each] for each in _reading(body))
        yield Site(f"{name}.norm", readers[0].weight.shape[1], readers)
    if isinstance(body, Mlp) and (body.gate is not None or body.activation == "relu"):
        yield Site(f"{name}.inner", body.inner, (body.down,))


def _reading(body: Attention | Mlp) -> list[str]:
    """The linears that read what a norm in front gives."""
    if isinstance(body, Attention) and body.sees == "source":
        return ["query"]
    return [name for name in body.linears if name not in ("out", "down")]


def smooth(graph: Graph, factors: Factors, source: object = "the recipe") -> Graph:
    """The graph with these factors by site, which `source` has.

    Raises CheckpointError for a site that the graph lacks, or of another width.
    """
    left = dict(factors)
    changed: dict[int, Sublayer] = {}
    for stack_name, stack in named_stacks(graph):
        own = own_sublayers(stack)
        for name, sublayer in named_sublayers(stack_name, stack):
            for site in sites_of(sublayer, name) if id(sublayer) in own else ():
                if (factor := left.pop(site.name, None)) is None:
                    continue
                if factor.shape != (site.width,):
                    raise _other(source, f"has {len(factor)} channels at {site.name}, and this one {site.width}")
                changed[id(sublayer)] = _smooth(changed.get(id(sublayer), sublayer), site, factor.astype(np.float64))
    if left:
        raise _other(source, f"has channels at {next(iter(left))}, and this one none")
    return graph.map(lambda sublayer: changed.get(id(sublayer), sublayer))


def _other(source: object, how: str) -> CheckpointError:
    return CheckpointError(f"{source} is of another model, which {how}: calibrate this checkpoint")


def named_sublayers(name: str, stack: Stack) -> Iterator[tuple[str, Sublayer]]:
    """Each as sites name it."""
    for index, block in enumerate(stack.blocks):
        for place, sublayer in enumerate(block.sublayers):
            yield f"{name}.{index}.{place}", sublayer


def named_stacks(graph: Graph) -> list[tuple[str, Stack]]:
    """The encoder and the decoder, as sites name them."""
    named = (("encoder", graph.encoder), ("decoder", graph.decoder))
    return [(name, stack) for name, stack in named if stack is not None]


def _smooth(sublayer: Sublayer, site: Site, factor: NDArray[np.float64]) -> Sublayer:
    body = sublayer.body
    if isinstance(body, Mlp) and site.name.endswith(".inner"):
        up = body.up.map(lambda tensor: _rows(tensor, 1 / factor))
        return replace(sublayer, body=replace(body, up=up, down=_columns(body.down, factor)))
    assert sublayer.before is not None
    changes: dict[str, Any] = {name: _columns(body.linears[name], factor) for name in _reading(body)}
    return replace(sublayer, before=_norm(sublayer.before, 1 / factor), body=replace(body, **changes))


def _norm(norm: Norm, by: NDArray[np.float64]) -> Norm:
    weight = constant(len(by), 1.0) if norm.weight is None else norm.weight
    return replace(norm, weight=_rows(weight, by), bias=norm.bias and _rows(norm.bias, by))


def _rows(tensor: Tensor, by: NDArray[np.float64]) -> Tensor:
    def rows(start: int, stop: int) -> NDArray[np.float64]:
        read = tensor.rows(start, stop)
        return read * by[start:stop].reshape(-1, *[1] * (read.ndim - 1))

    return Tensor(tensor.shape, tensor.sources, rows)


def _columns(linear: Linear, by: NDArray[np.float64]) -> Linear:
    return replace(linear, weight=linear.weight.map(lambda rows: rows * by))
