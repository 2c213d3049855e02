"""The plan: which files a bake will make and how they compile, as variables that CMake reads at configure.

Only names that Kaoken makes itself enter it, never a path or a string of the checkpoint.
"""

from __future__ import annotations

from .memory import group_sources
from .pipeline import Baked


def plan_text(baked: Baked) -> str:
    """set() lines: the code with the unity group of each file, weights and blobs in pairs, texts, the job pool."""
    options = baked.options
    code = [(source.name, len(source.text)) for source in baked.code() if source.name.endswith(".cpp")]
    groups = group_sources(code, options.budget.group_limit)
    weights = list(baked.weights())
    lines = {
        "NAME": [options.name],
        "ISAS": list(options.isas),
        "POOL": [str(options.budget.pool)],
        "CODE": [name for group in groups for name in group],
        "GROUPS": [f"group_{index}" for index, group in enumerate(groups) for _ in group],
        "WEIGHTS": [source.name for source, _ in weights],
        "BLOBS": [f"{blob.name}.bin" for _, blob in weights],
        "TEXTS": ["description.json", *(["tokenizer.json"] if baked.checkpoint.tokenizer else [])],
    }
    return "".join(f"set(KAOKEN_PLAN_{key} {' '.join(values)})\n" for key, values in lines.items())
