"""Every kernel on every ISA of this machine against NumPy in float64, at odd shapes."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from kaoken.codegen.isa import resolve, table
from kaoken.codegen.layout import pack_float32, round_up
from kaoken.codegen.layout import pad_columns as pad_columns64
from kaoken.codegen.layout import pad_vector as pad_vector64
from numpy.typing import NDArray

from native_build import SOURCE, configure_native_tests, ninja

Floats = NDArray[np.float32]
Kernels = Callable[[str], ctypes.CDLL]

ISAS = resolve("portable")


def pack_panels(weight: NDArray[np.floating]) -> Floats:
    return pack_float32(weight)[0]


def pad_columns(array: NDArray[np.floating]) -> Floats:
    return pad_columns64(array).astype(np.float32)


def pad_vector(vector: NDArray[np.floating]) -> Floats:
    return pad_vector64(vector).astype(np.float32)


EPSILON = float(np.finfo(np.float32).eps)


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> Kernels:
    """`kernels(isa)` is the library of an ISA's kernels; all are compiled, those this machine has are loaded."""
    build = tmp_path_factory.mktemp("kernels")
    configure_native_tests(build, KAOKEN_TEST_ISAS=";".join(ISAS))
    ninja(build, *(f"kernels_{isa}" for isa in ISAS))
    return lambda isa: ctypes.CDLL(str(build / "tests" / "native" / f"libkernels_{isa}.so"))


@pytest.fixture(params=ISAS)
def library(request: pytest.FixtureRequest, kernels: Kernels) -> ctypes.CDLL:
    row = table()[request.param]
    if not set(row.cpu) <= processor_features():
        pytest.skip(f"this machine lacks {row.name}")
    return kernels(row.name)


