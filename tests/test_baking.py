"""`kaoken.bake`: what it passes to CMake, what it leaves behind, the cache, and every way it can fail.

Most tests put a stand-in in the place of CMake and Ninja, so that they take no time; the few that bake in
earnest say so.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from kaoken.codegen.isa import canonical_machine, resolve
from kaoken.codegen.seal import seal
from kaoken.codegen.settings import OPTIONS

import kaoken
from checkpoints import TINY, make_tensors, write_checkpoint
from kaoken import baking, bench, building, tools
from kaoken.cache import _check_not_replaceable

if TYPE_CHECKING:
    from conftest import Bake, Checkpoints
    from kaoken import BakedGPT2

FOREIGN = "aarch64" if canonical_machine() == "x86_64" else "x86_64"
AWKWARD = "a b;c\"d'e$f#g é"


class Builds:
    """Stands in for `building.run`: writes model.so, and remembers what it was asked."""

    def __init__(self) -> None:
        self.commands: list[list[str]] = []
        self.environments: list[Mapping[str, str]] = []
        self.before_library: Callable[[], None] = lambda: None

    @property
    def count(self) -> int:
        """Libraries written."""
        return sum("model" in command for command in self.commands)

    @property
    def definitions(self) -> dict[str, str]:
        """The -D options of the last configuration."""
        command = next(command for command in reversed(self.commands) if "-G" in command)
        return dict(each[2:].split("=", 1) for each in command if each.startswith("-D"))

    def __call__(
        self, command: Sequence[str], environment: Mapping[str, str], on_line: Callable[[str], None], directory: Path
    ) -> tuple[int, list[str]]:
        self.commands.append(list(command))
        self.environments.append(environment)
        if "model" in command:
            self.before_library()
            build = Path(command[command.index("-C") + 1])
            build.mkdir()
            (build / "model.so").write_bytes(f"library {self.count}".encode())
            (build / "model.so").chmod(0o755)
            seal(build / "model.so")
            (build / "model.so.json").write_text(json.dumps({"build": self.count}))
        return 0, []


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> Builds:
    """Bakes write a stand-in library at once."""
    stand_in = Builds()
    monkeypatch.setattr(baking, "run", stand_in)
    return stand_in


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the test's own, not yet made."""
    directory = tmp_path / "cache"
    monkeypatch.setenv("KAOKEN_CACHE", str(directory))
    return directory


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A sound checkpoint that the test may change."""
    return write_checkpoint(tmp_path / "checkpoint")


class TorchType:
    """Like torch.float16: no string, but it prints as its name."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return self.name


def no_process(*_: Any, **__: Any) -> None:
    raise AssertionError("a process was started")


# In earnest


@pytest.mark.ci
def test_awkward_paths_bake_the_same_library(
    tiny_model: BakedGPT2, checkpoints: Checkpoints, bake_checkpoint: Bake, tmp_path: Path
) -> None:
    directory = shutil.copytree(checkpoints("plain"), tmp_path / AWKWARD / "the checkpoint")
    out = tmp_path / AWKWARD / "my model;.so"
    assert bake_checkpoint(directory, out=out) == out
    assert sorted(path.name for path in out.parent.iterdir()) == [
        out.name,
        f"{out.name}.json",
        "the checkpoint",
    ]
    model = kaoken.load(out)
    assert (model.config, model.info.source) == (tiny_model.config, "the checkpoint")
    assert model.logits([1, 2, 3]).tobytes() == tiny_model.logits([1, 2, 3]).tobytes()
    assert model.info.statistics is not None
    assert model.info.statistics["compile_memory_bytes"] >= model.info.statistics["peak_bytes"] > 0


