"""Kaoken's encoder-decoders."""

from __future__ import annotations

from pathlib import Path

import kaoken
from benchmarks.engines.base import Ids, Translator
from benchmarks.engines.kaoken_engine import Baked
from benchmarks.models import Checkpoint


class KaokenTranslator(Baked, Translator):
    """One call of `generate`."""

    def __init__(self, checkpoint: Checkpoint, prepared: Path, variant: str, threads: int) -> None:
        self._model: kaoken.BakedSeq2SeqLM = kaoken.BakedSeq2SeqLM(prepared, threads=threads)

    def translate(self, ids: Ids, count: int) -> Ids:
        return self._model.generate(ids, max_new_tokens=count, eos_token_id=None)[:, 1:]


ENGINE = KaokenTranslator
