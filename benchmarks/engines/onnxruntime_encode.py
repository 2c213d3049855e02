"""ONNX Runtime on an export of transformers' modules."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.engines.base import Ids, PaddedEncoder, Vectors
from benchmarks.engines.onnxruntime_engine import open_session, write_model
from benchmarks.models import Checkpoint


class OnnxRuntimeEncoder(PaddedEncoder):
    """int8 is `quantize_dynamic` of the matrix products, per channel."""

    note = "own torch export; texts sorted by length, in the quickest of batches of 1, 8 and 32"

    @classmethod
    def prepare(cls, checkpoint: Checkpoint, directory: Path, variant: str) -> None:
        from benchmarks.engines.exported_encoder import ExportedEncoder

        write_model(ExportedEncoder(checkpoint), directory, variant)

    def __init__(self, checkpoint: Checkpoint, prepared: Path, variant: str, threads: int) -> None:
        self._session = open_session(prepared / "model.onnx", threads)

    def forward(self, ids: Ids, mask: Ids) -> Vectors:
        return np.asarray(self._session.run(["vectors"], {"ids": ids, "mask": mask})[0], np.float32)


ENGINE = OnnxRuntimeEncoder
