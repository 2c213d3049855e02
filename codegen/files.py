"""Writing generated files: whole or not at all, and only when their content changes, so that a rebuild does nothing."""

from __future__ import annotations

import filecmp
import os
from collections.abc import Iterable
from pathlib import Path

from .errors import BuildError


def write_if_changed(path: Path, chunks: Iterable[bytes]) -> bool:
    """Writes the file unless it already holds these bytes; says whether it did. Raises BuildError if it cannot."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.writelines(chunks)
        if path.exists() and filecmp.cmp(temporary, path, shallow=False):
            return False
        temporary.replace(path)
        return True
    except OSError as error:
        raise BuildError(f"cannot write {path}: {error.strerror}; free some space or build elsewhere") from error
    finally:
        temporary.unlink(missing_ok=True)
