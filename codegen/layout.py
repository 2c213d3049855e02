"""The one packed layout of a matrix [N, K] in each type; the kernels read it in this order (runtime/kernels/kinds.h).

Panels are 16 outputs wide, and a line of 64 bytes holds as many k of them as fit, so that one zmm, two ymm or four q
registers take in a line and one dot instruction all of it:

    float32   [N / 16][K][16]
    bfloat16  [N / 16][K / 2][16][2]
    int8      [N / 16][K / 4][16][4]        with float32 scales [N]
    int8-g32  [N / 16][K / 4][16][4]        with float16 scales [N / 16][K / 32][16]
    int4      [N / 16][K / 32][4][16][4]    pairs of nibbles: k = 4 line + i low, k = 16 + 4 line + i high; with float16
                                            scales [N / 16][K / 32][16]
    int4-min  the same                      with float16 scales and minima [N / 16][K / 32][2][16]

Integers are stored as unsigned, 128 or 8 more than they are; those of int4-min are as they are. N and K are rounded up
with zeros.

A row of 8-bit inputs is signed bytes in groups of k, and behind them a float32 scale and an int32 for each group.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Parts = tuple[NDArray[Any], ...]  # a packer's result: weights first, then what belongs to them

PANEL = 16  # kPanel of runtime/include/kaoken/pass.h
GROUP = 32  # values of k that share a scale of an output, where k has groups: kGroup of runtime/kernels/group_tile.h
ROW_GROUP = 64  # values of k that share a scale of the inputs of an int8 matrix, as Int8 of runtime/kernels/kinds.h has
ROW_GROUP_BYTES = 8  # of a scale and what goes with it: GroupScale of runtime/kernels/group_tile.h
LINE = 64  # bytes

_SAMPLE = 64  # groups that tell whether to look for grids
_MANY = 8  # values that lie on no grid by chance
_NEARLY = 1e-3  # of a step of a grid, for what float32 has rounded
_NEARLY_HALF = 2.0**-20  # of a step, for the same

SMALLEST_HALF = float(np.finfo(np.float16).smallest_subnormal)


def round_up(n: int, step: int = PANEL) -> int:
    """The least multiple of `step` that is at least n."""
    return -(-n // step) * step


def pad(array: NDArray[np.floating], rows: int, columns: int) -> Array:
    """[N, K] with zeros up to multiples of `rows` and `columns`."""
    padded = np.zeros((round_up(array.shape[0], rows), round_up(array.shape[1], columns)))
    padded[: array.shape[0], : array.shape[1]] = array
    return padded


def panels(array: NDArray[Any], step: int) -> NDArray[Any]:
    """[N, K], multiples of 16 and `step` -> [N / 16, K / step, 16, step]."""
    split = array.reshape(-1, PANEL, array.shape[1] // step, step)
    return np.ascontiguousarray(split.transpose(0, 2, 1, 3))


def pack_float32(weight: NDArray[np.floating]) -> Parts:
    """The panels of [N, K]."""
    with np.errstate(over="ignore"):
        return (panels(pad(weight, PANEL, 1).astype(np.float32), 1),)


def pack_bfloat16(weight: NDArray[np.floating]) -> Parts:
    """The panels of [N, K], rounded once to the nearest bfloat16, ties to even, as the upper halves of float32."""
    mantissa, exponent = np.frexp(pad(weight, PANEL, 2))
    with np.errstate(over="ignore"):
        nearest = np.ldexp(np.rint(mantissa * 256), exponent - 8).astype(np.float32)
    return (panels((nearest.view(np.uint32) >> 16).astype(np.uint16), 2),)


def quantize_int8(weight: NDArray[np.floating]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """[N, K] -> integers [N, K] in [-127, 127] and scales [N]: symmetric, the largest of each output at 127."""
    scale = (np.abs(weight).max(axis=1) / 127).astype(np.float32)
    return np.rint(weight / np.where(scale > 0, scale, np.inf)[:, None]).astype(np.int8), scale


def pack_int8(weight: NDArray[np.floating]) -> Parts:
    """The panels of [N, K], and scales."""
    integers, scale = quantize_int8(pad(weight, PANEL, 4))
    return _unsigned_panels(integers), scale


def pack_int8_keys(weight: NDArray[np.floating]) -> Parts:
    """The panels of [N, K] as signed integers, scales, and sums of integers."""
    integers, scale = quantize_int8(pad(weight, PANEL, 4))
    return panels(integers, 4), scale, integers.sum(axis=1, dtype=np.int32)


def _unsigned_panels(integers: NDArray[np.int8]) -> NDArray[Any]:
    return panels(integers.view(np.uint8) ^ np.uint8(128), 4)


def quantize_int8_groups(weight: NDArray[np.floating]) -> tuple[NDArray[np.int8], NDArray[np.float16]]:
    """[N, K], K a multiple of 32 -> integers [N, K] in [-127, 127] and scales [N, K / 32].

    The largest of each group is at 127, as in GGUF's Q8_0, or where a grid puts it. Scales are rounded to float16
    first.
    """
    groups = weight.reshape(weight.shape[0], -1, GROUP)
    steps = _on_grid(np.abs(groups), np.abs(groups).max(axis=2) / 127, 127)
    integers, scale = _round_groups(groups, _half(steps), -127, 127)
    return integers.reshape(weight.shape), scale


def pack_int8_groups(weight: NDArray[np.floating]) -> Parts:
    """The panels of [N, K], and scales."""
    integers, scale = quantize_int8_groups(pad(weight, PANEL, GROUP))
    return _unsigned_panels(integers), _group_panels(scale)


def _group_panels(scale: NDArray[np.float16]) -> NDArray[Any]:
    """[N, groups] -> [N / 16, groups, 16]."""
    return panels(scale, 1).reshape(-1, scale.shape[1], PANEL)


def quantize_int4(weight: NDArray[np.floating]) -> tuple[NDArray[np.int8], NDArray[np.float16]]:
    """[N, K], K a multiple of 32 -> integers [N, K] in [-8, 7] and scales [N, K / 32].

    Of the two scales that put a group's largest value at 7, or where a grid does, or at -8, the one that leaves the
    smaller squared error. Scales are rounded to float16 first, and values are rounded against what remains.
    """
    groups = weight.reshape(weight.shape[0], -1, GROUP)
    extreme = np.take_along_axis(groups, np.abs(groups).argmax(axis=2)[..., None], axis=2)[..., 0]
    positive = _on_grid(np.abs(groups), np.abs(extreme) / 7, 8)
    tried = [_round_groups(groups, _half(scale), -8, 7) for scale in (positive, extreme / -8)]
    with np.errstate(invalid="ignore"):  # a scale past float16 is infinite, which packing refuses
        errors = [((q * scale[..., None].astype(np.float64) - groups) ** 2).sum(axis=2) for q, scale in tried]
    second = errors[1] < errors[0]
    integers = np.where(second[..., None], tried[1][0], tried[0][0])
    return integers.reshape(weight.shape), np.where(second, tried[1][1], tried[0][1])


def _half(scale: Array) -> NDArray[np.float16]:
    """Float16s, zero for zero alone."""
    least = np.copysign(np.maximum(np.abs(scale), SMALLEST_HALF), scale)
    with np.errstate(over="ignore"):
        return np.where(scale == 0, 0, least).astype(np.float16)


def _round_groups(
    groups: NDArray[np.floating], scale: NDArray[np.float16], low: int, high: int
) -> tuple[NDArray[np.int8], NDArray[np.float16]]:
    divisor = np.where(scale == 0, np.inf, scale.astype(np.float64))
    return np.clip(np.rint(groups / divisor[..., None]), low, high).astype(np.int8), scale


def _on_grid(values: Array, steps: Array, most: int) -> Array:
    """`steps` [N, groups], but of each group of `values` [N, groups, 32], all at least 0, that are multiples of another
    step up to `most` of it, that step: weights that were quantized before keep their integers.

    Values of which the first groups have no such step are taken as they are.
    """
    groups = values.reshape(-1, GROUP)
    groups = groups[groups.any(axis=1)]
    sample = groups[:_SAMPLE]
    if np.count_nonzero(sample, axis=1).max(initial=0) < _MANY or not _grid_steps(sample, most).all():
        return steps
    found = _grid_steps(values.reshape(-1, GROUP), most).reshape(steps.shape)
    return np.where(found > 0, found, steps)


def _grid_steps(values: Array, most: int) -> Array:
    """The step of each group [groups, 32]: of several a float16, else the largest; 0 where there is none."""
    largest = values.max(axis=1)
    steps = np.zeros(len(values))
    left = np.flatnonzero(largest > 0)
    for halves, counts in ((True, (most, *range(1, most))), (False, range(1, most + 1))):
        for count in counts:
            tried = largest[left] / count
            multiples = values[left] / tried[:, None]
            fit = np.abs(multiples - np.rint(multiples)).max(axis=1, initial=0) < _NEARLY
            if halves:
                fit &= np.abs(_half(tried) - tried) < tried * _NEARLY_HALF
            steps[left[fit]] = tried[fit]
            left = left[~fit]
    return steps


def pack_int4(weight: NDArray[np.floating]) -> Parts:
    """The panels of [N, K], and scales."""
    integers, scale = quantize_int4(pad(weight, PANEL, GROUP))
    return _nibble_panels(integers + np.int8(8)), _group_panels(scale)


def _nibble_panels(integers: NDArray[np.int8]) -> NDArray[np.uint8]:
    """Integers [N, K] in [0, 15] as pairs."""
    # [N / 16][group][output][half][line][i] -> [N / 16][group][half][line][output][i]
    groups = integers.shape[1] // GROUP
    split = panels(integers.view(np.uint8), GROUP).reshape(-1, groups, PANEL, 2, 4, 4).transpose(0, 1, 3, 4, 2, 5)
    return np.ascontiguousarray(split[:, :, 0] | split[:, :, 1] << 4)


def quantize_int4_min(weight: NDArray[np.floating]) -> tuple[NDArray[np.int8], NDArray[np.float16]]:
    """[N, K], K a multiple of 32 -> integers [N, K] in [0, 15], and scales and minima [N, K / 32, 2].

    A weight is scale * integer + minimum, the least and the largest of a group at 0 and 15, as in GGUF's Q4_1, or where
    a grid puts them. Both are rounded to float16 first, and values are rounded against what remains.
    """
    groups = weight.reshape(weight.shape[0], -1, GROUP)
    least, most = groups.min(axis=2), groups.max(axis=2)
    scale, minimum = _half(_on_grid(groups - least[..., None], (most - least) / 15, 15)), _half(least)
    with np.errstate(invalid="ignore"):  # an infinite minimum, which packing refuses
        centred = groups - minimum[..., None].astype(np.float64)
        integers, _ = _round_groups(centred, scale, 0, 15)
    return integers.reshape(weight.shape), np.stack([scale, minimum], axis=2)


def pack_int4_min(weight: NDArray[np.floating]) -> Parts:
    """The panels of [N, K], and scales with minima."""
    integers, both = quantize_int4_min(pad(weight, PANEL, GROUP))
    # [N, groups, 2] -> [N / 16, groups, 2, 16]
    split = both.reshape(-1, PANEL, both.shape[1], 2).transpose(0, 2, 3, 1)
    return _nibble_panels(integers), np.ascontiguousarray(split)


class ArrayType(NamedTuple):
    """One array of a packer's result."""

    name: str  # behind the matrix's own
    type: str  # NumPy's name of it, a key of C_TYPES
    share: int | None  # how many k of an output share a value; None: all of them
    values: int = 1  # that they share

    @property
    def itemsize(self) -> int:
        return int(self.type[1:])


