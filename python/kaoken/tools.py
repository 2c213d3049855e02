"""The programs that a bake needs: a C++ compiler, CMake and Ninja."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from kaoken.codegen.isa import canonical_machine
from kaoken.errors import BuildError

_INSTALL = '`pip install "kaoken[bake]"`'
_COMPILERS = ("c++", "g++", "clang++")


@dataclass(frozen=True)
class Compiler:
    """`command` is a value for CXX, `path` its program, `version` what it says with --version, `machine` its target."""

    command: str
    path: str
    version: str
    machine: str


def check_packages() -> None:
    """Raises BuildError naming the Python packages that a bake needs and lacks."""
    missing = [name for name in ("jinja2", "safetensors") if find_spec(name) is None]
    if missing:
        raise BuildError(f"baking needs the Python packages {' and '.join(missing)}: {_INSTALL}")


def find_compiler() -> Compiler:
    """The compiler that CMake will use: CXX, which may carry arguments, else the first found on PATH."""
    command = os.environ.get("CXX", "").strip()
    path = _cxx(command) if command else next(filter(None, map(shutil.which, _COMPILERS)), None)
    if path is None:
        raise BuildError(_no_compiler(command))
    command = command or path
    status = os.stat(path)
    stamp = (status.st_mtime_ns, status.st_size)
    version = _ask(command, ("--version",), stamp)
    return Compiler(command, path, version, _machine(command, stamp))


def _cxx(command: str) -> str | None:
    """The program of a CXX value: all of it where that is a program, else its first word."""
    return shutil.which(command) or shutil.which(_words(command)[0])


def _words(command: str) -> list[str]:
    try:
        return shlex.split(command)
    except ValueError:
        return [command]


def _no_compiler(command: str) -> str:
    tried = f"CXX is {command!r}, which is no program" if command else f"none of {', '.join(_COMPILERS)} is on PATH"
    return (
        f"no C++ compiler was found ({tried}): install one (`apt install g++`, `dnf install gcc-c++`, "
        "`xcode-select --install`) or set CXX to one"
    )


def _machine(command: str, stamp: tuple[int, int]) -> str:
    """The architecture that it compiles for; this machine's where its answer is no triple, like x86_64-linux-gnu."""
    flags = _words(os.environ.get("CXXFLAGS", ""))  # Clang's may have --target
    triple = re.fullmatch(r"(\w+)(-\w+)+", _ask(command, (*flags, "-dumpmachine"), stamp))
    return canonical_machine(triple[1] if triple else None)


@lru_cache
def _ask(command: str, arguments: tuple[str, ...], stamp: tuple[int, int]) -> str:
    """What it prints, once per program and process; the stamp tells when a compiler was replaced."""
    program = [command] if shutil.which(command) else _words(command)
    try:
        ran = subprocess.run([*program, *arguments], capture_output=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        raise BuildError(f"the C++ compiler {command} does not run ({error}): repair it or set CXX") from error
    return ran.stdout.decode("utf-8", "replace").strip()


def find_cmake(minimum: tuple[int, ...]) -> str:
    """The first CMake, on PATH or from PyPI, that is not older than `minimum`."""
    found = []
    for path in _candidates("cmake", "CMAKE_BIN_DIR"):
        version = _cmake_version(path)
        if version >= minimum:
            return path
        found.append(f"{path} is {'.'.join(map(str, version))}")
    wanted = ".".join(map(str, minimum))
    raise BuildError(f"baking needs CMake {wanted} or newer ({'; '.join(found) or 'none found'}): {_INSTALL}")


def find_ninja() -> str:
    for path in _candidates("ninja", "BIN_DIR"):
        return path
    raise BuildError(f"baking needs Ninja (none found): {_INSTALL}")


def _candidates(name: str, directory: str) -> Iterator[str]:
    """The program on PATH, then the one of the PyPI package of the same name."""
    on_path = shutil.which(name)
    if on_path is not None:
        yield os.path.abspath(on_path)
    if find_spec(name) is not None:
        # Where the package is not installed, a mere directory called cmake may answer to its name.
        packaged = Path(getattr(import_module(name), directory, os.devnull)) / name
        if packaged.is_file():
            yield str(packaged)


def _cmake_version(path: str) -> tuple[int, ...]:
    try:
        output = subprocess.run([path, "--version"], capture_output=True, timeout=60, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return (0,)
    match = re.search(rb"version (\d+)\.(\d+)(?:\.(\d+))?", output)
    return tuple(int(part) for part in match.groups(b"0")) if match else (0,)
