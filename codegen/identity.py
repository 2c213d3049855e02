"""What tells one state of a checkpoint's files from another without reading them: a copy with older timestamps must not
pass for the files that were baked.

python codegen/identity.py OUT     touches OUT/checkpoint.changed where they are no longer those of the plan in OUT

Every build runs this first, so it needs the standard library alone.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable
from typing import Any

STATE = "checkpoint.json"  # of the files that the plan was made from
CHANGED = "checkpoint.changed"  # an input of CMake's, which makes the plan anew


def state(directory: str, names: Iterable[str]) -> dict[str, Any]:
    """Where the files are and, for each that exists, its size, modification and change times, and inode."""
    return {"directory": directory, "files": {name: _identity(os.path.join(directory, name)) for name in names}}


def same(planned: dict[str, Any]) -> bool:
    """Whether the files still are in a state."""
    return state(planned["directory"], planned["files"]) == planned


def _identity(path: str) -> list[int]:
    try:
        status = os.stat(path)
    except OSError:
        return []
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def main(out: str) -> None:
    """Compares the checkpoint with the plan's."""
    with open(os.path.join(out, STATE), encoding="utf-8") as file:
        planned = json.load(file)
    changed = os.path.join(out, CHANGED)
    if not same(planned) or not os.path.exists(changed):
        with open(changed, "w", encoding="utf-8"):
            pass


if __name__ == "__main__":
    main(sys.argv[1])
