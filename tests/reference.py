"""Outputs of transformers, stored by tests/make_references.py, and how they are compared."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from configurations import CONFIGURATIONS
from oracle import DEFAULTS, read_config, read_tensors

BUNDLED = "gptlite-shakespeare"
FOLDER = Path(__file__).parent / "references"
INDEX = FOLDER / "transformers.json"
ARRAYS = FOLDER / "transformers.npz"

# The limit that Kaoken promises for float32, in units of max(1, largest logit).
LIMIT = 1e-4


def comparable() -> list[str]:
    """The configurations that transformers can load."""
    return [name for name, configuration in CONFIGURATIONS.items() if configuration.comparable]


def digest(directory: Path) -> str:
    """SHA-256 of what decides a checkpoint's result: config fields and tensors, however stored."""
    config = read_config(directory)
    relevant = {key: config[key] for key in (*DEFAULTS, "kaoken_blocks") if key in config}
    state = hashlib.sha256(json.dumps(relevant, sort_keys=True).encode())
    for name, tensor in sorted(read_tensors(directory).items()):
        state.update(f"{name} {tensor.shape}".encode() + tensor.astype("<f4").tobytes())
    return state.hexdigest()


def relative_error(expected: ArrayLike, actual: ArrayLike) -> float:
    """The largest difference, in units of max(1, largest expected magnitude)."""
    expected, actual = np.asarray(expected, dtype=np.float64), np.asarray(actual, dtype=np.float64)
    assert expected.shape == actual.shape, f"shapes differ: {expected.shape} expected, {actual.shape} found"
    return float(np.abs(expected - actual).max() / max(1.0, np.abs(expected).max()))


def require_same_greedy(actual: Sequence[int], expected: Sequence[int], margins: Sequence[float]) -> None:
    """Fails at the first differing step, naming how far apart the two best logits were in float64."""
    assert len(actual) == len(expected)
    for step, (token, wanted) in enumerate(zip(actual, expected, strict=True)):
        assert token == wanted, f"step {step}: token {token}, expected {wanted}; margin {margins[step]:.3g}"


@dataclass(frozen=True)
class Reference:
    """Logits [batch, len(positions), vocab_size] in float32 for ids [batch, count] of one checkpoint."""

    name: str
    digest: str
    ids: NDArray[np.int64]
    positions: NDArray[np.int64]
    logits: NDArray[np.float32]

    def require_checkpoint(self, directory: Path) -> None:
        """Fails where the checkpoint is not the one that the reference was made from."""
        assert digest(directory) == self.digest, (
            f"the checkpoint of {self.name!r} is not the one its stored reference was made from: "
            "run tests/make_references.py (it needs torch and transformers) and commit what it writes"
        )


def read_index() -> dict[str, Any]:
    """The JSON part of the stored references."""
    index: dict[str, Any] = json.loads(INDEX.read_text(encoding="utf-8"))
    return index


def read(name: str) -> Reference:
    """The stored reference of a configuration or of the bundled model."""
    with np.load(ARRAYS) as arrays:
        ids, positions, logits = (arrays[f"{name}.{part}"] for part in ("ids", "positions", "logits"))
    return Reference(name, read_index()["digests"][name], ids.astype(np.int64), positions, logits)


def greedy() -> dict[str, list[int]]:
    """For each prompt, one byte a token, the greedy tokens that follow it on the bundled model."""
    texts: dict[str, str] = read_index()["greedy"]
    return {prompt: list(text.encode("ascii")) for prompt, text in texts.items()}
