"""Several processes that loaded the same model: what each holds, and what they share."""

from __future__ import annotations

import re
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.children import WorkerError, environment

COUNT = 4

# Behind the program of a cold start: keeps what it loaded until standard input ends.
_HOLD = "\nimport sys\nsys.stdin.read()\n"


def measure_processes(script: str, threads: int, log: Path, count: int = COUNT) -> dict[str, Any]:
    """Bytes of `count` processes that run the program of a cold start, once it has printed its result; errors to a log.

    Returns {alone_bytes, resident_bytes, proportional_bytes}: the proportional memory of the first before the others
    start, then lists of each one's. Proportional memory divides a page by the processes that map it. Raises WorkerError
    where a program fails or the system has no /proc/PID/smaps_rollup.
    """
    with ExitStack() as stack:
        processes = [stack.enter_context(_start(script, threads, log))]
        alone = read_memory(processes[0].pid)["Pss"]
        processes += [stack.enter_context(_start(script, threads, log)) for _ in range(count - 1)]
        found = [read_memory(process.pid) for process in processes]
    return {
        "alone_bytes": alone,
        "resident_bytes": [each["Rss"] for each in found],
        "proportional_bytes": [each["Pss"] for each in found],
    }


def _start(script: str, threads: int, log: Path) -> subprocess.Popen[str]:
    """A process that has printed its first line."""
    with log.open("ab") as file:
        process = subprocess.Popen(
            [sys.executable, "-c", script + _HOLD],
            env=environment(threads),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=file,
            text=True,
        )
    assert process.stdout is not None
    if not process.stdout.readline():
        process.communicate()
        raise WorkerError(f"the program of a cold start ended with status {process.returncode}; see logs/{log.name}")
    return process


def read_memory(process: int) -> dict[str, int]:
    """Bytes by the names of /proc/PID/smaps_rollup, such as Rss and Pss. Raises WorkerError where that is missing."""
    try:
        text = Path(f"/proc/{process}/smaps_rollup").read_text(encoding="ascii")
    except OSError as error:
        raise WorkerError(f"the memory of a process cannot be read: {error}") from error
    return {name: 1024 * int(kilobytes) for name, kilobytes in re.findall(r"^(\w+): +(\d+) kB$", text, re.MULTILINE)}
