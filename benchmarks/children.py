"""The runner's side of worker processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

from benchmarks.models import ROOT, Checkpoint


class WorkerError(Exception):
    """An engine failed; the message says how."""


class Child:
    """One engine's process. What it prints goes to a log file."""

    def __init__(self, engine: str, threads: int, log: Path) -> None:
        self.engine = engine
        self._log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as file:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.worker"],
                cwd=ROOT,
                env=environment(threads),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                text=True,
            )

    def __enter__(self) -> Child:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the process."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.close()
            self._process.wait(timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()

    def ask(self, request: str, **fields: Any) -> dict[str, Any]:
        """The reply to one request. Raises WorkerError."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"do": request, **fields}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except OSError:
            line = ""
        if not line:
            raise WorkerError(
                f"{self.engine} ended with status {self._process.wait()} during {request}; see logs/{self._log.name}"
            )
        reply: dict[str, Any] = json.loads(line)
        if "error" in reply:
            raise WorkerError(f"{self.engine}: {reply['error']}")
        return reply


def environment(threads: int) -> dict[str, str]:
    """This process's, with the number of threads for every library that asks, and no look at the hub."""
    counts = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
    return {**os.environ, **counts, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


def as_fields(checkpoint: Checkpoint) -> dict[str, str]:
    """A checkpoint as JSON."""
    return {name: str(value) for name, value in asdict(checkpoint).items()}
