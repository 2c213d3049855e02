"""The frequencies of rotary positions, with the scalings for contexts longer than the model was trained on.

They are computed as in transformers' modeling_rope_utils, in float32. Scalings whose results depend on how long a
sequence becomes are refused.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..checkpoint import quoted
from ..errors import UnsupportedModelError
from ..graph import Linear, Rotary, gather
from .fields import Fields

Frequencies = NDArray[np.float32]

MAX_VALUE = 1e12  # of a theta or a factor


@dataclass(frozen=True)
class Turning:
    """How positions turn the heads of queries and keys."""

    rotary: Rotary  # a frequency for each pair of a head, 0 for pairs that stay
    dims: int  # of a head that turn, as the checkpoint has them in front
    gain: float = 1.0  # of scores: what multiplies cosines and sines reaches them through queries and through keys

    def reorder(self, linear: Linear, *, interleaved: bool = False) -> Linear:
        """Queries or keys of a checkpoint with the rows of each head where the graph expects them.

        The graph's pair i is i and i + half, and pairs that turn come first. A checkpoint has the dimensions that turn
        in front of the others; its pair i is i and i + dims / 2 or, interleaved, 2 i and 2 i + 1. Of a head of 8 in
        which 4 dimensions turn, rows 0 1 4 5 2 3 6 7 are taken, or interleaved 0 2 4 5 1 3 6 7.
        """
        head_dim = 2 * len(self.rotary.frequencies)
        turning, others = np.arange(self.dims), np.arange(self.dims, head_dim)
        pairs = turning.reshape(-1, 2).T if interleaved else turning.reshape(2, -1)
        order = np.concatenate([pairs, others.reshape(2, -1)], axis=1).ravel()
        if np.array_equal(order, np.arange(head_dim)):
            return linear
        heads = np.arange(linear.weight.shape[0] // head_dim)[:, None] * head_dim
        return linear.map(lambda tensor: gather(tensor, (heads + order).ravel()))


def read_rotary(fields: Fields, head_dim: int, theta: float, limit: int, share: float | None = None) -> Turning:
    """From `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling`, for up to `limit` positions.

    With a `share`, that is how much of a head turns where `partial_rotary_factor` does not say it. Raises
    UnsupportedModelError for other scalings and CheckpointError for numbers out of range.
    """
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
    dims = head_dim if share is None else _read_dims(fields, inner, head_dim, share)
    exponents = np.arange(0, dims, 2, dtype=np.float32) / np.float32(dims)
    frequencies: Frequencies = (1.0 / (np.float32(theta) ** exponents)).astype(np.float32)
    factor = 1.0
    if kind == "linear":
        frequencies = frequencies / np.float32(inner.number("factor", None, 1.0, MAX_VALUE))
    elif kind == "dynamic":
        _check_dynamic(inner, limit)
    elif kind == "llama3":
        frequencies = _llama3(inner, frequencies, limit)
    elif kind == "factors":  # Kaoken's own, of a GGUF, which has the quotients that llama3 leads to
        frequencies = frequencies / _factors(inner, len(frequencies))
    elif kind == "yarn":
        frequencies, factor = _yarn(inner, frequencies, theta, limit)
    elif kind != "default":
        raise UnsupportedModelError(
            f"{fields.where}: {name} is of type {quoted(kind)}; expected default, linear, dynamic, llama3 or yarn: "
            "choose a checkpoint with one of these"
        )
    if factor != 1.0 and dims < head_dim:
        raise UnsupportedModelError(
            f"{inner.where}: the type {quoted(kind)} multiplies the {dims} dimensions of a head that turn by "
            f"{factor:.6g}, and not the others; expected a scaling that multiplies none: set attention_factor to 1 or "
            "choose a checkpoint without it"
        )
    inner.finish("rotary positions", frozenset(), frozenset())
    all_pairs = np.pad(frequencies, (0, head_dim // 2 - len(frequencies)))
    return Turning(Rotary(tuple(all_pairs.tolist())), dims, factor * factor)


def read_rotary_by_kind(
    fields: Fields, head_dim: int, thetas: Mapping[str, float], limit: int, title: str, scaled: str | None = None
) -> dict[str, Turning]:
    """By the kind of a block, from `rope_parameters` with an object for each kind (transformers 5) or the kind's theta.

    A `rope_scaling` of the config is for the kind `scaled`. Raises what `read_rotary` does.
    """
    given = fields.get("rope_parameters", {}) or {}
    if not isinstance(given, dict) or not given.keys() <= thetas.keys():
        raise UnsupportedModelError(
            f"{fields.where}: rope_parameters is not by {' and '.join(thetas)}; expected an object with these: choose "
            f"or save a plain {title.partition(' ')[2]}"
        )
    turnings = {}
    for kind, theta in thetas.items():
        values = {"rope_parameters": given.get(kind)}
        if kind == scaled:
            values["rope_scaling"] = fields.get("rope_scaling")
        turnings[kind] = read_rotary(Fields(values, f"{fields.where}: {kind}"), head_dim, theta, limit)
    return turnings


def _read_dims(fields: Fields, inner: Fields, head_dim: int, share: float) -> int:
    """The dimensions of a head that turn."""
    share = fields.number("partial_rotary_factor", share, 1e-6, 1.0)
    dims = int(head_dim * inner.number("partial_rotary_factor", share, 1e-6, 1.0))
    if dims < 2 or dims % 2 or head_dim % 2:
        where = inner if "partial_rotary_factor" in inner.values else fields
        raise where.fail("partial_rotary_factor", f"an even number of a head's {head_dim} dimensions, as pairs turn")
    return dims


def _check_dynamic(inner: Fields, limit: int) -> None:
    """Within the context of the training frequencies stay; beyond it they would change with each position."""
    inner.number("factor", None, 1.0, MAX_VALUE)
    original = inner.number("original_max_position_embeddings", limit, 1, MAX_VALUE)
    if original < limit:
        raise UnsupportedModelError(
            f"{inner.where} is of type 'dynamic', which has other frequencies for each length of a text beyond "
            f"original_max_position_embeddings, {original:.0f}: results would depend on how a text is split; expected "
            f"no more positions than that: set max_position_embeddings, which is {limit}, to {original:.0f}"
        )


def _factors(inner: Fields, count: int) -> Frequencies:
    factors = inner.get("factors")
    known = isinstance(factors, list) and len(factors) == count and all(isinstance(each, float) for each in factors)
    if not known or not all(1e-3 <= each <= MAX_VALUE for each in factors):
        raise inner.fail("factors", f"{count} numbers from 0.001 to {MAX_VALUE:g}")
    return np.array(factors, np.float32)


def _llama3(inner: Fields, frequencies: Frequencies, limit: int) -> Frequencies:
    """Low frequencies are divided by a factor, high ones stay, and those between them are a mixture of both."""
    factor = inner.number("factor", None, 1.0, MAX_VALUE)
    low, high = (
        inner.number("low_freq_factor", None, 1e-3, MAX_VALUE),
        inner.number("high_freq_factor", None, 1e-3, MAX_VALUE),
    )
    if not low < high:
        raise inner.fail("high_freq_factor", "more than low_freq_factor")
    context = inner.number("original_max_position_embeddings", limit, 1, MAX_VALUE)
    turns = context * frequencies.astype(np.float64) / (2 * math.pi)  # in the original context
    share = np.clip((turns - low) / (high - low), 0, 1)
    scaled: Frequencies = (((1 - share) / factor + share) * frequencies).astype(np.float32)
    return scaled


def _yarn(inner: Fields, frequencies: Frequencies, theta: float, limit: int) -> tuple[Frequencies, float]:
    """YaRN (Peng et al., arXiv:2309.00071): a mixture by the pair's index, and a factor of cosines and sines."""
    factor = inner.number("factor", None, 1.0, MAX_VALUE)
    context = inner.number("original_max_position_embeddings", limit, 1, MAX_VALUE)
    fast, slow = _number_or_null(inner, "beta_fast", 32.0), _number_or_null(inner, "beta_slow", 1.0)
    if not slow <= fast:
        raise inner.fail("beta_fast", f"no less than beta_slow, which is {slow:g}")
    if theta == 1.0:
        raise inner.fail("rope_theta", "more than 1, where positions are of type yarn")
    count = len(frequencies)

    def pair(turns: float) -> float:
        """The index of the pair that turns so often in the original context."""
        return count * math.log(context / (turns * 2 * math.pi)) / math.log(theta)

    first, last = pair(fast), pair(slow)
    if inner.boolean("truncate", True):
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, 2 * count - 1)
    if first == last:
        last += 0.001
    share = np.clip((np.arange(count) - first) / (last - first), 0, 1)  # of what is divided
    scaled: Frequencies = ((share / factor + 1 - share) * frequencies).astype(np.float32)
    return scaled, _attention_factor(inner, factor)


def _attention_factor(inner: Fields, factor: float) -> float:
    if inner.get("attention_factor") is not None:
        inner.ignore("mscale", "mscale_all_dim")
        return inner.number("attention_factor", None, 1e-6, 1e6)

    def mscale(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0

    over, under = _number_or_null(inner, "mscale", 0.0), _number_or_null(inner, "mscale_all_dim", 0.0)
    return mscale(over) / mscale(under) if over and under else mscale(1.0)


def _number_or_null(inner: Fields, name: str, default: float) -> float:
    """A number of which null and 0 stand for the default, as in transformers."""
    return inner.number(name, default, 0.0, 1e6) if inner.get(name) else default
