"""How a model may be named: what is a GGUF file, and which file of a repository is meant.

The build backend reads names too, so this needs the standard library alone.
"""

from __future__ import annotations

import os
import re

GGUF = ".gguf"

_PATHS = ("./", "../", "/", "~")
_FILE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]{0,199}")


def is_gguf(name: str | os.PathLike[str]) -> bool:
    """Whether a file is a GGUF, which is known by how its name ends."""
    return os.fspath(name).lower().endswith(GGUF)


def is_checkpoint(path: str | os.PathLike[str]) -> bool:
    """Whether a directory or a GGUF file is there."""
    return os.path.isdir(path) or (is_gguf(path) and os.path.isfile(path))


def is_path(model: str) -> bool:
    """Whether a name is never a hub id."""
    return model.startswith(_PATHS) or model in (".", "..") or (is_gguf(model) and ":" not in model)


def split_file(model: str) -> tuple[str, str | None]:
    """OWNER/NAME:FILE in two; the second is a GGUF's name, the end of one such as Q4_K_M, or None."""
    name, colon, file = model.partition(":")
    return (name, file) if colon and _FILE.fullmatch(file) and ".." not in file else (model, None)
