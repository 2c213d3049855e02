"""CTranslate2: `Encoder.forward_batch`."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.engines.base import Ids, PaddedEncoder, Vectors
from benchmarks.engines.ctranslate2_engine import make_converter
from benchmarks.models import Checkpoint


class CTranslate2Encoder(PaddedEncoder):
    """Its encoder computes a pooled vector as well, which is a product with one row of each text."""

    note = "forward_batch; texts sorted by length, in the quickest of batches of 1, 8 and 32"

    @classmethod
    def prepare(cls, checkpoint: Checkpoint, directory: Path, variant: str) -> None:
        make_converter(checkpoint).convert(str(directory), quantization=variant, force=True)

    def __init__(self, checkpoint: Checkpoint, prepared: Path, variant: str, threads: int) -> None:
        import ctranslate2

        self._array = ctranslate2.StorageView.from_array
        self._encoder = ctranslate2.Encoder(
            str(prepared), device="cpu", compute_type=variant, inter_threads=1, intra_threads=threads
        )

    def forward(self, ids: Ids, mask: Ids) -> Vectors:
        lengths = self._array(mask.sum(1).astype(np.int32))
        output = self._encoder.forward_batch(self._array(ids.astype(np.int32)), lengths)
        return np.asarray(output.last_hidden_state, np.float32)

    @classmethod
    def cold_script(cls, checkpoint: Checkpoint, prepared: Path, variant: str, threads: int) -> str | None:
        return f"""
import ctranslate2, numpy
encoder = ctranslate2.Encoder({str(prepared)!r}, compute_type={variant!r}, intra_threads={threads})
vectors = encoder.forward_batch([list(range(1, 17))]).last_hidden_state
print(numpy.asarray(vectors)[0, 0].tolist(), flush=True)
"""


ENGINE = CTranslate2Encoder
