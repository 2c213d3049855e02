"""Cleans up behind a bake whose process was killed: ends its build and removes the directory of that.

python -I guard.py GROUP DIRECTORY     waits until standard input ends, which only the other process could write to
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from contextlib import suppress


def clean(group: int, directory: str) -> None:
    """Ends a process group, by force if it must be, and removes a directory."""
    with suppress(ProcessLookupError):
        for ending in (signal.SIGTERM, signal.SIGKILL):
            os.killpg(group, ending)
            for _ in range(100):
                os.killpg(group, 0)
                time.sleep(0.02)
    for _ in range(100):  # what the group started may write a moment longer
        shutil.rmtree(directory, ignore_errors=True)
        if not os.path.isdir(directory):
            break
        time.sleep(0.02)


if __name__ == "__main__":
    sys.stdin.buffer.read()
    clean(int(sys.argv[1]), sys.argv[2])
