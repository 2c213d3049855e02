"""torch.compile of transformers' forward with a StaticCache."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, StaticCache

from benchmarks.engines.base import Decoder, Ids
from benchmarks.models import Checkpoint


class TorchCompile(Decoder):
    """Compiled once for each shape, before anything is timed."""

    note = "torch.compile of transformers' forward, StaticCache as large as the row needs, last-position logits"

    def __init__(self, checkpoint: Checkpoint, prepared: Path, variant: str, threads: int) -> None:
        torch.set_num_threads(threads)
        self._model = AutoModelForCausalLM.from_pretrained(checkpoint.directory, dtype=torch.float32).eval()
        torch._dynamo.config.recompile_limit = 64  # a few for each row: by default the ninth shape runs eagerly
        self._forward = torch.compile(self._model.forward, dynamic=False)
        self._cache: StaticCache | None = None
        self._shape = (0, 0)
        self._length = 0

    def reserve(self, batch: int, positions: int) -> None:
        if self._shape != (batch, positions):
            self._shape = (batch, positions)
            self._cache = StaticCache(config=self._model.config, max_cache_len=positions)

    def start(self, ids: Ids) -> Ids:
        assert self._cache is not None
        self._cache.reset()
        self._length = 0
        return self._likeliest(ids)

    def step(self, tokens: Ids) -> Ids:
        return self._likeliest(tokens[:, None])

    def _likeliest(self, ids: Ids) -> Ids:
        positions = torch.arange(self._length, self._length + ids.shape[1])
        self._length += ids.shape[1]
        with torch.no_grad():
            logits = self._forward(
                torch.from_numpy(ids),
                past_key_values=self._cache,
                position_ids=positions[None],
                cache_position=positions,
                use_cache=True,
                logits_to_keep=1,
            ).logits
            return np.asarray(logits[:, -1].argmax(-1).numpy(), np.int64)


ENGINE = TorchCompile
