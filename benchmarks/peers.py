"""`peers`: Kaoken beside other engines, each in its own process, taking turns round by round."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.build_statistics import build_statistics
from benchmarks.children import Child, WorkerError, as_fields
from benchmarks.cold import cold_scripts, measure_cold
from benchmarks.engines import PEERS, Entry, get_entry, peers_of
from benchmarks.machine import header
from benchmarks.models import Checkpoint, get_checkpoint, task_of
from benchmarks.preparing import cache_root, prepare
from benchmarks.processes import measure_processes
from benchmarks.rows import LONG, ROWS, SHORT, Row, rows_of
from benchmarks.summary import summarize

SETTLE = 0.4  # seconds before each turn, in which the threads of the engine before stop spinning (OpenMP: 0.2)

Say = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """What one run measures."""

    model: str
    dtypes: tuple[str, ...]
    rows: tuple[str, ...]
    peers: tuple[str, ...]  # substrings of engine names; empty is all
    rounds: int
    threads: int
    cache: Path
    out: Path

    def wants(self, engine: str) -> bool:
        """Whether a peer was asked for."""
        return not self.peers or any(part in engine for part in self.peers)


@dataclass
class Results:
    """The JSON document, as it grows."""

    head: dict[str, Any]
    engines: dict[str, dict[str, Any]] = field(default_factory=dict)  # name -> note, versions
    missing: dict[str, str] = field(default_factory=dict)  # name -> why
    skipped: dict[str, str] = field(default_factory=dict)  # row -> why
    turns: list[dict[str, Any]] = field(default_factory=list)
    cold: list[dict[str, Any]] = field(default_factory=list)
    processes: list[dict[str, Any]] = field(default_factory=list)
    build: dict[str, Any] = field(default_factory=dict)
    weights_bytes: dict[str, float] = field(default_factory=dict)  # dtype -> of all parameters

    def document(self) -> dict[str, Any]:
        """As JSON."""
        return {
            **self.head,
            "engines": self.engines,
            "missing": self.missing,
            "skipped": self.skipped,
            "turns": self.turns,
            "cold": self.cold,
            "processes": self.processes,
            "build": self.build,
            "weights_bytes": self.weights_bytes,
        }


def rows_that_fit(plan: Plan, n_positions: int, results: Results) -> list[Row]:
    """The rows of engines that take turns; those of other tasks or past the model's context are noted as skipped."""
    fitting = []
    for row in (ROWS[name] for name in plan.rows if name in ROWS):
        if row.task() != task_of(plan.model):
            results.skipped[row.name] = f"is for models that {row.task()}, and {plan.model} is to {task_of(plan.model)}"
        elif row.positions() > n_positions:
            results.skipped[row.name] = f"needs {row.positions()} positions, {plan.model} has {n_positions}"
        else:
            fitting.append(row)
    return fitting


def ready(entry: Entry, checkpoint: Checkpoint, plan: Plan, results: Results, say: Say) -> Path | None:
    """The engine's own form of the checkpoint; None, with the reason noted, where it has to be left out."""
    if lacks := entry.lacks(checkpoint.config()["model_type"]):
        results.missing[entry.name] = lacks
    else:
        try:
            return prepare(entry, checkpoint, plan.cache, plan.threads, _log(plan, entry))
        except WorkerError as error:
            results.missing[entry.name] = f"cannot convert the model: {error}"
    say(f"missing: {entry.name}: {results.missing[entry.name]}")
    return None


def load(entry: Entry, checkpoint: Checkpoint, plan: Plan, results: Results, prepared: Path, say: Say) -> Child | None:
    """A process with the engine loaded; None, with the reason noted, where it fails."""
    child = Child(entry.name, plan.threads, _log(plan, entry))
    try:
        results.engines[entry.name] = child.ask(
            "load",
            engine=entry.name,
            checkpoint=as_fields(checkpoint),
            prepared=str(prepared),
            threads=plan.threads,
        )
    except WorkerError as error:
        child.close()
        results.missing[entry.name] = str(error)
        say(f"missing: {entry.name}: {error}")
        return None
    return child


