"""Builds benchmarks/native for the instruction sets of this machine, and calls its functions."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from kaoken.codegen.isa import resolve, table

from benchmarks.machine import cpu_features
from benchmarks.models import ROOT
from kaoken.tools import find_cmake, find_ninja


def machine_isas() -> tuple[str, ...]:
    """Those of cmake/isas.json that this machine runs, best last."""
    features = {feature.replace("_", "") for feature in cpu_features()}
    return tuple(isa for isa in resolve("portable") if set(table()[isa].cpu) <= features)


def build(isas: Iterable[str], directory: Path) -> dict[str, NativeLibrary]:
    """The libraries by ISA. Raises SystemExit with the output where the build fails."""
    isas = list(isas)
    definitions = {
        "CMAKE_BUILD_TYPE": "Release",
        "CMAKE_MAKE_PROGRAM": find_ninja(),
        "KAOKEN_PYTHON": sys.executable,
        "KAOKEN_BUILD_PYTHON": "OFF",
        "KAOKEN_BENCHMARK_ISAS": ";".join(isas),
    }
    arguments = [f"-D{name}={value}" for name, value in definitions.items()]
    _call([find_cmake((3, 24)), "--fresh", "-G", "Ninja", "-S", str(ROOT), "-B", str(directory), *arguments])
    _call([find_ninja(), "-C", str(directory), *(f"benchmark_{isa}" for isa in isas)])
    return {isa: NativeLibrary(directory / "benchmarks" / "native" / f"libbenchmark_{isa}.so") for isa in isas}


def _call(command: Iterable[object]) -> None:
    ran = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    if ran.returncode != 0:
        raise SystemExit(f"building benchmarks/native failed:\n{ran.stdout}\n{ran.stderr}")


class NativeLibrary:
    """The timed loops of one ISA. Every function ends in (passes, seconds[passes])."""

    def __init__(self, path: Path) -> None:
        self._library = ctypes.CDLL(str(path))

    def time(self, function: str, *sizes: int, passes: int, result: type[ctypes.c_int64 | ctypes.c_double]) -> Timed:
        """Calls function(sizes..., passes, seconds); what it returns is bytes or operations. The first pass is
        for warmth and left out."""
        seconds = (ctypes.c_double * (passes + 1))()
        called = self._library[function]
        called.restype = result
        amount = called(*map(ctypes.c_int64, sizes), ctypes.c_int64(passes + 1), seconds)
        return Timed(float(amount), list(seconds)[1:])


class Timed:
    """Seconds of each pass, and what the function said of its work."""

    def __init__(self, amount: float, seconds: list[float]) -> None:
        self.amount = amount
        self.seconds = seconds