def test_a_second_bake_is_instant(
    tiny_model: BakedGPT2, checkpoints: Checkpoints, bake_checkpoint: Bake, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = bake_checkpoint(checkpoints("plain"))
    monkeypatch.setattr(subprocess, "Popen", no_process)
    start = time.perf_counter()
    assert bake_checkpoint(checkpoints("plain")) == first
    assert time.perf_counter() - start < 2.0


def test_what_the_compiler_says_is_passed_on(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXXFLAGS", "-fno-such-flag")
    out = tmp_path / "out" / "x.so"
    out.parent.mkdir()
    with pytest.raises(kaoken.BuildError, match=r"baking checkpoint failed:(?s:.)*no-such-flag"):
        kaoken.bake(checkpoint, out=out)
    assert list(out.parent.iterdir()) == []


def test_weights_that_are_not_finite(tmp_path: Path) -> None:
    """Codegen finds them while it builds; its error comes through alone, and names the user's file."""
    tensors = make_tensors(TINY)
    tensors["h.1.mlp.c_fc.weight"][3, 4] = np.nan
    directory = write_checkpoint(tmp_path / "checkpoint", tensors=tensors)
    with pytest.raises(kaoken.CheckpointError, match=r"h\.1\.mlp\.c_fc\.weight.*NaN or infinite") as caught:
        kaoken.bake(directory, out=tmp_path / "x.so")
    assert str(directory / "model.safetensors") in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "x.so").exists()


# What CMake sees


def test_only_safe_names_reach_the_tools(tmp_path: Path, builds: Builds, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = write_checkpoint(tmp_path / AWKWARD)
    monkeypatch.setattr(sys, "executable", f"/opt/{AWKWARD}/python")
    kaoken.bake(directory, out=tmp_path / "x.so", compile_memory="300M", jobs=3)
    arguments = [argument for command in builds.commands for argument in command[1:]]
    assert [argument for argument in arguments if not re.fullmatch(r"[\w ./@+,=~-]*", argument)] == []
    assert builds.definitions["KAOKEN_SOURCE"] == "a b_c_d_e_f_g é"
    assert builds.definitions["KAOKEN_MODEL_NAME"] == "a_b_c_d_e_f_g"


def test_the_definitions(checkpoint: Path, tmp_path: Path, builds: Builds) -> None:
    kaoken.bake(checkpoint, out=tmp_path / "x.so", isa="scalar", jobs=3, compile_memory=300 << 20)
    expected = {
        "CMAKE_BUILD_TYPE": "Release",
        "KAOKEN_MODEL_NAME": "checkpoint",
        "KAOKEN_SOURCE": "checkpoint",
        "KAOKEN_COMMIT": "",
        "KAOKEN_DTYPE": "float32",
        "KAOKEN_ISA": "scalar",
        "KAOKEN_JOBS": "3",
        "KAOKEN_COMPILE_MEMORY": str(300 << 20),
    }
    assert {name: builds.definitions.get(name) for name in expected} == expected
    assert [each.name for each in OPTIONS if each.cmake not in builds.definitions] == [
        "revision"
    ]  # it found the source
    assert builds.commands[-1][-3:] == ["-j", "3", "model"]


def test_a_python_at_an_awkward_path_runs_through_a_script(
    checkpoint: Path, tmp_path: Path, builds: Builds, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = tmp_path / AWKWARD / "python"
    python.parent.mkdir()
    python.write_text('#!/bin/sh\necho "here: $2"\n')
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    said = []

    def run_python() -> None:
        said.append(subprocess.check_output([builds.definitions["KAOKEN_PYTHON"], "-c", "two words"], text=True))

    builds.before_library = run_python
    kaoken.bake(checkpoint, out=tmp_path / "x.so")
    assert said == ["here: two words\n"]


def test_an_awkward_temporary_directory_is_avoided(
    checkpoint: Path, tmp_path: Path, builds: Builds, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / AWKWARD).mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / AWKWARD))
    kaoken.bake(checkpoint, out=tmp_path / "x.so")
    assert builds.definitions["KAOKEN_MODEL"].startswith(("/tmp/", "/var/tmp/"))


def test_nothing_is_left_in_the_temporary_directory(
    checkpoint: Path, tmp_path: Path, builds: Builds, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    kaoken.bake(checkpoint, out=tmp_path / "x.so")
    assert str(tmp_path / "tmp") in builds.definitions["KAOKEN_MODEL"]
    assert list((tmp_path / "tmp").iterdir()) == []
    assert (checkpoint / "model.safetensors").is_file()


def test_the_environment_of_the_tools(
    checkpoint: Path, tmp_path: Path, builds: Builds, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = tools.find_compiler().path
    monkeypatch.setenv("CXX", f"{compiler} -g0")
    monkeypatch.setenv("CMAKE_GENERATOR_PLATFORM", "x64")
    monkeypatch.setenv("PYTHONSAFEPATH", "1")
    kaoken.bake(checkpoint, out=tmp_path / "x.so")
    assert builds.environments[0]["CXX"] == f"{compiler} -g0"
    assert not {"CMAKE_GENERATOR_PLATFORM", "PYTHONSAFEPATH"} & set(builds.environments[0])


# Options


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"dtype": "int5"}, kaoken.InputError, "dtype='int5' is unknown"),
        ({"tensor_dtypes": {"lm_head": "int5"}}, kaoken.InputError, "lm_head=int5"),
        ({"cache_dtype": "int4"}, kaoken.InputError, "cache_dtype='int4' is unknown"),
        ({"context": 0}, kaoken.InputError, "context must be an integer of at least 1, not 0"),
        ({"context": 4.5}, kaoken.InputError, "context must be an integer"),
        (
            {"context": 33},
            kaoken.InputError,
            "context=33 is not a part of the 32 positions that the checkpoint has: give 1 to 32",
        ),
        (
            {"kernels": "fast"},
            kaoken.InputError,
            "unknown; expected one of packed, exploded, fastest",
        ),
        ({"kernels": "fastest", "isa": "portable"}, kaoken.InputError, "may be for others: use isa='native', or"),
        ({"kernels": "fastest", "isa": "scalar"}, kaoken.InputError, "isa='scalar' may be for others"),
        ({"dtype": None}, kaoken.InputError, "dtype"),
        ({"dtype": "bf16"}, kaoken.InputError, "dtype='bf16' is unknown; expected one of float32, bfloat16"),
        ({"dtype": "bf16"}, kaoken.InputError, ": write bfloat16"),
        ({"dtype": TorchType("torch.bfloat16")}, kaoken.InputError, ": write bfloat16"),
        ({"dtype": TorchType("torch.float16")}, kaoken.InputError, ": write bfloat16, which is as wide"),
        ({"dtype": np.float16}, kaoken.InputError, ": write bfloat16, which is as wide"),
        ({"dtype": np.dtype(np.float32)}, kaoken.InputError, ": write float32"),
        ({"cache_dtype": "fp16"}, kaoken.InputError, ": write bfloat16, which is as wide"),
        ({"cache_dtype": "q4_0"}, kaoken.InputError, "expected one of float32, bfloat16, int8"),
        ({"tensor_dtypes": {"lm_head": np.float16}}, kaoken.InputError, ": write bfloat16, which is as wide"),
        ({"isa": "avx3"}, kaoken.ISAError, "avx3"),
        ({"isa": ""}, kaoken.ISAError, "isa"),
        ({"isa": 3}, kaoken.InputError, "isa"),
        ({"jobs": 0}, kaoken.InputError, "jobs must be an integer of at least 1, not 0"),
        ({"jobs": 1.5}, kaoken.InputError, "jobs"),
        ({"compile_memory": "much"}, kaoken.InputError, "much"),
        ({"compile_memory": "512M;x"}, kaoken.InputError, "512M;x"),
        ({"compile_memory": 0}, kaoken.InputError, "compile_memory"),
        ({"compile_memory": "1M"}, kaoken.InputError, "less than a compiler needs"),
        ({"revision": 3}, kaoken.InputError, "revision must be a branch, tag or commit as a str, not 3"),
        ({"revision": "main"}, kaoken.CheckpointError, "revision"),
    ],
)
def test_bad_options_start_nothing(
    options: dict[str, Any],
    error: type[Exception],
    message: str,
    checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(subprocess, "Popen", no_process)
    with pytest.raises(error, match=re.escape(message)):
        kaoken.bake(checkpoint, **options)


def test_a_bad_checkpoint_starts_nothing(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "Popen", no_process)
    (checkpoint / "model.safetensors").unlink()
    with pytest.raises(kaoken.CheckpointError, match=r"model\.safetensors"):
        kaoken.bake(checkpoint)


def test_a_path_object_is_never_a_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(kaoken.CheckpointError, match="is not a directory"):
        kaoken.bake(Path("gpt2"))


def test_a_relative_checkpoint(
    checkpoint: Path, tmp_path: Path, builds: Builds, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert kaoken.bake("checkpoint", out="x.so") == tmp_path / "x.so"
    assert builds.definitions["KAOKEN_SOURCE"] == "checkpoint"


# out


def refuse_out(out: Path, checkpoint: Path, message: str) -> None:
    with pytest.raises(kaoken.InputError, match=message):
        kaoken.bake(checkpoint, out=out)


def test_out_is_no_directory(checkpoint: Path, tmp_path: Path, builds: Builds) -> None:
    refuse_out(tmp_path, checkpoint, "not a file")
    assert builds.commands == []


def test_out_is_no_device(checkpoint: Path, builds: Builds) -> None:
    refuse_out(Path("/dev/null"), checkpoint, "not a file")
    assert builds.commands == []


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("a\0b", "'a.x00b', which cannot be a file .*choose another name"),
        ("x" * 300, "cannot be a file .File name too long.*choose another name"),
        ("x" * 252, "cannot be a file .File name too long"),  # its statistics have five characters more
        ("/".join(["x" * 100] * 50), "cannot be a file .File name too long"),
        (3, "out must be a path, a str or an os.PathLike, not 3"),
        (b"x.so", "out must be a path"),
    ],
)
def test_out_is_a_path(out: Any, message: str, checkpoint: Path, builds: Builds) -> None:
    refuse_out(out, checkpoint, message)
    assert builds.commands == []


