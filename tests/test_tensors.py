"""Lazy tensors made of others: each piece of one has the bits of the whole."""

from __future__ import annotations

import numpy as np
import pytest
from kaoken.codegen.families.distance import alibi
from kaoken.codegen.graph import Tensor, gather, part, product, transpose
from numpy.typing import NDArray

Array = NDArray[np.float64]


def tensor(values: Array, name: str = "a") -> Tensor:
    return Tensor(values.shape, (name,), lambda start, stop: values[start:stop])


def matrix(rows: int, columns: int, seed: int, spread: int = 20) -> Array:
    """Values of float32 whose exponents differ by up to twice the spread."""
    random = np.random.default_rng(seed)
    values = random.normal(size=(rows, columns)) * np.exp2(random.integers(-spread, spread, (rows, columns)))
    return values.astype(np.float32).astype(np.float64)


def require_pieces(found: Tensor, expected: Array) -> None:
    """The whole, and all pieces of it."""
    assert found.shape == expected.shape
    whole = found.load()
    np.testing.assert_array_equal(whole, expected)
    for start in range(len(whole)):
        for stop in range(start + 1, len(whole) + 1):
            np.testing.assert_array_equal(found.rows(start, stop), whole[start:stop])


def test_parts_and_chosen_rows() -> None:
    values = matrix(9, 3, 0)
    require_pieces(part(tensor(values), 2, 7), values[2:7])
    require_pieces(transpose(tensor(values)), values.T)
    chosen = np.array([8, 0, 3, 3, 1])
    require_pieces(gather(tensor(values), chosen), values[chosen])
    require_pieces(gather(tensor(values[:, 0]), chosen), values[chosen, 0])


@pytest.mark.parametrize("depth", [1, 2, 7, 64, 511, 512, 3000])
def test_products(depth: int) -> None:
    """Against exact sums: each output within 2^-50 of its largest product, times the number of these."""
    left, right = matrix(6, depth, 1), matrix(depth, 5, 2)
    left[2], right[:, 3] = 0.0, 0.0
    made = product(tensor(left), tensor(right, "b"))
    assert made.sources == ("a", "b")
    require_pieces(made, made.load())
    exact = left.astype(np.longdouble) @ right.astype(np.longdouble)
    largest = np.abs(left).max(1)[:, None] * np.abs(right).max(0)
    assert np.all(np.abs(made.load() - exact) <= depth * 2.0**-50 * largest)


def test_products_of_whole_numbers_are_exact() -> None:
    left, right = np.arange(12.0).reshape(3, 4), np.arange(20.0).reshape(4, 5)
    np.testing.assert_array_equal(product(tensor(left), tensor(right)).load(), left @ right)


def test_slopes_of_alibi() -> None:
    """Those of the paper: of 8 heads, and of 12 the next ones of 16."""
    eight = [2.0**-power for power in range(1, 9)]
    assert alibi(8, 4).load()[:, 3].tolist() == [-slope for slope in eight]
    twelve = [*eight, *(2.0**-power for power in (0.5, 1.5, 2.5, 3.5))]
    np.testing.assert_allclose(alibi(12, 4).load()[:, 3], [-slope for slope in twelve], rtol=1e-15)
    assert alibi(8, 4).load()[0].tolist() == [-2.0, -1.5, -1.0, -0.5, 0.0, 0.0, 0.0, 0.0]
