"""One library for every x86-64: on lesser processors, emulated by qemu, it runs no instruction that they lack.

From a C program, as NumPy itself may need a newer processor.
"""

from __future__ import annotations

import os
import platform
from pathlib import Path

import pytest
from kaoken.codegen.isa import table

from conftest import DTYPES, BundledLibraries, RecordError
from emulation import (
    ENCODERS,
    FAMILIES,
    FAMILY_IDS,
    FAMILY_LIMITS,
    LIMITS,
    error,
    family_error,
    require_programs,
    run_logits,
)
from native_build import SOURCE, bake_together, call
from native_kernels import processor_features

QEMU = "qemu-x86_64-static"
PROCESSORS = {"Nehalem": "scalar", "Haswell": "avx2"}  # qemu's name -> the ISA to be chosen
FEATURES = {feature for row in table().values() if row.runs_on("x86_64") for feature in row.cpu}

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="is about x86-64")


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    require_programs(QEMU)
    binary = tmp_path_factory.mktemp("processors") / "logits"
    compiler = os.environ.get("CXX", "c++").split()
    source = SOURCE / "tests" / "native" / "logits.cpp"
    call(*compiler, "-std=c++17", f"-I{SOURCE / 'runtime' / 'include'}", source, "-o", binary, "-ldl")
    return binary


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program that prints which of the features that it is given the runtime finds."""
    binary = tmp_path_factory.mktemp("processors") / "cpu"
    compiler = os.environ.get("CXX", "c++").split()
    sources = [SOURCE / "tests" / "native" / "cpu.cpp", SOURCE / "runtime" / "src" / "cpu.cpp"]
    call(*compiler, "-std=c++17", "-static", f"-I{SOURCE / 'runtime' / 'src'}", *sources, "-o", binary)
    return binary


def read_features(*command: str | Path) -> set[str]:
    return set(call(*command, *sorted(FEATURES), "none-such").split())


def test_the_reader_agrees_with_the_system(reader: Path) -> None:
    assert read_features(reader) == FEATURES & processor_features()


@pytest.mark.parametrize(
    ("processor", "features"),
    [
        ("Nehalem", set()),
        ("Haswell", {"avx2", "fma", "f16c"}),
        ("Haswell,-f16c", {"avx2", "fma"}),
        ("Haswell,-xsave", set()),  # a system that does not keep the registers
    ],
)
def test_the_reader_on_other_processors(processor: str, features: set[str], reader: Path) -> None:
    require_programs(QEMU)
    assert read_features(QEMU, "-cpu", processor, reader) == features


@pytest.mark.ci
@pytest.mark.parametrize("processor", PROCESSORS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_lesser_processor_runs_its_own_code(
    dtype: str,
    processor: str,
    program: Path,
    bundled_libraries: BundledLibraries,
    bundled_directory: Path,
    record_error: RecordError,
) -> None:
    library = bundled_libraries[dtype]
    isa, logits = run_logits([QEMU, "-cpu", processor, program], library, "best")
    assert isa == PROCESSORS[processor]
    deviation = error(logits, bundled_directory)
    record_error(f"{dtype} logits under qemu against the float64 oracle", deviation)
    assert deviation < LIMITS[dtype]
    # The scalar code runs here too, and has the same bits.
    if isa == "scalar":
        assert run_logits([program], library, isa)[1].tobytes() == logits.tobytes()


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One of each family in two types, for the ISAs of PROCESSORS."""
    root = tmp_path_factory.mktemp("families")
    every = {**FAMILIES, **ENCODERS}
    directories = {family: write(root / family, config) for family, (write, config, _) in every.items()}
    isas = ",".join(PROCESSORS.values())
    models = {
        f"{family}_{dtype}": (directory, f"DTYPE {dtype} ISA {isas}")
        for family, directory in directories.items()
        for dtype in FAMILY_LIMITS
    }
    return bake_together(root, models)


@pytest.mark.ci
@pytest.mark.parametrize("processor", PROCESSORS)
@pytest.mark.parametrize("dtype", FAMILY_LIMITS)
@pytest.mark.parametrize("family", [*FAMILIES, *ENCODERS])
def test_other_families_on_a_lesser_processor(
    family: str, dtype: str, processor: str, program: Path, families: dict[str, Path], tmp_path: Path
) -> None:
    library = families[f"{family}_{dtype}"]
    isa, outputs = run_logits([QEMU, "-cpu", processor, program], library, "best", FAMILY_IDS)
    assert isa == PROCESSORS[processor]
    assert family_error(family, outputs, tmp_path) < FAMILY_LIMITS[dtype]
