"""ONNX Runtime on an export with the KV cache as inputs and outputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.engines.base import Decoder, Ids
from benchmarks.engines.steps import step_inputs
from benchmarks.models import Checkpoint


class OnnxRuntime(Decoder):
    """int8 is `quantize_dynamic` of the matrix products, per channel."""

    note = "own torch export (last-position logits); the cache goes from a step's outputs to the next one's inputs"

    @classmethod
    def prepare(cls, checkpoint: Checkpoint, directory: Path, variant: str) -> None:
        from benchmarks.engines.exported import cached_decoder

        write_model(cached_decoder(checkpoint), directory, variant)

    def __init__(self, checkpoint: Checkpoint, prepared: Path, variant: str, threads: int) -> None:
        import onnxruntime

        self._value = onnxruntime.OrtValue.ortvalue_from_numpy
        self._session = open_session(prepared / "model.onnx", threads)
        self._outputs = [output.name for output in self._session.get_outputs()]
        _, heads, _, head_dim = self._session.get_inputs()[-1].shape  # of the past
        self._cache_shape = (heads, 0, head_dim)
        self._past: list[Any] = []
        self._length = 0

    def start(self, ids: Ids) -> Ids:
        empty = self._value(np.zeros((len(ids), *self._cache_shape), np.float32))
        self._past = [empty] * (len(self._outputs) - 1)
        self._length = 0
        return self._likeliest(ids)

    def step(self, tokens: Ids) -> Ids:
        return self._likeliest(tokens[:, None])

    def _likeliest(self, ids: Ids) -> Ids:
        positions, mask = step_inputs(self._length, ids.shape[1])
        arrays = {"ids": ids, "positions": positions, "mask": mask}
        inputs = {name: self._value(array) for name, array in arrays.items()}
        inputs |= {
            output.removeprefix("present."): value for output, value in zip(self._outputs[1:], self._past, strict=True)
        }
        logits, *self._past = self._session.run_with_ort_values(self._outputs, inputs)
        self._length += ids.shape[1]
        return np.asarray(logits.numpy().argmax(-1), np.int64)


def write_model(module: Any, directory: Path, variant: str, name: str = "model") -> None:
    """The export of a module that knows its example and its names, as NAME.onnx in the variant's type."""
    from kaoken.onnx_export import export

    plain, final = directory / f"plain-{name}.onnx", directory / f"{name}.onnx"
    export(module, module.example(), module.names(), plain, dynamo=False)
    if variant == "float32":
        plain.rename(final)
        return
    quantize(plain, final)
    plain.unlink()


def quantize(plain: Path, path: Path) -> None:
    """Writes the model with the matrices of its products in int8."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(
        plain, path, op_types_to_quantize=["MatMul", "Gemm"], per_channel=True, weight_type=QuantType.QInt8
    )


def open_session(path: Path, threads: int) -> Any:
    """A model, loaded with all of the rewrites that there are."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


ENGINE = OnnxRuntime
