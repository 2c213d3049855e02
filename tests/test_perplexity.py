"""What each type of weight costs the bundled model, in perplexity on text that it was not trained on."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from conftest import BakedBundled, RecordPerplexity
from native_build import SOURCE

pytestmark = pytest.mark.ci

Perplexity = Callable[[str], float]

SHARED = Path(os.environ.get("KAOKEN_SHARED") or SOURCE.parent / "shared")
CORPUS = SHARED / "data" / "tinyshakespeare.txt"
WINDOW, WINDOWS, BATCH = 256, 435, 15

FLOAT32 = 4.3155  # models/gptlite-shakespeare/README.md
# Relative to float32.
LIMITS = {"bfloat16": 1e-3, "int8": 2e-3, "int8-g32": 2e-3, "int4": 2e-2, "int4-all": 3e-2, "int4-min": 2e-2}


@pytest.fixture(scope="module")
def text() -> NDArray[np.int64]:
    """The windows of the last tenth, [windows][256 + 1]: each ends with the byte that the next one begins with."""
    if not CORPUS.exists():
        pytest.skip(f"needs {CORPUS.name} in a folder named shared beside the repository, or in KAOKEN_SHARED")
    data = np.frombuffer(CORPUS.read_bytes(), np.uint8)
    last = data[data.size * 9 // 10 :].astype(np.int64)
    assert (last.size - 1) // WINDOW == WINDOWS
    return np.stack([last[start : start + WINDOW + 1] for start in range(0, WINDOW * WINDOWS, WINDOW)])


def loss(logits: NDArray[np.float32], targets: NDArray[np.int64]) -> float:
    """The summed -log p of targets [...] under logits [..., vocab_size]."""
    largest = logits.max(axis=-1, keepdims=True)
    chosen = np.take_along_axis(logits - largest, targets[..., None], axis=-1)[..., 0]
    return float((np.log(np.exp(logits - largest).sum(axis=-1)) - chosen).sum(dtype=np.float64))


@pytest.fixture(scope="module")
def perplexity(text: NDArray[np.int64], baked_bundled: BakedBundled) -> Perplexity:
    """`perplexity(dtype)` of the bundled model over all windows."""

    @cache
    def perplexity(dtype: str) -> float:
        model = baked_bundled(dtype)
        batches = np.split(text, WINDOWS // BATCH)
        total = sum(loss(model.logits(batch[:, :-1]), batch[:, 1:]) for batch in batches)
        return math.exp(total / (WINDOW * WINDOWS))

    return perplexity


def test_float32_is_as_the_model_was_trained(perplexity: Perplexity, record_perplexity: RecordPerplexity) -> None:
    value = perplexity("float32")
    record_perplexity("float32", value, 0)
    assert abs(value - FLOAT32) < 1e-3


@pytest.mark.parametrize("dtype", LIMITS)
def test_perplexity(dtype: str, perplexity: Perplexity, record_perplexity: RecordPerplexity) -> None:
    change = perplexity(dtype) / perplexity("float32") - 1
    record_perplexity(dtype, perplexity(dtype), change)
    assert abs(change) < LIMITS[dtype]
