"""Recipes: what calibration found out about one model, for bakes to repeat to the byte.

A safetensors file: an array of factors for each site of smooth.py, and in its metadata what made them.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from .errors import CheckpointError
from .files import write_if_changed

VERSION = 1
_KEY = "kaoken_recipe"  # of the metadata
_MAX_BYTES = 1 << 30


@dataclass(frozen=True)
class Origin:
    """How a recipe came about."""

    method: str
    dtype: str  # of the weights that it was made for
    weights_sha256: str  # of the checkpoint's
    text_sha256: str  # of the token ids, as int64
    windows: int
    context: int


@dataclass(frozen=True)
class Recipe:
    """What a file says."""

    path: Path
    sha256: str  # of the file
    origin: Origin
    factors: dict[str, NDArray[np.float32]]

    def describe(self) -> dict[str, Any]:
        """For the library's description."""
        return {"sha256": self.sha256, **asdict(self.origin)}


def write_recipe(path: Path, origin: Origin, factors: dict[str, NDArray[np.float32]]) -> None:
    """Writes the file, whole or not at all. Raises BuildError if it cannot."""
    write_if_changed(path, [save(factors, metadata={_KEY: json.dumps({"version": VERSION, **asdict(origin)})})])


def read_recipe(path: Path) -> Recipe:
    """Raises CheckpointError for a file that is no recipe, or of another version."""
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise _error(path, "it is too large")
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        with safe_open(path, framework="np") as file:
            said = json.loads((file.metadata() or {}).get(_KEY, "null"))
            factors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
    except (OSError, SafetensorError, ValueError) as error:
        raise _error(path, str(error)) from error
    if not isinstance(said, dict) or said.pop("version", None) != VERSION:
        raise _error(path, f"its metadata lack {_KEY} of version {VERSION}")
    try:
        origin = Origin(**said)
    except TypeError as error:
        raise _error(path, "its metadata are of another version") from error
    types = {name: type(value).__name__ for name, value in asdict(origin).items()}
    if types != Origin.__annotations__:
        raise _error(path, "its metadata have values of other types")
    for name, values in factors.items():
        sound = values.dtype == np.float32 and values.ndim == 1 and bool(np.all((values > 1e-12) & (values < 1e12)))
        if not sound:
            raise _error(path, f"{name} is no vector of positive float32 factors")
    return Recipe(path, digest, origin, factors)


def _error(path: Path, why: str) -> CheckpointError:
    return CheckpointError(f"{path} is no recipe ({why}): make one with `kaoken calibrate`")
