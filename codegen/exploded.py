"""The exploded form of a matrix: straight-line code with its weights written in, zero weights left out.

The outputs are divided into strips, a function each. Where the weights of every k in a panel of 16 outputs are either
all there or all zero, up to four such panels become one strip of vector lines; any other panel becomes a strip of
single multiply-adds, a chain for each output. Either way no zero weight is in the code, and every output is the chain
of multiply-adds in ascending k that the packed kernels compute.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from .layout import PANEL
from .memory import EXPLODED_LINE_WEIGHT, EXPLODED_SINGLE_WEIGHT

Weights: TypeAlias = "NDArray[np.float32]"  # [outputs rounded up to 16, K]

EXPLODED_LIMIT = 16_384  # nonzero weights of a matrix: beyond, code gains little and takes seconds to compile
STRIP_PANELS = 4  # panels of lines side by side, which hide their latency: kStripPanels of runtime/kernels/exploded.h
CHAINS = 8  # single chains side by side: they, an input and a product fit 16 registers


@dataclass(frozen=True, eq=False)
class Strip:
    """Some panels of a matrix, computed by one function."""

    name: str
    first: int  # panel
    weights: Weights

    @property
    def panels(self) -> int:
        return len(self.weights) // PANEL

    @property
    def nonzeros(self) -> int:
        return int(np.count_nonzero(self.weights))

    @property
    def vector(self) -> bool:
        """Whether it is written in lines of 16 weights."""
        return _is_full(self.weights)

    @property
    def memory(self) -> int:
        """Bytes that a compiler takes for it."""
        return self.nonzeros * (EXPLODED_LINE_WEIGHT if self.vector else EXPLODED_SINGLE_WEIGHT)

    def lines(self) -> Iterator[tuple[int, int, list[float]]]:
        """The vector products in order: (k, panel, its 16 weights)."""
        panels = self.weights.reshape(self.panels, PANEL, -1)
        for k, p in np.argwhere(panels.any(axis=1).T).tolist():
            yield k, p, panels[p, :, k].tolist()

    def chains(self) -> Iterator[tuple[list[int], list[tuple[int, int, float]]]]:
        """CHAINS outputs at a time, with their products in order: (k, output, weight)."""
        for first in range(0, len(self.weights), CHAINS):
            columns, rows = np.nonzero(self.weights[first : first + CHAINS].T)
            products = [
                (k, first + row, float(self.weights[first + row, k]))
                for k, row in zip(columns.tolist(), rows.tolist(), strict=True)
            ]
            yield list(range(first, min(first + CHAINS, len(self.weights)))), products


@dataclass(frozen=True, eq=False)
class StripFile:
    """Strips that share a generated file."""

    name: str
    sources: tuple[str, ...]
    strips: tuple[Strip, ...]

    @property
    def memory(self) -> int:
        return sum(strip.memory for strip in self.strips)


def explode(name: str, sources: tuple[str, ...], weights: Weights, strip_file_limit: int) -> tuple[StripFile, ...]:
    """The matrix in files. A compiler needs at most `strip_file_limit` bytes for a file of more than one strip."""
    groups: list[list[Strip]] = []
    for strip in _strips(name, weights):
        if not groups or sum(each.memory for each in groups[-1]) + strip.memory > strip_file_limit:
            groups.append([])
        groups[-1].append(strip)
    return tuple(StripFile(f"{name}_{index}", sources, tuple(group)) for index, group in enumerate(groups))


def _strips(name: str, weights: Weights) -> list[Strip]:
    strips: list[Strip] = []
    for panel in range(len(weights) // PANEL):
        own = weights[panel * PANEL : (panel + 1) * PANEL]
        last = strips[-1] if strips else None
        if last and last.vector and _is_full(own) and last.panels < STRIP_PANELS:
            strips[-1] = replace(last, weights=np.concatenate([last.weights, own]))
        else:
            strips.append(Strip(f"{name}_strip_{len(strips)}", panel, own))
    return strips


def _is_full(weights: Weights) -> bool:
    """Whether each k of each panel has all of its 16 weights or none, and some have."""
    counts = np.count_nonzero(weights.reshape(-1, PANEL, weights.shape[1]), axis=1)
    return bool(np.isin(counts, (0, PANEL)).all() and counts.any(axis=1).all())
