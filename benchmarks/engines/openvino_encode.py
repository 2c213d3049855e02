"""OpenVINO on a conversion of transformers' modules."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.engines.base import Ids, PaddedEncoder, Vectors
from benchmarks.engines.openvino_engine import compress, settings
from benchmarks.models import Checkpoint

CALIBRATION = (32, 64)  # texts, and tokens in each


class OpenVINOEncoder(PaddedEncoder):
    """int8 has weights in int8; ptq has activations in int8 too, calibrated with random texts."""

    note = (
        "own torch export; float32 with INFERENCE_PRECISION_HINT=f32, int8 (nncf's weight compression) and ptq (nncf's "
        "quantization) with the plugin's defaults; texts sorted by length, in the quickest of batches of 1, 8 and 32"
    )

    @classmethod
    def prepare(cls, checkpoint: Checkpoint, directory: Path, variant: str) -> None:
        import openvino

        from benchmarks.engines.exported_encoder import ExportedEncoder

        encoder = ExportedEncoder(checkpoint).eval()
        model = openvino.convert_model(encoder, example_input=encoder.example())
        for port, name in zip(model.inputs, encoder.names().inputs, strict=True):
            port.get_tensor().set_names({name})
            port.get_node().set_partial_shape(openvino.PartialShape([-1, -1]))
        model.validate_nodes_and_infer_types()
        if variant == "ptq":
            model = _quantize(model, checkpoint)
        elif variant == "int8":
            model = compress(model, variant)
        openvino.save_model(model, directory / "model.xml", compress_to_fp16=False)

    def __init__(self, checkpoint: Checkpoint, prepared: Path, variant: str, threads: int) -> None:
        import openvino

        compiled = openvino.Core().compile_model(prepared / "model.xml", "CPU", settings(variant, threads))
        self._request = compiled.create_infer_request()

    def forward(self, ids: Ids, mask: Ids) -> Vectors:
        outputs = self._request.infer({"ids": ids, "mask": mask}, share_inputs=True)
        return np.asarray(outputs[0], np.float32)

    @classmethod
    def cold_script(cls, checkpoint: Checkpoint, prepared: Path, variant: str, threads: int) -> str | None:
        return f"""
import numpy, openvino
model = openvino.Core().compile_model({str(prepared / "model.xml")!r}, "CPU", {settings(variant, threads)!r})
inputs = {{"ids": numpy.arange(1, 17)[None], "mask": numpy.ones((1, 16), numpy.int64)}}
print(model.create_infer_request().infer(inputs)[0][0, 0].tolist(), flush=True)
"""


def _quantize(model: Any, checkpoint: Checkpoint) -> Any:
    import nncf

    texts, length = CALIBRATION
    ids = np.random.default_rng(0).integers(0, checkpoint.config()["vocab_size"], (texts, 1, length))
    samples = [{"ids": text, "mask": np.ones_like(text)} for text in ids]
    return nncf.quantize(model, nncf.Dataset(samples), subset_size=texts, model_type=nncf.ModelType.TRANSFORMER)


ENGINE = OpenVINOEncoder
