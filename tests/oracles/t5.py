"""T5 in NumPy float64, and tiny checkpoints of it. Nothing of Kaoken is imported.

Its config is that of transformers' T5Config; its tensors are named as T5ForConditionalGeneration's. `python -m
oracles.t5 DIRECTORY` writes a checkpoint.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from checkpoints import uniform

Array = NDArray[np.float64]

TINY: dict[str, Any] = {
    "model_type": "t5",
    "architectures": ["T5ForConditionalGeneration"],
    "vocab_size": 61,
    "d_model": 48,
    "d_kv": 16,
    "num_heads": 3,
    "d_ff": 100,
    "num_layers": 2,
    "n_positions": 150,
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "feed_forward_proj": "relu",
    "layer_norm_epsilon": 1e-6,
    "is_encoder_decoder": True,
    "decoder_start_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 0,
}

GATED = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}  # as T5 1.1 and FLAN-T5

# Fields that differ from TINY.
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "gated": {**GATED, "dense_act_fn": "gelu_new", "is_gated_act": True},
    "gated_silu": {"feed_forward_proj": "gated-silu", "d_ff": 33, "num_layers": 1},
    "gated_tied": {**GATED, "tie_word_embeddings": True, "d_model": 52, "d_kv": 20, "num_heads": 2},
    "plain_untied": {"tie_word_embeddings": False, "d_model": 35, "d_kv": 5, "num_heads": 7, "vocab_size": 131},
    "deep_decoder": {"num_layers": 1, "num_decoder_layers": 3, "d_kv": 7, "num_heads": 5, "d_ff": 7},
    "deep_encoder": {**GATED, "num_layers": 3, "num_decoder_layers": 1, "layer_norm_epsilon": 1e-5},
    "few_buckets": {"relative_attention_num_buckets": 9, "relative_attention_max_distance": 37, "num_heads": 4},
    "one_head": {"d_model": 23, "num_heads": 1, "d_kv": 64, "num_layers": 1, "decoder_start_token_id": 5},
}


def config_of(name: str) -> dict[str, Any]:
    """The whole config.json of a configuration."""
    return {**TINY, **CONFIGURATIONS[name]}


def depths(config: Mapping[str, Any]) -> dict[str, int]:
    """The number of blocks of each stack."""
    return {"encoder": config["num_layers"], "decoder": config.get("num_decoder_layers") or config["num_layers"]}


def tensor_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor, each stored once."""
    width, inner, heads = config["d_model"], config["d_ff"], config["num_heads"]
    all_heads = heads * config["d_kv"]
    shapes: dict[str, tuple[int, ...]] = {"shared.weight": (config["vocab_size"], width)}
    ups = ("wi_0", "wi_1") if config["feed_forward_proj"].startswith("gated-") else ("wi",)
    for stack, depth in depths(config).items():
        bias = f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        shapes[bias] = (config["relative_attention_num_buckets"], heads)
        attentions = ["SelfAttention"] if stack == "encoder" else ["SelfAttention", "EncDecAttention"]
        for index in range(depth):
            layer = f"{stack}.block.{index}.layer"
            for place, name in enumerate(attentions):
                shapes |= {f"{layer}.{place}.{name}.{part}.weight": (all_heads, width) for part in "qkv"}
                shapes[f"{layer}.{place}.{name}.o.weight"] = (width, all_heads)
            last = f"{layer}.{len(attentions)}.DenseReluDense"
            shapes |= {f"{last}.{up}.weight": (inner, width) for up in ups}
            shapes[f"{last}.wo.weight"] = (width, inner)
            shapes |= {f"{layer}.{place}.layer_norm.weight": (width,) for place in range(len(attentions) + 1)}
        shapes[f"{stack}.final_layer_norm.weight"] = (width,)
    if not config.get("tie_word_embeddings", True):
        shapes["lm_head.weight"] = (config["vocab_size"], width)
    return shapes


