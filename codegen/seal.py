"""The seal of a model library: a SHA-256 of all its bytes, which stands behind them.

Nothing that loads an ELF file looks at what follows its sections, so a seal travels inside the one file. It finds
damage, not malice. Strip and patchelf drop it or make it wrong, so a library is sealed last.

python -I seal.py FILE     seals the file, anew if it has a seal already
"""

from __future__ import annotations

import hashlib
import os
import sys
from typing import BinaryIO

_MARK = b"\0KAOKEN SHA-256:\0"
_SIZE = len(_MARK) + hashlib.sha256().digest_size


def seal(path: str | os.PathLike[str]) -> None:
    """Writes the seal behind the file's bytes, in the place of an older one."""
    with open(path, "r+b") as file:
        size, _ = _split(file)
        file.truncate(size)
        digest = _digest(file, size)
        file.seek(size)
        file.write(_MARK + digest)


def is_intact(path: str | os.PathLike[str]) -> bool | None:
    """Whether the bytes are those that were sealed; None without a seal. Reads all of the file."""
    with open(path, "rb") as file:
        size, recorded = _split(file)
        return None if recorded is None else _digest(file, size) == recorded


def _split(file: BinaryIO) -> tuple[int, bytes | None]:
    """The number of bytes before the seal, and the digest in it."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(size - _SIZE, 0))
    tail = file.read()
    return (size - _SIZE, tail[len(_MARK) :]) if tail.startswith(_MARK) and len(tail) == _SIZE else (size, None)


def _digest(file: BinaryIO, size: int) -> bytes:
    digest = hashlib.sha256()
    file.seek(0)
    while size > 0 and (chunk := file.read(min(size, 1 << 20))):
        digest.update(chunk)
        size -= len(chunk)
    return digest.digest()


if __name__ == "__main__":
    seal(sys.argv[1])
