"""What a service asks beside speed: what choosing tokens costs, and what many callers reach together.

Choosing is `generate`'s step over a step of `Session.append`, neighbours in time. Callers are Python threads that call
`logits` in a loop, in processes that take turns: with Kaoken's own number of threads, and with KAOKEN_THREADS=1.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import kaoken
from benchmarks.machine import header
from benchmarks.models import get_checkpoint
from benchmarks.peers import save
from benchmarks.preparing import cache_root
from benchmarks.summary import summarize
from kaoken.causal import BakedGPT2

BATCHES = (1, 8)
PROMPT, STEPS = 32, 48
CHOICES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "temperature 0.8": {"do_sample": True, "temperature": 0.8, "top_k": 0},
    "top_k 50": {"do_sample": True, "top_k": 50},
    "top_p 0.9": {"do_sample": True, "top_k": 0, "top_p": 0.9},
    "top_k 50, top_p 0.9": {"do_sample": True, "top_k": 50, "top_p": 0.9},
}
CALLERS = (1, 2, 4, 16)
LENGTH = 32  # of a caller's ids
SECONDS = 3.0  # of a turn of callers
PROCESSES = 4

Say = Callable[[str], None]


def run(options: argparse.Namespace, arguments: Sequence[str], say: Say) -> dict[str, Any]:
    """Measures, and writes service-<model>.json."""
    checkpoint = get_checkpoint(options.model, cache_root(options.cache))
    library = kaoken.bake(checkpoint.directory, dtype=options.dtype)
    document = {
        **header(" ".join(["service", *arguments]), options.threads),
        "model": options.model,
        "dtype": options.dtype,
        "choosing": list(_choosing(library, options, say)),
        "callers": [_callers(library, count, options, say) for count in CALLERS],
        "processes": _processes(library, options, say),
    }
    save(document, options.out / f"service-{options.model}.json")
    return document


def _choosing(library: Path, options: argparse.Namespace, say: Say) -> Iterator[dict[str, Any]]:
    model = kaoken.load(library, threads=options.threads)
    for batch in BATCHES:
        ids = np.random.default_rng(1).integers(0, model.config.vocab_size, (batch, PROMPT))
        for name, choice in CHOICES.items():
            pairs = [(_append_step(model, ids), _generate_step(model, ids, choice)) for _ in range(options.rounds + 1)]
            append, generate = zip(*pairs[1:], strict=True)
            ratio = summarize([b / a for a, b in pairs[1:]]).median
            say(f"batch {batch}, {name}: {ratio:.3f} of {1e3 * summarize(append).median:.2f} ms")
            yield {"batch": batch, "choice": name, "append_seconds": append, "generate_seconds": generate}


def _append_step(model: BakedGPT2, ids: NDArray[np.int64]) -> float:
    """Seconds of a step behind the prompt, the mean of all."""
    session = model.session(len(ids))
    session.append(ids)
    begin = time.perf_counter()
    for _ in range(STEPS):
        session.append(ids[:, :1])
    return (time.perf_counter() - begin) / STEPS


def _generate_step(model: BakedGPT2, ids: NDArray[np.int64], choice: dict[str, Any]) -> float:
    """The same of `generate`, less what one token takes."""
    return (_generate(model, ids, STEPS + 1, choice) - _generate(model, ids, 1, choice)) / STEPS


def _generate(model: BakedGPT2, ids: NDArray[np.int64], count: int, choice: dict[str, Any]) -> float:
    begin = time.perf_counter()
    model.generate(ids, max_new_tokens=count, eos_token_id=None, seed=1, **choice)
    return time.perf_counter() - begin


def _callers(library: Path, count: int, options: argparse.Namespace, say: Say) -> dict[str, Any]:
    turns = [(_turn(library, count, None), _turn(library, count, 1)) for _ in range(options.rounds)]
    own, single = zip(*turns, strict=True)
    ratio = summarize([a / b for a, b in turns]).median
    say(f"{count} callers: {summarize(own).median:.0f} calls/s, {ratio:.3f} of those with KAOKEN_THREADS=1")
    return {"callers": count, "calls_per_second": own, "single_thread_calls_per_second": single}


def _turn(library: Path, count: int, threads: int | None) -> float:
    """Calls a second of a process with so many callers."""
    with _start(library, count, threads) as process:
        return float(json.loads(process.communicate()[0]))


def _start(library: Path, count: int, threads: int | None) -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if name != "KAOKEN_THREADS"}
    environment |= {} if threads is None else {"KAOKEN_THREADS": str(threads)}
    command = [sys.executable, "-m", "benchmarks.service", str(library), str(count)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def _processes(library: Path, options: argparse.Namespace, say: Say) -> dict[str, Any]:
    one, together = [], []
    for _ in range(options.rounds):
        one.append(_turn(library, 1, None))
        running = [_start(library, 1, None) for _ in range(PROCESSES)]
        together.append(sum(float(json.loads(process.communicate()[0])) for process in running))
    ratio = summarize([a / b for a, b in zip(together, one, strict=True)]).median
    say(f"{PROCESSES} processes: {summarize(together).median:.0f} calls/s, {ratio:.3f} of those of one")
    return {"processes": PROCESSES, "one_calls_per_second": one, "together_calls_per_second": together}


def call(library: Path, callers: int) -> float:
    """Calls of `logits` a second that so many threads make of one model."""
    model = kaoken.load(library)
    ids = np.random.default_rng(1).integers(0, model.config.vocab_size, LENGTH)
    model.logits(ids)

    def loop(end: float) -> int:
        calls = 0
        while time.perf_counter() < end:
            model.logits(ids)
            calls += 1
        return calls

    begin = time.perf_counter()
    with ThreadPoolExecutor(callers) as pool:
        total = sum(pool.map(loop, [begin + SECONDS] * callers))
    return total / (time.perf_counter() - begin)


if __name__ == "__main__":
    print(call(Path(sys.argv[1]), int(sys.argv[2])))
