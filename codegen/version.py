"""Kaoken's version, which pyproject.toml states and an installation records."""

from __future__ import annotations

import re
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def kaoken_version() -> str:
    """Of the source tree or the installation that this file belongs to, whichever Python runs it."""
    project = ROOT / "pyproject.toml"
    if project.is_file():
        stated = re.search(r'^version = "(.+)"$', project.read_text(encoding="utf-8"), re.MULTILINE)
        if stated:
            return stated[1]
    for record in ROOT.parent.glob("kaoken-*.dist-info"):
        return record.name.removeprefix("kaoken-").removesuffix(".dist-info")
    return version("kaoken")
