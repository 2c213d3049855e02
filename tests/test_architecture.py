"""ARCHITECTURE.md and README.md name files: each must exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TOP = "|".join(path.name for path in ROOT.iterdir() if not path.name.startswith(".")) + r"|\.ci|\.github"
LEFT_OUT = (".ci", ".github", "benchmarks/results") if (ROOT / "PKG-INFO").is_file() else ()  # of an sdist
PATH = re.compile(rf"(?:`|\]\()((?:{TOP})(?:/[\w./-]+)?)(?:`|\))")


def named_paths(document: str) -> list[str]:
    return PATH.findall((ROOT / document).read_text(encoding="utf-8"))


@pytest.mark.parametrize(("document", "least"), [("ARCHITECTURE.md", 30), ("README.md", 3)])
def test_every_path_that_a_document_names_exists(document: str, least: int) -> None:
    paths = named_paths(document)
    assert len(paths) >= least
    assert [path for path in paths if not (ROOT / path).exists() and not path.startswith(LEFT_OUT)] == []


def test_the_passes_are_the_files() -> None:
    from kaoken.codegen.rewrites import PIPELINE

    files = {path.stem for path in (ROOT / "codegen" / "rewrites").glob("*.py")} - {"__init__"}
    assert files == {rewrite.__name__ for rewrite in PIPELINE}
