"""PyTorch eager with transformers: the loop of `generate` with its KV cache, without generate's bookkeeping."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from transformers import DynamicCache, GPT2LMHeadModel

from benchmarks.engines.base import Engine, Ids
from benchmarks.models import Checkpoint


class TorchEager(Engine):
    """Scaled dot product attention and `logits_to_keep=1`: the last position's logits alone."""

    note = "transformers' forward with a DynamicCache, last-position logits; without generate()'s own overhead"

    def __init__(self, checkpoint: Checkpoint, prepared: Path, variant: str, threads: int) -> None:
        torch.set_num_threads(threads)
        torch.set_grad_enabled(False)
        self._model = GPT2LMHeadModel.from_pretrained(checkpoint.directory, dtype=torch.float32).eval()
        self._cache = DynamicCache(config=self._model.config)

    def start(self, ids: Ids) -> Ids:
        self._cache = DynamicCache(config=self._model.config)
        return self._likeliest(ids)

    def step(self, tokens: Ids) -> Ids:
        return self._likeliest(tokens[:, None])

    def _likeliest(self, ids: Ids) -> Ids:
        with torch.inference_mode():
            logits = self._model(
                torch.from_numpy(ids), past_key_values=self._cache, use_cache=True, logits_to_keep=1
            ).logits
            return np.asarray(logits[:, -1].argmax(-1).numpy(), np.int64)


ENGINE = TorchEager
