"""`kernels`: GB/s and TOP/s of every kernel on every instruction set, beside the machine's measured limits."""

from __future__ import annotations

import argparse
import ctypes
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from kaoken.codegen.layout import MATRIX_TYPES

from benchmarks.machine import header
from benchmarks.models import ROOT
from benchmarks.native_library import NativeLibrary, build, machine_isas
from benchmarks.peers import save
from benchmarks.summary import summarize

# (depth, outputs) of GPT-2 124M's matrices: the table of benchmarks/native/kernels.cpp.
SHAPES = ((768, 2304), (768, 768), (768, 3072), (3072, 768), (768, 50257))
ROW_COUNTS = (1, 8, 128)
STREAM_BYTES = 192 << 20  # what a pass reads at least with few rows, so that no cache holds it
READ_BYTES = 256 << 20
WIDTH = 768
CONTEXT = 1024

_BYTES = {dtype: row.weight_bytes for dtype, row in MATRIX_TYPES.items()}
_LIMITS = tuple(dict.fromkeys(row.product for row in MATRIX_TYPES.values()))


def kernel_table() -> dict[str, list[str]]:
    """The dtypes of kernels.inc: {"matrix": [...], "cache": [...]}."""
    text = (ROOT / "runtime" / "kernels" / "kernels.inc").read_text(encoding="utf-8")
    return {
        kind: [
            name.replace("_", "-") for name in re.findall(rf"^KAOKEN_{kind.upper()}\(\w+, (\w+)\)", text, re.MULTILINE)
        ]
        for kind in ("matrix", "cache")
    }


def run(options: argparse.Namespace, arguments: list[str], say: Callable[[str], None]) -> dict[str, Any]:
    """Builds, measures and writes kernels.json."""
    document = header(" ".join(["kernels", *arguments]), options.threads) | {"limits": {}, "kernels": []}
    isas = [isa for isa in machine_isas() if not options.isas or isa in options.isas]
    for isa, library in build(isas, options.build).items():
        passes = 2 if isa == "scalar" else options.passes
        document["limits"][isa] = limits(library, options.threads)
        say(f"{isa}: {_describe(document['limits'][isa])}")
        for record in measure(library, options.threads, passes, options.dtypes):
            document["kernels"].append({"isa": isa, **record})
            say(f"{isa}: {describe(record)}")
        save(document, options.out / "kernels.json")
    return document


def limits(library: NativeLibrary, threads: int) -> dict[str, float]:
    """{"read": GB/s, "float32": TOP/s, ...}, the best of a few tries."""
    reads = [_rate(library, "limit_read", threads, READ_BYTES, streams, passes=4) for streams in (1, 2, 4, 8) * 2]
    found = {"read": max(reads) / 1e9}
    for dtype in _LIMITS:
        found[dtype] = max(_rate(library, f"limit_{dtype}", threads, 0, passes=20) for _ in range(3)) / 1e12
    return found


def _rate(library: NativeLibrary, function: str, *sizes: int, passes: int) -> float:
    """Bytes or operations a second over all passes: a single one looks short to a worker that the one before kept
    waiting."""
    timed = library.time(function, *sizes, passes=passes, result=ctypes.c_double)
    return timed.amount * passes / sum(timed.seconds)


def _describe(found: dict[str, float]) -> str:
    operations = ", ".join(f"{dtype} {found[dtype]:.2f} TOP/s" for dtype in _LIMITS)
    return f"limits: reads {found['read']:.1f} GB/s, {operations}"


def measure(
    library: NativeLibrary, threads: int, passes: int, dtypes: Sequence[str] | None = None
) -> Iterator[dict[str, Any]]:
    """A record for each kernel, shape and number of rows."""
    table = {
        kind: [dtype for dtype in all_of_it if not dtypes or dtype in dtypes]
        for kind, all_of_it in kernel_table().items()
    }
    for dtype in table["matrix"]:
        for depth, outputs in SHAPES:
            for rows in ROW_COUNTS:
                yield _linear(library, dtype, depth, outputs, rows, threads, passes)
    for dtype in table["cache"]:
        for batch, count in ((1, 1), (8, 1), (1, 128)):
            yield _attention(library, dtype, batch, count, threads, passes)


def _linear(
    library: NativeLibrary, dtype: str, depth: int, outputs: int, rows: int, threads: int, passes: int
) -> dict[str, Any]:
    size = depth * outputs * _BYTES[dtype]
    copies = 1 if rows > 8 else max(1, round(STREAM_BYTES / size))
    function = f"linear_{dtype}_{depth}_{outputs}".replace("-", "_")
    timed = library.time(function, threads, rows, copies, passes=passes, result=ctypes.c_int64)
    name = f"linear {depth}x{outputs}"
    return _record(name, dtype, rows, timed.seconds, copies, timed.amount, 2.0 * depth * outputs * rows)


def _attention(library: NativeLibrary, dtype: str, batch: int, count: int, threads: int, passes: int) -> dict[str, Any]:
    past = CONTEXT - count
    size = 2 * WIDTH * CONTEXT * batch * _BYTES[dtype]
    copies = 2 if count > 1 else max(1, round(STREAM_BYTES / size))
    timed = library.time(
        f"attention_{dtype}", threads, batch, count, past, copies, passes=passes, result=ctypes.c_int64
    )
    positions = sum(past + i + 1 for i in range(count)) * batch
    name = f"attention over {CONTEXT}"
    return _record(name, dtype, batch * count, timed.seconds, copies, timed.amount, 4.0 * WIDTH * positions)


def _record(
    name: str, dtype: str, rows: int, seconds: list[float], copies: int, size: float, operations: float
) -> dict[str, Any]:
    """`size` bytes and `operations` are one copy's."""
    each = summarize([value / copies for value in seconds])
    return {
        "kernel": name,
        "dtype": dtype,
        "rows": rows,
        "seconds": each.median,
        "seconds_low": each.low,
        "seconds_high": each.high,
        "bytes": size,
        "operations": operations,
        "gigabytes_per_second": size / each.median / 1e9,
        "teraops_per_second": operations / each.median / 1e12,
    }


def describe(record: dict[str, Any]) -> str:
    """One line."""
    return (
        f"{record['kernel']} {record['dtype']}, {record['rows']} rows: {1e6 * record['seconds']:.1f} us, "
        f"{record['gigabytes_per_second']:.1f} GB/s, {record['teraops_per_second']:.3f} TOP/s"
    )
