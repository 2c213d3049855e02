"""The machine and the commit that a result is of."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from benchmarks.models import ROOT


def describe_machine() -> dict[str, Any]:
    """What a reader needs to judge figures by; nothing that names a user or a host."""
    return {
        "cpu": cpu_model(),
        "architecture": platform.machine(),
        "processors": len(os.sched_getaffinity(0)),
        "caches": _caches(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "features": sorted(cpu_features() & _TELLING),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


# Of the flags in /proc/cpuinfo, those that decide which kernels run.
_TELLING = {
    *(
        "avx2",
        "fma",
        "f16c",
        "avx512f",
        "avx512_vnni",
        "avx512_bf16",
        "avx512_fp16",
        "avx_vnni",
        "amx_int8",
        "amx_bf16",
    ),
    *("asimd", "asimddp", "i8mm", "bf16", "sve"),
}


def cpu_features() -> set[str]:
    """The flags of /proc/cpuinfo, x86's or Arm's."""
    match = re.search(r"^(?:flags|Features)\s*: (.*)$", _cpuinfo(), re.MULTILINE)
    return set(match[1].split()) if match else set()


def cpu_model() -> str:
    """As /proc/cpuinfo names it, with family and model where a hypervisor hides the name."""
    found = {
        key: match[1].strip()
        for key in ("model name", "cpu family", "model")
        if (match := re.search(rf"^{key}\s*: (.*)$", _cpuinfo(), re.MULTILINE))
    }
    name = found.get("model name", platform.processor() or "unknown")
    if "cpu family" not in found:
        return name
    return f"{name} (family {found['cpu family']}, model {found.get('model', '?')})"


def _cpuinfo() -> str:
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return ""


def _caches() -> dict[str, str]:
    """The data caches of the first processor, like {"L3": "32768K"}."""
    found = {}
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        if (index / "type").read_text().strip() != "Instruction":
            found[f"L{(index / 'level').read_text().strip()}"] = (index / "size").read_text().strip()
    return found


def commit() -> str:
    """The commit that is checked out, with "-dirty" where tracked files differ; "unknown" outside git."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def header(command: str, threads: int) -> dict[str, Any]:
    """What every result begins with."""
    return {
        "command": command,
        "commit": commit(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "threads": threads,
        "machine": describe_machine(),
    }
