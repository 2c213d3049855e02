"""Every kernel on every ISA of this machine against NumPy in float64, at odd shapes."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable

import numpy as np
import pytest
from kaoken.codegen.layout import pad_vector as pad_vector64
from kaoken.codegen.layout import round_up
from kaoken.codegen.packing import rotary_table
from numpy.typing import NDArray

from native_kernels import REGISTRY, guarded, output, pack_panels, pad_rows, pointer

Floats = NDArray[np.float32]
EPSILON = float(np.finfo(np.float32).eps)


def pad_vector(vector: NDArray[np.floating]) -> Floats:
    return pad_vector64(vector).astype(np.float32)


def apply(library: ctypes.CDLL, name: str, x: Floats) -> NDArray[np.float64]:
    padded = guarded(pad_vector(x))
    y = output((round_up(x.size),))
    getattr(library, name)(pointer(padded), pointer(y), ctypes.c_int64(padded.size))
    return y[: x.size].astype(np.float64)


def erf(x: NDArray[np.float64]) -> NDArray[np.float64]:
    from math import erf as scalar

    return np.vectorize(scalar)(x)


def dense(low: float, high: float) -> Floats:
    return np.linspace(low, high, 200_003).astype(np.float32)


def test_exp2_is_within_two_ulp(library: ctypes.CDLL) -> None:
    x = dense(-125.9, 127.4)
    exact = np.exp2(x.astype(np.float64))
    assert np.max(np.abs(apply(library, "function_exp2", x) - exact) / exact) < 2 * EPSILON


def test_exp2_at_its_ends(library: ctypes.CDLL) -> None:
    y = apply(library, "function_exp2", np.array([-np.inf, -1e30, -127.0, 0.0, 1.0, 127.5, 1e30, np.nan], np.float32))
    assert (y[:3] < np.finfo(np.float32).smallest_normal).all()
    assert y[3:5].tolist() == [1, 2]
    assert (y[5:7] > 1e38).all()
    assert np.isnan(y[7])


def test_exp_errs_with_its_exponent(library: ctypes.CDLL) -> None:
    x = dense(-87.2, 88.2)
    exact = np.exp(x.astype(np.float64))
    assert (np.abs(apply(library, "function_exp", x) - exact) / exact < (2 + np.abs(x)) * EPSILON).all()


@pytest.mark.parametrize(("name", "exact"), [("tanh", np.tanh), ("erf", erf)])
def test_functions_are_within_6e_7(library: ctypes.CDLL, name: str, exact: Callable[..., NDArray[np.float64]]) -> None:
    x = np.concatenate([dense(-12, 12), np.array([-1e30, 1e30, 1e-30, -0.0], np.float32)])
    assert np.max(np.abs(apply(library, f"function_{name}", x) - exact(x.astype(np.float64)))) < 6e-7


ACTIVATIONS: dict[str, Callable[[NDArray[np.float64]], NDArray[np.float64]]] = {
    "gelu_tanh": lambda x: 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
    "gelu_erf": lambda x: 0.5 * x * (1 + erf(x / np.sqrt(2))),
    "relu": lambda x: np.maximum(x, 0),
    "silu": lambda x: x / (1 + np.exp(-x)),
    "tanh": np.tanh,
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations(library: ctypes.CDLL, name: str) -> None:
    x = dense(-20, 20)
    exact = ACTIVATIONS[name](x.astype(np.float64))
    y = apply(library, f"activation_{name}", x)
    assert np.max(np.abs(y - exact) / np.maximum(1, np.abs(exact))) < 1e-6
    assert apply(library, f"activation_{name}", np.zeros(16, np.float32)).tolist() == [0] * 16


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_far_out(library: ctypes.CDLL, name: str) -> None:
    """Powers of large values overflow inside them; a NaN stays one."""
    x = np.array([-3e38, -1e30, -1e19, -11, 11, 1e19, 1e30, 3e38, np.inf], np.float32)
    y = apply(library, f"activation_{name}", x)
    with np.errstate(over="ignore"):
        exact = ACTIVATIONS[name](x[:-1].astype(np.float64))
    assert (np.abs(y[:-1] - exact) <= 1e-6 * np.maximum(1, np.abs(exact))).all()
    assert y[-1] == (1 if name == "tanh" else np.inf)
    assert np.isnan(apply(library, f"activation_{name}", np.array([np.nan], np.float32))).all()


def test_every_function_and_activation_of_the_registry_is_tested() -> None:
    registry = REGISTRY.read_text(encoding="utf-8")
    assert re.findall(r"^KAOKEN_ACTIVATION\((\w+)\)", registry, re.MULTILINE) == list(ACTIVATIONS)
    assert re.findall(r"^KAOKEN_FUNCTION\((\w+)\)", registry, re.MULTILINE) == ["exp2", "exp", "tanh", "erf"]


def test_embedding(library: ctypes.CDLL) -> None:
    random = np.random.default_rng(1)
    tokens, positions = random.normal(0, 1, (61, 36)), random.normal(0, 1, (9, 36))
    ids = np.array([60, 0, 17, 16, 15], np.int32)
    hidden = output((5, 48))
    library.embedding(
        ids.ctypes.data_as(ctypes.c_void_p),
        ctypes.c_int64(5),
        ctypes.c_int64(4),
        pointer(guarded(pack_panels(tokens))),
        pointer(guarded(pad_rows(positions))),
        pointer(hidden),
    )
    np.testing.assert_allclose(hidden[:, :36], tokens[ids] + positions[4:9], rtol=0, atol=1e-6)
    assert not hidden[:, 36:].any()


FAR = 1 << 20  # more positions than any model has
POSITIONS = (*range(140), 4095, 4096, 8191, 65537, 131071, FAR - 65, FAR - 1)


@pytest.mark.parametrize("theta", [1e4, 1e6])
def test_rotary_angles_are_the_nearest_floats(theta: float, library: ctypes.CDLL) -> None:
    """As good as one rounding of the exact values, and the same bits on every ISA."""
    frequencies = (1 / np.float32(theta) ** (np.arange(0, 60, 2, dtype=np.float32) / 60)).astype(np.float32)
    packed = rotary_table("rotary", tuple(frequencies.tolist()), 64, FAR)
    table = np.concatenate(list(packed.chunks()))
    assert table.size == packed.size == (64 + FAR // 64) * 128
    x, memory, worst = guarded(np.repeat(np.eye(2, dtype=np.float32), 32, axis=1)[0]), guarded(table), 0.0
    for position in POSITIONS:
        y = output((64,))
        library.turn(pointer(memory), pointer(x), ctypes.c_int64(position), pointer(y))
        cosine, sine = angle_of(table, position)
        assert y.tobytes() == np.concatenate([cosine, sine]).tobytes()
        angle = position * frequencies.astype(np.float64)
        assert not y[30:32].any()
        assert not y[62:].any()
        worst = max(worst, np.abs(y[:30] - np.cos(angle)).max(), np.abs(y[32:62] - np.sin(angle)).max())
    assert worst < 0.502 * 2**-24


def angle_of(table: Floats, position: int) -> tuple[Floats, Floats]:
    """Cosines and sines by the sums of rotary.h, in float32."""
    a, b = table.reshape(-1, 2, 2, 32)[[64 + position // 64, position % 64]]

    def product(x: Floats, y: Floats) -> tuple[Floats, Floats]:
        return x[0] * y[0], x[0] * y[1] + x[1] * (y[0] + y[1])

    cc, ss, sc, cs = product(a[0], b[0]), product(a[1], b[1]), product(a[1], b[0]), product(a[0], b[1])
    return (cc[0] - ss[0]) + (cc[1] - ss[1]), (sc[0] + cs[0]) + (sc[1] + cs[1])


def test_mlp(library: ctypes.CDLL) -> None:
    random = np.random.default_rng(2)
    x, hidden = random.normal(0, 1, (2, 7, 36))
    w_in, w_out = random.normal(0, 0.2, (83, 36)), random.normal(0, 0.2, (36, 83))
    b_in, b_out = random.normal(0, 1, 83), random.normal(0, 1, 36)
    inner, out = output((7, 96)), guarded(pad_rows(hidden), writable=True)
    read = map(guarded, (pack_panels(w_in), pad_vector(b_in), pack_panels(w_out), pad_vector(b_out)))
    library.mlp(pointer(guarded(pad_rows(x))), ctypes.c_int64(7), *map(pointer, [*read, inner, out]))
    exact = hidden + ACTIVATIONS["gelu_tanh"](x @ w_in.T + b_in) @ w_out.T + b_out
    np.testing.assert_allclose(out[:, :36], exact, rtol=0, atol=2e-5)


@pytest.mark.parametrize("width", [1, 15, 36, 768])
@pytest.mark.parametrize("affine", [False, True])
def test_layer_norm(library: ctypes.CDLL, width: int, affine: bool) -> None:
    random = np.random.default_rng(width)
    x, weight, bias = (guarded(pad_rows(random.normal(1, 2, (1, width)))) for _ in range(3))
    y = output(x.shape)
    arguments = (pointer(weight), pointer(bias)) if affine else (pointer(None), pointer(None))
    getattr(library, f"layer_norm_{width}")(pointer(x), pointer(y), ctypes.c_float(1e-5), *arguments)
    values = x[0, :width].astype(np.float64)
    exact = (values - values.mean()) / np.sqrt(values.var() + 1e-5)
    if affine:
        exact = exact * weight[0, :width] + bias[0, :width]
    np.testing.assert_allclose(y[0, :width], exact, rtol=2e-6, atol=2e-6)
    assert not y[0, width:].any()


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("count", [1, 15, 64, 129, 1000])
def test_sampling(library: ctypes.CDLL, count: int, workers: int) -> None:
    """Maxima and weights of rows that end within a vector, with a NaN and infinities in them."""
    blocks = -(-count // 64)
    logits = np.random.default_rng(count).normal(0, 3, count).astype(np.float32)
    logits[count // 2] = np.nan
    logits[count // 3] = -np.inf
    logits[0] = 2
    numbers = np.where(np.isnan(logits), -np.inf, logits)
    pad = np.pad(numbers, (0, 64 * blocks - count), constant_values=-np.inf).reshape(blocks, 64)

    shape = (ctypes.c_int64(count), ctypes.c_int64(blocks))
    maxima, sums = output((blocks,)), output((blocks,))
    library.largest_logits(workers, pointer(guarded(logits)), *shape, pointer(maxima))
    assert maxima.tolist() == pad.max(axis=1).tolist()

    row, largest, scale = guarded(logits, writable=True), float(numbers.max()), 0.7
    library.weigh_logits(workers, pointer(row), *shape, ctypes.c_float(largest), ctypes.c_float(scale), pointer(sums))
    exact = np.exp((pad.astype(np.float64) - largest) * scale)
    np.testing.assert_allclose(row, exact.ravel()[:count], rtol=2e-6, atol=0)
    np.testing.assert_allclose(sums, exact.sum(axis=1), rtol=2e-6, atol=0)
    assert row.max() == 1

    least = np.sort(row)[count // 2]
    kept = np.where(row < least, 0, row)
    library.count_weights.restype = ctypes.c_int64
    assert library.count_weights(pointer(row), shape[0], ctypes.c_float(least)) == (row >= least).sum()
    library.keep_weights(workers, pointer(row), *shape, ctypes.c_float(least), pointer(sums))
    assert row.tolist() == kept.tolist()
    np.testing.assert_allclose(sums, np.pad(kept, (0, 64 * blocks - count)).reshape(blocks, 64).sum(axis=1), rtol=2e-6)


@pytest.mark.parametrize("size", [1e10, 1e18, 1e20, 3e38])
def test_a_variance_beyond_float32_makes_the_row_nan(library: ctypes.CDLL, size: float) -> None:
    x = guarded(pad_rows(size * np.random.default_rng(1).uniform(-1, 1, (1, 768))))
    y = output(x.shape)
    library.layer_norm_768(pointer(x), pointer(y), ctypes.c_float(1e-5), pointer(None), pointer(None))
    values = x.astype(np.float64)
    if values.var() > np.finfo(np.float32).max:
        assert np.isnan(y).all()
    else:
        np.testing.assert_allclose(y, (values - values.mean()) / values.std(), rtol=2e-6, atol=2e-6)