def write(directory: Path, config: Mapping[str, Any]) -> Path:
    """A checkpoint whose values keep activations near 1 and leave nothing without effect; returns its directory."""
    tensors = {}
    for name, shape in tensor_shapes(config).items():
        values = uniform(name, shape, seed=0)
        if "norm" in name:
            values = 1.0 + 0.4 * values
        elif "relative_attention_bias" in name:
            values = 3.0 * values
        elif name.endswith(".q.weight"):  # scores are not scaled
            values = values * math.sqrt(9.0 / (shape[1] * config["d_kv"]))
        elif name != "shared.weight":
            values = values * math.sqrt(3.0 / shape[1])
        tensors[name] = values.astype(np.float32)
    directory.mkdir(parents=True, exist_ok=True)
    save_file(tensors, directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return directory


def bucket(distance: int, count: int, furthest: int, both_ways: bool) -> int:
    """The bucket of a key position - query position, in whole numbers.

    From `exact` on, the bucket is exact + floor((count - exact) log(distance / exact) / log(furthest / exact)).
    """
    first = 0
    if both_ways:
        count //= 2
        first = count if distance > 0 else 0
        distance = abs(distance)
    else:
        distance = max(0, -distance)
    exact = count // 2
    if distance < exact:
        return first + distance
    far, steps = count - exact, 0
    while steps + 1 < far and distance**far * exact ** (steps + 1) >= furthest ** (steps + 1) * exact**far:
        steps += 1
    return first + exact + steps


class T5:
    """A checkpoint's vectors, logits and texts."""

    def __init__(self, directory: Path) -> None:
        self.config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
        stored = load_file(directory / "model.safetensors")
        self.tensors = {name: tensor.astype(np.float64) for name, tensor in stored.items()}

    def encode(self, ids: Sequence[int]) -> Array:
        """The encoder's outputs, [length, d_model]."""
        return self._run("encoder", ids, None)

    def logits(self, ids: Sequence[int], decoder_ids: Sequence[int]) -> Array:
        """[len(decoder_ids), vocabulary], of what follows each of `decoder_ids`."""
        return self._logits(self.encode(ids), decoder_ids)

    def generate(self, ids: Sequence[int], steps: int) -> list[int]:
        """So many most likely tokens, one after another, behind the start token; no token ends them."""
        source, found = self.encode(ids), [self.config["decoder_start_token_id"]]
        for _ in range(steps):
            found.append(int(self._logits(source, found)[-1].argmax()))
        return found[1:]

    def _logits(self, source: Array, decoder_ids: Sequence[int]) -> Array:
        hidden = self._run("decoder", decoder_ids, source)
        if self.config.get("tie_word_embeddings", True):
            return hidden * self.config["d_model"] ** -0.5 @ self.tensors["shared.weight"].T
        return hidden @ self.tensors["lm_head.weight"].T

    def _run(self, stack: str, ids: Sequence[int], source: Array | None) -> Array:
        x = self.tensors["shared.weight"][list(ids)]
        bias = self._distance_bias(stack, len(ids))
        for index in range(depths(self.config)[stack]):
            layer = f"{stack}.block.{index}.layer"
            normal = self._norm(f"{layer}.0.layer_norm", x)
            x = x + self._attention(f"{layer}.0.SelfAttention", normal, normal, bias)
            if source is not None:
                normal = self._norm(f"{layer}.1.layer_norm", x)
                x = x + self._attention(f"{layer}.1.EncDecAttention", normal, source, None)
            last = f"{layer}.{1 if source is None else 2}"
            x = x + self._mlp(f"{last}.DenseReluDense", self._norm(f"{last}.layer_norm", x))
        return self._norm(f"{stack}.final_layer_norm", x)

    def _distance_bias(self, stack: str, length: int) -> Array:
        """[heads, length, length], in a decoder without what lies ahead."""
        table = self.tensors[f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"]
        count, furthest = len(table), self.config["relative_attention_max_distance"]
        both_ways = stack == "encoder"
        bias = np.full((table.shape[1], length, length), -np.inf)
        for distance in range(1 - length, length if both_ways else 1):
            queries = np.arange(max(0, -distance), min(length, length - distance))
            bias[:, queries, queries + distance] = table[bucket(distance, count, furthest, both_ways)][:, None]
        return bias

    def _norm(self, name: str, x: Array) -> Array:
        scale = np.sqrt((x * x).mean(-1, keepdims=True) + self.config["layer_norm_epsilon"])
        return x / scale * self.tensors[f"{name}.weight"]

    def _attention(self, name: str, x: Array, read: Array, bias: Array | None) -> Array:
        query = x @ self.tensors[f"{name}.q.weight"].T
        key, value = (read @ self.tensors[f"{name}.{part}.weight"].T for part in "kv")
        attended, dim = np.zeros_like(query), self.config["d_kv"]
        for head in range(self.config["num_heads"]):
            part = slice(head * dim, (head + 1) * dim)
            scores = query[:, part] @ key[:, part].T + (0.0 if bias is None else bias[head])
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            attended[:, part] = weights / weights.sum(-1, keepdims=True) @ value[:, part]
        return attended @ self.tensors[f"{name}.o.weight"].T

    def _mlp(self, name: str, x: Array) -> Array:
        kind = self.config["feed_forward_proj"]
        first = x @ self.tensors[f"{name}.{'wi_0' if kind.startswith('gated-') else 'wi'}.weight"].T
        if kind == "gated-gelu":
            inner = 0.5 * first * (1 + np.tanh(math.sqrt(2 / math.pi) * (first + 0.044715 * first**3)))
        else:
            inner = {"relu": np.maximum(first, 0), "gated-silu": first / (1 + np.exp(-first))}[kind]
        if kind.startswith("gated-"):
            inner = inner * (x @ self.tensors[f"{name}.wi_1.weight"].T)
        return inner @ self.tensors[f"{name}.wo.weight"].T


if __name__ == "__main__":
    write(Path(sys.argv[1]), TINY)
