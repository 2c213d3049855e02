"""Runs CMake and Ninja for the tests that build: a failure shows the whole output, and nothing is skipped."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from kaoken import codegen
from kaoken.tools import find_cmake, find_ninja

SOURCE = Path(__file__).parent.parent
KAOKEN = Path(str(codegen.__file__)).parent.parent  # what is installed


def call(*command: str | Path, **options: object) -> str:
    """The standard output of a command that must succeed."""
    ran = subprocess.run(list(map(str, command)), capture_output=True, text=True, **options)
    assert ran.returncode == 0, f"{command} failed:\n{ran.stdout}\n{ran.stderr}"
    return str(ran.stdout)


def configure(source: Path, build: Path, arguments: Iterable[str] = (), **values: object) -> None:
    """Configures a CMake project with this Python for codegen."""
    values = {"KAOKEN_PYTHON": sys.executable, **values}
    values["CMAKE_MAKE_PROGRAM"] = find_ninja()
    definitions = [f"-D{name}={value}" for name, value in values.items()]
    call(find_cmake((3, 24)), "-G", "Ninja", "-S", source, "-B", build, *arguments, *definitions)


def ninja(build: Path, *arguments: str) -> str:
    """Builds; returns what Ninja printed."""
    return call(find_ninja(), "-C", build, *arguments)


def configure_native_tests(build: Path, arguments: Iterable[str] = (), **values: object) -> None:
    """The project's own tests of the C ABI and of the kernels (tests/native)."""
    configure(SOURCE, build, arguments, KAOKEN_BUILD_PYTHON="OFF", KAOKEN_BUILD_TESTS="ON", **values)


def bake_together(
    build: Path, models: Mapping[str, tuple[Path, str]], arguments: Iterable[str] = ()
) -> dict[str, Path]:
    """The libraries of targets, of each its checkpoint and arguments of kaoken_add_model(): one runtime serves all.

    Further arguments are CMake's.
    """
    lists = "cmake_minimum_required(VERSION 3.24)\nproject(together LANGUAGES CXX)\nfind_package(Kaoken REQUIRED)\n"
    for target, (checkpoint, settings) in models.items():
        lists += f'kaoken_add_model({target} CHECKPOINT "{checkpoint}" {settings})\n'
    (build / "CMakeLists.txt").write_text(lists, encoding="utf-8")
    configure(build, build / "build", arguments, Kaoken_DIR=KAOKEN / "cmake")
    ninja(build / "build")
    return {target: build / "build" / f"lib{target}.so" for target in models}


def build_storyteller(build: Path, checkpoint: Path, isa: str, arguments: Iterable[str] = ()) -> Path:
    """README's C program (examples/c) with a checkpoint inside."""
    return build_example("c", build, arguments, CHECKPOINT=checkpoint, ISA=isa) / "storyteller"


def build_example(name: str, build: Path, arguments: Iterable[str] = (), **values: object) -> Path:
    """A directory of examples, built as its CMakeLists.txt says; returns where the programs are."""
    configure(SOURCE / "examples" / name, build, arguments, Kaoken_DIR=SOURCE / "cmake", **values)
    ninja(build)
    return build
