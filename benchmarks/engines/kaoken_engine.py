"""Kaoken itself."""

from __future__ import annotations

import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

import kaoken
from benchmarks.engines.base import Decoder, Engine, Ids
from benchmarks.models import Checkpoint


class Baked(Engine):
    """What baked models of all tasks have in common."""

    _model: kaoken.BakedModel

    @classmethod
    def locate(cls, checkpoint: Checkpoint, variant: str) -> Path | None:
        """`kaoken.bake` has a cache, whose key covers Kaoken's own sources."""
        return kaoken.bake(checkpoint.directory, dtype=variant)

    def facts(self) -> dict[str, Any]:
        return {
            "isa": self._model.info.isa,
            "cache_dtype": self._model.info.cache_dtype,
            "bytes_per_token": self._model.info.bytes_per_token,
        }


class Kaoken(Baked, Decoder):
    """Decoding is `stream` for one sequence, a session and NumPy's argmax for several."""

    _model: kaoken.BakedCausalLM

    def __init__(self, checkpoint: Checkpoint, prepared: Path, variant: str, threads: int) -> None:
        self._model = kaoken.BakedCausalLM(prepared, threads=threads)
        self._session = self._model.session(1)

    def reserve(self, batch: int, positions: int) -> None:
        if self._session.batch != batch:
            self._session = self._model.session(batch)

    def start(self, ids: Ids) -> Ids:
        self._session.rewind(0)
        return self._likeliest(ids)

    def step(self, tokens: Ids) -> Ids:
        return self._likeliest(tokens[:, None])

    def _likeliest(self, ids: Ids) -> Ids:
        return np.asarray(self._session.append(ids).argmax(-1), np.int64)

    def time_decode(self, ids: Ids, steps: int) -> list[float]:
        if len(ids) > 1:
            return super().time_decode(ids, steps)
        stream = self._model.stream(ids, max_new_tokens=steps + 1, eos_token_id=None)
        next(stream)
        stamps = [time.perf_counter()]
        stamps += [time.perf_counter() for _ in stream]
        return [after - before for before, after in pairwise(stamps)]

    def time_generate(self, ids: Ids, steps: int) -> float:
        begin = time.perf_counter()
        self._model.generate(ids, max_new_tokens=steps, eos_token_id=None)
        return time.perf_counter() - begin

    @classmethod
    def cold_script(cls, checkpoint: Checkpoint, prepared: Path, variant: str, threads: int) -> str | None:
        return f"""
import kaoken
model = kaoken.load({str(prepared)!r}, threads={threads})
print(next(model.stream(list(range(1, 9)), max_new_tokens=1)), flush=True)
"""


ENGINE = Kaoken
