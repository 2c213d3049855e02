"""The frequencies of rotary positions, with the scalings for contexts longer than the model was trained on.

They are computed as in transformers' modeling_rope_utils, in float32. Scalings whose results depend on how long a
sequence becomes are refused.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from ..checkpoint import quoted
from ..errors import UnsupportedModelError
from ..graph import Rotary
from .fields import Fields

Frequencies = NDArray[np.float32]

MAX_VALUE = 1e12  # of a theta or a factor


def read_rotary(fields: Fields, dims: int, theta: float) -> Rotary:
    """The frequencies of `dims` dimensions: `rope_parameters` (transformers 5), or `rope_theta` and `rope_scaling`."""
    given = fields.get("rope_parameters")
    theta = fields.number("rope_theta", theta, 1.0, MAX_VALUE)
    scaling = fields.get("rope_scaling")
    name = "rope_scaling" if given is None else "rope_parameters"
    values = scaling if given is None else given
    if values is not None and not isinstance(values, dict):
        raise fields.fail(name, "an object or null")
    if given is not None and scaling is not None and given != scaling:
        raise fields.fail("rope_scaling", "what rope_parameters says, or null")
    inner = Fields(values or {}, f"{fields.where}: {name}", {"type": "rope_type"})
    kind = inner.get("rope_type", "default")
    theta = inner.number("rope_theta", theta, 1.0, MAX_VALUE)
    exponents = np.arange(0, dims, 2, dtype=np.float32) / np.float32(dims)
    frequencies: Frequencies = (1.0 / (np.float32(theta) ** exponents)).astype(np.float32)
    if kind == "linear":
        frequencies = frequencies / np.float32(inner.number("factor", None, 1.0, MAX_VALUE))
    elif kind == "llama3":
        frequencies = _llama3(inner, frequencies)
    elif kind != "default":
        raise UnsupportedModelError(
            f"{fields.where}: {name} is of type {quoted(kind)}; expected default, linear or llama3: choose a "
            "checkpoint with one of these"
        )
    inner.finish("rotary positions", frozenset(), frozenset())
    return Rotary(tuple(frequencies.tolist()))


def _llama3(inner: Fields, frequencies: Frequencies) -> Frequencies:
    """Low frequencies are divided by a factor, high ones stay, and those between them are a mixture of both."""
    factor = inner.number("factor", None, 1.0, MAX_VALUE)
    low, high = (
        inner.number("low_freq_factor", None, 1e-3, MAX_VALUE),
        inner.number("high_freq_factor", None, 1e-3, MAX_VALUE),
    )
    if not low < high:
        raise inner.fail("high_freq_factor", "more than low_freq_factor")
    context = inner.number("original_max_position_embeddings", None, 1, MAX_VALUE)
    turns = context * frequencies.astype(np.float64) / (2 * math.pi)  # in the original context
    share = np.clip((turns - low) / (high - low), 0, 1)
    scaled: Frequencies = (((1 - share) / factor + share) * frequencies).astype(np.float32)
    return scaled
