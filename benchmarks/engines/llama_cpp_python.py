"""llama.cpp through llama-cpp-python's low-level functions, on a GGUF of the same weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np

from benchmarks.engines.base import Decoder, Ids
from benchmarks.engines.gguf_file import write_gguf
from benchmarks.models import Checkpoint

FILE_TYPES = {"F32": 0, "BF16": 32, "Q8_0": 7, "Q4_0": 2, "Q4_1": 3}  # llama_ftype


class LlamaCpp(Decoder):
    """One llama_decode a prompt or step; logits are asked for at each sequence's last position."""

    note = "llama_decode through llama-cpp-python's low-level functions; KV cache float16, its default"

    @classmethod
    def prepare(cls, checkpoint: Checkpoint, directory: Path, variant: str) -> None:
        write_model(checkpoint, directory, variant)

    def __init__(self, checkpoint: Checkpoint, prepared: Path, variant: str, threads: int) -> None:
        self._model = load_model(prepared)
        self._vocabulary = int(checkpoint.config()["vocab_size"])
        self._threads = threads
        self._shape = (0, 0)
        self._context: Any = None
        self._batch: Any = None
        self._length = 0

    def reserve(self, batch: int, positions: int) -> None:
        if self._shape == (batch, positions):
            return
        parameters = llama_cpp.llama_context_default_params()
        parameters.n_ctx = batch * -(-positions // 256) * 256
        parameters.n_batch = parameters.n_ctx
        parameters.n_seq_max = batch
        parameters.n_threads = parameters.n_threads_batch = self._threads
        if self._context:
            llama_cpp.llama_batch_free(self._batch)
            llama_cpp.llama_free(self._context)
        self._context = llama_cpp.llama_init_from_model(self._model, parameters)
        self._batch = llama_cpp.llama_batch_init(parameters.n_ctx, 0, 1)
        self._shape = (batch, positions)

    def start(self, ids: Ids) -> Ids:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), True)
        self._length = 0
        return self._likeliest(ids)

    def step(self, tokens: Ids) -> Ids:
        return self._likeliest(tokens[:, None])

    def _likeliest(self, ids: Ids) -> Ids:
        sequences, count = ids.shape
        batch = self._batch
        for at, token in enumerate(ids.ravel().tolist()):
            sequence, index = divmod(at, count)
            batch.token[at] = token
            batch.pos[at] = self._length + index
            batch.n_seq_id[at] = 1
            batch.seq_id[at][0] = sequence
            batch.logits[at] = index == count - 1
        batch.n_tokens = ids.size
        status = llama_cpp.llama_decode(self._context, batch)
        if status != 0:
            raise RuntimeError(f"llama_decode returned {status}")
        self._length += count
        return np.array([self._row(sequence * count + count - 1).argmax() for sequence in range(sequences)])

    def _row(self, at: int) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
        """The logits at a place of the batch, not copied: [vocabulary]."""
        pointer = llama_cpp.llama_get_logits_ith(self._context, at)
        return np.ctypeslib.as_array(pointer, shape=(self._vocabulary,))

    @classmethod
    def cold_script(cls, checkpoint: Checkpoint, prepared: Path, variant: str, threads: int) -> str | None:
        return f"""
import llama_cpp as l
l.llama_backend_init()
model = l.llama_model_load_from_file({str(prepared / "model.gguf")!r}.encode(), l.llama_model_default_params())
parameters = l.llama_context_default_params()
parameters.n_ctx, parameters.n_threads, parameters.n_threads_batch = 256, {threads}, {threads}
context = l.llama_init_from_model(model, parameters)
tokens = (l.llama_token * 8)(*range(1, 9))
assert l.llama_decode(context, l.llama_batch_get_one(tokens, 8)) == 0
logits = l.llama_get_logits_ith(context, -1)[: {checkpoint.config()["vocab_size"]}]
print(logits.index(max(logits)), flush=True)
"""


def write_model(checkpoint: Checkpoint, directory: Path, variant: str) -> None:
    """The checkpoint as model.gguf in the variant's type."""
    plain = directory / "plain.gguf"
    write_gguf(checkpoint, plain)
    if variant == "F32":
        plain.rename(directory / "model.gguf")
        return
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = FILE_TYPES[variant]
    status = llama_cpp.llama_model_quantize(str(plain).encode(), str(directory / "model.gguf").encode(), parameters)
    if status != 0:
        raise RuntimeError(f"llama_model_quantize to {variant} returned {status}")
    plain.unlink()


def load_model(prepared: Path) -> Any:
    """What `write_model` wrote. Raises RuntimeError."""
    llama_cpp.llama_backend_init()
    path = str(prepared / "model.gguf").encode()
    model = llama_cpp.llama_model_load_from_file(path, llama_cpp.llama_model_default_params())
    if not model:
        raise RuntimeError(f"llama.cpp cannot load {prepared / 'model.gguf'}")
    return model


ENGINE = LlamaCpp
