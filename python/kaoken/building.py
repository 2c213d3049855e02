"""Running CMake and Ninja: their progress, and the part of their output that explains a failure."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import takewhile
from pathlib import Path
from types import TracebackType

from kaoken import errors
from kaoken.errors import BuildError, KaokenError
from kaoken.progress import make_bar

NINJA_STATUS = "[kaoken %f/%t] "

_STATUS = re.compile(r"\[kaoken (\d+)/(\d+)\] ")
_CODEGEN_ERROR = re.compile(r"\s*kaoken: (\w+Error): (.+)")
_FIRST_TROUBLE = re.compile(r"FAILED: |CMake Error|.*\b(?:fatal )?error\b", re.IGNORECASE)
_KEPT_LINES = 2000
_SHOWN_LINES = 30
_SHOWN_WIDTH = 300


class Progress:
    """A bar on stderr that follows Ninja's status lines; nothing where it is off or tqdm is not installed."""

    def __init__(self, name: str, enabled: bool | None) -> None:
        self._name = name
        self._silent = enabled is False
        self._bar = make_bar(1, "step") if (sys.stderr.isatty() if enabled is None else enabled) else None
        self.say("waiting to start")

    def say(self, what: str) -> None:
        if self._bar is not None:
            self._bar.set_description_str(f"{self._name}: {what}")

    def tell(self, line: str) -> None:
        """Prints a line that stays, with a bar or without, unless that was declined."""
        if self._bar is not None:
            self._bar.write(line, file=sys.stderr)
        elif not self._silent:
            print(line, file=sys.stderr)

    def line(self, line: str) -> None:
        """Takes one line of output."""
        status = _STATUS.match(line)
        if status and self._bar is not None:
            self._bar.total = int(status[2])
            self._bar.n = int(status[1])
            self._bar.refresh()

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()


class _Terminated(BaseException):
    """SIGTERM or SIGHUP, on its way out of a bake."""


@contextmanager
def unwound() -> Iterator[None]:
    """Within it a SIGTERM or SIGHUP that would end this process at once ends it only when the context has been left.

    It does so even where the exception that the signal raises was lost, as in a __del__, or another took its place.
    Handlers of the program's own stay as they are, and outside the main thread nothing can be done.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    endings = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) is signal.SIG_DFL]

    received: list[int] = []

    def end(number: int, _: object) -> None:
        received.append(number)
        for ending in endings:
            signal.signal(ending, signal.SIG_IGN)  # a second one must not interrupt the cleaning
        raise _Terminated(number)

    try:
        for ending in endings:
            signal.signal(ending, end)
        yield
    finally:
        for ending in endings:
            signal.signal(ending, signal.SIG_DFL)
        if received:
            os.kill(os.getpid(), received[0])


def run(
    command: Sequence[str], environment: Mapping[str, str], on_line: Callable[[str], None], directory: Path
) -> tuple[int, list[str]]:
    """Runs a command to its end; returns its exit status and the last lines of its output.

    It gets a process group of its own, which is ended with it if this process is interrupted. If this process is
    killed, the `directory` that the command works in goes too.
    """
    lines: deque[str] = deque(maxlen=_KEPT_LINES)
    with subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        try:
            with _guarded(process.pid, directory):
                for line in process.stdout:
                    lines.append(line.rstrip())
                    on_line(lines[-1])
        except BaseException:
            _stop(process)
            raise
    return process.returncode, list(lines)


@contextmanager
def _guarded(group: int, directory: Path) -> Iterator[None]:
    """Has a process outlive this one if it is killed meanwhile; see guard.py."""
    script = Path(__file__).with_name("guard.py")
    command = [sys.executable, "-I", "-S", str(script), str(group), str(directory)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True) as guard:
        try:
            yield
        finally:
            guard.kill()


def _stop(process: subprocess.Popen[str]) -> None:
    """Ends the whole group; what ignores SIGTERM is killed, but only while the id is surely its own."""
    for signal_number in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is None:
            os.killpg(process.pid, signal_number)
            with suppress(subprocess.TimeoutExpired):
                process.wait(5)


def error_class(lines: Sequence[str]) -> type[KaokenError]:
    """The class of codegen's own error, where a failed build's output has one."""
    names = [own[1] for own in map(_CODEGEN_ERROR.match, lines) if own]
    found = getattr(errors, names[0], BuildError) if names else BuildError
    return found if isinstance(found, type) and issubclass(found, KaokenError) else BuildError


def explanation(lines: Sequence[str]) -> str:
    """What a user needs of a failed build's output: codegen's own error, else from the first trouble on."""
    for index, line in enumerate(lines):
        own = _CODEGEN_ERROR.match(line)
        if own:
            # CMake indents and wraps what a configuring codegen says.
            rest = takewhile(lambda following: following.startswith("  "), lines[index + 1 :])
            return " ".join([own[2], *map(str.strip, rest)])
    shown = [line for line in lines if line and not _STATUS.match(line)]
    first = next((index for index, line in enumerate(shown) if _FIRST_TROUBLE.match(line)), -_SHOWN_LINES)
    return "\n".join(line[:_SHOWN_WIDTH] for line in shown[first:][:_SHOWN_LINES])
