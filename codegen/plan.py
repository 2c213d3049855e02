"""The plan: which files a bake will make and how they compile, as variables that CMake reads at configure.

Apart from the paths of what the plan was made from, quoted so that CMake takes them literally, only names that Kaoken
makes itself enter it.
"""

from __future__ import annotations

import re

from .memory import RUNTIME_UNITY, group_sources
from .pipeline import Baked


def plan_text(baked: Baked, inputs: list[str]) -> str:
    """set() lines: code with the unity group of each file, weights and blobs in pairs, texts, the job pool, inputs."""
    options = baked.options
    code = [(source.name, source.size) for source in baked.code() if source.name.endswith(".cpp")]
    groups = group_sources(code, options.budget.group_limit)
    weights = list(baked.weights())
    lines = {
        "NAME": [options.name],
        "ISAS": list(options.isas),
        "KERNELS": [options.kernels],
        "POOL": [str(options.budget.pool)],
        "RUNTIME_UNITY": ["ON" if options.budget.cap >= RUNTIME_UNITY else "OFF"],
        "CODE": [name for group in groups for name in group],
        "GROUPS": [f"group_{index}" for index, group in enumerate(groups) for _ in group],
        "WEIGHTS": [source.name for source, _ in weights],
        "BLOBS": [f"{blob.name}.bin" for _, blob in weights],
        "TEXTS": ["description.json", *(["tokenizer.json"] if baked.checkpoint.tokenizer else [])],
    }
    lines["INPUTS"] = [_quote(path) for path in inputs]
    return "".join(f"set(KAOKEN_PLAN_{key} {' '.join(values)})\n" for key, values in lines.items())


def _quote(path: str) -> str:
    """One element of a CMake list, as a bracket argument: nothing in it is expanded, and \\; does not divide it."""
    fence = "=" * (1 + max((len(run) for run in re.findall("=+", path)), default=0))
    return f"[{fence}[{path.replace(';', chr(92) + ';')}]{fence}]"
