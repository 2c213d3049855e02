"""Packed kernels against the exploded form of the same matrix, dense and pruned: where each wins.

    python -m benchmarks exploded

One thread, warm caches, float32. Every matrix is checked bit for bit before it is timed. Sizes beyond the limit of
`kernels=exploded` (codegen/exploded.py) are measured too: that limit comes from this table.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from kaoken.codegen.emit.units import strip_file_text
from kaoken.codegen.exploded import EXPLODED_LIMIT, StripFile, explode
from kaoken.codegen.isa import resolve, table
from kaoken.codegen.layout import pack_float32, round_up
from kaoken.codegen.memory import EXPLODED_SHARD
from numpy.typing import NDArray

from kaoken import codegen

ROOT = Path(str(codegen.__file__)).parent.parent
SIZES = ((2, 3), (4, 4), (8, 8), (16, 16), (32, 32), (64, 64), (128, 128), (256, 256), (768, 768))
ZEROS = (0, 50, 90, 99)  # percent
ROWS = (1, 16)
REPEATS = 7
SECONDS = 0.01  # of one repeat
# What cmake/Kaoken.cmake compiles a model's code with.
FLAGS = ("-std=c++17", "-O3", "-fPIC", "-ffp-contract=off", "-fno-math-errno", "-fno-exceptions", "-fno-lto")
EXPLODED_FLAGS = ("-fno-tree-slp-vectorize",)

DRIVER = """\
#include <time.h>

#include "exploded.h"

