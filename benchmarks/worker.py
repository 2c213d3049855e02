"""The child's side: one engine in a process of its own, answering JSON lines. `python -m benchmarks.worker`.

Standard output belongs to the protocol; what libraries print there goes to standard error.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from math import exp, log
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np

from benchmarks.engines import get_entry
from benchmarks.engines.base import Decoder, Encoder, Engine, Ids, Translator
from benchmarks.models import Checkpoint

WARM_UP = 16  # positions of the untimed pass that wakes an engine's threads


class Worker:
    """Answers requests, each a method here."""

    def __init__(self) -> None:
        self._engine: Engine | None = None
        self._vocabulary = 0
        self._tuned: tuple[int, ...] = ()
        self._layer: tuple[str, Any] | None = None

    def prepare(self, engine: str, checkpoint: dict[str, str], directory: str | None) -> dict[str, Any]:
        """Converts the checkpoint into `directory`; with None the engine says where its own cache has it."""
        model = _checkpoint(checkpoint)
        entry = get_entry(engine, model.task())
        if directory is None:
            located = entry.engine().locate(model, entry.variant)
            return {"prepared": None if located is None else str(located)}
        entry.engine().prepare(model, Path(directory), entry.variant)
        return {"prepared": directory}

    def load(self, engine: str, checkpoint: dict[str, str], prepared: str, threads: int) -> dict[str, Any]:
        """Loads a prepared model."""
        model = _checkpoint(checkpoint)
        entry = get_entry(engine, model.task())
        self._vocabulary = int(model.config()["vocab_size"])
        self._engine = entry.engine()(model, Path(prepared), entry.variant, threads)
        return {"note": self._engine.note, "versions": entry.versions(), **self._engine.facts()}

    def prefill(self, batch: int, length: int, steps: int, positions: int, seed: int) -> dict[str, Any]:
        """Seconds of `steps` prompts of fresh ids."""
        engine = self._ready(batch, positions)
        prompts = self._ids((steps, batch, length), seed)
        self._warm_up(engine, batch, seed)
        return {"seconds": [engine.time_prefill(prompt) for prompt in prompts]}

    def decode(self, batch: int, length: int, steps: int, positions: int, seed: int) -> dict[str, Any]:
        """Seconds of each of `steps` decode steps behind a prompt of `length`."""
        engine = self._ready(batch, positions)
        return {"seconds": engine.time_decode(self._ids((batch, length), seed), steps)}

    def generate(self, batch: int, length: int, steps: int, positions: int, seed: int) -> dict[str, Any]:
        """Seconds of a whole generation of `steps` tokens, twice."""
        engine = self._ready(batch, positions)
        return {"seconds": [engine.time_generate(self._ids((batch, length), seed + i), steps) for i in range(2)]}

    def encode(
        self, batch: int, length: int, steps: int, positions: int, seed: int, shortest: int | None = None
    ) -> dict[str, Any]:
        """Seconds of `steps` lists of fresh texts, which are from `shortest` to `length` long, in any order."""
        engine = self._engine
        assert isinstance(engine, Encoder), "no encoder is loaded"
        lengths = [length] * batch if shortest is None else corpus_lengths(batch, shortest, length)
        generator = np.random.default_rng(seed)
        lists = [
            [generator.integers(0, self._vocabulary, count).tolist() for count in generator.permutation(lengths)]
            for _ in range(steps + 1)
        ]
        if self._tuned != (batch, length, shortest or length):
            self._tuned = (batch, length, shortest or length)
            engine.tune(lists[0])
        engine.encode(lists[0][:1])
        return {"seconds": [engine.time_encode(texts) for texts in lists[1:]]}

    def translate(self, batch: int, length: int, steps: int, positions: int, seed: int) -> dict[str, Any]:
        """Seconds of `steps` new tokens for each of a batch of sources of fresh ids."""
        engine = self._engine
        assert isinstance(engine, Translator), "no translator is loaded"
        sources = self._ids((2, batch, length), seed)
        engine.translate(sources[0], 1)
        return {"seconds": [engine.time_translate(sources[1], steps)]}

    def cold_script(self, engine: str, checkpoint: dict[str, str], prepared: str, threads: int) -> dict[str, Any]:
        """The source of a program that prints the first token."""
        model = _checkpoint(checkpoint)
        entry = get_entry(engine, model.task())
        script = entry.engine().cold_script(model, Path(prepared), entry.variant, threads)
        return {"script": script}

    def torch_layer(self, name: str, rows: int, repeats: int, threads: int) -> dict[str, Any]:
        """Seconds of a call of one of PyTorch's layers; the last that was asked for is kept."""
        from benchmarks.torch_layers import make_layer, time_layer

        if self._layer is None or self._layer[0] != name:
            self._layer = (name, make_layer(name, threads))
        return {"seconds": time_layer(self._layer[1], rows, repeats)}

    def _ready(self, batch: int, positions: int) -> Decoder:
        assert isinstance(self._engine, Decoder), "no decoder is loaded"
        self._engine.reserve(batch, positions)
        return self._engine

    def _warm_up(self, engine: Decoder, batch: int, seed: int) -> None:
        engine.time_prefill(self._ids((batch, WARM_UP), seed + 1))

    def _ids(self, shape: tuple[int, ...], seed: int) -> Ids:
        return np.random.default_rng(seed).integers(0, self._vocabulary, shape, np.int64)


def corpus_lengths(count: int, shortest: int, longest: int) -> list[int]:
    """Log-normal, as lengths of sentences and passages are: with a mean of 47 they are 12 000 tokens in 256 texts."""
    spread = NormalDist(log(36), 0.73)
    drawn = (exp(spread.inv_cdf((index + 0.5) / count)) for index in range(count))
    return [min(max(round(length), shortest), longest) for length in drawn]


def _checkpoint(fields: dict[str, str]) -> Checkpoint:
    return Checkpoint(fields["name"], Path(fields["directory"]), fields["digest"])


def main() -> None:
    """Answers until standard input ends."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    worker = Worker()
    for line in sys.stdin:
        request = json.loads(line)
        try:
            reply = getattr(worker, request.pop("do"))(**request)
        except Exception as error:
            traceback.print_exc()
            reply = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(reply), file=replies, flush=True)


if __name__ == "__main__":
    main()
