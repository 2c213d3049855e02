"""Calibration: a model in float32 reads a text, and what its matrices meet there decides how they are quantized.

Runs in NumPy, a block at a time over all windows of the text: memory holds the vectors of all tokens and one block.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass, replace
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import evaluate
from .checkpoint import Checkpoint
from .dtypes import Types
from .errors import InputError
from .families import read_graph
from .graph import Block, Linear, Mlp, Stack, Tensor
from .layout import MATRIX_TYPES, round_inputs, round_weights
from .recipe import Origin
from .smooth import Site, named_stacks, own_sublayers, sites_of

Floats = NDArray[np.float32]

SAMPLE = 768  # rows of inputs that a choice is tried on
# How much of what is hard to quantize goes from inputs to weights: the alpha of SmoothQuant, arXiv:2211.10438.
STRENGTHS = tuple(step / 10 for step in range(1, 11))


def calibrate(
    checkpoint: Checkpoint, types: Types, windows: NDArray[np.int64], advance: Callable[[], None] = lambda: None
) -> tuple[Origin, dict[str, Floats]]:
    """What a recipe of a model in `types` says, of token ids [windows, context].

    `advance` is called behind each block. Raises what `read_graph` raises, and InputError for an encoder-decoder and
    where no matrix has quantized inputs.
    """
    graph = read_graph(checkpoint)
    if len(graph.stacks) > 1:
        raise InputError("an encoder-decoder cannot be calibrated yet: bake it without a recipe")
    ((name, stack),) = named_stacks(graph)
    if not any(_is_quantized(each, types) for sublayer in stack.sublayers for each in sublayer.body.linears.values()):
        raise InputError(f"no matrix is quantized in {types.dtype}: give the dtype of the bakes to be, such as int8")
    factors: dict[str, Floats] = {}
    embeddings, own = in_memory(stack.embeddings), own_sublayers(stack)
    streams = [evaluate.embed(embeddings, ids.tolist()) for ids in windows]
    for index, block in enumerate(stack.blocks):
        named = [(f"{name}.{index}.{place}", each) for place, each in enumerate(block.sublayers)]
        names = {id(sublayer): each for each, sublayer in named if id(sublayer) in own}
        streams = pass_block(stack, block, streams, names, types, factors)
        advance()
    origin = Origin(
        method="smooth",
        dtype=types.dtype,
        weights_sha256=checkpoint.sha256(),
        text_sha256=hashlib.sha256(windows.astype(np.int64).tobytes()).hexdigest(),
        windows=windows.shape[0],
        context=windows.shape[1],
    )
    return origin, factors


def pass_block(
    stack: Stack, block: Block, streams: list[Floats], names: dict[int, str], types: Types, factors: dict[str, Floats]
) -> list[Floats]:
    """The streams [count, width] behind a block of those in front of it.

    What is chosen goes into `factors`; `names` are those of the sublayers, by id, whose sites may have some.
    """
    before, sums = streams, [np.zeros_like(each) for each in streams]
    for sublayer in block.sublayers:
        op, name = in_memory(sublayer), names.get(id(sublayer))
        sites = {} if name is None else {site.name.removeprefix(f"{name}."): site for site in sites_of(op, name)}
        reads = [evaluate.norm(op.before, each) for each in (before if block.parallel else streams)]
        _choose(sites.get("norm"), reads, types, factors)
        if isinstance(op.body, Mlp):
            inner = [evaluate.inner(op.body, each) for each in reads]
            _choose(sites.get("inner"), inner, types, factors)
            made = [evaluate.linear(op.body.down, each) for each in inner]
        else:
            made = [evaluate.attention(op.body, each, None, stack.limit) for each in reads]
        made = [evaluate.norm(op.branch, each) for each in made]
        if block.parallel:
            sums = [each + more for each, more in zip(sums, made, strict=True)]
            continue
        kept = reads if op.replaces else streams
        streams = [evaluate.norm(op.after, each + more) for each, more in zip(kept, made, strict=True)]
    return [each + more for each, more in zip(before, sums, strict=True)] if block.parallel else streams


def _is_quantized(linear: Linear, types: Types) -> bool:
    return MATRIX_TYPES[types.of(linear.name)].row_group is not None


def _choose(site: Site | None, inputs: Sequence[Floats], types: Types, factors: dict[str, Floats]) -> None:
    """The factors of a site, where some are better than none."""
    readers = [] if site is None else [each for each in site.readers if _is_quantized(each, types)]
    if site is None or not readers:
        return
    chosen = choose_factors(np.concatenate(inputs), [(each, types.of(each.name)) for each in readers])
    if chosen is not None:
        factors[site.name] = chosen


def choose_factors(inputs: Floats, readers: Sequence[tuple[Linear, str]]) -> Floats | None:
    """The factors [K], of some, with which the readers' outputs of `inputs` [rows, K] are nearest to exact.

    A channel's factor follows its largest input, or the root of its mean square (largest inputs that a few positions
    have would say too much), and its largest weight. A reader has the type beside it. None where 1 is best.
    """
    weights = [(reader.weight.load(), dtype) for reader, dtype in readers]
    sizes = (np.abs(inputs).max(axis=0), np.sqrt(np.square(inputs, dtype=np.float64).mean(axis=0)))
    largest_weight = np.max([np.abs(weight).max(axis=0) for weight, _ in weights], axis=0)
    sample = inputs[:: -(-len(inputs) // SAMPLE)]
    exact = [sample @ weight.T for weight, _ in weights]

    def error(factors: Floats) -> float:
        total = 0.0
        for (weight, dtype), wanted in zip(weights, exact, strict=True):
            rows = round_inputs(sample / factors, dtype)
            total += float(((rows @ round_weights(weight * factors, dtype).T - wanted) ** 2).sum(dtype=np.float64))
        return total

    usable = (sizes[0] > 0) & (largest_weight > 0)
    best, chosen = error(np.ones(inputs.shape[1], np.float32)), None
    if not usable.any():
        return None
    for size, strength in product(sizes, STRENGTHS):
        logarithms = np.zeros(inputs.shape[1])
        logarithms[usable] = strength * np.log(size[usable]) - (1 - strength) * np.log(largest_weight[usable])
        logarithms[usable] -= logarithms[usable].mean()
        tried = np.exp(np.clip(logarithms, -9, 9)).astype(np.float32)
        if (found := error(tried)) < best:
            best, chosen = found, tried
    return chosen


def in_memory(op: Any) -> Any:
    """An op with every tensor in memory, in float32."""
    if isinstance(op, Tensor):
        values: Any = op.load().astype(np.float32)
        return Tensor(op.shape, op.sources, lambda start, stop: values[start:stop])
    if is_dataclass(op) and not isinstance(op, type):
        return replace(op, **{each.name: in_memory(getattr(op, each.name)) for each in fields(op)})
    return op
