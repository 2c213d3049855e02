"""The directory of a run that has not ended, from which the same command goes on after a kill."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kaoken.errors import InputError, KaokenError

_RECIPE = "recipe.json"


@contextmanager
def open_run(out: str | Path, recipe: Mapping[str, Any]) -> Iterator[Path]:
    """OUT.work beside OUT, which holds what an earlier run of the same recipe has left; one process at a time.

    `recipe` is JSON: all that decides the result. Raises InputError where OUT exists, or where OUT.work is of another
    recipe, and KaokenError while another process works there. Both are left as they are.
    """
    out = Path(os.path.abspath(out))
    if os.path.lexists(out):
        raise InputError(f"{out} exists; expected a new directory: choose another -o, or remove it")
    work = out.with_name(f"{out.name}.work")
    work.mkdir(parents=True, exist_ok=True)
    with open(work / ".lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise KaokenError(f"another run works in {work}: wait for it, or choose another -o") from None
        _check_recipe(work, json.loads(json.dumps(recipe)))
        yield work


def finish(work: Path, out: str | Path) -> None:
    """OUT.work has its result in `result`: makes that OUT and removes the rest."""
    os.rename(work / "result", out)
    shutil.rmtree(work)


def write_json(path: Path, value: Any) -> None:
    """Whole or not at all."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    partial.replace(path)


def _check_recipe(work: Path, recipe: dict[str, Any]) -> None:
    path = work / _RECIPE
    if not path.exists():
        write_json(path, recipe)
        return
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise InputError(f"{path} is damaged: remove {work} and start again, or choose another -o") from None
    different = [name for name in {**before, **recipe} if before.get(name) != recipe.get(name)]
    if different:
        changes = ", ".join(f"{name} {_short(before.get(name))} (now {_short(recipe.get(name))})" for name in different)
        raise InputError(
            f"{work} holds an unfinished run with other options: {changes}; expected the same ones: "
            "repeat them to go on, choose another -o, or remove that directory to start again"
        )


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