def _log(plan: Plan, entry: Entry) -> Path:
    return plan.out / "logs" / f"{entry.name.replace(' ', '-')}.log"


def take_turns(
    ours: Child, peers: list[Child], row: Row, rounds: int, results: Results, seeds: Iterator[int], say: Say
) -> None:
    """Ours, a peer, ours, the next peer: so for each round, the first of them for warmth alone.

    A peer that fails leaves `peers` and is noted.
    """
    for number in range(-1, rounds):
        for peer in [*peers] if peers else [None]:
            turn: dict[str, Any] = {"row": row.name, "round": number, "ours": ours.engine}
            turn["ours_seconds"] = measure(ours, row, seeds)
            if peer is not None:
                try:
                    turn |= {"peer": peer.engine, "peer_seconds": measure(peer, row, seeds)}
                except WorkerError as error:
                    results.missing[f"{peer.engine}, {row.name}"] = str(error)
                    say(f"failed: {error}")
                    peers.remove(peer)
                    continue
            if number >= 0:
                results.turns.append(turn)


def measure(child: Child, row: Row, seeds: Iterator[int]) -> list[float]:
    """Seconds of each step or prompt, behind a pause for whoever worked before."""
    time.sleep(SETTLE)
    seconds: list[float] = child.ask(row.request, **row.fields(next(seeds)))["seconds"]
    return seconds


def run(plan: Plan, arguments: Sequence[str], say: Say, only_prepare: bool) -> dict[str, Any]:
    """Measures everything in the plan; the document is written after every type, so little is lost."""
    results = Results(header(" ".join(["peers", *arguments]), plan.threads) | {"model": plan.model})
    checkpoint = get_checkpoint(plan.model, plan.cache)
    task = checkpoint.task()
    rows = rows_that_fit(plan, checkpoint.n_positions(), results)
    seeds = iter(range(1, 1 << 30))
    for dtype in plan.dtypes:
        names = [f"kaoken {dtype}", *filter(plan.wants, peers_of(task, dtype))]
        entries = [get_entry(name, task) for name in names]
        say(f"{dtype}: preparing {', '.join(entry.name for entry in entries)}")
        prepared = {entry: path for entry in entries if (path := ready(entry, checkpoint, plan, results, say))}
        if entries[0] not in prepared:
            continue  # there is nothing to compare with
        if only_prepare:
            continue
        if rows or "context" in plan.rows:
            _measure_rows(plan, checkpoint, prepared, rows, results, seeds, say)
        if "cold" in plan.rows and dtype == "int8":
            torch = get_entry("torch float32", task)  # for a decoder, a whole generate() of transformers
            if plan.wants(torch.name) and (path := ready(torch, checkpoint, plan, results, say)):
                prepared[torch] = path
            scripts = cold_scripts(prepared, checkpoint, plan.threads, plan.out)
            results.cold = measure_cold(scripts, plan.rounds, plan.threads, say)
            results.weights_bytes[dtype] = float(checkpoint.parameters())  # a byte each
        if "processes" in plan.rows:
            _measure_processes(plan, cold_scripts(prepared, checkpoint, plan.threads, plan.out), results, say)
        if "build" in plan.rows:
            results.build[dtype] = build_statistics(prepared[entries[0]])
        save(results.document(), plan.out / f"peers-{plan.model}.json")
    return results.document()


