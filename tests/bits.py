"""How results are compared bit for bit, and cut into the parts that must not change them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from numpy.typing import NDArray

if TYPE_CHECKING:
    from kaoken import BakedGPT2

Ids = NDArray[np.int64]
Logits = NDArray[np.float32]


def require_same_bits(actual: NDArray[Any], expected: NDArray[Any]) -> None:
    """Fails where one value differs in any bit."""
    assert (actual.dtype, actual.shape) == (expected.dtype, expected.shape)
    if actual.tobytes() != expected.tobytes():
        differing = np.flatnonzero(actual.ravel() != expected.ravel())
        worst = np.abs(actual.astype(np.float64) - expected).max()
        pytest.fail(f"{differing.size} of {actual.size} differ, first at {differing[:5]}, by up to {worst:.3g}")


def decode(model: BakedGPT2, ids: Ids, splits: Sequence[int]) -> list[Logits]:
    """The last logits [batch, vocab_size] of every part that the splits cut ids [batch, count] into."""
    session = model.session(len(ids))
    return [session.append(part) for part in np.split(ids, splits, axis=1)]


def require_decode_equals_prefill(model: BakedGPT2, ids: Ids, splits: Sequence[int]) -> None:
    logits = model.logits(ids)
    for end, last in zip([*splits, ids.shape[1]], decode(model, ids, splits), strict=True):
        require_same_bits(last, logits[:, end - 1])


def random_splits(count: int, seed: int) -> list[int]:
    """Where to cut `count` positions, in parts whose lengths range from 1 to about a hundred."""
    random = np.random.Generator(np.random.PCG64(seed))
    ends = np.cumsum(2 ** random.integers(0, 7, size=count) + random.integers(0, 3, size=count))
    return [int(end) for end in ends if end < count]
