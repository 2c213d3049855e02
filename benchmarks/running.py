"""How many threads of a process run or could run, from outside.

python -m benchmarks.running PID     samples until standard input ends, and prints {"threads": samples} as JSON
"""

from __future__ import annotations

import json
import select
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.models import ROOT

INTERVAL = 0.002  # seconds


def count_running(process: int) -> int:
    """Threads in the state R, which includes those that wait for a processor."""
    running = 0
    for status in Path(f"/proc/{process}/task").glob("*/stat"):
        try:
            running += status.read_bytes().rpartition(b") ")[2].startswith(b"R")
        except OSError:  # it has ended
            continue
    return running


@contextmanager
def sampling(process: int) -> Iterator[Counter[int]]:
    """Samples of a process while the block runs, counted by the number of threads."""
    counts: Counter[int] = Counter()
    command = [sys.executable, "-m", "benchmarks.running", str(process)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as sampler:
        assert sampler.stdout is not None
        sampler.stdout.readline()
        yield counts
        found = json.loads(sampler.communicate()[0])
    counts.update({int(threads): samples for threads, samples in found.items()})


def main(process: int) -> None:
    """Samples until standard input ends."""
    print("ready", flush=True)
    counts: Counter[int] = Counter()
    while not select.select([sys.stdin], [], [], INTERVAL)[0]:
        counts[count_running(process)] += 1
    print(json.dumps(counts))


if __name__ == "__main__":
    main(int(sys.argv[1]))
