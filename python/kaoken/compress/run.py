"""The directory of a run that has not ended, from which the same command goes on after a kill."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kaoken.errors import InputError, KaokenError

_RECIPE, _LOCK = "recipe.json", ".lock"


@contextmanager
def open_run(out: str | Path, recipe: Mapping[str, Any]) -> Iterator[Path]:
    """OUT.work beside OUT, which holds what an earlier run of the same recipe has left; one process at a time.

    `recipe` is JSON: all that decides the result. Raises InputError where OUT exists, or where OUT.work is of another
    recipe, and KaokenError while another process works there. Both are left as they are. A run that fails before it has
    done anything leaves nothing. A full disk becomes a KaokenError.
    """
    out = Path(os.path.abspath(out))
    if os.path.lexists(out):
        raise InputError(f"{out} exists; expected a new directory: choose another -o, or remove it")
    work = out.with_name(f"{out.name}.work")
    work.mkdir(parents=True, exist_ok=True)
    with open(work / _LOCK, "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise KaokenError(f"another run works in {work}: wait for it, or choose another -o") from None
        _check_recipe(work, json.loads(json.dumps(recipe)))
        try:
            yield work
        except BaseException as error:
            if set(os.listdir(work)) <= {_RECIPE, _LOCK}:
                shutil.rmtree(work)
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise KaokenError(
                    f"the disk is full ({error.filename or work}): free some space; the same command goes on from what "
                    "is done"
                ) from error
            raise


def finish(work: Path) -> None:
    """OUT.work has its result in `result`: makes that OUT and removes the rest."""
    os.rename(work / "result", work.with_suffix(""))
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
    old, new = dict(_options(before)), dict(_options(recipe))
    different = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    if different:
        changes = ", ".join(f"{name} {_short(old.get(name))} (now {_short(new.get(name))})" for name in different)
        raise InputError(
            f"{work} holds an unfinished run with other options: {changes}; expected the same ones: "
            "repeat them to go on, choose another -o, or remove that directory to start again"
        )


def _options(recipe: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Each option by its whole name: `{"schedule": {"seed": 1}}` has `schedule.seed`."""
    for name, value in recipe.items():
        if isinstance(value, dict):
            yield from _options(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
