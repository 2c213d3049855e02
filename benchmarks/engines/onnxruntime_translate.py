"""ONNX Runtime on two exports of transformers' modules: an encoder, and a decoder with its KV cache outside."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.engines.base import Ids, Translator
from benchmarks.engines.onnxruntime_engine import open_session, write_model
from benchmarks.models import Checkpoint


class OnnxRuntimeTranslator(Translator):
    """int8 is `quantize_dynamic` of the matrix products, per channel."""

    note = "own torch exports; the cache goes from a step's outputs to the next one's inputs"

    @classmethod
    def prepare(cls, checkpoint: Checkpoint, directory: Path, variant: str) -> None:
        from benchmarks.engines.exported_t5 import exported_t5

        halves: tuple[Any, Any] = exported_t5(checkpoint)
        for name, module in zip(("encoder", "decoder"), halves, strict=True):
            write_model(module, directory, variant, name)

    def __init__(self, checkpoint: Checkpoint, prepared: Path, variant: str, threads: int) -> None:
        import onnxruntime

        self._value = onnxruntime.OrtValue.ortvalue_from_numpy
        self._encoder = open_session(prepared / "encoder.onnx", threads)
        self._decoder = open_session(prepared / "decoder.onnx", threads)
        self._crosses = [output.name for output in self._encoder.get_outputs()]
        self._outputs = [output.name for output in self._decoder.get_outputs()]
        _, heads, _, head_dim = self._encoder.get_outputs()[0].shape
        self._cache_shape = (heads, 0, head_dim)
        self._start = int(checkpoint.config()["decoder_start_token_id"])

    def translate(self, ids: Ids, count: int) -> Ids:
        encoded = self._encoder.run_with_ort_values(self._crosses, {"ids": self._value(ids)})
        crosses = dict(zip(self._crosses, encoded, strict=True))
        empty = self._value(np.zeros((len(ids), *self._cache_shape), np.float32))
        names = [name.removeprefix("present.") for name in self._outputs[1:]]
        past = dict.fromkeys(names, empty)
        tokens = [np.full(len(ids), self._start)]
        for _ in range(count):
            inputs = {"ids": self._value(tokens[-1][:, None]), **past, **crosses}
            logits, *present = self._decoder.run_with_ort_values(self._outputs, inputs)
            past = dict(zip(names, present, strict=True))
            tokens.append(logits.numpy().argmax(-1))
        return np.stack(tokens[1:], 1)


ENGINE = OnnxRuntimeTranslator
