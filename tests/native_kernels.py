"""The kernels of tests/native/kernels.cpp from Python, on memory that ends where no one may read or write."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from kaoken.codegen.isa import resolve, table
from kaoken.codegen.layout import LINE, MATRIX_TYPES, pack_float32, pad_columns, round_up
from numpy.typing import NDArray

from native_build import SOURCE, ninja

Values = NDArray[Any]
Kernels = Callable[[str], ctypes.CDLL]
Side = Literal["begin", "end"]  # of an array, at which it touches memory that is not its own

ISAS = resolve("portable")
BEST = resolve("native")[-1]
REGISTRY = SOURCE / "runtime" / "kernels" / "kernels.inc"
UNIT = 2.0**-24  # the largest relative error of one float32 rounding
GROUP_SCALE = np.dtype([("scale", "f4"), ("offset", "i4")])  # GroupScale of group_tile.h

_LIBC = ctypes.CDLL(None, use_errno=True)


def build_kernels(build: Path, isas: Iterable[str]) -> Kernels:
    """Compiles the kernels of some ISAs in a configured build; the returned function loads one of them."""
    ninja(build, *(f"kernels_{isa}" for isa in isas))
    return lambda isa: ctypes.CDLL(str(build / "tests" / "native" / f"libkernels_{isa}.so"))


def processor_features() -> set[str]:
    """From /proc/cpuinfo, in the spelling of the ISA table."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return {flag.replace("_", "") for line in lines if line.startswith("flags") for flag in line.split()}


def runnable(isas: Iterable[str]) -> list[str]:
    """Those that this machine has, of which one at least."""
    found = [isa for isa in isas if set(table()[isa].cpu) <= processor_features()]
    assert found
    return found


def gamma(roundings: int) -> float:
    """The bound of the relative error of so many roundings (Higham, Accuracy and Stability, 3.1)."""
    return roundings * UNIT / (1 - roundings * UNIT)


# Guarded memory


def guarded(values: Values, side: Side = "end", writable: bool = False) -> Values:
    """A copy that ends where memory ends, or begins where it begins: touching what lies beyond ends the process.

    Where it must not be written, writing to it does so too.
    """
    page, size = mmap.PAGESIZE, round_up(values.nbytes, mmap.PAGESIZE)
    memory = mmap.mmap(-1, size + 2 * page)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    start = page if side == "begin" else page + size - values.nbytes
    copy: Values = np.frombuffer(memory, values.dtype, values.size, start).reshape(values.shape)
    copy[...] = values
    _protect(address, page, 0)
    _protect(address + page + size, page, 0)
    if not writable:
        _protect(address + page, size, mmap.PROT_READ)
    return copy


def _protect(address: int, size: int, protection: int) -> None:
    result = _LIBC.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(size), protection)
    assert result == 0, f"mprotect: errno {ctypes.get_errno()}"


def output(shape: Sequence[int], side: Side = "end") -> Values:
    """Guarded memory for a kernel to write, full of NaN."""
    return guarded(np.full(shape, np.nan, np.float32), side, writable=True)


def pointer(array: Values | None) -> ctypes.c_void_p:
    return ctypes.c_void_p() if array is None else array.ctypes.data_as(ctypes.c_void_p)  # keeps the array alive


def pad_rows(rows: Values) -> Values:
    """[rows][K] as kernels read it: float32, rows of whole vectors."""
    return pad_columns(rows).astype(np.float32)


def pack_panels(weight: Values) -> Values:
    """The packed panels of a float32 matrix."""
    return pack_float32(weight)[0]


# Matrices


@dataclass(frozen=True)
class Linear:
    """One kind of matrix at one shape, of one ISA's kernels."""

    library: ctypes.CDLL
    dtype: str
    depth: int
    outputs: int
    side: Side = "end"

    def _function(self, name: str) -> Any:
        return getattr(self.library, f"{name}_{self.dtype.replace('-', '_')}_{self.depth}_{self.outputs}")

    @property
    def row_bytes(self) -> int:
        """Of a row of inputs."""
        return int(self._function("row_bytes")())

    def convert(self, x: Values) -> Values:
        """Rows of floats [rows][depth] -> the kernel's inputs [rows][row_bytes] as bytes."""
        rows = guarded(pad_rows(x), self.side)
        inputs = guarded(np.zeros((len(x), self.row_bytes), np.uint8), self.side, writable=True)
        self._function("convert")(pointer(rows), ctypes.c_int64(len(x)), pointer(inputs))
        return inputs

    def scales(self, inputs: Values) -> Values:
        """The scales of such inputs in 8 bits, [rows][groups]; writing to them changes the inputs."""
        begin = round_up(self.depth, LINE)
        groups = -(-self.depth // (MATRIX_TYPES[self.dtype].row_group or 1))
        return inputs[:, begin:].view(GROUP_SCALE)[:, :groups]

    def multiply(
        self, inputs: Values, arrays: Iterable[Values], bias: Values | None = None, workers: int = 1
    ) -> Values:
        """inputs [rows][row_bytes] by a packed matrix, plus bias [outputs] -> [rows][outputs]."""
        width = round_up(self.outputs)
        padded = np.zeros(width, np.float32)
        padded[: self.outputs] = 0 if bias is None else bias
        read = [guarded(array, self.side) for array in (inputs, padded, *arrays)]
        y = output((len(inputs), width), self.side)
        matrix = (ctypes.c_void_p * 2)(*(array.ctypes.data for array in read[2:]))
        rows = ctypes.c_int64(len(inputs))
        self._function("linear")(workers, pointer(read[0]), rows, matrix, pointer(read[1]), pointer(y))
        assert not np.isnan(y[:, : self.outputs]).any(), "not every output was written"
        return y[:, : self.outputs].copy()
