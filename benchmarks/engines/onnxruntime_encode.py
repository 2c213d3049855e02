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

    @classmethod
    def cold_script(cls, checkpoint: Checkpoint, prepared: Path, variant: str, threads: int) -> str | None:
        return f"""
import numpy, onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads, options.inter_op_num_threads = {threads}, 1
session = onnxruntime.InferenceSession({str(prepared / "model.onnx")!r}, options, providers=["CPUExecutionProvider"])
inputs = {{"ids": numpy.arange(1, 17)[None], "mask": numpy.ones((1, 16), numpy.int64)}}
print(session.run(["vectors"], inputs)[0][0, 0].tolist(), flush=True)
"""


ENGINE = OnnxRuntimeEncoder
