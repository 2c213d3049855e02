"""Kaoken's encoders."""

from __future__ import annotations

from pathlib import Path

import kaoken
from benchmarks.engines.base import Encoder, Vectors
from benchmarks.engines.kaoken_engine import Baked
from benchmarks.models import Checkpoint


class KaokenEncoder(Baked, Encoder):
    """One call of `hidden_states` with all texts, which it does not pad."""

    def __init__(self, checkpoint: Checkpoint, prepared: Path, variant: str, threads: int) -> None:
        self._model: kaoken.BakedEncoder = kaoken.BakedEncoder(prepared, threads=threads)

    def encode(self, texts: list[list[int]]) -> list[Vectors]:
        return self._model.hidden_states(texts)

    @classmethod
    def cold_script(cls, checkpoint: Checkpoint, prepared: Path, variant: str, threads: int) -> str | None:
        return f"""
import kaoken
model = kaoken.load({str(prepared)!r}, threads={threads})
print(model.hidden_states([list(range(1, 17))])[0][0].tolist(), flush=True)
"""


ENGINE = KaokenEncoder
