"""Tiny decoders whose blocks see a window of texts that are many windows long.

`python -m windowed NAME DIRECTORY` writes one. The windows are of one position, of less than a page of the cache and of
more, in some blocks and in all.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from decoders import GEMMA, NEO, SMALL, write

POSITIONS = 131072
WINDOWS = {"gpt_neo": 1, "gemma3_text": 21, "mistral": 100}
MODELS: dict[str, dict[str, Any]] = {
    "gpt_neo": {
        **NEO,
        "model_type": "gpt_neo",
        "architectures": ["GPTNeoForCausalLM"],
        "max_position_embeddings": 2048,
        "window_size": WINDOWS["gpt_neo"],
    },
    "gemma3_text": {
        **GEMMA,
        "model_type": "gemma3_text",
        "architectures": ["Gemma3ForCausalLM"],
        "max_position_embeddings": 2048,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "head_dim": 24,
        "sliding_window_pattern": 2,
        "sliding_window": WINDOWS["gemma3_text"],
    },
    "mistral": {
        **SMALL,
        "model_type": "mistral",
        "architectures": ["MistralForCausalLM"],
        "max_position_embeddings": POSITIONS,
        "sliding_window": WINDOWS["mistral"],
    },
}

if __name__ == "__main__":
    write(Path(sys.argv[2]), MODELS[sys.argv[1]])
