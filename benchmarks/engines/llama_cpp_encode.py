"""llama.cpp's encoders, on a GGUF of the same weights."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np

from benchmarks.engines.base import SortedEncoder, Vectors
from benchmarks.engines.llama_cpp_python import load_model, write_model
from benchmarks.models import Checkpoint

SEQUENCES = 32  # texts in a batch, at most


class LlamaCppEncoder(SortedEncoder):
    """One llama_encode a batch, with no pooling: the vectors of all positions."""

    sizes = (1, 8, SEQUENCES)
    note = (
        "llama_encode through llama-cpp-python's low-level functions, no pooling; texts sorted by length, in the "
        "quickest of batches of 1, 8 and 32, which it does not pad"
    )

    @classmethod
    def prepare(cls, checkpoint: Checkpoint, directory: Path, variant: str) -> None:
        write_model(checkpoint, directory, variant)

    def __init__(self, checkpoint: Checkpoint, prepared: Path, variant: str, threads: int) -> None:
        self._model = load_model(prepared)
        self._width = int(checkpoint.config()["hidden_size"])
        self._threads = threads
        self._context: Any = None
        self._room = 0

    def encode_batch(self, texts: list[list[int]]) -> list[Vectors]:
        lengths = [len(text) for text in texts]
        count = sum(lengths)
        self._reserve(count)
        tokens = np.concatenate(texts).astype(np.int32)
        sequences = np.repeat(np.arange(len(texts), dtype=np.int32), lengths)
        positions = np.concatenate([np.arange(length, dtype=np.int32) for length in lengths])
        counts, outputs = np.ones(count, np.int32), np.ones(count, np.int8)
        pointers = sequences.ctypes.data + sequences.itemsize * np.arange(count, dtype=np.uintp)
        batch = llama_cpp.llama_batch(
            n_tokens=count,
            token=_pointer(tokens),
            pos=_pointer(positions),
            n_seq_id=_pointer(counts),
            seq_id=pointers.ctypes.data_as(ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))),
            logits=outputs.ctypes.data_as(ctypes.POINTER(ctypes.c_int8)),
        )
        status = llama_cpp.llama_encode(self._context, batch)
        if status != 0:
            raise RuntimeError(f"llama_encode returned {status}")
        vectors = np.ctypeslib.as_array(llama_cpp.llama_get_embeddings(self._context), (count, self._width)).copy()
        return np.split(vectors, np.cumsum(lengths)[:-1])

    def _reserve(self, tokens: int) -> None:
        """Makes a context that takes so many at once, where the one there does not."""
        if tokens <= self._room:
            return
        self._room = -(-tokens // 256) * 256
        parameters = llama_cpp.llama_context_default_params()
        parameters.n_ctx = parameters.n_batch = parameters.n_ubatch = self._room
        parameters.n_seq_max = SEQUENCES
        parameters.kv_unified = True  # the context is not split among sequences
        parameters.n_threads = parameters.n_threads_batch = self._threads
        parameters.embeddings = True
        parameters.pooling_type = llama_cpp.LLAMA_POOLING_TYPE_NONE
        if self._context:
            llama_cpp.llama_free(self._context)
        self._context = llama_cpp.llama_init_from_model(self._model, parameters)
        if not self._context:
            raise RuntimeError(f"llama.cpp has no context of {self._room} positions")

    @classmethod
    def cold_script(cls, checkpoint: Checkpoint, prepared: Path, variant: str, threads: int) -> str | None:
        return f"""
import llama_cpp as l
l.llama_backend_init()
model = l.llama_model_load_from_file({str(prepared / "model.gguf")!r}.encode(), l.llama_model_default_params())
parameters = l.llama_context_default_params()
parameters.n_ctx, parameters.n_threads, parameters.n_threads_batch = 256, {threads}, {threads}
parameters.embeddings, parameters.pooling_type = True, l.LLAMA_POOLING_TYPE_NONE
context = l.llama_init_from_model(model, parameters)
tokens = (l.llama_token * 16)(*range(1, 17))
assert l.llama_encode(context, l.llama_batch_get_one(tokens, 16)) == 0
print(l.llama_get_embeddings(context)[: {checkpoint.config()["hidden_size"]}], flush=True)
"""


def _pointer(array: np.ndarray[Any, np.dtype[np.int32]]) -> Any:
    return array.ctypes.data_as(ctypes.POINTER(ctypes.c_int32))


ENGINE = LlamaCppEncoder
