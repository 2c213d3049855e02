"""Build time and the largest process of a build, from the JSON that it leaves beside the library."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def build_statistics(library: Path) -> dict[str, Any]:
    """wall_seconds, peak_bytes, and library_bytes; what is not known is left out."""
    found: dict[str, Any] = {"library_bytes": library.stat().st_size}
    try:
        statistics = json.loads(library.with_name(library.name + ".json").read_bytes())
    except (OSError, ValueError):
        return found
    return found | {name: statistics[name] for name in ("wall_seconds", "peak_bytes") if name in statistics}
