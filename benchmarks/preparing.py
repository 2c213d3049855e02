"""Checkpoints in each engine's own form, converted once and kept in a cache."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

from benchmarks.children import Child, as_fields
from benchmarks.engines import Entry
from benchmarks.models import Checkpoint

RECIPES = 1  # to be raised when an engine's `prepare` changes what it writes


def cache_root(chosen: Path | None) -> Path:
    """--cache, else $KAOKEN_CACHE/benchmarks, else ~/.cache/kaoken-benchmarks."""
    if chosen is not None:
        return chosen.absolute()
    if cache := os.environ.get("KAOKEN_CACHE"):
        return Path(cache).absolute() / "benchmarks"
    return Path.home() / ".cache" / "kaoken-benchmarks"


def prepare(entry: Entry, checkpoint: Checkpoint, cache: Path, threads: int, log: Path) -> Path:
    """What the engine loads, converted in a process of its own unless the cache has it. Raises WorkerError."""
    fields = {"engine": entry.name, "checkpoint": as_fields(checkpoint)}
    if entry.name.startswith("kaoken "):
        with Child(entry.name, threads, log) as child:
            return Path(child.ask("prepare", directory=None, **fields)["prepared"])
    directory = (
        cache / "prepared" / f"{checkpoint.name}-{checkpoint.digest}" / f"{entry.name.replace(' ', '-')}-{_key(entry)}"
    )
    if not directory.is_dir():
        temporary = directory.with_name(f"{directory.name}.{os.getpid()}")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        try:
            with Child(entry.name, threads, log) as child:
                child.ask("prepare", directory=str(temporary), **fields)
            temporary.rename(directory)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return directory


def _key(entry: Entry) -> str:
    """Of the versions that convert: 10 hexadecimal digits."""
    facts = json.dumps([RECIPES, entry.versions()], sort_keys=True)
    return hashlib.sha256(facts.encode()).hexdigest()[:10]
