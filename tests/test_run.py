"""The directory of an unfinished run: one process, one recipe, and a result that appears at once."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from kaoken.compress.run import finish, open_run, write_json
from kaoken.errors import InputError, KaokenError

RECIPE = {"command": "train", "schedule": {"seed": 1, "steps": 9, "loss": {"name": "kl"}}, "factors": (0.9, 0.5)}


def leave(out: Path, recipe: dict[str, object] = RECIPE) -> Path:
    """A run that has done something and has not finished."""
    with open_run(out, recipe) as work:
        (work / "weights").write_text("so far")
    return work


@pytest.mark.parametrize("suffix", ["", "/", "/."])
def test_a_run_goes_on_and_finishes(suffix: str, tmp_path: Path) -> None:
    out = f"{tmp_path}/missing/out{suffix}"
    work = leave(Path(out))
    assert work == tmp_path / "missing" / "out.work"
    with open_run(out, RECIPE) as again:
        assert (again / "weights").read_text() == "so far"
        (again / "result").mkdir()
        (again / "result" / "weights").write_text("all")
        finish(again)
    assert [path.name for path in (tmp_path / "missing").iterdir()] == ["out"]
    assert (tmp_path / "missing" / "out" / "weights").read_text() == "all"


def test_other_options_are_named_and_change_nothing(tmp_path: Path) -> None:
    work = leave(tmp_path / "out")
    before = {path.name: path.read_bytes() for path in work.iterdir()}
    other = {"command": "train", "schedule": {"seed": 2, "steps": 9, "loss": {"name": "mse"}}, "factors": (0.9,)}
    with pytest.raises(InputError) as refused, open_run(tmp_path / "out", {**other, "stride": 3}):
        pass
    assert "other options: schedule.seed 1 (now 2), schedule.loss.name " in str(refused.value)
    assert '"kl" (now "mse"), factors [0.9, 0.5] (now [0.9]), stride null (now 3); expected' in str(refused.value)
    assert "command" not in str(refused.value).split("expected")[0]
    assert {path.name: path.read_bytes() for path in work.iterdir()} == before


def test_a_whole_part_that_was_not_there(tmp_path: Path) -> None:
    leave(tmp_path / "out", {"schedule": None})
    with (
        pytest.raises(InputError, match=r"schedule\.seed null \(now 1\)"),
        open_run(tmp_path / "out", {"schedule": {"seed": 1}}),
    ):
        pass


@pytest.mark.parametrize("kind", ["directory", "file", "dangling link"])
def test_a_result_that_is_there(kind: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    if kind == "directory":
        out.mkdir()
    elif kind == "file":
        out.write_text("")
    else:
        out.symlink_to(tmp_path / "nothing")
    with pytest.raises(InputError, match=r"out exists; expected a new directory"), open_run(out, RECIPE):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_one_run_at_a_time(tmp_path: Path) -> None:
    with open_run(tmp_path / "out", RECIPE) as work:
        with pytest.raises(KaokenError, match=r"another run works in .*out\.work: wait"):
            open_run(tmp_path / "out", RECIPE).__enter__()
        assert (work / "recipe.json").exists()


def test_a_recipe_that_is_damaged(tmp_path: Path) -> None:
    work = leave(tmp_path / "out")
    (work / "recipe.json").write_text("{")
    with pytest.raises(InputError, match=r"recipe\.json is damaged: remove"), open_run(tmp_path / "out", RECIPE):
        pass


def test_a_run_that_has_done_nothing_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError), open_run(tmp_path / "out", RECIPE):
        raise InputError("no such factor")
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_has_done_something_keeps_it(tmp_path: Path) -> None:
    work = tmp_path / "out.work"

    def interrupted() -> None:
        with open_run(tmp_path / "out", RECIPE):
            (work / "weights").write_text("so far")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert (work / "weights").read_text() == "so far"


def test_a_full_disk_is_explained(tmp_path: Path) -> None:
    full = pytest.raises(KaokenError, match=r"disk is full.*same command goes on")
    with full, open_run(tmp_path / "out", RECIPE), open("/dev/full", "wb", buffering=0) as file:
        file.write(b"weights")


def test_json_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"x": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", object())
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": 1}
    assert os.listdir(tmp_path) == ["a.json"]
