"""How a cap on the memory of each build process shapes the build.

Heavy processes run side by side only as far as memory / cap allows; code is grouped into unity files, and weights into
blobs, that stay under the cap. The constants are measured with g++ 12 and rounded up.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from .errors import BuildError, InputError

MiB = 1 << 20
DEFAULT_CAP = 512 * MiB
SMALLEST_CAP = 192 * MiB  # a compiler with one block, AVX2 being the largest
COMPILER_BASE = 150 * MiB  # a compiler with the kernels
COMPILER_PER_SOURCE_BYTE = 6_000  # what each byte of a generated file adds where every block has its own shape
RUNTIME_UNITY = 256 * MiB  # a compiler with all of runtime/src at once
PYTHON_MODULE = 480 * MiB  # a compiler with pybind11's headers, at any level of optimization
ASSEMBLER_BASE = 48 * MiB  # an assembler or linker beside the blob that it holds
EXPLODED_SINGLE_WEIGHT = 17_000  # what each weight of an exploded matrix adds, by itself
EXPLODED_LINE_WEIGHT = 4_000  # what each adds in a line of 16
EXPLODED_SHARD = 72 * MiB  # what the strips of one file add at most, so that a matrix compiles in parallel
GROUP_LIMIT = 32_768  # bytes of source a unity group is worth at most; beyond it, groups compile in parallel
NEAR_REACH = 2 << 30  # bytes of weights where relative addresses have 32 bits
PROC = Path("/proc")
CGROUPS = Path("/sys/fs/cgroup")
UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


@dataclass(frozen=True)
class MemoryBudget:
    """The cap, in bytes, that every process of the build stays under, and how many heavy ones run at a time."""

    cap: int
    pool: int

    @property
    def blob_limit(self) -> int:
        """The largest blob, in bytes: the assembler and the linker each hold about one at a time."""
        return max(16 * MiB, (self.cap - ASSEMBLER_BASE) // 2)

    @property
    def group_limit(self) -> int:
        """The most bytes of generated source in one unity group."""
        return min(GROUP_LIMIT, (self.cap - COMPILER_BASE) // COMPILER_PER_SOURCE_BYTE)

    @property
    def strip_file_limit(self) -> int:
        """The most bytes that a compiler may need for one file of exploded weights, beside the kernels."""
        return min(EXPLODED_SHARD, self.cap - COMPILER_BASE)


def make_budget(compile_memory: str | None, jobs: int | None, least: int = SMALLEST_CAP) -> MemoryBudget:
    """The budget for a cap like "512M" and a number of jobs; None takes the defaults.

    Raises InputError for a cap that is no size or below `least`, and for jobs below 1.
    """
    cap = parse_size(compile_memory) if compile_memory else DEFAULT_CAP
    if cap < least:
        raise InputError(
            f"a compile memory of {compile_memory} is less than a compiler needs; give {least // MiB}M or more"
        )
    jobs = processors() if jobs is None else jobs
    if jobs < 1:
        raise InputError(f"jobs={jobs} must be at least 1")
    return MemoryBudget(cap, max(1, min(jobs, total_memory() // cap)))


def check_reach(nbytes: int, machine: str) -> None:
    """Raises BuildError for weights that a library of the machine cannot address.

    x86-64 has large sections (embed.h); elsewhere code, weights and data lie within 32-bit relative addresses.
    """
    if machine != "x86_64" and nbytes > NEAR_REACH:
        raise BuildError(
            f"the weights take {nbytes / (1 << 30):.1f} GB, and a library for {machine} can address "
            f"{NEAR_REACH / (1 << 30):.0f}: bake a smaller dtype or a smaller model"
        )


def parse_size(text: str) -> int:
    """Bytes in "536870912", "512M", "512MiB" or "1.5G"; units are powers of 1024. Raises InputError."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(?:I?B)?\s*", text, re.IGNORECASE)
    if not match:
        raise InputError(f"compile memory {text!r} is not a size; write it like 512M or 1G")
    return int(float(match[1]) * UNITS[match[2].upper()])


def group_sources(sizes: Iterable[tuple[str, int]], limit: int) -> list[list[str]]:
    """Puts names into unity groups: neighbours share one while their bytes stay within the limit.

    Raises BuildError for a file that is larger by itself.
    """
    groups: list[list[str]] = []
    filled = 0
    for name, size in sizes:
        if size > limit:
            enough = COMPILER_BASE + size * COMPILER_PER_SOURCE_BYTE
            raise BuildError(f"compiling {name} would pass the compile memory; give {enough // MiB + 1}M or more")
        if not groups or filled + size > limit:
            groups.append([])
            filled = 0
        groups[-1].append(name)
        filled += size
    return groups


def processors() -> int:
    """Processors that this process may use, by affinity and cgroup (version 2)."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = [-(-limit // period) for limit, period in map(_numbers, cgroup_files("cpu", "cpu.max")) if limit]
    return max(1, min([allowed, *quotas]))


def total_memory() -> int:
    """Memory that this process may take, in bytes: the machine's, or less where a cgroup says so."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    files = cgroup_files("memory", "memory.max") + cgroup_files("memory", "memory.limit_in_bytes")
    return min([physical, *(limit for limit, _ in map(_numbers, files) if limit)])


def cgroup_files(controller: str, name: str, proc: Path = PROC, mount: Path = CGROUPS) -> list[str]:
    """The contents of a control file in this process's cgroup and in those above it, of version 2 and of version 1."""
    try:
        lines = (proc / "self" / "cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    found = []
    for _, controllers, path in (line.split(":", 2) for line in lines):
        if controllers and controller not in controllers.split(","):
            continue
        root = mount / controller if controllers else mount
        own = root / path.lstrip("/")
        for directory in (own, *own.parents):
            if directory.is_relative_to(root) and (directory / name).is_file():
                found.append((directory / name).read_text(encoding="utf-8"))
    return found


def _numbers(text: str) -> tuple[int, int]:
    """The first two numbers of a control file; "max" is 0 and stands for no limit, a missing second one is 1."""
    first, second, *_ = [*(int(word) if word.isdigit() else 0 for word in text.split()), 1, 1]
    return first, second
