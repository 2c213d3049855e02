"""How a student begins: with the parts of its teacher that matter most, or with random weights."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from kaoken.compress import gpt2
from kaoken.compress.gpt2 import BlockCut, Cut, GPT2LMHeadModel
from kaoken.compress.pruning import Importance
from kaoken.compress.scaling import Shape, evenly
from kaoken.errors import InputError


def shape_of(model: GPT2LMHeadModel) -> Shape:
    """InputError for a model whose blocks differ, which no single factor scales."""
    sizes = gpt2.blocks(model)
    n_head, head_dim, n_inner = sizes[0]
    if len(set(sizes)) > 1 or n_head * head_dim != model.config.n_embd:
        raise InputError(
            "the teacher has blocks of different sizes; expected alike ones to scale: name a student instead"
        )
    return Shape(model.config.n_layer, model.config.n_embd, n_head, n_inner, model.config.n_positions)


def parameters_of(shape: Shape, model: GPT2LMHeadModel) -> int:
    """How many a model of this shape has, of the vocabulary and the head of `model`; nothing is allocated."""
    return gpt2.parameters(gpt2.new(config_of(shape, model), None))


def config_of(shape: Shape, model: GPT2LMHeadModel) -> dict[str, object]:
    """The fields of GPT2Config: the model's own but for the sizes."""
    inner = None if shape.inner == 4 * shape.width else shape.inner
    sizes = {"n_layer": shape.layers, "n_embd": shape.width, "n_head": shape.heads, "n_positions": shape.context}
    return {**gpt2.config_fields(model), **sizes, "n_inner": inner}


def random_student(model: GPT2LMHeadModel, shape: Shape, seed: int) -> GPT2LMHeadModel:
    """Of this shape, else configured as the model, drawn as transformers draws a new GPT-2."""
    return gpt2.new(config_of(shape, model), seed)


def check_carvable(model: GPT2LMHeadModel, shape: Shape) -> None:
    """Raises InputError where heads would have to be wider than the model's."""
    _, head_dim, _ = gpt2.blocks(model)[0]
    dims = shape.width // shape.heads
    if dims > head_dim:
        raise InputError(
            f"heads of {dims} cannot start from the teacher's of {head_dim}: scale the width with the heads, or start "
            "from random weights"
        )


def carved_student(model: GPT2LMHeadModel, shape: Shape, importance: Importance) -> GPT2LMHeadModel:
    """The model's own weights: layers evenly spaced, the first and the last among them (Sanh et al., DistilBERT, 2019),
    and of channels, heads and neurons the most important.

    Raises InputError where heads would have to be wider than the model's.
    """
    check_carvable(model, shape)
    dims = shape.width // shape.heads
    layers = evenly(model.config.n_layer, shape.layers)
    kept = tuple(
        BlockCut(
            layer,
            heads=_most(importance.heads[layer], shape.heads),
            dims=(tuple(range(dims)),) * shape.heads,
            neurons=_most(importance.neurons[layer], shape.inner),
        )
        for layer in layers
    )
    return gpt2.carve(model, Cut(kept, _most(importance.channels, shape.width), shape.context))


def _most(scores: Sequence[float] | NDArray[np.float64], count: int) -> tuple[int, ...]:
    """The indices of the largest, ascending."""
    order = np.argsort(-np.asarray(scores), kind="stable")[:count]
    return tuple(sorted(order.tolist()))
