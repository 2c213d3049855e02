"""PyTorch eager with transformers: the loop of `generate` with its KV cache, without generate's bookkeeping."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForSeq2SeqLM

from benchmarks.engines.base import Ids, Translator
from benchmarks.models import Checkpoint


class TorchTranslator(Translator):
    """The encoder once, then the decoder token by token."""

    note = "transformers' forward with its KV cache, without generate()'s overhead"

    def __init__(self, checkpoint: Checkpoint, prepared: Path, variant: str, threads: int) -> None:
        torch.set_num_threads(threads)
        self._model = AutoModelForSeq2SeqLM.from_pretrained(checkpoint.directory, dtype=torch.float32).eval()
        self._start = int(checkpoint.config()["decoder_start_token_id"])

    def translate(self, ids: Ids, count: int) -> Ids:
        with torch.inference_mode():
            encoded = self._model.get_encoder()(torch.from_numpy(ids))
            tokens, cache = [torch.full((len(ids), 1), self._start)], None
            for _ in range(count):
                output = self._model(
                    encoder_outputs=encoded, decoder_input_ids=tokens[-1], past_key_values=cache, use_cache=True
                )
                cache = output.past_key_values
                tokens.append(output.logits[:, -1].argmax(-1, keepdim=True))
            return np.asarray(torch.cat(tokens[1:], 1).numpy(), np.int64)


ENGINE = TorchTranslator
