"""Standard output of the commands: what is printed comes at once, or says why it cannot."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterable
from typing import Any

from kaoken.errors import KaokenError


def print_at_once(text: object, end: str = "\n") -> None:
    """Prints; raises KaokenError where that fails, and BrokenPipeError where nobody reads any more."""
    try:
        print(text, end=end, flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise _unwritable(error) from error


def write_bytes(parts: Iterable[Any]) -> None:
    """Writes what is no text, and raises as `print_at_once` does."""
    try:
        for part in parts:
            sys.stdout.buffer.write(part)
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise _unwritable(error) from error


def _unwritable(error: OSError) -> KaokenError:
    discard_output()
    return KaokenError(f"the output cannot be written ({error.strerror}): write it elsewhere")


def print_what_does_not_encode(errors: str) -> None:
    """As Python's name of a way to handle such characters says."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors=errors)


def discard_output() -> None:
    """Python would complain when it flushes at exit: give it somewhere to write."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
