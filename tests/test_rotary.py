"""Rotary positions of a part of a head, and of pairs that lie side by side: rows of a checkpoint find their places."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from kaoken.codegen import evaluate as evaluator
from kaoken.codegen.errors import CheckpointError
from kaoken.codegen.families.fields import Fields
from kaoken.codegen.families.rotary import Turning, read_rotary
from kaoken.codegen.graph import Linear, Tensor
from numpy.typing import NDArray

HEADS, COUNT = 3, 7
Array = NDArray[np.float64]


def read(config: dict[str, Any], head_dim: int, share: float | None = None) -> Turning:
    return read_rotary(Fields(config, "config.json"), head_dim, 100.0, 64, share)


def tensor(values: Array) -> Tensor:
    return Tensor(values.shape, ("query.weight",), lambda start, stop: values[start:stop])


def stored_turn(x: Array, dims: int, theta: float, interleaved: bool) -> Array:
    """[count, heads, head_dim] as a checkpoint's dimensions are turned: the first `dims` of each head."""
    firsts = np.arange(0, dims, 2) if interleaved else np.arange(dims // 2)
    seconds = firsts + (1 if interleaved else dims // 2)
    turned = x.copy()
    for pair, (first, second) in enumerate(zip(firsts, seconds, strict=True)):
        angle = np.arange(len(x))[:, None] * theta ** (-2 * pair / dims)
        turned[..., first] = x[..., first] * np.cos(angle) - x[..., second] * np.sin(angle)
        turned[..., second] = x[..., second] * np.cos(angle) + x[..., first] * np.sin(angle)
    return turned


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize(("head_dim", "share"), [(8, 1.0), (8, 0.5), (12, 0.34), (20, 0.25), (2, 1.0)])
def test_scores_are_those_of_the_checkpoint(head_dim: int, share: float, interleaved: bool) -> None:
    dims = int(head_dim * share) // 2 * 2
    turning = read({"partial_rotary_factor": dims / head_dim}, head_dim, 1.0)
    assert (turning.dims, len(turning.rotary.frequencies)) == (dims, head_dim // 2)
    random = np.random.default_rng(0)
    weights, biases = random.normal(size=(2, HEADS * head_dim, 5)), random.normal(size=(2, HEADS * head_dim))
    x, scores = random.normal(size=(COUNT, 5)), []
    for turn, reorder in (
        (lambda heads: stored_turn(heads, dims, 100.0, interleaved), lambda linear: linear),
        (
            lambda heads: evaluator.turn(turning.rotary, heads),
            lambda linear: turning.reorder(linear, interleaved=interleaved),
        ),
    ):
        query, key = (
            turn(evaluator.linear(reorder(Linear(tensor(weight), tensor(bias))), x).reshape(COUNT, HEADS, head_dim))
            for weight, bias in zip(weights, biases, strict=True)
        )
        scores.append(np.einsum("qhd,khd->hqk", query, key))
    np.testing.assert_allclose(scores[1], scores[0], rtol=0, atol=1e-5)


def test_rows_of_a_piece_are_those_of_the_whole() -> None:
    values = np.arange(HEADS * 8, dtype=np.float64)[:, None]
    turning = read({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, 8, 1.0)
    whole = turning.reorder(Linear(tensor(values), None), interleaved=True).weight
    assert whole.load()[:8, 0].tolist() == [0, 2, 4, 5, 1, 3, 6, 7]
    for start in range(HEADS * 8):
        for stop in range(start + 1, HEADS * 8 + 1):
            np.testing.assert_array_equal(whole.rows(start, stop), whole.load()[start:stop])


def test_heads_that_turn_whole_in_halves_stay_as_they_are() -> None:
    linear = Linear(tensor(np.ones((8, 2))), None)
    assert read({}, 4).reorder(linear) is linear


@pytest.mark.parametrize("share", [0.0, -0.5, 1.5, "half", 0.1, 0.3])
def test_shares_that_are_none(share: object) -> None:
    with pytest.raises(CheckpointError, match="partial_rotary_factor is"):
        read({"partial_rotary_factor": share}, 10, 1.0)
