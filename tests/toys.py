"""A toy for tests that train: a text with something to learn in it, and the sizes of a GPT-2 that learns in seconds."""

from __future__ import annotations

from typing import Any

import numpy as np

from checkpoints import TOKENIZER_VOCAB

WORDS = ["the", "king", "and", "a", "crow", "met", "in", "old", "rome", "one", "day", "when", "all", "was", "still"]
TEXT = "\n".join(" ".join(np.random.default_rng(line).choice(WORDS, 6)) for line in range(120)) + "\n"

# Fields of transformers' GPT2Config.
TOY: dict[str, Any] = {
    "model_type": "gpt2",
    "vocab_size": TOKENIZER_VOCAB,
    "n_positions": 16,
    "n_embd": 16,
    "n_layer": 2,
    "n_head": 2,
    "bos_token_id": 256,
    "eos_token_id": 256,
    "attn_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "resid_pdrop": 0.0,
}
