"""Cold start to the first token or vector: a fresh Python process for each measurement, the engines taking turns."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.children import Child, WorkerError, as_fields, environment
from benchmarks.engines import Entry
from benchmarks.models import Checkpoint

# Runs argv and prints seconds to the first byte of output, seconds to its end, its peak bytes and its status. Small,
# because a process inherits its parent's peak until exec has replaced its memory.
_LAUNCHER = r"""
import json, os, sys, time
read, write = os.pipe()
begin = time.perf_counter()
child = os.fork()
if child == 0:
    os.dup2(write, 1)
    os.execv(sys.argv[1], sys.argv[1:])
os.close(write)
first = None
while chunk := os.read(read, 4096):
    first = first or time.perf_counter() - begin
_, status, usage = os.wait4(child, 0)
print(json.dumps([first, time.perf_counter() - begin, usage.ru_maxrss * 1024, status]))
"""


def measure_cold(
    scripts: dict[str, str], rounds: int, threads: int, say: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Records of {engine, round, first_token_seconds, seconds, peak_bytes} for the programs of `cold_scripts`.

    Round -1, for warmth, is left out.
    """
    records = []
    for number in range(-1, rounds):
        for engine, script in scripts.items():
            record = {"engine": engine, "round": number, **launch(script, threads)}
            if number >= 0:
                records.append(record)
    for engine in scripts:
        own = [record for record in records if record["engine"] == engine]
        if own:
            seconds = sorted(record["seconds"] for record in own)[len(own) // 2]
            peak = max(record["peak_bytes"] for record in own) / 2**20
            say(f"cold start: {engine} {seconds:.3f} s, {peak:.0f} MiB")
    return records


def cold_scripts(prepared: dict[Entry, Path], checkpoint: Checkpoint, threads: int, out: Path) -> dict[str, str]:
    """What each engine that has such a program runs, by the engine's name."""
    found = {}
    for entry, path in prepared.items():
        with Child(entry.name, threads, out / "logs" / "cold.log") as child:
            try:
                reply = child.ask(
                    "cold_script",
                    engine=entry.name,
                    checkpoint=as_fields(checkpoint),
                    prepared=str(path),
                    threads=threads,
                )
            except WorkerError:
                continue
        if reply["script"] is not None:
            found[entry.name] = reply["script"]
    return found


def launch(script: str, threads: int) -> dict[str, Any]:
    """One run of a script. Raises WorkerError if it fails."""
    time.sleep(0.1)
    command = [sys.executable, "-I", "-S", "-c", _LAUNCHER, sys.executable, "-c", script]
    ran = subprocess.run(command, capture_output=True, text=True, env=environment(threads))
    if ran.returncode != 0:
        raise WorkerError(f"the launcher of a cold start failed: {ran.stderr}")
    first, seconds, peak, status = json.loads(ran.stdout)
    if status != 0 or first is None:
        raise WorkerError(f"a cold start failed with status {status}: {ran.stderr[-2000:]}")
    return {"first_token_seconds": first, "seconds": seconds, "peak_bytes": peak}
