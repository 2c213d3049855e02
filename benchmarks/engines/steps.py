"""The inputs of `kaoken.onnx_export.CachedDecoder` that depend on positions alone; torch is not imported."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def step_inputs(past: int, count: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The positions [1, count] and the additive mask [1, 1, count, past + count] of a step."""
    hidden = np.arange(past + count) > past + np.arange(count)[:, None]
    mask = np.where(hidden, np.float32(-np.inf), np.float32(0))
    return np.arange(past, past + count)[None], mask[None, None]
