"""Checkpoints of any family that are not what they say: refused by name, fast, and before memory is taken."""

from __future__ import annotations

import json
import time
import tracemalloc
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kaoken.codegen.checkpoint import open_checkpoint
from kaoken.codegen.errors import CheckpointError
from kaoken.codegen.families import read_graph
from safetensors.numpy import load_file, save_file

import kaoken

SECONDS, BYTES = 5.0, 64 << 20  # of processor time, of which tracemalloc takes most, and of memory


def require_refused(
    directory: Path, config: Mapping[str, Any], kind: type[Exception], fields: Mapping[str, Any], message: str
) -> None:
    """Of a config with other fields."""
    (directory / "config.json").write_text(json.dumps({**config, **fields}), encoding="utf-8")
    start = time.process_time()
    tracemalloc.start()
    try:
        with pytest.raises(kind, match=message):
            read_graph(open_checkpoint(directory))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < BYTES
    assert time.process_time() - start < SECONDS


def require_sound(directory: Path, name: str) -> None:
    """A tensor that is not there, of another shape, or of integers is refused by its name."""
    file = directory / "model.safetensors"
    tensors = load_file(file)
    values = tensors.pop(name)
    others = (None, np.concatenate([values, values]), values[..., None], values[:0], values.astype(np.int32))
    for other in others:
        save_file(tensors if other is None else {**tensors, name: other}, file)
        with pytest.raises(CheckpointError, match=f"'{name}'"):
            read_graph(open_checkpoint(directory))


def require_numbers(directory: Path, name: str) -> None:
    """A NaN or an infinity among the weights is refused by the tensor's name when the model is baked."""
    file = directory / "model.safetensors"
    tensors = load_file(file)
    for broken in (np.nan, np.inf):
        values = tensors[name].copy()
        values.flat[values.size // 2] = broken
        save_file({**tensors, name: values}, file)
        with pytest.raises(CheckpointError, match=f"'{name}'"):
            kaoken.bake(directory)
