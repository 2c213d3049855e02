"""PyTorch eager with transformers: the loop of `generate` with its KV cache, without generate's bookkeeping."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, DynamicCache

from benchmarks.engines.base import Decoder, Ids
from benchmarks.models import Checkpoint


class TorchEager(Decoder):
    """Scaled dot product attention and `logits_to_keep=1`: the last position's logits alone."""

    note = (
        "transformers' forward with a DynamicCache, last-position logits; without generate()'s overhead, but for the "
        "row of generate and the cold start, which call that"
    )

    def __init__(self, checkpoint: Checkpoint, prepared: Path, variant: str, threads: int) -> None:
        torch.set_num_threads(threads)
        torch.set_grad_enabled(False)
        self._model = AutoModelForCausalLM.from_pretrained(checkpoint.directory, dtype=torch.float32).eval()
        self._cache = DynamicCache(config=self._model.config)

    def start(self, ids: Ids) -> Ids:
        self._cache = DynamicCache(config=self._model.config)
        return self._likeliest(ids)

    def step(self, tokens: Ids) -> Ids:
        return self._likeliest(tokens[:, None])

    def time_generate(self, ids: Ids, steps: int) -> float:
        begin = time.perf_counter()
        prompt = torch.from_numpy(ids)
        self._model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            min_new_tokens=steps,
            max_new_tokens=steps,
            do_sample=False,
            pad_token_id=0,
        )
        return time.perf_counter() - begin

    @classmethod
    def cold_script(cls, checkpoint: Checkpoint, prepared: Path, variant: str, threads: int) -> str | None:
        return f"""
import torch
from transformers import AutoModelForCausalLM
torch.set_num_threads({threads})
model = AutoModelForCausalLM.from_pretrained({str(checkpoint.directory)!r}, dtype=torch.float32)
ids = torch.arange(1, 9)[None]
options = dict(attention_mask=torch.ones_like(ids), max_new_tokens=1, do_sample=False, pad_token_id=0)
print(int(model.generate(ids, **options)[0, -1]), flush=True)
"""

    def _likeliest(self, ids: Ids) -> Ids:
        with torch.inference_mode():
            logits = self._model(
                torch.from_numpy(ids), past_key_values=self._cache, use_cache=True, logits_to_keep=1
            ).logits
            return np.asarray(logits[:, -1].argmax(-1).numpy(), np.int64)


ENGINE = TorchEager
