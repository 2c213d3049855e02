"""A launcher that measures one process of a build, and the report of all of them.

measure.py OUT WHAT -- COMMAND...     runs the command; appends its time and peak memory to OUT/processes.jsonl
measure.py OUT --report FILE          writes what the last run of each process took, as one JSON object
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from typing import Any


def run(out: str, what: str, command: list[str]) -> int:
    """Runs `command`; the record is one short write, so that parallel ones do not mix. Returns its exit status."""
    start = time.time()
    status = os.spawnvp(os.P_WAIT, command[0], command)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    record = {
        "what": what,
        "output": command[command.index("-o") + 1] if "-o" in command else what,
        "start": start,
        "seconds": round(time.time() - start, 3),
        "peak_bytes": peak,
        "exit": status,
    }
    os.makedirs(out, exist_ok=True)
    with open(os.path.join(out, "processes.jsonl"), "a", encoding="utf-8") as log:
        log.write(json.dumps(record) + "\n")
    return status


def report(out: str, path: str) -> int:
    """The last record of each process, with totals and the budget that shaped the build."""
    with open(os.path.join(out, "processes.jsonl"), encoding="utf-8") as log:
        last = {line["output"]: line for line in map(json.loads, log)}
    with open(os.path.join(out, "options.json"), encoding="utf-8") as options:
        budget = json.load(options)["budget"]
    processes = sorted(last.values(), key=lambda process: float(process["start"]))
    begin = processes[0]["start"]
    summary = {
        "wall_seconds": round(busy_seconds(processes), 3),
        "peak_bytes": max(p["peak_bytes"] for p in processes),
        "compile_memory_bytes": budget["cap"],
        "pool": budget["pool"],
        "unity_groups": sum("unity_group_" in p["output"] for p in processes),
        "processes": [{**p, "start": round(p["start"] - begin, 3)} for p in processes],
    }
    with open(path + ".tmp", "w", encoding="utf-8") as file:
        json.dump(summary, file, indent=1)
    os.replace(path + ".tmp", path)
    return 0


def busy_seconds(processes: list[dict[str, Any]]) -> float:
    """Seconds during which at least one of them ran, however many builds they are from; sorted by start."""
    busy, end = 0.0, 0.0
    for process in processes:
        stop = process["start"] + process["seconds"]
        busy += max(0.0, stop - max(end, process["start"]))
        end = max(end, stop)
    return busy


if __name__ == "__main__":
    if sys.argv[2] == "--report":
        sys.exit(report(sys.argv[1], sys.argv[3]))
    sys.exit(run(sys.argv[1], sys.argv[2], sys.argv[sys.argv.index("--") + 1 :]))
