"""Medians and ratios with their spread."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Summary:
    """The median of some values and the quartiles around it."""

    median: float
    low: float
    high: float
    count: int

    def scaled(self, factor: float) -> Summary:
        """In another unit."""
        return Summary(factor * self.median, factor * self.low, factor * self.high, self.count)


def summarize(values: Sequence[float]) -> Summary:
    """The quartiles of at least one value."""
    low, median, high = np.percentile(np.asarray(values, np.float64), [25, 50, 75])
    return Summary(float(median), float(low), float(high), len(values))


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Ours over theirs, each pair being neighbours in time."""
    if len(ours) != len(theirs):
        raise ValueError(f"{len(ours)} measurements of ours beside {len(theirs)} of theirs")
    return [a / b for a, b in zip(ours, theirs, strict=True)]
