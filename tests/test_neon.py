"""The C ABI and the NEON kernels on AArch64, compiled by Debian's cross compiler and run by qemu."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from kaoken.codegen.isa import resolve
from numpy.typing import NDArray

import kaoken
from conftest import Baked, Checkpoints, RecordError
from emulation import (
    ENCODERS,
    FAMILIES,
    FAMILY_IDS,
    FAMILY_LIMITS,
    IDS,
    LIMITS,
    error,
    family_error,
    require_programs,
    run_logits,
)
from native_build import (
    SOURCE,
    bake_together,
    build_storyteller,
    call,
    configure,
    configure_native_tests,
    ninja,
)

pytestmark = pytest.mark.ci

LogitsOf = Callable[[str, str], NDArray[np.float32]]

TOOLCHAIN = SOURCE / "cmake" / "toolchains" / "aarch64-linux-gnu.cmake"
QEMU = ("qemu-aarch64-static", "-cpu", "max", "-L", "/usr/aarch64-linux-gnu")
DTYPES = ("float32", "int8", "int4")

EVERY = [(dtype, isa) for dtype in DTYPES for isa in resolve("portable", "aarch64", {dtype})]

EVERY_FAMILY = [(family, dtype, isa) for family in FAMILIES for dtype, isa in EVERY if dtype in FAMILY_LIMITS]


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    require_programs("aarch64-linux-gnu-g++", QEMU[0])
    build = tmp_path_factory.mktemp("neon")
    configure_native_tests(
        build, [f"--toolchain={TOOLCHAIN}"], KAOKEN_ISA="portable", KAOKEN_TEST_DTYPES=";".join(DTYPES)
    )
    models = [*DTYPES, *(f"{family}_{dtype}" for family, dtype, _ in EVERY_FAMILY)]
    ninja(build, "logits", "runtime_test", *(f"model_{each}" for each in dict.fromkeys(models)))
    return build / "tests" / "native"


@pytest.fixture(scope="module")
def logits_of(programs: Path) -> LogitsOf:
    """`logits_of(dtype, isa)`, with proof that this ISA ran."""

    @cache
    def logits_of(dtype: str, isa: str) -> NDArray[np.float32]:
        ran, logits = run_logits([*QEMU, programs / "logits"], programs / f"libmodel_{dtype}.so", isa)
        assert ran == isa
        return logits

    return logits_of


@pytest.mark.parametrize(("dtype", "isa"), EVERY)
def test_logits_equal_the_oracle(
    dtype: str, isa: str, logits_of: LogitsOf, bundled_directory: Path, record_error: RecordError
) -> None:
    deviation = error(logits_of(dtype, isa), bundled_directory)
    record_error(f"{dtype} logits on AArch64 against the float64 oracle", deviation)
    assert deviation < LIMITS[dtype]


@pytest.mark.parametrize(("family", "dtype", "isa"), EVERY_FAMILY)
def test_other_families_equal_their_oracles(
    family: str, dtype: str, isa: str, programs: Path, tmp_path: Path, record_error: RecordError
) -> None:
    library = programs / f"libmodel_{family}_{dtype}.so"
    ran, outputs = run_logits([*QEMU, programs / "logits"], library, isa, FAMILY_IDS)
    assert ran == isa
    deviation = family_error(family, outputs, tmp_path)
    record_error(f"{dtype} outputs of a {family} on AArch64 against the float64 oracle", deviation)
    assert deviation < FAMILY_LIMITS[dtype]


def test_the_best_isa_is_chosen(programs: Path) -> None:
    """Each of these processors lacks what the next one has."""
    for processor, isa in (("cortex-a53", "neon"), ("neoverse-n1", "dotprod"), ("max", "i8mm")):
        qemu = [QEMU[0], "-cpu", processor, *QEMU[3:]]
        ran, _ = run_logits([*qemu, programs / "logits"], programs / "libmodel_int8.so", "best", IDS[:4])
        assert ran == isa


@pytest.mark.parametrize("isa", ["dotprod", "i8mm"])
def test_every_isa_has_the_same_integer_sums(isa: str, logits_of: LogitsOf) -> None:
    """The ISAs of NEON differ in their integer products alone, which are exact."""
    assert logits_of("int8", isa).tobytes() == logits_of("int8", "neon").tobytes()


def test_determinism_and_errors(programs: Path) -> None:
    """Not fork beside running threads: qemu itself may not survive that."""
    call(
        *QEMU,
        programs / "runtime_test",
        "errors_are_reported_and_change_nothing",
        "bits_do_not_depend_on_threads_batch_or_split",
        "rounding_mode_is_ours_and_restored",
        "two_models_in_one_program",
        "grouped_heads_keep_their_bits",
        "encoders_keep_their_bits",
        "sources_keep_their_bits",
    )


@pytest.fixture
def cross_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    require_programs("aarch64-linux-gnu-g++")
    monkeypatch.setenv("CXX", "aarch64-linux-gnu-g++")


@pytest.mark.usefixtures("cross_compiler")
def test_bake_follows_the_compiler(programs: Path, bundled_directory: Path, tmp_path: Path) -> None:
    library = kaoken.bake(bundled_directory, dtype="int8", isa="neon", out=tmp_path / "arm.so")
    ran, logits = run_logits([*QEMU, programs / "logits"], library, "neon", IDS[:4])
    _, expected = run_logits([*QEMU, programs / "logits"], programs / "libmodel_int8.so", "neon", IDS[:4])
    assert (ran, logits.tobytes()) == ("neon", expected.tobytes())
    with pytest.raises(kaoken.LibraryError, match="is for aarch64 and this machine is"):
        kaoken.load(library)


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A ModernBERT and a DeBERTa in two types."""
    require_programs("aarch64-linux-gnu-g++")
    root = tmp_path_factory.mktemp("encoders")
    models = {
        f"{family}_{dtype}": (write(root / family, config), f"DTYPE {dtype} ISA neon")
        for family, (write, config, _) in ENCODERS.items()
        for dtype in FAMILY_LIMITS
    }
    return bake_together(root, models, [f"--toolchain={TOOLCHAIN}"])