def _measure_rows(
    plan: Plan,
    checkpoint: Checkpoint,
    prepared: dict[Entry, Path],
    rows: list[Row],
    results: Results,
    seeds: Iterator[int],
    say: Say,
) -> None:
    with ExitStack() as stack:
        children = []
        for entry, path in prepared.items():
            if child := load(entry, checkpoint, plan, results, path, say):
                stack.callback(child.close)
                children.append(child)
        if not children or not children[0].engine.startswith("kaoken"):
            return  # the reason is noted
        for row in rows:
            peers = [child for child in children[1:] if child.engine.startswith(row.peers)]
            take_turns(children[0], peers, row, plan.rounds, results, seeds, say)
            _say_medians(children[0].engine, row, results, say)
        if "context" in plan.rows:
            _measure_contexts(children[0], checkpoint, plan, results, seeds, say)


def _measure_contexts(
    ours: Child, checkpoint: Checkpoint, plan: Plan, results: Results, seeds: Iterator[int], say: Say
) -> None:
    """Ours at a short and a long context in turns; the first of them is for warmth."""
    if LONG.positions() > checkpoint.n_positions():
        results.skipped["context"] = f"needs {LONG.positions()} positions"
        return
    found = []
    for number in range(-1, plan.rounds):
        short, long = measure(ours, SHORT, seeds), measure(ours, LONG, seeds)
        found.append(summarize(long).median / summarize(short).median)
        if number >= 0:
            turn = {
                "row": "context",
                "round": number,
                "ours": ours.engine,
                "short_seconds": short,
                "long_seconds": long,
            }
            results.turns.append(turn)
    ratio = summarize(found[1:])
    say(f"context 1000 over 16: {ours.engine} {ratio.median:.3f} ({ratio.low:.3f} to {ratio.high:.3f})")


def _measure_processes(plan: Plan, scripts: dict[str, str], results: Results, say: Say) -> None:
    """What several processes of each engine hold; one that fails is noted, and an engine is measured once."""
    for engine, script in scripts.items():
        if any(record["engine"] == engine for record in results.processes):
            continue
        try:
            found = measure_processes(script, plan.threads, plan.out / "logs" / "processes.log")
        except WorkerError as error:
            results.missing[f"{engine}, processes"] = str(error)
            say(f"missing: {engine}, processes: {error}")
            continue
        results.processes.append({"engine": engine, **found})
        each, together = (sum(found[key]) / 2**20 for key in ("resident_bytes", "proportional_bytes"))
        say(f"{len(found['resident_bytes'])} processes: {engine} {together:.0f} MiB, {each:.0f} MiB resident")


def _say_medians(ours: str, row: Row, results: Results, say: Say) -> None:
    """One line a peer, as it comes."""
    turns = [turn for turn in results.turns if turn["row"] == row.name and turn["ours"] == ours]
    mine = summarize([summarize(turn["ours_seconds"]).median for turn in turns]).median
    for peer in dict.fromkeys(turn.get("peer") for turn in turns):
        pairs = [turn for turn in turns if turn.get("peer") == peer]
        if peer is None:
            say(f"{row.title}: {ours} {1e3 * mine:.2f} ms")
            continue
        theirs = summarize([summarize(turn["peer_seconds"]).median for turn in pairs])
        ratio = summarize(
            [summarize(turn["ours_seconds"]).median / summarize(turn["peer_seconds"]).median for turn in pairs]
        )
        say(
            f"{row.title}: {ours} {1e3 * mine:.2f} ms, {peer} {1e3 * theirs.median:.2f} ms, "
            f"ratio {ratio.median:.3f} ({ratio.low:.3f} to {ratio.high:.3f})"
        )


def save(document: dict[str, Any], path: Path) -> None:
    """Writes JSON, making the directory."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def make_plan(options: argparse.Namespace) -> Plan:
    """From the command line. --quick is two rounds of the short rows."""
    quick, task = options.quick, task_of(options.model)
    return Plan(
        model=options.model,
        dtypes=tuple(options.dtypes or (("float32", "int8") if quick else PEERS[task])),
        rows=tuple(options.rows or rows_of(task, quick)),
        peers=tuple(options.peers or ()),
        rounds=options.rounds or (2 if quick else 7),
        threads=options.threads,
        cache=cache_root(options.cache),
        out=options.out,
    )