class MatrixType(NamedTuple):
    """All that Python knows of one type of matrix; what its kernels do is in runtime/kernels."""

    kind: str  # the C++ type of kinds.h
    pack: Callable[[NDArray[np.floating]], Parts]
    arrays: tuple[ArrayType, ...]  # what that returns, the weights first
    step: int  # K is rounded up to a multiple of it
    input_bytes: int  # of one input
    product: str  # the type whose products its kernels make, which tells what an ISA helps (cmake/isas.json)
    row_group: int | None = None  # of 8-bit inputs: how many k share a scale
    cache_bytes: tuple[int, int] = (0, 0)  # in a KV cache, if it is one's type: of a value, and of a head beside them

    @property
    def weight_bytes(self) -> float:
        """Of one weight, with its part of what it shares with others of its output."""
        return sum(array.itemsize * array.values / array.share for array in self.arrays if array.share)

    def packed_sizes(self, rows: int, depth: int) -> tuple[int, ...]:
        """How many values each array has, for [rows, depth]."""
        outputs, padded = round_up(rows), round_up(depth, self.step)
        return tuple(outputs * (array.values * padded // array.share if array.share else 1) for array in self.arrays)

    def row_bytes(self, depth: int) -> int:
        """Of a row of `depth` inputs: whole lines."""
        scales = 0 if self.row_group is None else -(-depth // self.row_group) * ROW_GROUP_BYTES
        return round_up(depth * self.input_bytes, LINE) + round_up(scales, LINE)


MATRIX_TYPES = {
    "float32": MatrixType(
        "Float32", pack_float32, (ArrayType("weight", "f4", 1),), 1, 4, "float32", cache_bytes=(4, 0)
    ),
    "bfloat16": MatrixType(
        "BFloat16", pack_bfloat16, (ArrayType("weight", "u2", 1),), 2, 2, "bfloat16", cache_bytes=(2, 0)
    ),
    "int8": MatrixType(
        kind="Int8",
        pack=pack_int8,
        arrays=(ArrayType("weight", "u1", 1), ArrayType("scale", "f4", None)),
        step=4,
        input_bytes=1,
        product="int8",
        row_group=ROW_GROUP,
        cache_bytes=(1, 12),
    ),
    "int8-g32": MatrixType(
        kind="Int8Groups",
        pack=pack_int8_groups,
        arrays=(ArrayType("weight", "u1", 1), ArrayType("scale", "f2", GROUP)),
        step=GROUP,
        input_bytes=1,
        product="int8",
        row_group=GROUP,
    ),
    "int4": MatrixType(
        kind="Int4",
        pack=pack_int4,
        arrays=(ArrayType("weight", "u1", 2), ArrayType("scale", "f2", GROUP)),
        step=GROUP,
        input_bytes=1,
        product="int8",
        row_group=GROUP,
    ),
    "int4-min": MatrixType(
        kind="Int4Min",
        pack=pack_int4_min,
        arrays=(ArrayType("weight", "u1", 2), ArrayType("scale", "f2", GROUP, 2)),
        step=GROUP,
        input_bytes=1,
        product="int8",
        row_group=GROUP,
    ),
}

# Of constants that queries meet as they meet the keys of a KV cache of these types (runtime/kernels/cache.h).
KEY_TYPES = {
    **{dtype: MATRIX_TYPES[dtype] for dtype in ("float32", "bfloat16")},
    "int8": MATRIX_TYPES["int8"]._replace(
        pack=pack_int8_keys,
        arrays=(ArrayType("weight", "i1", 1), ArrayType("scale", "f4", None), ArrayType("sum", "i4", None)),
    ),
}


def round_weights(weight: NDArray[np.floating], dtype: str) -> NDArray[np.floating]:
    """[N, K] as the integers and scales of a type stand for it."""
    if dtype == "int8":
        integers, scale = quantize_int8(weight)
        return integers * scale[:, None]
    groups = np.pad(weight, ((0, 0), (0, -weight.shape[1] % GROUP)))
    integers, beside = _QUANTIZERS[dtype](groups)
    parts = np.atleast_3d(beside).astype(np.float32)  # scales, and minima where there are some
    values = integers.reshape(*parts.shape[:2], GROUP) * parts[..., :1] + (parts[..., 1:] if parts.shape[2] > 1 else 0)
    return values.reshape(groups.shape)[:, : weight.shape[1]]


_QUANTIZERS = {"int8-g32": quantize_int8_groups, "int4": quantize_int4, "int4-min": quantize_int4_min}


def round_inputs(rows: NDArray[np.float32], dtype: str) -> NDArray[np.float32]:
    """[rows, K] as kernels round inputs of matrices of a type: in groups, the largest magnitude of each at 127."""
    group = MATRIX_TYPES[dtype].row_group
    assert group is not None
    split = np.pad(rows, ((0, 0), (0, -rows.shape[1] % group))).reshape(len(rows), -1, group)
    step = np.abs(split).max(axis=2, keepdims=True) / 127
    rounded = np.rint(split / np.where(step > 0, step, 1)) * step
    made: NDArray[np.float32] = rounded.reshape(len(rows), -1)[:, : rows.shape[1]].astype(np.float32)
    return made


def pad_vector(vector: NDArray[np.floating]) -> Array:
    """[N] -> [N rounded up to 16], zeros at the end."""
    return pad(vector[:, None], PANEL, 1)[:, 0]


def pad_columns(array: NDArray[np.floating]) -> Array:
    """[N, K] -> [N, K rounded up to 16], zeros at the end."""
    return pad(array, 1, PANEL)
