"""Work in a forked child."""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Callable

import pytest

# Python warns of threads, which are the runtime's here and no concern of the child's.
fork = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


def in_child(work: Callable[[], bytes], seconds: float = 60) -> bytes:
    """What work returns in a forked child; fails instead of waiting for a child that hangs."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writing, work())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        answered = select.select([pipe], [], [], seconds)[0]
        if not answered:
            os.kill(child, signal.SIGKILL)
        result = pipe.read()
    os.waitpid(child, 0)
    assert answered, f"the child hung for {seconds} seconds after fork"
    assert result, "the child died before it answered"
    return result
