"""Chat templates, rendered in a process of their own, which `template_worker.py` is and limits.

A checkpoint's template is untrusted, and Jinja's sandbox does not keep it from taking all time and memory, as
`{{ "a" * 10**10 }}` does, which Jinja computes when it reads the template.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from kaoken.errors import InputError, KaokenError

_WORKER = Path(__file__).with_name("template_worker.py")
_OLDEST = (3, 1, 6)  # older ones have ways out of the sandbox


class ChatTemplate:
    """A Jinja template with the tokens that it may name. Its process starts with the first text and ends with it.

    Several threads may render at once, in turns. After a fork each process has a worker of its own.
    """

    def __init__(self, source: str, special_tokens: dict[str, str], model: str) -> None:
        """`model` is the name that errors give it. Raises KaokenError where jinja2 is missing or too old."""
        _check_jinja()
        self._source = source
        self._special_tokens = special_tokens
        self._model = model
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._end: weakref.finalize[[subprocess.Popen[bytes], int], Any] | None = None
        _templates.add(self)

    def render(self, variables: Mapping[str, Any]) -> str:
        """The text that the template makes of `variables`, on top of its special tokens.

        Raises InputError for variables that JSON cannot hold and for what the template refuses itself, and KaokenError
        for a template with an error in it, or beyond the limits of `template_worker.py`.
        """
        try:
            request = json.dumps({"template": self._source, "variables": {**self._special_tokens, **variables}})
        except (TypeError, ValueError, RecursionError) as problem:
            raise InputError(
                f"the chat template takes what JSON can hold ({problem}): pass messages and tools as dicts of texts, "
                "numbers and lists"
            ) from None
        with self._lock:
            reply = self._ask(request.encode() + b"\n")
        if "text" in reply:
            return str(reply["text"])
        error = _plain(reply["error"])
        if reply.get("refused"):
            raise InputError(f"the chat template of {self._model} refuses these messages: {error}")
        raise KaokenError(
            f"the chat template of {self._model} cannot be rendered: {error.rstrip('.')}. Check that the messages have "
            "what it reads, or correct the checkpoint's chat template and bake it again"
        )

    def _ask(self, request: bytes) -> dict[str, Any]:
        """What the worker answers, a new one where none runs."""
        if self._process is None:
            self._process = _start()
            self._end = weakref.finalize(self, _end, self._process, os.getpid())
        process, answered = self._process, False
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            with suppress(BrokenPipeError):  # where it has ended, the status says why
                process.stdin.write(request)
                process.stdin.flush()
            line = process.stdout.readline()
            answered = bool(line)
        finally:
            if not answered:  # also after Ctrl-C, when an answer to this request is still to come
                self._forget_worker()
        if not answered:
            return {"error": _explain(process.returncode)}
        reply: dict[str, Any] = json.loads(line)
        return reply

    def _forget_worker(self) -> None:
        if self._end:
            self._end()
        self._process, self._end = None, None

    def _after_fork(self) -> None:
        """The pipes, and perhaps the lock, belong to the parent."""
        if self._end:
            self._end.detach()
        self._process, self._end, self._lock = None, None, threading.Lock()


_templates: weakref.WeakSet[ChatTemplate] = weakref.WeakSet()


def _renew_after_fork() -> None:
    for template in list(_templates):
        template._after_fork()


os.register_at_fork(after_in_child=_renew_after_fork)


def _check_jinja() -> None:
    try:
        found = version("jinja2")
    except PackageNotFoundError:
        raise KaokenError('chat templates need the package jinja2: `pip install "kaoken[chat]"`') from None
    if tuple(map(int, re.findall(r"\d+", found)[:3])) < _OLDEST:
        oldest = ".".join(map(str, _OLDEST))
        raise KaokenError(
            f"chat templates need jinja2 {oldest} or newer, and {found} is installed: `pip install -U jinja2`"
        )


def _start() -> subprocess.Popen[bytes]:
    """In a session of its own, so that Ctrl-C does not reach it."""
    command = [sys.executable, "-I", str(_WORKER), json.dumps(sys.path)]
    pipe, nothing = subprocess.PIPE, subprocess.DEVNULL
    try:
        return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=nothing, start_new_session=True)
    except OSError as error:
        raise KaokenError(
            f"the process that renders chat templates cannot start ({error}): see that {sys.executable!r} is a Python "
            "that runs here"
        ) from error


def _end(process: subprocess.Popen[bytes], owner: int) -> None:
    if os.getpid() == owner:
        process.kill()
        process.communicate()


def _explain(status: int) -> str:
    if status == -signal.SIGPROF:
        return "it takes more than a second of processor time"
    return f"its process ended with status {status}"


def _plain(text: str) -> str:
    """On one line, short, and nothing in it that a terminal would follow."""
    return "".join(each if each.isprintable() else " " for each in text)[:300]
