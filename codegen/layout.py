"""The one packed layout of a matrix, float32: panels of 16 outputs, [ceil(N / 16)][K][16].

The kernels read it in exactly this order (runtime/kernels/tile.h); one zmm, two ymm or four q registers hold the 16
outputs of one k. Outputs past N are zero.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

DTYPES = ("float32",)  # that have a packed layout
PANEL = 16  # kPanel of runtime/include/kaoken/pass.h


def round_up(n: int, step: int = PANEL) -> int:
    """The least multiple of `step` that is at least n."""
    return -(-n // step) * step


def pack_panels(weight: NDArray[np.floating]) -> NDArray[np.float32]:
    """[N, K] -> [ceil(N / 16), K, 16] float32."""
    return np.ascontiguousarray(pad_rows(weight).reshape(-1, PANEL, weight.shape[1]).transpose(0, 2, 1))


def pad_rows(array: NDArray[np.floating]) -> NDArray[np.float32]:
    """[N, ...] -> [N rounded up to 16, ...] float32, zeros at the end."""
    padded = np.zeros((round_up(array.shape[0]), *array.shape[1:]), np.float32)
    padded[: array.shape[0]] = array
    return padded


def pad_columns(array: NDArray[np.floating]) -> NDArray[np.float32]:
    """[N, K] -> [N, K rounded up to 16] float32, zeros at the end."""
    padded = np.zeros((array.shape[0], round_up(array.shape[1])), np.float32)
    padded[:, : array.shape[1]] = array
    return padded