namespace kaoken::KAOKEN_ISA {
namespace model_bench {
%(declarations)s
static constexpr Strip strips[] = {%(strips)s};
}

struct Write {
  float *out;
  KAOKEN_MEMBER void operator()(int64_t row, int64_t panel, Vec sum) const {
    store(out + row * %(panels)d * kLanes + panel * kLanes, sum);
  }
};

template <class Call>
static double time_of(int64_t times, const Call &call) {
  timespec begin, end;
  clock_gettime(CLOCK_MONOTONIC, &begin);
  for (int64_t i = 0; i < times; ++i) {
    call();
    __asm__ volatile("" ::: "memory");
  }
  clock_gettime(CLOCK_MONOTONIC, &end);
  return (end.tv_sec - begin.tv_sec) + 1e-9 * (end.tv_nsec - begin.tv_nsec);
}

extern "C" double packed_seconds(const float *x, const float *w, float *out, int64_t rows, int64_t times) {
  return time_of(times, [&] {
    linear<Float32, %(depth)d, %(panels)d>(Worker{0, 1, nullptr}, {x, nullptr}, rows, {w}, Write{out});
  });
}

extern "C" double exploded_seconds(const float *x, const float *, float *out, int64_t rows, int64_t times) {
  return time_of(times, [&] {
    exploded<Exploded, %(depth)d, %(panels)d>(
        Worker{0, 1, nullptr}, {x, nullptr}, rows, {model_bench::strips, %(count)d}, Write{out});
  });
}
}
"""


def run(options: argparse.Namespace) -> None:
    """Compiles, measures and writes the table."""
    (isa,) = resolve(options.isa, dtypes={"float32"})
    with tempfile.TemporaryDirectory(prefix="kaoken-exploded-") as temporary:
        work = options.work or Path(temporary)
        cases = [(n, k, zeros) for n, k in _sizes(options.sizes) for zeros in ZEROS]
        compiled = [_compiled(work / f"{n}x{k}-{zeros}-{isa}", isa, _weights(n, k, zeros)) for n, k, zeros in cases]
        if options.compile_only:
            return
        results = [
            {"outputs": n, "inputs": k, "zeros_percent": zeros, **facts, **_measure(library, _weights(n, k, zeros))}
            for (n, k, zeros), (library, facts) in zip(cases, compiled, strict=True)
        ]
    report = {"machine": _machine(), "isa": isa, "limit": EXPLODED_LIMIT, "results": results}
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "exploded.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    (options.out / "exploded.md").write_text(_markdown(report), encoding="utf-8")


def _sizes(chosen: list[str] | None) -> list[tuple[int, int]]:
    return [size for size in SIZES if not chosen or f"{size[0]}x{size[1]}" in chosen]


def _weights(outputs: int, inputs: int, zeros: int) -> NDArray[np.float32]:
    """Normal values, of which so many percent, scattered, are zero (never all), the same on every machine."""
    rng = np.random.default_rng(outputs * 1000 + zeros)
    weights = rng.normal(0, 0.1, (outputs, inputs)).astype(np.float32)
    pruned = rng.permutation(weights.size)[: min(weights.size - 1, round(weights.size * zeros / 100))]
    weights.ravel()[pruned] = 0
    return weights


def _compiled(directory: Path, isa: str, weights: NDArray[np.float32]) -> tuple[Path, dict[str, Any]]:
    """The library of one matrix in both forms, and what its exploded form took."""
    library, record = directory / "matrix.so", directory / "facts.json"
    if not record.exists():
        directory.mkdir(parents=True, exist_ok=True)
        facts = _compile(directory, library, isa, weights)
        record.write_text(json.dumps(facts), encoding="utf-8")
    return library, json.loads(record.read_text(encoding="utf-8"))


def _compile(directory: Path, library: Path, isa: str, weights: NDArray[np.float32]) -> dict[str, Any]:
    padded = np.zeros((round_up(len(weights)), weights.shape[1]), np.float32)
    padded[: len(weights)] = weights
    shards = explode("exploded", (), padded, EXPLODED_SHARD)
    (directory / "driver.cpp").write_text(_driver(shards, padded), encoding="utf-8")
    for shard in shards:
        (directory / f"{shard.name}.cpp").write_text(strip_file_text("bench", shard), encoding="utf-8")
    took = [_object(directory / f"{shard.name}.cpp", isa, EXPLODED_FLAGS) for shard in shards]
    driver = _object(directory / "driver.cpp", isa, EXPLODED_FLAGS)
    objects = [directory / f"{name}.o" for name in ["driver", *(shard.name for shard in shards)]]
    subprocess.run([_compiler(), "-shared", "-o", library, *objects], check=True)
    return {
        "nonzeros": int(np.count_nonzero(weights)),
        "packed_bytes": padded.nbytes,
        "exploded_bytes": sum(map(_code_bytes, objects[1:])),
        "form": "+".join(sorted({"lines" if s.vector else "single" for shard in shards for s in shard.strips})),
        "shards": len(shards),
        "compile_seconds": sum(seconds for seconds, _ in took),
        "compile_mib": max(mib for _, mib in took),
        "driver_compile_seconds": driver[0],
    }


def _driver(shards: tuple[StripFile, ...], padded: NDArray[np.float32]) -> str:
    strips = [strip for shard in shards for strip in shard.strips]
    return DRIVER % {
        "declarations": "\n".join(f"void {strip.name}(const float *x, float *sums);" for strip in strips),
        "strips": ", ".join(f"{{{strip.name}, {strip.first}, {strip.panels}}}" for strip in strips),
        "count": len(strips),
        "panels": len(padded) // 16,
        "depth": padded.shape[1],
    }


def _compiler() -> str:
    return os.environ.get("CXX", "c++")


def _object(source: Path, isa: str, more: tuple[str, ...]) -> tuple[float, float]:
    """Compiles one file: seconds of processor time, and the MiB that the compiler took."""
    includes = [f"-I{ROOT / 'runtime' / part}" for part in ("kernels", "include")]
    flags = [*FLAGS, *more, *table()[isa].flags, f"-DKAOKEN_ISA={isa}", *includes]
    process = subprocess.Popen([_compiler(), *flags, "-c", source, "-o", source.with_suffix(".o")])
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, _compiler())
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def _code_bytes(path: Path) -> int:
    """Of instructions and constants."""
    lines = subprocess.run(["size", "-A", path], check=True, capture_output=True, text=True).stdout.splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith((".text", ".rodata")))


def _measure(library: Path, weights: NDArray[np.float32]) -> dict[str, Any]:
    """Nanoseconds of one call of each form, by rows."""
    functions = {form: getattr(ctypes.CDLL(str(library)), f"{form}_seconds") for form in ("packed", "exploded")}
    panels = _aligned(pack_float32(weights)[0])
    found: dict[str, Any] = {}
    for rows in ROWS:
        x = _aligned(_inputs(rows, weights.shape[1]))
        outs = {form: _aligned(np.zeros((rows, round_up(len(weights))), np.float32)) for form in functions}
        timers = {form: _timer(function, x, panels, outs[form], rows) for form, function in functions.items()}
        times = _alternating(timers)
        np.testing.assert_array_equal(outs["packed"], outs["exploded"])
        found[f"rows_{rows}"] = {**times, "ratio": times["exploded_ns"] / times["packed_ns"]}
    return found


def _inputs(rows: int, depth: int) -> NDArray[np.float32]:
    x = np.zeros((rows, round_up(depth)), np.float32)
    x[:, :depth] = np.random.default_rng(7).normal(0, 1, (rows, depth))
    return x


def _aligned(array: NDArray[np.float32]) -> NDArray[np.float32]:
    """A copy that starts on a cache line, as everything does in a model."""
    room = np.zeros(array.nbytes + 64, np.uint8)
    start = -room.ctypes.data % 64
    copy = room[start : start + array.nbytes].view(np.float32).reshape(array.shape)
    copy[...] = array
    return copy


def _timer(function: Any, x: Any, panels: Any, out: Any, rows: int) -> Any:
    function.restype = ctypes.c_double
    pointers = [ctypes.c_void_p(array.ctypes.data) for array in (x, panels, out)]
    return lambda times: function(*pointers, ctypes.c_int64(rows), ctypes.c_int64(times))


def _alternating(timers: dict[str, Any]) -> dict[str, float]:
    """The median of each, the two forms taking turns."""
    times = {}
    for form, timer in timers.items():
        count = 1
        while (seconds := timer(count)) < SECONDS / 4:
            count *= 4
        times[form] = max(1, round(count * SECONDS / seconds))
    samples: dict[str, list[float]] = {form: [] for form in timers}
    for _ in range(REPEATS):
        for form, timer in timers.items():
            samples[form].append(timer(times[form]) / times[form] * 1e9)
    return {f"{form}_ns": statistics.median(values) for form, values in samples.items()}


def _machine() -> dict[str, str]:
    facts = (line.partition(":") for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines())
    cpu = next((value.strip() for name, _, value in facts if name.strip() == "model name"), "unknown")
    compiler = subprocess.run([_compiler(), "--version"], capture_output=True, text=True).stdout.splitlines()[0]
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=ROOT).stdout
    return {"cpu": cpu, "compiler": compiler, "commit": commit.strip(), "date": time.strftime("%Y-%m-%d")}


def _markdown(report: dict[str, Any]) -> str:
    machine = report["machine"]
    lines = [
        "# Exploded against packed kernels",
        "",
        f"{machine['cpu']}, ISA {report['isa']}, {machine['compiler']}, commit {machine['commit']}, {machine['date']};",
        "one thread, warm caches, float32, medians. A ratio below 1 means that exploded is faster. `lines` are",
        "vector products of 16 weights, `single` scalar ones that leave out each zero. Compile seconds are of one ISA,",
        "summed over shards; MiB are of the largest shard. `kernels=exploded` takes matrices of up to",
        f"{report['limit']} weights that are not zero; the others are here to show why.",
        "",
        "| outputs x inputs | zeros | form | packed ns | exploded ns | ratio | 16 rows: packed | exploded | ratio "
        "| packed bytes | exploded bytes | compile s | MiB | shards |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    return "\n".join([*lines, *map(_row, report["results"])]) + "\n"


def _row(result: dict[str, Any]) -> str:
    times = [
        f"{each['packed_ns']:.0f} | {each['exploded_ns']:.0f} | {_bold(each['ratio'])}"
        for each in (result[f"rows_{rows}"] for rows in ROWS)
    ]
    cells = [
        f"{result['outputs']} x {result['inputs']}",
        f"{result['zeros_percent']} %",
        result["form"],
        *times,
        f"{result['packed_bytes']}",
        f"{result['exploded_bytes']}",
        f"{result['compile_seconds']:.1f}",
        f"{result['compile_mib']:.0f}",
        f"{result['shards']}",
    ]
    return f"| {' | '.join(cells)} |"


def _bold(ratio: float) -> str:
    text = f"{ratio:.2f}"
    return f"**{text}**" if ratio < 1 else text
