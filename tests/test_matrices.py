"""Every kind of matrix on every ISA of this machine, at odd shapes and on guarded memory, against exact oracles.

Integer sums must be exact: where the oracle's result is an integer (or a multiple of a power of two) of less than 25
bits, the kernel must return that very float. Roundings are bounded as Higham bounds them (`gamma`).
"""

from __future__ import annotations

import ctypes
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from kaoken.codegen.layout import (
    GROUP,
    MATRIX_TYPES,
    pack_bfloat16,
    pack_int4,
    pack_int4_min,
    pack_int8,
    pack_int8_groups,
    round_up,
)
from numpy.typing import NDArray

from native_kernels import (
    REGISTRY,
    Linear,
    Values,
    gamma,
    guarded,
    output,
    pack_panels,
    pad_rows,
    pointer,
)

SHAPES = [(1, 1), (33, 17), (100, 49), (129, 81), (768, 160)]  # depth, outputs
ROWS = (1, 2, 3, 7, 8, 9, 13, 16, 24, 130)
MOST = max(ROWS)

shapes = pytest.mark.parametrize(("depth", "outputs"), SHAPES)


def uniform(shape: tuple[int, ...], seed: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


def bfloat16_values(bits: Values) -> NDArray[np.float64]:
    """The upper halves of float32 as floats."""
    return (bits.astype(np.uint32) << 16).view(np.float32).astype(np.float64)


def unpack_int8(arrays: tuple[Values, ...], depth: int, outputs: int) -> NDArray[np.int64]:
    """[N / 16][K / 4][16][4] -> [N, K]"""
    whole = arrays[0].transpose(0, 2, 1, 3).reshape(round_up(outputs), -1)
    return whole[:outputs, :depth].astype(np.int64) - 128


def unpack_nibbles(arrays: tuple[Values, ...], outputs: int) -> NDArray[np.int64]:
    """The pairs of a packed int4 matrix as unsigned integers [N, K rounded up to groups]."""
    weights = arrays[0].transpose(0, 3, 1, 2, 4)  # [panel][output][group][line][i]
    nibbles = np.stack([weights & 15, weights >> 4], axis=3)  # [panel][output][group][half][line][i]
    return nibbles.astype(np.int64).reshape(round_up(outputs), -1)[:outputs]


def group_scales(arrays: tuple[Values, ...], outputs: int) -> NDArray[np.float64]:
    """[N / 16][groups][16] -> [N, groups]"""
    return arrays[1].transpose(0, 2, 1).reshape(round_up(outputs), -1).astype(np.float64)[:outputs]


def minima(arrays: tuple[Values, ...], outputs: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Scales and minima [N / 16][groups][2][16] -> [N, groups] each."""
    scale, minimum = arrays[1].transpose(2, 0, 3, 1).reshape(2, round_up(outputs), -1).astype(np.float64)
    return scale[:outputs], minimum[:outputs]


def weights_of(dtype: str, arrays: tuple[Values, ...], depth: int, outputs: int) -> NDArray[np.float64]:
    """What a packed matrix of integers stands for, [N, K]; of int8 without the scales of its outputs."""
    if dtype == "int8":
        return unpack_int8(arrays, depth, outputs).astype(np.float64)
    if dtype == "int8-g32":
        return unpack_int8(arrays, depth, outputs) * spread(group_scales(arrays, outputs), depth)
    integers = unpack_nibbles(arrays, outputs)[:, :depth]
    if dtype == "int4":
        return (integers - 8) * spread(group_scales(arrays, outputs), depth)
    scale, minimum = minima(arrays, outputs)
    return integers * spread(scale, depth) + spread(minimum, depth)


def spread(of_groups: NDArray[np.float64], depth: int, group: int = GROUP) -> NDArray[np.float64]:
    """[.., groups] -> [.., depth]"""
    return np.repeat(of_groups, group, axis=-1)[..., :depth]


def signed_inputs(linear: Linear, inputs: Values) -> NDArray[np.int64]:
    """Rows of 8-bit inputs as integers."""
    return inputs.view(np.int8)[:, : linear.depth].astype(np.int64)


def row_group(dtype: str) -> int:
    group = MATRIX_TYPES[dtype].row_group
    assert group is not None
    return group


def zero_of(linear: Linear) -> int:
    """What stands for a weight of 0, by which the kernel makes offsets; int4-min asks for the sums themselves."""
    return {"int4": 8, "int4-min": -1}.get(linear.dtype, linear.library.weight_zero())


def group_sums(values: NDArray[np.int64], group: int) -> NDArray[np.int64]:
    """[rows, depth] -> [rows, groups]"""
    return np.add.reduceat(values, range(0, values.shape[1], group), axis=1)


def store_inputs(linear: Linear, values: NDArray[np.int64], scales: NDArray[np.float64]) -> Values:
    """Inputs in [-127, 127] with the scales [rows, groups], as the ISA stores them.

    Behind the last step lies something.
    """
    inputs = np.full((len(values), linear.row_bytes), 0x55, np.uint8)
    inputs[:, : round_up(linear.depth, MATRIX_TYPES[linear.dtype].step)] = 0
    inputs[:, : linear.depth] = values.astype(np.int8).view(np.uint8)
    stored = linear.scales(inputs)
    stored["scale"], stored["offset"] = scales, -zero_of(linear) * group_sums(values, row_group(linear.dtype))
    return inputs


def choose_inputs(depth: int, extreme: bool) -> NDArray[np.int64]:
    """Rows of 8-bit inputs; where `extreme`, of -127 and 127 alone, the first rows of one of them."""
    random = np.random.default_rng(depth)
    if not extreme:
        return random.integers(-127, 128, (MOST, depth))
    values = random.choice([-127, 127], (MOST, depth))
    values[0], values[1] = 127, -127
    return values


def powers(shape: tuple[int, ...], seed: int, extreme: bool) -> NDArray[np.float64]:
    """Powers of two, so that what they scale adds up exactly; at extremes 1, as sums leave no more room."""
    return np.random.default_rng(seed).choice([1.0] if extreme else [0.5, 1.0, 2.0], shape)


def choose_weights(outputs: int, depth: int, low: int, high: int, extreme: bool) -> NDArray[np.int64]:
    """Integers in [low, high], of which each row has one of the largest magnitude; extreme as above."""
    random = np.random.default_rng(depth + outputs)
    if not extreme:
        weights = random.integers(low, high + 1, (outputs, depth))
        weights[:, ::GROUP] = low
        return weights
    weights = random.choice([low, high], (outputs, depth))
    weights[0] = high
    weights[-1] = low
    return weights


def require_rows_alone(linear: Linear, inputs: Values, arrays: tuple[Values, ...]) -> Values:
    """The product of every row alone; with any rows beside it and on any number of workers it has the same bits."""
    bias = uniform((linear.outputs,), 7)
    alone = np.concatenate([linear.multiply(inputs[row : row + 1], arrays, bias) for row in range(len(inputs))])
    for rows in ROWS:
        together = linear.multiply(inputs[:rows], arrays, bias, workers=1 + rows % 3)
        assert together.tobytes() == alone[:rows].tobytes(), f"{rows} rows differ from the same rows alone"
    return alone


# The bits of a row


@shapes
@pytest.mark.parametrize("dtype", MATRIX_TYPES)
def test_a_row_has_the_bits_that_it_has_alone(library: ctypes.CDLL, dtype: str, depth: int, outputs: int) -> None:
    linear = Linear(library, dtype, depth, outputs)
    inputs = linear.convert(uniform((MOST, depth), depth))
    require_rows_alone(linear, inputs, MATRIX_TYPES[dtype].pack(uniform((outputs, depth), outputs)))


@shapes
@pytest.mark.parametrize("dtype", MATRIX_TYPES)
@pytest.mark.parametrize("rows", [1, 13])
def test_nothing_before_an_array_is_touched(
    library: ctypes.CDLL, dtype: str, rows: int, depth: int, outputs: int
) -> None:
    """What lies behind them is guarded in every other test."""
    linear = Linear(library, dtype, depth, outputs, side="begin")
    inputs = linear.convert(uniform((rows, depth), depth))
    assert linear.row_bytes == MATRIX_TYPES[dtype].row_bytes(depth)
    linear.multiply(inputs, MATRIX_TYPES[dtype].pack(uniform((outputs, depth), outputs)))


# Floats


@shapes
def test_float32(library: ctypes.CDLL, depth: int, outputs: int) -> None:
    x, weight, bias = uniform((24, depth), 1), uniform((outputs, depth), 2), uniform((outputs,), 3)
    linear = Linear(library, "float32", depth, outputs)
    inputs = linear.convert(x)
    assert inputs.view(np.float32)[:, :depth].tobytes() == x.tobytes()
    y = linear.multiply(inputs, MATRIX_TYPES["float32"].pack(weight), bias)
    wide, sizes = x.astype(np.float64), np.abs(x).astype(np.float64)
    bound = gamma(depth + 1) * (sizes @ np.abs(weight).T + np.abs(bias))
    assert (np.abs(y - (wide @ weight.T + bias)) <= bound).all()


@shapes
def test_bfloat16(library: ctypes.CDLL, depth: int, outputs: int) -> None:
    x, weight, bias = uniform((24, depth), 1), uniform((outputs, depth), 2), uniform((outputs,), 3)
    linear = Linear(library, "bfloat16", depth, outputs)
    inputs = linear.convert(x)
    rounded = inputs.view(np.uint16)[:, :depth]
    assert (rounded == round_to_bfloat16(x)).all()
    wide, narrow = bfloat16_values(rounded), bfloat16_values(round_to_bfloat16(weight))
    y = linear.multiply(inputs, pack_bfloat16(weight), bias)
    bound = gamma(depth + 1) * (np.abs(wide) @ np.abs(narrow).T + np.abs(bias))
    assert (np.abs(y - (wide @ narrow.T + bias)) <= bound).all()


def round_to_bfloat16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """The nearest bfloat16, ties to the even one."""
    bits = values.view(np.uint32).astype(np.int64)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def test_bfloat16_inputs_at_ties(library: ctypes.CDLL) -> None:
    bits = np.array([0x3F808000, 0x3F818000, 0x3F808001, 0x3F817FFF, 0xBF808000, 0xBF818000, 0x7F7F7FFF], np.uint32)
    x = np.zeros((1, 33), np.float32)
    x[0, : bits.size] = bits.view(np.float32)
    inputs = Linear(library, "bfloat16", 33, 17).convert(x)
    wanted = [0x3F80, 0x3F82, 0x3F81, 0x3F81, 0xBF80, 0xBF82, 0x7F7F]
    assert inputs.view(np.uint16)[0, : bits.size].tolist() == wanted


# Integers

INTEGERS = [dtype for dtype, row in MATRIX_TYPES.items() if row.row_group]
integers = pytest.mark.parametrize("dtype", INTEGERS)


@integers
@pytest.mark.parametrize(
    "span", [(-1.0, 1.0), (-3.0, 0.01), (0.5, 2.0), (-2.0, -1.0), (0.0, 0.0), (-1e-20, 1e20), (0, 3e38)]
)
def test_inputs_are_quantized_as_documented(library: ctypes.CDLL, dtype: str, span: tuple[float, float]) -> None:
    """The largest magnitude of each group of a row is at 127 or -127, and others are at the integer nearest to them."""
    linear = Linear(library, dtype, 129, 81)
    x = np.random.default_rng(5).uniform(*span, (13, 129)).astype(np.float32)
    inputs = linear.convert(x)
    scales, group = linear.scales(inputs), row_group(dtype)
    largest = np.maximum.reduceat(np.abs(x), range(0, 129, group), axis=1)
    assert scales["scale"].tobytes() == (largest / np.float32(127)).tobytes()
    step = spread(np.where(largest > 0, largest.astype(np.float64) / 127, np.inf), 129, group)
    stored = signed_inputs(linear, inputs)
    assert (np.abs(x / step - stored) <= 0.5001).all()
    if zero_of(linear):
        assert (scales["offset"] == -zero_of(linear) * group_sums(stored, group)).all()
    assert not inputs[:, 129 : round_up(129, MATRIX_TYPES[dtype].step)].any(), "padding is not zero"


@integers
def test_inputs_that_no_byte_stands_for_make_all_scales_unsound(library: ctypes.CDLL, dtype: str) -> None:
    x = np.zeros((4, 129), np.float32)
    x[:, 128] = [np.nan, np.inf, -np.inf, 3e38]
    linear = Linear(library, dtype, 129, 81)
    scales = linear.scales(linear.convert(x))["scale"]
    assert np.isnan(scales[:3]).all()
    assert np.isfinite(scales[3]).all()


def pack_integers(
    dtype: str, depth: int, outputs: int, extreme: bool
) -> tuple[NDArray[np.float64], tuple[Values, ...]]:
    """Weights that packing keeps exactly, with scales of groups that are powers of two, and their arrays."""
    scales = spread(powers((outputs, -(-depth // GROUP)), 3, extreme), depth)
    if dtype == "int8":
        weights = choose_weights(outputs, depth, -127, 127, extreme).astype(np.float64)
        arrays = pack_int8(weights)
        assert (arrays[1][:outputs] == 1).all()
    elif dtype == "int8-g32":
        weights = choose_weights(outputs, depth, -127, 127, extreme) * scales
        arrays = pack_int8_groups(weights)
    elif dtype == "int4":
        weights = choose_weights(outputs, depth, -8, 7, extreme) * scales
        arrays = pack_int4(weights)
    else:
        weights = choose_weights(outputs, depth, -8, 7, extreme).astype(np.float64)
        weights[:, 1::GROUP] = 7
        if depth % GROUP == 1:  # a group of one value, of which a scale of 1 is not to be expected
            weights[:, -1] = -8
        weights *= scales
        arrays = pack_int4_min(weights)
    return weights, arrays


@integers
@shapes
@pytest.mark.parametrize("extreme", [False, True])
def test_sums_are_exact(library: ctypes.CDLL, dtype: str, depth: int, outputs: int, extreme: bool) -> None:
    """Also where all is at its extremes: `vpmaddubsw` would saturate. Scales differ from group to group."""
    linear = Linear(library, dtype, depth, outputs)
    weights, arrays = pack_integers(dtype, depth, outputs, extreme)
    kept = weights_of(dtype, arrays, depth, outputs)
    if dtype != "int4-min":
        assert (kept == weights).all()
    values = choose_inputs(depth, extreme)
    scales = powers((MOST, -(-depth // row_group(dtype))), 4, extreme)
    x = values * spread(scales, depth, row_group(dtype))
    exact = x @ kept.T
    partial = np.add.reduceat(x[:, None] * kept, range(0, depth, GROUP), axis=2).cumsum(axis=2)
    assert np.abs(partial).max() * (1 if extreme else 4) < 1 << 24  # in units of the least scale
    inputs = store_inputs(linear, values, scales)
    for rows in ROWS:
        y = linear.multiply(inputs[:rows], arrays)
        if dtype == "int4-min":
            bound = gamma(4 * -(-depth // GROUP) + 4) * (np.abs(x[:rows]) @ (np.abs(kept).T + np.abs(weights).max()))
            assert (np.abs(y - exact[:rows]) <= bound).all(), f"of {rows} rows"
        else:
            assert (y == exact[:rows]).all(), f"of {rows} rows"


@pytest.mark.parametrize(("dtype", "most"), [("int8-g32", 127), ("int4", 7)])
def test_scales_may_be_denormal(library: ctypes.CDLL, dtype: str, most: int) -> None:
    """As float16s: queries of wide heads have such scales."""
    depth, outputs = SHAPES[-1]
    random = np.random.default_rng(7)
    integers = random.integers(-most, most + 1, (outputs, depth))
    integers[:, ::GROUP] = most
    weights = integers * 3 * 2.0**-24
    arrays = MATRIX_TYPES[dtype].pack(weights)
    assert (weights_of(dtype, arrays, depth, outputs) == weights).all()
    linear, values = Linear(library, dtype, depth, outputs), choose_inputs(depth, False)
    inputs = store_inputs(linear, values, np.ones((MOST, -(-depth // row_group(dtype)))))
    for rows in ROWS:
        assert (linear.multiply(inputs[:rows], arrays) == (values @ weights.T)[:rows]).all(), f"of {rows} rows"


@integers
def test_a_row_that_is_not_finite_has_no_scale_and_leaves_others_alone(library: ctypes.CDLL, dtype: str) -> None:
    """Its scales, and so each of its outputs, are NaN."""
    linear, sound = Linear(library, dtype, 129, 81), uniform((4, 129), 33)
    broken = sound.copy()
    broken[1, 128], broken[2, 0] = np.nan, np.inf
    inputs, expected = linear.convert(broken), linear.convert(sound)
    assert np.isnan(linear.scales(inputs)["scale"][1:3]).all()
    for row in (0, 3):
        assert inputs[row].tobytes() == expected[row].tobytes()


@integers
@shapes
def test_results_are_within_the_roundings_of_their_groups(
    library: ctypes.CDLL, dtype: str, depth: int, outputs: int
) -> None:
    """Of each group: two without fused multiply-add, one of the product of its scales and two of its minimum."""
    linear = Linear(library, dtype, depth, outputs)
    inputs = linear.convert(uniform((24, depth), 1))
    arrays = MATRIX_TYPES[dtype].pack(uniform((outputs, depth), 2))
    group = row_group(dtype)
    scales = linear.scales(inputs)["scale"].astype(np.float64)
    x = signed_inputs(linear, inputs) * spread(scales, depth, group)
    weights, sizes = weights_of(dtype, arrays, depth, outputs), np.abs(x) @ np.ones((depth, outputs))
    if dtype == "int8":
        weights *= arrays[1][:outputs, None].astype(np.float64)
    y = linear.multiply(inputs, arrays)
    bound = gamma(5 * -(-depth // group) + 2) * (np.abs(x) @ np.abs(weights).T + sizes * (dtype == "int4-min"))
    assert (np.abs(y - x @ weights.T) <= bound).all()


def test_the_head_ends_within_a_panel(library: ctypes.CDLL) -> None:
    """Logits are not padded: what follows them belongs to another."""
    x, weight = uniform((3, 33), 1), uniform((17, 33), 2)
    read = guarded(pad_rows(x)), guarded(pack_panels(weight))
    logits = output((3, 17))
    library.logits(pointer(read[0]), ctypes.c_int64(3), pointer(read[1]), pointer(logits))
    np.testing.assert_allclose(logits, x.astype(np.float64) @ weight.T, rtol=0, atol=33 * gamma(33))


def test_every_kind_of_matrix_of_the_registry_is_tested() -> None:
    registry = REGISTRY.read_text(encoding="utf-8")
    kinds = [(row.kind, dtype.replace("-", "_")) for dtype, row in MATRIX_TYPES.items()]
    assert re.findall(r"^KAOKEN_MATRIX\((\w+), (\w+)\)", registry, re.MULTILINE) == kinds


@pytest.mark.parametrize("touch", ["array[16]", "begin[-1]", "begin[0] = 1"])
def test_guarded_memory_is_guarded(touch: str) -> None:
    """Of every array that the kernels are tested with."""
    code = f"""
import ctypes, numpy as np
from native_kernels import guarded
values = np.zeros(16, np.float32)
array = guarded(values).ctypes.data_as(ctypes.POINTER(ctypes.c_float))
begin = guarded(values, "begin").ctypes.data_as(ctypes.POINTER(ctypes.c_float))
array[15], begin[0], begin[15]
{touch}
"""
    ran = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent)
    assert ran.returncode == -signal.SIGSEGV
