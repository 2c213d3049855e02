"""The C ABI and the NEON kernels on AArch64, compiled by Debian's cross compiler and run by qemu."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from native_build import SOURCE, call, configure_native_tests, ninja
from oracle import open_oracle

TOOLCHAIN = SOURCE / "cmake" / "toolchains" / "aarch64-linux-gnu.cmake"
QEMU = ("qemu-aarch64-static", "-L", "/usr/aarch64-linux-gnu")
REQUIRED = os.environ.get("KAOKEN_REQUIRE_NEON") == "1"  # continuous integration, where absence is a failure


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not REQUIRED and not (shutil.which("aarch64-linux-gnu-g++") and shutil.which(QEMU[0])):
        pytest.skip("needs g++-aarch64-linux-gnu and qemu-user-static")
    build = tmp_path_factory.mktemp("neon")
    configure_native_tests(build, [f"--toolchain={TOOLCHAIN}"], KAOKEN_ISA="portable")
    ninja(build, "logits", "runtime_test")
    return build / "tests" / "native"


@pytest.mark.parametrize("isa", ["scalar", "neon"])
def test_logits_equal_the_oracle(programs: Path, isa: str, bundled_directory: Path) -> None:
    ids = list(b"ROMEO:\nWhat is the matter with you, sir? I am a little the worse for it, and so are all")
    ran = subprocess.run([*QEMU, programs / "logits", isa, *map(str, ids)], capture_output=True, check=True)
    assert ran.stderr.decode().strip() == isa
    logits = np.frombuffer(ran.stdout, "<f4").reshape(len(ids), -1)
    exact = open_oracle(bundled_directory).logits(np.array([ids]))[0]
    assert np.abs(logits - exact).max() < 1e-4 * max(1, np.abs(exact).max())


def test_determinism_and_errors(programs: Path) -> None:
    """Not fork beside running threads: qemu itself may not survive that."""
    call(
        *QEMU,
        programs / "runtime_test",
        "errors_are_reported_and_change_nothing",
        "bits_do_not_depend_on_threads_batch_or_split",
        "rounding_mode_is_ours_and_restored",
        "two_models_in_one_program",
    )