@pytest.mark.parametrize("dtype", FAMILY_LIMITS)
@pytest.mark.parametrize("family", ENCODERS)
def test_windows_and_distances(
    family: str, dtype: str, programs: Path, encoders: dict[str, Path], tmp_path: Path, record_error: RecordError
) -> None:
    library = encoders[f"{family}_{dtype}"]
    ran, outputs = run_logits([*QEMU, programs / "logits"], library, "neon", FAMILY_IDS)
    assert ran == "neon"
    deviation = family_error(family, outputs, tmp_path)
    record_error(f"{dtype} outputs of a {family} on AArch64 against its graph in float64", deviation)
    assert deviation < FAMILY_LIMITS[dtype]


@pytest.mark.usefixtures("cross_compiler")
def test_cmake_follows_the_compiler_without_a_toolchain_file(checkpoints: Checkpoints, tmp_path: Path) -> None:
    configure(SOURCE / "cmake" / "bake", tmp_path, KAOKEN_MODEL=checkpoints("plain"), KAOKEN_ISA="portable")
    assert "set(KAOKEN_PLAN_ISAS scalar neon)" in (tmp_path / "model.kaoken" / "plan.cmake").read_text()


def test_the_c_program_generates_what_python_does_here(baked: Baked, checkpoints: Checkpoints, tmp_path: Path) -> None:
    require_programs("aarch64-linux-gnu-gcc", "aarch64-linux-gnu-g++", QEMU[0])
    program = build_storyteller(tmp_path, checkpoints("plain"), "neon", [f"--toolchain={TOOLCHAIN}"])
    expected = baked("plain").generate([3, 1, 4, 1, 5], max_new_tokens=20)[0, 5:].tolist()
    assert call(*QEMU, program, "20", "3", "1", "4", "1", "5").split() == list(map(str, expected))
