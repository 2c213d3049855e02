"""The differing shapes, options and storage forms of GPT-2 that every comparison runs over."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from checkpoints import TINY, make_tensors, uniform, write_checkpoint


@dataclass(frozen=True)
class Configuration:
    """One tiny model: the config.json fields that differ from TINY, how it is stored, and what it is fed."""

    fields: Mapping[str, Any] = field(default_factory=dict)
    dtype: str = "F32"  # of the stored tensors: F32, F16 or BF16
    shards: int = 1
    prefix: bool = True  # names begin with "transformer."
    old_buffers: bool = False  # the `attn.bias` and `attn.masked_bias` of old checkpoints
    own_head: bool = False  # stores a head that differs from the embedding, though config.json ties them
    count: int = 32  # tokens of a test sequence

    @property
    def config(self) -> dict[str, Any]:
        """The fields of config.json that matter."""
        return {**TINY, **self.fields}

    @property
    def comparable(self) -> bool:
        """Whether transformers can load it: it knows no blocks of differing sizes."""
        return "kaoken_blocks" not in self.fields

    def ids(self, batch: int = 2) -> NDArray[np.int64]:
        """Token ids [batch, count], the same on every machine; row n is the same for any batch."""
        rows = [uniform(f"ids of row {row}", (self.count,), seed=0) for row in range(batch)]
        ids: NDArray[np.int64] = ((np.stack(rows) + 1.0) / 2.0 * self.config["vocab_size"]).astype(np.int64)
        return ids

    def write(self, directory: Path, changes: Mapping[str, NDArray[np.float32]] | None = None) -> Path:
        """Writes the checkpoint to a directory, with some tensors changed, and returns the directory."""
        config = self.config | ({"tie_word_embeddings": False} if self.own_head else {})
        return write_checkpoint(
            directory,
            self.fields,
            dtype=self.dtype,
            shards=self.shards,
            prefix=self.prefix,
            old_buffers=self.old_buffers,
            tensors={**make_tensors(config), **(changes or {})},
        )


def blocks(*sizes: tuple[int, int, int]) -> dict[str, Any]:
    """`n_layer` and `kaoken_blocks` from (n_head, head_dim, n_inner) of each layer."""
    keys = ("n_head", "head_dim", "n_inner")
    return {"n_layer": len(sizes), "kaoken_blocks": [dict(zip(keys, each, strict=True)) for each in sizes]}


CONFIGURATIONS: dict[str, Configuration] = {
    "plain": Configuration(),
    "odd_vocab_and_inner": Configuration(
        {"vocab_size": 131, "n_inner": 83, "activation_function": "gelu", "n_layer": 3}
    ),
    "heads_of_12": Configuration({"n_embd": 60, "n_head": 5, "n_inner": 100, "activation_function": "relu"}),
    "three_heads": Configuration(
        {"n_embd": 36, "n_head": 3, "activation_function": "silu", "eos_token_id": 48, "pad_token_id": 7}
    ),
    "odd_width": Configuration(
        {"n_embd": 35, "n_head": 5, "n_inner": 37, "vocab_size": 5, "activation_function": "tanh"}
    ),
    "one_layer": Configuration({"n_embd": 24, "n_head": 1, "n_layer": 1, "activation_function": "gelu_pytorch_tanh"}),
    "untied": Configuration({"tie_word_embeddings": False, "vocab_size": 67}),
    "own_head": Configuration({"n_layer": 1, "n_inner": 16}, own_head=True),
    "inverse_layer_scale": Configuration({"scale_attn_by_inverse_layer_idx": True, "n_layer": 4}),
    "unscaled": Configuration({"scale_attn_weights": False}),
    "reordered": Configuration({"reorder_and_upcast_attn": True, "scale_attn_by_inverse_layer_idx": True}),
    "large_epsilon": Configuration({"layer_norm_epsilon": 0.1}),
    "long_context": Configuration({"n_positions": 1029}, count=1029),
    "wide_head": Configuration({"n_embd": 72, "n_head": 1, "n_positions": 49}, count=49),
    "heads_of_64": Configuration(
        {"n_embd": 128, "n_head": 2, "n_inner": 500, "vocab_size": 517, "n_positions": 70}, count=70
    ),
    "float16": Configuration({"layer_norm_epsilon": 1e-3}, dtype="F16"),
    "bfloat16": Configuration({"tie_word_embeddings": False, "n_inner": 40}, dtype="BF16", shards=2),
    "sharded": Configuration({"n_layer": 3}, shards=3, prefix=False),
    "old_names": Configuration({"n_inner": 48}, prefix=False, old_buffers=True),
    "pruned": Configuration(blocks((1, 16, 5), (2, 16, 80), (1, 16, 33))),
    "irregular": Configuration(
        {"n_embd": 40, "vocab_size": 33, "activation_function": "gelu", "n_positions": 80}
        | blocks((1, 7, 5), (3, 8, 160), (2, 20, 33), (5, 3, 64)),
        count=80,
    ),
}
