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
from kaoken.codegen.layout import GROUP, MATRIX_TYPES, pack_bfloat16, pack_int4, pack_int8, round_up
from numpy.typing import NDArray

from native_kernels import (
    REGISTRY,
    ROW_SCALE,
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
    return whole[:outputs, :depth].astype(np.int64)


def unpack_int4(arrays: tuple[Values, ...], depth: int, outputs: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The integers [N, K rounded up to groups] and scales [N, groups] of a packed int4 matrix."""
    weights = arrays[0].transpose(0, 3, 1, 2, 4)  # [panel][output][group][line][i]
    nibbles = np.stack([weights & 15, weights >> 4], axis=3)  # [panel][output][group][half][line][i]
    integers = ((nibbles.astype(np.int64) ^ 8) - 8).reshape(round_up(outputs), -1)
    scales = arrays[1].transpose(0, 2, 1).reshape(round_up(outputs), -1).astype(np.float64)
    return integers[:outputs], scales[:outputs]


def signed_inputs(linear: Linear, inputs: Values) -> NDArray[np.int64]:
    """Rows of 8-bit inputs as the integers that the kernel takes them for."""
    kind = np.int8 if linear.library.input_offset() else np.uint8
    return inputs.view(kind)[:, : linear.depth].astype(np.int64)


def store_inputs(linear: Linear, values: Values) -> tuple[Values, Values]:
    """Inputs in [0, 255] around a zero of 128 and with a scale of 1, as the ISA stores them.

    Behind them lies something: weights there are zero.
    """
    offset = linear.library.input_offset()
    inputs = np.full((len(values), linear.row_bytes), 0x55, np.uint8)
    inputs[:, : linear.depth] = (values - offset).astype(np.uint8)
    scales = np.zeros(len(values), ROW_SCALE)
    scales["scale"], scales["zero"] = 1, 128 - offset
    return inputs, scales


def choose_inputs(depth: int, extreme: bool) -> NDArray[np.int64]:
    """Rows of 8-bit inputs; where `extreme`, of 0 and 255 alone, the first rows of one of them."""
    random = np.random.default_rng(depth)
    if not extreme:
        return random.integers(0, 256, (MOST, depth))
    values = random.choice([0, 255], (MOST, depth))
    values[0], values[1] = 255, 0
    return values


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


def require_rows_alone(linear: Linear, inputs: Values, scales: Values, arrays: tuple[Values, ...]) -> Values:
    """The product of every row alone; with any rows beside it and on any number of workers it has the same bits."""
    bias = uniform((linear.outputs,), 7)
    alone = np.concatenate(
        [linear.multiply(inputs[row : row + 1], scales[row : row + 1], arrays, bias) for row in range(len(inputs))]
    )
    for rows in ROWS:
        together = linear.multiply(inputs[:rows], scales[:rows], arrays, bias, workers=1 + rows % 3)
        assert together.tobytes() == alone[:rows].tobytes(), f"{rows} rows differ from the same rows alone"
    return alone


# The bits of a row


@shapes
@pytest.mark.parametrize("dtype", MATRIX_TYPES)
def test_a_row_has_the_bits_that_it_has_alone(library: ctypes.CDLL, dtype: str, depth: int, outputs: int) -> None:
    linear = Linear(library, dtype, depth, outputs)
    inputs, scales = linear.convert(uniform((MOST, depth), depth))
    require_rows_alone(linear, inputs, scales, MATRIX_TYPES[dtype].pack(uniform((outputs, depth), outputs)))


@shapes
@pytest.mark.parametrize("dtype", MATRIX_TYPES)
@pytest.mark.parametrize("rows", [1, 13])
def test_nothing_before_an_array_is_touched(
    library: ctypes.CDLL, dtype: str, rows: int, depth: int, outputs: int
) -> None:
    """What lies behind them is guarded in every other test."""
    linear = Linear(library, dtype, depth, outputs, side="begin")
    inputs, scales = linear.convert(uniform((rows, depth), depth))
    assert linear.row_bytes == MATRIX_TYPES[dtype].row_bytes(depth)
    linear.multiply(inputs, scales, MATRIX_TYPES[dtype].pack(uniform((outputs, depth), outputs)))


# Floats


@shapes
def test_float32(library: ctypes.CDLL, depth: int, outputs: int) -> None:
    x, weight, bias = uniform((24, depth), 1), uniform((outputs, depth), 2), uniform((outputs,), 3)
    linear = Linear(library, "float32", depth, outputs)
    inputs, scales = linear.convert(x)
    assert inputs.view(np.float32)[:, :depth].tobytes() == x.tobytes()
    y = linear.multiply(inputs, scales, MATRIX_TYPES["float32"].pack(weight), bias)
    wide, sizes = x.astype(np.float64), np.abs(x).astype(np.float64)
    bound = gamma(depth + 1) * (sizes @ np.abs(weight).T + np.abs(bias))
    assert (np.abs(y - (wide @ weight.T + bias)) <= bound).all()


@shapes
def test_bfloat16(library: ctypes.CDLL, depth: int, outputs: int) -> None:
    x, weight, bias = uniform((24, depth), 1), uniform((outputs, depth), 2), uniform((outputs,), 3)
    linear = Linear(library, "bfloat16", depth, outputs)
    inputs, scales = linear.convert(x)
    rounded = inputs.view(np.uint16)[:, :depth]
    assert (rounded == round_to_bfloat16(x)).all()
    wide, narrow = bfloat16_values(rounded), bfloat16_values(round_to_bfloat16(weight))
    y = linear.multiply(inputs, scales, pack_bfloat16(weight), bias)
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
    inputs, _ = Linear(library, "bfloat16", 33, 17).convert(x)
    wanted = [0x3F80, 0x3F82, 0x3F81, 0x3F81, 0xBF80, 0xBF82, 0x7F7F]
    assert inputs.view(np.uint16)[0, : bits.size].tolist() == wanted


# Integers


@pytest.mark.parametrize("dtype", ["int8", "int4"])
@pytest.mark.parametrize(
    "span", [(-1.0, 1.0), (-3.0, 0.01), (0.5, 2.0), (-2.0, -1.0), (0.0, 0.0), (-1e-20, 1e20), (0, 3e38)]
)
def test_inputs_are_quantized_as_documented(library: ctypes.CDLL, dtype: str, span: tuple[float, float]) -> None:
    """Rows take the range from their least to their greatest value, and 0, in 255 steps to the nearest."""
    linear = Linear(library, dtype, 129, 81)
    x = np.random.default_rng(5).uniform(*span, (13, 129)).astype(np.float32)
    inputs, scales = linear.convert(x)
    least, most = np.minimum(x.min(axis=1), 0), np.maximum(x.max(axis=1), 0)
    span32 = (most - least).astype(np.float32)
    assert scales["scale"].tobytes() == (span32 / np.float32(255)).tobytes()
    step = np.where(span32 > 0, span32.astype(np.float64) / 255, np.inf)[:, None]
    zero = scales["zero"][:, None].astype(np.int64) + library.input_offset()
    assert (np.abs(-least[:, None] / step - zero) <= 0.5001).all()
    stored = signed_inputs(linear, inputs) + library.input_offset()
    assert (np.abs(np.clip(x / step + zero, 0, 255) - stored) <= 0.5001).all()
    behind = inputs[:, linear.depth : round_up(linear.depth)].astype(np.int64)
    assert (behind == (zero - library.input_offset()) % 256).all(), "padding is not zero"


@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_inputs_that_no_byte_stands_for_make_the_scale_unsound(library: ctypes.CDLL, dtype: str) -> None:
    x = np.zeros((4, 129), np.float32)
    x[:, 128] = [np.nan, np.inf, -np.inf, 3e38]
    x[3, 0] = -3e38
    _, scales = Linear(library, dtype, 129, 81).convert(x)
    assert np.isnan(scales["scale"][:3]).all()
    assert np.isinf(scales["scale"][3])


@shapes
@pytest.mark.parametrize("extreme", [False, True])
def test_int8_sums_are_exact(library: ctypes.CDLL, depth: int, outputs: int, extreme: bool) -> None:
    """Also where all is at its extremes: `vpmaddubsw` would saturate."""
    linear = Linear(library, "int8", depth, outputs)
    values = choose_inputs(depth, extreme)
    weights = choose_weights(outputs, depth, -127, 127, extreme)
    arrays = pack_int8(weights.astype(np.float64))
    assert (arrays[1][:outputs] == 1).all()
    assert (unpack_int8(arrays, depth, outputs) == weights).all()
    exact = (values - 128) @ weights.T
    assert np.abs(exact).max() < 1 << 24
    inputs, scales = store_inputs(linear, values)
    for rows in ROWS:
        y = linear.multiply(inputs[:rows], scales[:rows], arrays)
        assert (y == exact[:rows]).all(), f"of {rows} rows"


@shapes
@pytest.mark.parametrize("extreme", [False, True])
def test_int4_group_sums_are_exact(library: ctypes.CDLL, depth: int, outputs: int, extreme: bool) -> None:
    """Scales are powers of two that differ from group to group, so that sums of groups add up exactly."""
    linear = Linear(library, "int4", depth, outputs)
    values = choose_inputs(depth, extreme)
    weights = choose_weights(outputs, depth, -8, 7, extreme)
    powers = np.random.default_rng(3).choice([0.5, 1.0, 2.0, 4.0], (outputs, -(-depth // GROUP)))
    scaled = weights * np.repeat(powers, GROUP, axis=1)[:, :depth]
    arrays = pack_int4(scaled)
    integers, scales = unpack_int4(arrays, depth, outputs)
    assert ((integers * np.repeat(scales, GROUP, axis=1))[:, :depth] == scaled).all()
    exact = (values - 128) @ scaled.T
    assert (np.abs(values) @ np.abs(scaled).T).max() * 2 < 1 << 24
    inputs, row_scales = store_inputs(linear, values)
    for rows in ROWS:
        y = linear.multiply(inputs[:rows], row_scales[:rows], arrays)
        assert (y == exact[:rows]).all(), f"of {rows} rows"


@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_a_row_that_is_not_finite_has_no_scale_and_leaves_others_alone(library: ctypes.CDLL, dtype: str) -> None:
    """Its scale, and so each of its outputs, is NaN."""
    linear, sound = Linear(library, dtype, 33, 17), uniform((4, 33), 33)
    broken = sound.copy()
    broken[1, 32], broken[2, 0] = np.nan, np.inf
    inputs, scales = linear.convert(broken)
    expected_inputs, expected_scales = linear.convert(sound)
    assert np.isnan(scales["scale"][1:3]).all()
    for row in (0, 3):
        assert inputs[row].tobytes() == expected_inputs[row].tobytes()
        assert scales[row] == expected_scales[row]


@shapes
def test_int8_results_are_within_an_ulp(library: ctypes.CDLL, depth: int, outputs: int) -> None:
    """Two roundings come after the exact sum: of the product of scales, and of that with the sum."""
    linear = Linear(library, "int8", depth, outputs)
    inputs, scales = linear.convert(uniform((24, depth), 1))
    arrays = pack_int8(uniform((outputs, depth), 2))
    weights = unpack_int8(arrays, depth, outputs)
    sums = (signed_inputs(linear, inputs) - scales["zero"][:, None]) @ weights.T
    assert np.abs(sums).max() < 1 << 24
    exact = sums * scales["scale"][:, None].astype(np.float64) * arrays[1][:outputs].astype(np.float64)
    y = linear.multiply(inputs, scales, arrays)
    assert (np.abs(y - exact) <= gamma(2) * np.abs(exact)).all()


@shapes
def test_int4_results_are_within_the_roundings_of_their_groups(library: ctypes.CDLL, depth: int, outputs: int) -> None:
    """A rounding for each group, two without fused multiply-add, and four for the zero and the row's scale."""
    linear = Linear(library, "int4", depth, outputs)
    inputs, row_scales = linear.convert(uniform((24, depth), 1))
    arrays = pack_int4(uniform((outputs, depth), 2))
    integers, scales = unpack_int4(arrays, depth, outputs)
    x = np.zeros((24, integers.shape[1]), np.int64)
    x[:, :depth] = signed_inputs(linear, inputs)
    groups = np.einsum("rgk,ngk->rng", x.reshape(24, -1, GROUP), integers.reshape(outputs, -1, GROUP))
    sums = (integers.reshape(outputs, -1, GROUP).sum(axis=2) * scales).sum(axis=1)
    scaled, zero = groups * scales, row_scales["zero"][:, None].astype(np.float64) * sums
    factor = row_scales["scale"][:, None].astype(np.float64)
    y = linear.multiply(inputs, row_scales, arrays)
    bound = gamma(2 * scales.shape[1] + 4) * factor * (np.abs(scaled).sum(axis=2) + np.abs(zero))
    assert (np.abs(y - factor * (scaled.sum(axis=2) - zero)) <= bound).all()


def test_the_head_ends_within_a_panel(library: ctypes.CDLL) -> None:
    """Logits are not padded: what follows them belongs to another."""
    x, weight = uniform((3, 33), 1), uniform((17, 33), 2)
    read = guarded(pad_rows(x)), guarded(pack_panels(weight))
    logits = output((3, 17))
    library.logits(pointer(read[0]), ctypes.c_int64(3), pointer(read[1]), pointer(logits))
    np.testing.assert_allclose(logits, x.astype(np.float64) @ weight.T, rtol=0, atol=33 * gamma(33))


def test_every_kind_of_matrix_of_the_registry_is_tested() -> None:
    registry = REGISTRY.read_text(encoding="utf-8")
    kinds = [(row.kind, dtype) for dtype, row in MATRIX_TYPES.items()]
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
