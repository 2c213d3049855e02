"""Biases for each distance of two positions.

T5's relative positions (Raffel et al., arXiv:1910.10683, section 2.1): the checkpoint has one bias for each bucket.
Half of the buckets hold one distance each. The others hold more and more distances each, by the logarithm, and the last
one holds all distances from the furthest on. A distance gets its bucket as in transformers' T5Attention, in float32.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from ..graph import Array, Tensor


def distance_bias(table: Tensor, limit: int, furthest: int, both_ways: bool) -> Tensor:
    """[buckets, heads] -> [heads, 2 * limit], at key position - query position + limit.

    Keys ahead of the query have half of the buckets to themselves or, unless `both_ways`, the bucket of distance 0.
    """
    count, heads = table.shape

    def rows(start: int, stop: int) -> Array:
        return table.load().T[start:stop][:, buckets(np.arange(-limit, limit), count, furthest, both_ways)]

    return Tensor((heads, 2 * limit), table.sources, rows)


def buckets(distances: NDArray[np.int64], count: int, furthest: int, both_ways: bool) -> NDArray[np.int64]:
    """The bucket of each key position - query position."""
    ahead: NDArray[np.int64] = np.zeros_like(distances)
    if both_ways:
        count //= 2
        ahead = np.where(distances > 0, count, 0)
        distances = np.abs(distances)
    else:
        distances = np.maximum(-distances, 0)
    exact = count // 2
    ratios = np.maximum(distances, exact).astype(np.float32) / np.float32(exact)
    logarithms = np.log(ratios.astype(np.float64)).astype(
        np.float32
    )  # rounded once, as NumPy's own float32 logarithms differ
    steps = logarithms / np.float32(math.log(furthest / exact)) * np.float32(count - exact)
    far = np.minimum(exact + steps.astype(np.int64), count - 1)
    return ahead + np.where(distances < exact, distances, far)


def alibi(heads: int, limit: int) -> Tensor:
    """ALiBi (Press et al., arXiv:2108.12409): [heads, 2 * limit], at key position - query position + limit.

    It is a head's slope times the distance, and 0 for keys ahead. Of 8 heads the slopes are 1/2, 1/4 ... 1/256. Where
    the number of heads is no power of two, those beyond one take every other slope of the next.
    """
    power = 1 << heads.bit_length() - 1
    slopes = np.concatenate([_slopes(power), _slopes(2 * power)[::2]])[:heads, None]
    distances = np.minimum(np.arange(-limit, limit), 0)
    return Tensor((heads, 2 * limit), (), lambda start, stop: slopes[start:stop] * distances)


def _slopes(count: int) -> Array:
    slopes: Array = np.exp2(-8 / count * np.arange(1, count + 1))
    return slopes