@pytest.mark.parametrize("given", [None, 3, ["gpt2"], b"gpt2"])
def test_a_checkpoint_is_a_path_or_a_hub_id(given: Any) -> None:
    with pytest.raises(kaoken.InputError, match=r"checkpoint must be a path, a str or an os\.PathLike, not "):
        kaoken.bake(given)


@pytest.mark.parametrize("given", ["a\0b", Path("a\0b"), "x" * 300, "\udcff", Path("\udcff")])
def test_a_checkpoint_at_an_impossible_path(given: Any) -> None:
    with pytest.raises((kaoken.CheckpointError, kaoken.HubError), match=r"is not a directory|neither a directory"):
        kaoken.bake(given)


def test_paths_need_not_be_utf8(checkpoint: Path, tmp_path: Path, builds: Builds) -> None:
    checkpoint = checkpoint.rename(tmp_path / "\udcff")
    assert kaoken.bake(checkpoint, out=tmp_path / "\udcfe.so").is_file()
    assert kaoken.bake(checkpoint).is_file()


def test_out_lies_in_a_directory(checkpoint: Path, tmp_path: Path, builds: Builds) -> None:
    refuse_out(tmp_path / "no" / "x.so", checkpoint, "does not exist")
    assert builds.commands == []


def test_out_lies_where_one_may_write(
    checkpoint: Path, tmp_path: Path, builds: Builds, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write anywhere
    refuse_out(tmp_path / "x.so", checkpoint, "not writable")
    assert builds.commands == []


def test_out_is_replaced_and_executable(checkpoint: Path, tmp_path: Path, builds: Builds) -> None:
    out = tmp_path / "x.so"
    for count in (1, 2):
        kaoken.bake(checkpoint, out=out)
        assert out.read_bytes().startswith(f"library {count}".encode())
        assert json.loads((tmp_path / "x.so.json").read_text()) == {"build": count}
    assert out.stat().st_mode & 0o700 == 0o700
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint", "x.so", "x.so.json"]


@pytest.mark.parametrize("failing", ["copyfileobj", "replace", "fsync"])
@pytest.mark.parametrize(("code", "message"), [(errno.ENOSPC, "disk is full"), (errno.EIO, "cannot be written")])
def test_a_failing_disk_leaves_the_old_library(
    failing: str,
    code: int,
    message: str,
    checkpoint: Path,
    tmp_path: Path,
    builds: Builds,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "x.so"
    kaoken.bake(checkpoint, out=out)

    def fail(*_: Any, **__: Any) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(shutil if failing == "copyfileobj" else os, failing, fail)
    with pytest.raises(kaoken.BuildError, match=message) as caught:
        kaoken.bake(checkpoint, out=out)
    assert str(tmp_path) in str(caught.value)
    assert out.read_bytes().startswith(b"library 1")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint", "x.so", "x.so.json"]


def test_a_disk_that_fills_up_during_the_build(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = ["FAILED: model.so", "/usr/bin/ld: final link failed: No space left on device"]
    monkeypatch.setattr(baking, "run", lambda *_: (1, lines))
    with pytest.raises(kaoken.BuildError, match=r"the disk is full.*TMPDIR"):
        kaoken.bake(checkpoint, out=tmp_path / "x.so")


def test_a_checkpoint_that_changes_meanwhile(checkpoint: Path, tmp_path: Path, builds: Builds, cache: Path) -> None:
    builds.before_library = lambda: os.utime(checkpoint / "config.json", ns=(1, 1))
    with pytest.raises(kaoken.CheckpointError, match=r"config\.json changed while it was baked"):
        kaoken.bake(checkpoint)
    assert list(cache.glob("*.so")) == []


# The faster form


@pytest.fixture
def nothing_to_explode(builds: Builds, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the plan of kernels=exploded says it."""

    def run(command: Sequence[str], *arguments: Any) -> tuple[int, list[str]]:
        status, lines = builds(command, *arguments)
        refused = "-DKAOKEN_KERNELS=exploded" in command
        return (1, ["  kaoken: InputError: no block of this model has one"]) if refused else (status, lines)

    monkeypatch.setattr(baking, "run", run)


def measure(monkeypatch: pytest.MonkeyPatch, builds: Builds, exploded: float, packed: float) -> None:
    """Has decoding a token take so many seconds, in the libraries that were built as the respective form."""

    def decode_seconds(libraries: Sequence[Path]) -> list[float]:
        forms = [command for command in builds.commands if "-G" in command]
        seconds = {"exploded": exploded, "packed": packed}
        found = []
        for library in libraries:
            command = next(each for each in forms if str(library.parent) in each)
            (form,) = (each.split("=")[1] for each in command if each.startswith("-DKAOKEN_KERNELS="))
            found.append(seconds[form])
        return found

    monkeypatch.setattr(bench, "decode_seconds", decode_seconds)


@pytest.mark.parametrize(
    ("exploded", "packed", "number", "line"),
    [
        (41e-6, 55.04e-6, 1, "kaoken: exploded 41.0 us a token, packed 55.0: exploded\n"),
        (55.04e-6, 41e-6, 2, "kaoken: exploded 55.0 us a token, packed 41.0: packed\n"),
        (41e-6, 41e-6, 2, "kaoken: exploded 41.0 us a token, packed 41.0: packed\n"),
    ],
)
@pytest.mark.parametrize("cached", [False, True])
def test_the_faster_form_is_kept(
    cached: bool,
    exploded: float,
    packed: float,
    number: int,
    line: str,
    checkpoint: Path,
    tmp_path: Path,
    builds: Builds,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    measure(monkeypatch, builds, exploded, packed)
    out = {} if cached else {"out": tmp_path / "x.so"}
    path = kaoken.bake(checkpoint, kernels="fastest", **out)
    assert capsys.readouterr() == ("", line)
    assert path.read_bytes().startswith(f"library {number}".encode())
    assert json.loads(path.with_name(path.name + ".json").read_text()) == {"build": number}
    assert list((tmp_path / "tmp").iterdir()) == []
    if cached:
        measure(monkeypatch, builds, packed, exploded)
        assert kaoken.bake(checkpoint, kernels="fastest") == path
        assert capsys.readouterr() == ("", "")
        assert sorted(each.suffix for each in cache.iterdir()) == [".json", ".lock", ".so"]
    assert builds.count == 2


@pytest.mark.usefixtures("nothing_to_explode")
def test_packed_is_the_fastest_where_nothing_can_be_exploded(
    checkpoint: Path, builds: Builds, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = {kaoken.bake(checkpoint, kernels="fastest") for _ in range(2)}
    assert capsys.readouterr().err == (
        "kaoken: packed, as no block of checkpoint has a float32 matrix of at most 16384 weights that are not zero, "
        "to be exploded\n"
    )
    assert (len(paths), builds.count, builds.definitions["KAOKEN_KERNELS"]) == (1, 1, "packed")


def test_a_mistake_is_not_taken_for_nothing_to_explode(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(baking, "run", lambda *_: (1, ["kaoken: InputError: h.9.* matches nothing"]))
    with pytest.raises(kaoken.InputError, match="matches nothing"):
        kaoken.bake(checkpoint, kernels="fastest", out=tmp_path / "x.so")


def test_the_choice_can_be_silent(
    checkpoint: Path, builds: Builds, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measure(monkeypatch, builds, 1, 2)
    kaoken.bake(checkpoint, kernels="fastest", progress=False)
    assert capsys.readouterr() == ("", "")


# The cache


def test_the_cache_is_private_and_holds_the_library(checkpoint: Path, builds: Builds, cache: Path) -> None:
    old = os.umask(0)
    try:
        path = kaoken.bake(checkpoint)
    finally:
        os.umask(old)
    assert cache.stat().st_mode & 0o777 == 0o700
    assert path.parent == cache
    assert re.fullmatch(r"checkpoint-[0-9a-f]{32}\.so", path.name)
    assert path.read_bytes().startswith(b"library 1")
    assert path.with_name(path.name + ".json").is_file()
    assert kaoken.bake(checkpoint) == path
    assert builds.count == 1


def change_weights(checkpoint: Path, _: pytest.MonkeyPatch) -> dict[str, Any]:
    write_checkpoint(checkpoint, seed=1)
    return {}


def change_config(checkpoint: Path, _: pytest.MonkeyPatch) -> dict[str, Any]:
    write_checkpoint(checkpoint, {"layer_norm_epsilon": 0.1})
    return {}


def change_name(checkpoint: Path, _: pytest.MonkeyPatch) -> dict[str, Any]:
    return {"checkpoint": checkpoint.rename(checkpoint.with_name("other"))}


def change_isa(*_: Any) -> dict[str, Any]:
    return {"isa": "scalar"}


def change_kernels(*_: Any) -> dict[str, Any]:
    return {"kernels": "exploded"}


def change_cap(*_: Any) -> dict[str, Any]:
    return {"compile_memory": "300M"}


def change_version(_: Path, patch: pytest.MonkeyPatch) -> dict[str, Any]:
    patch.setattr(kaoken, "__version__", "99")
    return {}


def change_flags(_: Path, patch: pytest.MonkeyPatch) -> dict[str, Any]:
    patch.setenv("CXXFLAGS", "-g")
    return {}


def change_compiler(_: Path, patch: pytest.MonkeyPatch) -> dict[str, Any]:
    patch.setenv("CXX", f"{tools.find_compiler().path} -g0")
    return {}


def change_kaoken(_: Path, patch: pytest.MonkeyPatch) -> dict[str, Any]:
    patch.setattr(baking, "_OWN_SOURCES", ("codegen",))
    return {}


@pytest.mark.parametrize(
    "change",
    [
        change_weights,
        change_config,
        change_name,
        change_isa,
        change_kernels,
        change_cap,
        change_version,
        change_flags,
        change_compiler,
        change_kaoken,
    ],
)
def test_the_key_knows(
    change: Callable[[Path, pytest.MonkeyPatch], dict[str, Any]],
    checkpoint: Path,
    builds: Builds,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = kaoken.bake(checkpoint, isa="portable")
    options: dict[str, Any] = {"checkpoint": checkpoint, "isa": "portable"} | change(checkpoint, monkeypatch)
    second = kaoken.bake(**options)
    assert (first != second, builds.count) == (True, 2)


def test_the_key_does_not_care_for_jobs(checkpoint: Path, builds: Builds, cache: Path) -> None:
    assert kaoken.bake(checkpoint, jobs=1) == kaoken.bake(checkpoint, jobs=2)
    assert builds.count == 1


@pytest.mark.parametrize("damage", [b"", b"library", bytes(range(57)), None], ids=["empty", "cut", "other", "one bit"])
def test_a_damaged_library_is_baked_again(damage: bytes | None, checkpoint: Path, builds: Builds, cache: Path) -> None:
    path = kaoken.bake(checkpoint)
    whole = path.read_bytes()
    path.write_bytes(bytes([whole[0] ^ 1]) + whole[1:] if damage is None else damage)
    assert kaoken.bake(checkpoint) == path
    assert path.read_bytes().startswith(b"library 2")
    assert kaoken.bake(checkpoint) == path
    assert builds.count == 2


def test_a_list_of_isas_in_any_order_is_one(checkpoint: Path, builds: Builds, cache: Path) -> None:
    names = resolve("portable", dtypes={"float32"})
    assert kaoken.bake(checkpoint, isa=",".join(reversed(names))) == kaoken.bake(checkpoint, isa="portable")


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o777])
def test_a_cache_that_others_may_write_is_refused(mode: int, checkpoint: Path, builds: Builds, cache: Path) -> None:
    cache.mkdir()
    cache.chmod(mode)
    with pytest.raises(kaoken.BuildError, match=rf"written by other users \(mode 0{mode:o}\).*chmod 700"):
        kaoken.bake(checkpoint)
    assert builds.commands == []


@pytest.mark.parametrize(("mode", "group"), [(0o777, 0), (0o707, 0), (0o775, 54321)])
def test_a_cache_in_what_others_may_write_is_refused(
    mode: int, group: int, checkpoint: Path, tmp_path: Path, builds: Builds, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = tmp_path / "shared"
    monkeypatch.setenv("KAOKEN_CACHE", str(shared / "mine" / "cache"))
    assert kaoken.bake(checkpoint).is_file()
    if group:
        monkeypatch.setattr(os, "getegid", lambda: group)
    shared.chmod(mode)
    with pytest.raises(kaoken.BuildError, match=rf"lies in {shared}, which.*\(mode 0{mode:o}\).*chmod go-w"):
        kaoken.bake(checkpoint)
    shared.chmod(mode | stat.S_ISVTX)
    assert kaoken.bake(checkpoint).is_file()
    assert builds.count == 1


def test_a_cache_behind_a_link_that_others_may_replace_is_refused(
    checkpoint: Path, tmp_path: Path, builds: Builds, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    (shared / "link").symlink_to(tmp_path)
    shared.chmod(0o777)
    monkeypatch.setenv("KAOKEN_CACHE", str(shared / "link" / "cache"))
    with pytest.raises(kaoken.BuildError, match="who could replace it"):
        kaoken.bake(checkpoint)


def test_a_cache_of_another_user_is_refused(
    checkpoint: Path, builds: Builds, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    user = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: user + 1)
    with pytest.raises(kaoken.BuildError, match=r"belongs to the user id.*KAOKEN_CACHE"):
        kaoken.bake(checkpoint)
    assert builds.commands == []


@pytest.mark.parametrize("root", [0, 65534])
def test_a_cache_in_a_directory_of_another_user_is_refused(root: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root itself may look like another user inside a container."""

    def owned_by(user: int) -> os.stat_result:
        return os.stat_result((stat.S_IFDIR | 0o1755, 0, 0, 1, user, 0, 0, 0, 0, 0))

    def check(user: int) -> None:
        with monkeypatch.context() as patched:
            patched.setattr(os, "stat", lambda _: owned_by(root))
            _check_not_replaceable(Path("/above/cache"), Path("/above"), owned_by(user))

    for user in (0, root, os.geteuid()):
        check(user)
    with pytest.raises(kaoken.BuildError, match=r"/above, which belongs to the user id 4321, who could replace it"):
        check(4321)


def test_a_cache_that_cannot_be_made(
    checkpoint: Path, tmp_path: Path, builds: Builds, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("KAOKEN_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(kaoken.BuildError, match=r"cannot be made.*KAOKEN_CACHE"):
        kaoken.bake(checkpoint)


def test_where_the_cache_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    from kaoken.cache import cache_directory

    monkeypatch.delenv("KAOKEN_CACHE")
    request.addfinalizer(partial(os.umask, os.umask(0)))  # what it makes on the way is private all the same
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_directory() == tmp_path / ".cache" / "kaoken"
    assert (tmp_path / ".cache").stat().st_mode & 0o777 == 0o700
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_directory() == tmp_path / "xdg" / "kaoken"
    monkeypatch.setenv("KAOKEN_CACHE", str(tmp_path / "own"))
    assert cache_directory() == tmp_path / "own"
    monkeypatch.setenv("KAOKEN_CACHE", "~/mine")
    assert cache_directory() == tmp_path / "mine"
    monkeypatch.setenv("KAOKEN_CACHE", "~no-such-user/x")
    with pytest.raises(kaoken.BuildError, match=r"~no-such-user/x.*no such home directory.*KAOKEN_CACHE"):
        cache_directory()


def test_bakes_at_once_build_once(checkpoint: Path, builds: Builds, cache: Path) -> None:
    builds.before_library = lambda: time.sleep(0.3)
    with ThreadPoolExecutor(4) as pool:
        paths = list(pool.map(lambda _: kaoken.bake(checkpoint), range(4)))
    assert (len(set(paths)), builds.count) == (1, 1)


def test_two_processes_build_once(checkpoint: Path, tmp_path: Path, cache: Path) -> None:
    """Both have begun before either may go on to build."""
    code = (
        "import sys, time, pathlib\n"
        "from kaoken import baking\n"
        "from kaoken.codegen.seal import seal\n"
        "log = pathlib.Path(sys.argv[2])\n"
        "def run(command, environment, on_line, directory):\n"
        "    if 'model' in command:\n"
        "        with log.open('a') as file: file.write('built\\n')\n"
        "        time.sleep(1)\n"
        "        build = pathlib.Path(command[command.index('-C') + 1])\n"
        "        build.mkdir()\n"
        "        (build / 'model.so').write_bytes(b'library')\n"
        "        seal(build / 'model.so')\n"
        "        (build / 'model.so.json').write_text('{}')\n"
        "    return 0, []\n"
        "baking.run = run\n"
        "print('ready', flush=True)\n"
        "input()\n"
        "print(baking.bake(sys.argv[1]))\n"
    )
    log = tmp_path / "log"
    command = [sys.executable, "-c", code, str(checkpoint), str(log)]
    pipe = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    processes: list[subprocess.Popen[str]] = [subprocess.Popen(command, **pipe) for _ in range(2)]  # type: ignore[call-overload]
    assert [process.stdout.readline() for process in processes if process.stdout] == ["ready\n"] * 2
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    paths = {process.communicate(timeout=60)[0] for process in processes}
    assert len(paths) == 1
    assert Path(paths.pop().strip()).read_bytes().startswith(b"library")
    assert log.read_text() == "built\n"


def test_a_bake_that_waits_says_so(
    checkpoint: Path, builds: Builds, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(building.Progress, "say", lambda _, what: said.append(what))
    building_now, go_on = threading.Event(), threading.Event()

    def wait() -> None:
        building_now.set()
        go_on.wait(30)

    builds.before_library = wait
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(kaoken.bake, checkpoint)
        assert building_now.wait(30)
        second = pool.submit(kaoken.bake, checkpoint)
        end = time.monotonic() + 30
        while "waiting for another bake of it" not in said and time.monotonic() < end:
            time.sleep(0.01)
        go_on.set()
        assert first.result() == second.result()
    assert "waiting for another bake of it" in said


# Tools


@pytest.fixture
def empty_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """PATH is one empty directory, and CXX is not set."""
    directory = tmp_path / "bin"
    directory.mkdir()
    monkeypatch.setenv("PATH", str(directory))
    monkeypatch.delenv("CXX", raising=False)
    return directory


def write_program(path: Path, code: str) -> None:
    path.write_text(f"#!/bin/sh\n{code}\n")
    path.chmod(0o755)


def test_no_compiler(checkpoint: Path, empty_path: Path, builds: Builds) -> None:
    with pytest.raises(kaoken.BuildError, match=r"none of c\+\+, g\+\+, clang\+\+ is on PATH.*install one.*CXX"):
        kaoken.bake(checkpoint)
    assert builds.commands == []


@pytest.mark.parametrize("value", ["no-such-compiler", "/no/such compiler", "'unbalanced", "no-such -O2"])
def test_cxx_that_is_no_program(value: str, checkpoint: Path, builds: Builds, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", value)
    with pytest.raises(kaoken.BuildError, match=re.escape(value)):
        kaoken.bake(checkpoint)
    assert builds.commands == []


def test_a_compiler_that_does_not_run(
    checkpoint: Path, empty_path: Path, builds: Builds, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_program(empty_path / "c++", "exit 3")
    with pytest.raises(kaoken.BuildError, match="does not run"):
        kaoken.bake(checkpoint)


def test_cxx_may_have_spaces_or_arguments(empty_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (empty_path / "my tools").mkdir()
    program = empty_path / "my tools" / "cxx"
    write_program(program, 'echo "fake 1.0 $*"')
    monkeypatch.setenv("CXX", str(program))
    expected = tools.Compiler(str(program), str(program), "fake 1.0 --version", canonical_machine())
    assert tools.find_compiler() == expected
    monkeypatch.setenv("CXX", f"'{program}' -m64")
    assert tools.find_compiler().version == "fake 1.0 -m64 --version"


@pytest.fixture
def foreign_compiler(empty_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """CXX makes code for an architecture that this machine is not."""
    write_program(empty_path / "cross-c++", f"echo {FOREIGN}-linux-gnu")
    monkeypatch.setenv("CXX", "cross-c++")
    monkeypatch.setattr(baking, "find_cmake", lambda _: "cmake")
    monkeypatch.setattr(baking, "find_ninja", lambda: "ninja")


@pytest.mark.usefixtures("foreign_compiler")
def test_the_compilers_architecture_is_baked_for(checkpoint: Path, builds: Builds, cache: Path) -> None:
    kaoken.bake(checkpoint, isa="portable")
    assert builds.definitions["KAOKEN_ISA"] == ",".join(resolve("portable", FOREIGN, {"float32"}))


@pytest.mark.usefixtures("foreign_compiler")
@pytest.mark.parametrize(
    ("isa", "message"),
    [
        ("native", f"native cannot be known when compiling for {FOREIGN}.*use portable"),
        (resolve("native")[0], f"does not exist on {FOREIGN}; use portable"),
    ],
)
def test_an_isa_of_this_machine_is_refused_for_another(
    isa: str, message: str, checkpoint: Path, builds: Builds, cache: Path
) -> None:
    with pytest.raises(kaoken.ISAError, match=message):
        kaoken.bake(checkpoint, isa=isa)
    assert builds.commands == []


def test_a_replaced_compiler_is_asked_again(empty_path: Path) -> None:
    write_program(empty_path / "c++", "echo one")
    assert tools.find_compiler().version == "one"
    write_program(empty_path / "c++", "echo three")
    assert tools.find_compiler().version == "three"


def test_missing_python_packages(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tools, "find_spec", lambda _: None)
    with pytest.raises(kaoken.BuildError, match=r'jinja2 and safetensors: `pip install "kaoken\[bake\]"`'):
        kaoken.bake(checkpoint)


def test_no_cmake_and_no_ninja(empty_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tools, "find_spec", lambda _: None)
    with pytest.raises(kaoken.BuildError, match=r"CMake 3\.24 or newer \(none found\).*kaoken\[bake\]"):
        tools.find_cmake((3, 24))
    with pytest.raises(kaoken.BuildError, match=r"Ninja \(none found\).*kaoken\[bake\]"):
        tools.find_ninja()


def test_an_old_cmake(empty_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tools, "find_spec", lambda _: None)
    write_program(empty_path / "cmake", "echo cmake version 3.10.2")
    with pytest.raises(kaoken.BuildError, match=r"3\.24 or newer \(.*bin/cmake is 3\.10\.2\)"):
        tools.find_cmake((3, 24))
    assert tools.find_cmake((3, 10)) == str(empty_path / "cmake")


def test_the_package_stands_in_for_an_old_cmake(
    empty_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_program(empty_path / "cmake", "echo cmake version 3.10.2")
    write_program(tmp_path / "cmake", "echo cmake version 4.0.1")
    package = type("package", (), {"CMAKE_BIN_DIR": str(tmp_path)})
    monkeypatch.setattr(tools, "find_spec", lambda _: True)
    monkeypatch.setattr(tools, "import_module", lambda _: package)
    assert tools.find_cmake((3, 24)) == str(tmp_path / "cmake")


# Running and explaining


def test_run_gathers_lines_and_the_status(tmp_path: Path) -> None:
    seen: list[str] = []
    status, lines = building.run(["sh", "-c", "echo one; echo two >&2; exit 3"], os.environ, seen.append, tmp_path)
    assert (status, lines, seen) == (3, ["one", "two"], ["one", "two"])


def is_running(pid: int) -> bool:
    """A process that has ended may wait for its parent a while, in the state Z."""
    try:
        os.kill(pid, 0)
        return " Z " not in Path(f"/proc/{pid}/stat").read_text()
    except ProcessLookupError:
        return False
    except FileNotFoundError:
        return not Path("/proc").is_dir()  # gone meanwhile, or a system without /proc


def test_an_interrupted_run_ends_its_processes(tmp_path: Path) -> None:
    def interrupt(line: str) -> None:
        (tmp_path / "pid").write_text(line)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        building.run(["sh", "-c", "sleep 600 & echo $!; wait"], os.environ, interrupt, tmp_path)
    pid, end = int((tmp_path / "pid").read_text()), time.monotonic() + 10
    while is_running(pid) and time.monotonic() < end:
        time.sleep(0.01)
    assert not is_running(pid)


def test_progress_follows_ninja(capsys: pytest.CaptureFixture[str]) -> None:
    with building.Progress("gpt2", enabled=True) as progress:
        progress.say("compiling")
        progress.line("[kaoken 3/12] Building CXX object block_03.cpp.o")
        progress.line("something else")
    assert "gpt2: compiling" in capsys.readouterr().err


def test_no_progress_where_nobody_looks(capsys: pytest.CaptureFixture[str]) -> None:
    for enabled in (False, None):
        with building.Progress("gpt2", enabled) as progress:
            progress.line("[kaoken 3/12] x")
    assert capsys.readouterr().err == ""


def test_explanation_is_the_error_of_codegen() -> None:
    lines = ["[kaoken 1/9] codegen", "FAILED: x", "kaoken: CheckpointError: the tensor is NaN", "ninja: build stopped"]
    assert building.explanation(lines) == "the tensor is NaN"
    wrapped = ["CMake Error at x:1:", "  kaoken: BuildError: this is", "  one line", "", "Call Stack"]
    assert building.explanation(wrapped) == "this is one line"


def test_explanation_starts_at_the_first_trouble() -> None:
    lines = ["-- fine", "[kaoken 1/9] x", "FAILED: x.o", "x.cpp:3: error: no", *["more"] * 100]
    assert building.explanation(lines).splitlines() == ["FAILED: x.o", "x.cpp:3: error: no", *["more"] * 28]


def test_explanation_of_the_unknown_is_the_end() -> None:
    assert building.explanation([f"line {index}" for index in range(50)]).splitlines()[-1] == "line 49"
    assert building.explanation([]) == ""
