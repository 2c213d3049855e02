"""CTranslate2: `Translator.translate_batch`."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.engines.base import Ids, Translator
from benchmarks.engines.ctranslate2_engine import make_converter
from benchmarks.models import Checkpoint


class CTranslate2Translator(Translator):
    """One call with a beam of one, whose end token is the last of the vocabulary and is forbidden."""

    note = "translate_batch with beam_size=1"

    @classmethod
    def prepare(cls, checkpoint: Checkpoint, directory: Path, variant: str) -> None:
        make_converter(checkpoint).convert(str(directory), quantization=variant, force=True)

    def __init__(self, checkpoint: Checkpoint, prepared: Path, variant: str, threads: int) -> None:
        import ctranslate2

        self._translator = ctranslate2.Translator(
            str(prepared), device="cpu", compute_type=variant, inter_threads=1, intra_threads=threads
        )

    def translate(self, ids: Ids, count: int) -> Ids:
        results = self._translator.translate_batch(
            [[f"t{token}" for token in row] for row in ids.tolist()],
            beam_size=1,
            min_decoding_length=count,
            max_decoding_length=count,
        )
        return np.array([[int(token[1:]) for token in result.hypotheses[0]] for result in results])


ENGINE = CTranslate2Translator
