"""A progress bar on stderr, where tqdm is installed."""

from __future__ import annotations

from importlib import import_module
from types import TracebackType
from typing import Any


def make_bar(total: int | None, unit: str) -> Any:
    """tqdm's, None where it is not installed."""
    try:
        tqdm = import_module("tqdm").tqdm
    except ImportError:
        return None
    return tqdm(total=total, unit=unit, dynamic_ncols=True, leave=False)


class Bar:
    """Counts what is done of a total; nothing where it is off or tqdm is not installed."""

    def __init__(self, total: int | None, unit: str, enabled: bool) -> None:
        self._bar = make_bar(total, unit) if enabled else None

    def advance(self, count: int) -> None:
        if self._bar is not None:
            self._bar.update(count)

    def __enter__(self) -> Bar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()
