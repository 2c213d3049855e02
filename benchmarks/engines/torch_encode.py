"""PyTorch eager with transformers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from transformers import AutoModel

from benchmarks.engines.base import Ids, PaddedEncoder, Vectors
from benchmarks.models import Checkpoint


class TorchEncoder(PaddedEncoder):
    """Scaled dot product attention, without a mask where nothing is padded."""

    note = "transformers' forward; texts sorted by length, in the quickest of batches of 1, 8 and 32"

    def __init__(self, checkpoint: Checkpoint, prepared: Path, variant: str, threads: int) -> None:
        torch.set_num_threads(threads)
        model = AutoModel.from_pretrained(checkpoint.directory, dtype=torch.float32, add_pooling_layer=False)
        self._model = model.eval()

    def forward(self, ids: Ids, mask: Ids) -> Vectors:
        with torch.inference_mode():
            seen = None if mask.all() else torch.from_numpy(mask)
            vectors = self._model(torch.from_numpy(ids), attention_mask=seen).last_hidden_state
            return np.asarray(vectors.numpy(), np.float32)

    @classmethod
    def cold_script(cls, checkpoint: Checkpoint, prepared: Path, variant: str, threads: int) -> str | None:
        return f"""
import torch
from transformers import AutoModel
torch.set_num_threads({threads})
model = AutoModel.from_pretrained({str(checkpoint.directory)!r}, dtype=torch.float32, add_pooling_layer=False)
with torch.inference_mode():
    print(model(torch.arange(1, 17)[None]).last_hidden_state[0, 0].tolist(), flush=True)
"""


ENGINE = TorchEncoder