def processor_features() -> set[str]:
    """From /proc/cpuinfo, in the spelling of the ISA table."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return {flag.replace("_", "") for line in lines if line.startswith("flags") for flag in line.split()}


def pointer(array: Floats | None) -> ctypes.c_void_p:
    return ctypes.c_void_p() if array is None else array.ctypes.data_as(ctypes.c_void_p)  # keeps the array alive


def apply(library: ctypes.CDLL, name: str, x: Floats) -> NDArray[np.float64]:
    padded = np.zeros(round_up(x.size), np.float32)
    padded[: x.size] = x
    y = np.empty_like(padded)
    getattr(library, name)(pointer(padded), pointer(y), ctypes.c_int64(padded.size))
    return y[: x.size].astype(np.float64)


def erf(x: NDArray[np.float64]) -> NDArray[np.float64]:
    from math import erf as scalar

    return np.vectorize(scalar)(x)


def dense(low: float, high: float) -> Floats:
    return np.linspace(low, high, 200_003).astype(np.float32)


def test_exp_is_within_two_ulp(library: ctypes.CDLL) -> None:
    x = dense(-87.2, 88.2)
    exact = np.exp(x.astype(np.float64))
    assert np.max(np.abs(apply(library, "function_exp", x) - exact) / exact) < 2 * EPSILON


def test_exp_at_its_ends(library: ctypes.CDLL) -> None:
    y = apply(library, "function_exp", np.array([-np.inf, -1e30, -87.4, 0.0, 89.0, 1e30], np.float32))
    assert list(y[:4]) == [0, 0, 0, 1]
    assert np.isfinite(y).all()
    assert (y[4:] > 1e38).all()


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


def test_every_function_and_activation_of_the_registry_is_tested() -> None:
    registry = (SOURCE / "runtime" / "kernels" / "kernels.inc").read_text(encoding="utf-8")
    assert re.findall(r"^KAOKEN_ACTIVATION\((\w+)\)", registry, re.MULTILINE) == list(ACTIVATIONS)
    assert re.findall(r"^KAOKEN_FUNCTION\((\w+)\)", registry, re.MULTILINE) == ["exp", "tanh", "erf"]


def test_embedding(library: ctypes.CDLL) -> None:
    random = np.random.default_rng(1)
    tokens, positions = random.normal(0, 1, (61, 36)), random.normal(0, 1, (9, 36))
    ids = np.array([60, 0, 17, 16, 15], np.int32)
    hidden = np.full((5, 48), np.nan, np.float32)
    library.embedding(
        ids.ctypes.data_as(ctypes.c_void_p),
        ctypes.c_int64(5),
        ctypes.c_int64(4),
        pointer(pack_panels(tokens)),
        pointer(pad_columns(positions)),
        pointer(hidden),
    )
    np.testing.assert_allclose(hidden[:, :36], tokens[ids] + positions[4:9], rtol=0, atol=1e-6)
    assert not hidden[:, 36:].any()


def test_mlp(library: ctypes.CDLL) -> None:
    random = np.random.default_rng(2)
    x, hidden = random.normal(0, 1, (2, 7, 36))
    w_in, w_out = random.normal(0, 0.2, (83, 36)), random.normal(0, 0.2, (36, 83))
    b_in, b_out = random.normal(0, 1, 83), random.normal(0, 1, 36)
    inner, out = np.full((7, 96), np.nan, np.float32), pad_columns(hidden)
    arrays = (pack_panels(w_in), pad_vector(b_in), pack_panels(w_out), pad_vector(b_out), inner, out)
    library.mlp(pointer(pad_columns(x)), ctypes.c_int64(7), *map(pointer, arrays))
    exact = hidden + ACTIVATIONS["gelu_tanh"](x @ w_in.T + b_in) @ w_out.T + b_out
    np.testing.assert_allclose(out[:, :36], exact, rtol=0, atol=2e-5)


@pytest.mark.parametrize("width", [1, 15, 36, 768])
@pytest.mark.parametrize("affine", [False, True])
def test_layer_norm(library: ctypes.CDLL, width: int, affine: bool) -> None:
    random = np.random.default_rng(width)
    x, weight, bias = (pad_columns(random.normal(1, 2, (1, width))) for _ in range(3))
    y = np.full_like(x, np.nan)
    arguments = (pointer(weight), pointer(bias)) if affine else (pointer(None), pointer(None))
    getattr(library, f"layer_norm_{width}")(pointer(x), pointer(y), ctypes.c_float(1e-5), *arguments)
    values = x[0, :width].astype(np.float64)
    exact = (values - values.mean()) / np.sqrt(values.var() + 1e-5)
    if affine:
        exact = exact * weight[0, :width] + bias[0, :width]
    np.testing.assert_allclose(y[0, :width], exact, rtol=2e-6, atol=2e-6)
    assert not y[0, width:].any()


@pytest.mark.parametrize(("depth", "outputs"), [(1, 1), (33, 17), (100, 49), (768, 160)])
@pytest.mark.parametrize("rows", [1, 2, 3, 7, 8, 13, 24])
def test_linear(library: ctypes.CDLL, depth: int, outputs: int, rows: int) -> None:
    random = np.random.default_rng(depth * rows)
    x = random.uniform(-1, 1, (rows, depth)).astype(np.float32)
    weight = random.uniform(-1, 1, (outputs, depth)).astype(np.float32)
    bias = random.uniform(-1, 1, round_up(outputs)).astype(np.float32)
    y = np.full((rows, round_up(outputs)), np.nan, np.float32)
    getattr(library, f"linear_{depth}_{outputs}")(
        pointer(pad_columns(x)), ctypes.c_int64(rows), pointer(pack_panels(weight)), pointer(bias), pointer(y)
    )
    wide, sizes = x.astype(np.float64), np.abs(x).astype(np.float64)
    exact = wide @ weight.T + bias[:outputs]
    # The standard bound of a sum of K rounded products (Higham, Accuracy and Stability, 3.1).
    bound = (depth + 2) * EPSILON * (sizes @ np.abs(weight).T + np.abs(bias[:outputs]))
    assert (np.abs(y[:, :outputs] - exact) <= bound).all()
    # A row's bits are those that it has alone.
    alone = np.full((1, round_up(outputs)), np.nan, np.float32)
    getattr(library, f"linear_{depth}_{outputs}")(
        pointer(pad_columns(x[-1:])),
        ctypes.c_int64(1),
        pointer(pack_panels(weight)),
        pointer(bias),
        pointer(alone),
    )
    assert alone.tobytes() == y[-1:].tobytes()


def pack_keys(keys: Floats) -> Floats:
    """[C, D] -> [C / 16][D][16], as attention.h states it."""
    return np.ascontiguousarray(keys.reshape(-1, 16, keys.shape[1]).transpose(0, 2, 1))


def pack_values(values: Floats) -> Floats:
    """[C, D] -> [D / 16][C][16]"""
    return np.ascontiguousarray(values.reshape(values.shape[0], -1, 16).transpose(1, 0, 2))


@pytest.mark.parametrize(("heads", "head_dim"), [(1, 16), (3, 12), (2, 64)])
@pytest.mark.parametrize(("past", "count"), [(0, 1), (0, 5), (63, 1), (64, 6), (100, 30), (0, 192), (191, 1)])
def test_attention(library: ctypes.CDLL, heads: int, head_dim: int, past: int, count: int) -> None:
    batch, positions, dim = 2, 192, round_up(head_dim)
    random = np.random.default_rng(past + count)
    query = random.normal(0, 1, (batch, count, heads, dim)).astype(np.float32)
    keys, values = random.normal(0, 1, (2, batch, heads, positions, dim)).astype(np.float32)
    for array in (query, keys, values):
        array[..., head_dim:] = 0
    new = [np.moveaxis(array[:, :, past : past + count], 1, 2) for array in (keys, values)]
    qkv = np.stack([query, *new], axis=2)
    stale_keys, stale_values = keys.copy(), values.copy()
    stale_keys[:, :, past:] = np.nan  # what a longer sequence left behind
    stale_values[:, :, past:] = np.nan
    cache = np.concatenate(
        [
            packed.ravel()
            for b in range(batch)
            for h in range(heads)
            for packed in (pack_keys(stale_keys[b, h]), pack_values(stale_values[b, h]))
        ]
    )
    out = np.full_like(query, np.nan)
    sizes = map(ctypes.c_int64, (batch, count, past, positions))
    getattr(library, f"attention_{heads}_{head_dim}")(*sizes, pointer(qkv), pointer(cache), pointer(out))

    scores = np.einsum("bqhd,bhkd->bhqk", query.astype(np.float64), keys)
    hidden = np.arange(positions) > past + np.arange(count)[:, None]
    scores = np.where(hidden, -np.inf, scores)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    exact = np.einsum("bhqk,bhkd->bqhd", weights / weights.sum(-1, keepdims=True), values)
    np.testing.assert_allclose(out, exact, rtol=0, atol=5e-5)
