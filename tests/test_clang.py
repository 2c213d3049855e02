"""What Clang compiles gives g++'s bits, with either C++ library, and passes the tests of the kernels.

KAOKEN_CLANG names the compiler, by default the first found; KAOKEN_REQUIRE_CLANG=1 makes its absence a failure.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from kaoken.codegen.isa import resolve, table

import kaoken
from conftest import Bake, Checkpoints
from kaoken import _core
from native_build import SOURCE
from native_kernels import processor_features

pytestmark = pytest.mark.ci

REQUIRED = os.environ.get("KAOKEN_REQUIRE_CLANG") == "1"  # continuous integration
NAMES = ("clang++", *(f"clang++-{version}" for version in range(22, 13, -1)))
CLANG = os.environ.get("KAOKEN_CLANG") or next(filter(shutil.which, NAMES), "clang++")
DTYPES = ("float32", "int8")


def require_clang(arguments: str = "") -> str:
    """A value for CXX that compiles; skips the test where there is none, unless this run must have it."""
    command = f"{CLANG} {arguments}".strip()
    if shutil.which(CLANG):
        program = "#include <string>\nint main() {}\n"
        check = [*command.split(), "-x", "c++", "-", "-fsyntax-only"]
        if subprocess.run(check, input=program.encode(), capture_output=True).returncode == 0:
            return command
    if not REQUIRED:
        pytest.skip(f"needs {command} (Debian: clang, libc++-dev and libc++abi-dev)")
    return command


def logits(library: Path, isa: str) -> bytes:
    """Of a prompt for two sequences and of a step behind it."""
    session = _core.Library(library).session(2, 2, isa)
    ids = np.random.default_rng(1).integers(0, 61, (2, 21))
    parts = [session.append(part.copy(), _core.LOGITS_ALL) for part in (ids[:, :20], ids[:, 20:])]
    return b"".join(part.tobytes() for part in parts if part is not None)


@pytest.mark.parametrize("standard_library", ["libstdc++", "libc++"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_clang_gives_the_bits_of_the_other_compiler(
    dtype: str,
    standard_library: str,
    checkpoints: Checkpoints,
    bake_checkpoint: Bake,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clang = require_clang(f"-stdlib={standard_library}")
    expected = bake_checkpoint(checkpoints("plain"), dtype=dtype, isa="portable")
    monkeypatch.setenv("CXX", clang)
    library = bake_checkpoint(checkpoints("plain"), dtype=dtype, isa="portable")
    assert library != expected
    statistics = kaoken.load(library).info.statistics
    assert statistics is not None
    assert statistics["peak_bytes"] < statistics["compile_memory_bytes"]
    rows = [table()[name] for name in resolve("portable", dtypes=[dtype])]
    for isa in [row.name for row in rows if set(row.cpu) <= processor_features()]:
        assert logits(library, isa) == logits(expected, isa)


def test_the_kernels_of_clang() -> None:
    """Every ISA's kernels compile without a warning, and pass their tests where they run."""
    files = [SOURCE / "tests" / name for name in ("test_kernels.py", "test_matrices.py")]
    environment = {**os.environ, "CXX": require_clang(), "CXXFLAGS": "-Wall -Wextra -Werror"}
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-m", "", *files], env=environment, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
