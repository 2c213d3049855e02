"""Llama in NumPy float64, and tiny checkpoints of it. Nothing of Kaoken is imported.

Its config is that of transformers' LlamaConfig; its tensors are named as LlamaForCausalLM's. `python -m oracles.llama
DIRECTORY` writes a checkpoint.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from checkpoints import uniform

Array = NDArray[np.float64]

TINY: dict[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 61,
    "hidden_size": 48,
    "intermediate_size": 100,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "max_position_embeddings": 150,
    "tie_word_embeddings": True,
}

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 40}

# Fields that differ from TINY.
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "grouped": {},
    "a_head_each": {"num_attention_heads": 4, "num_key_value_heads": 4, "hidden_size": 36, "head_dim": 10},
    "one_key": {
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "hidden_size": 52,
        "head_dim": 20,
        "attention_bias": True,
        "mlp_bias": True,
        "tie_word_embeddings": False,
        "hidden_act": "gelu_pytorch_tanh",
    },
    "llama3": {
        "num_attention_heads": 3,
        "num_key_value_heads": 3,
        "head_dim": 32,
        "rope_parameters": LLAMA3,
        "rms_norm_eps": 1e-5,
        "intermediate_size": 33,
    },
    "smol": {
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "hidden_size": 90,
        "head_dim": 64,
        "vocab_size": 131,
        "intermediate_size": 160,
        "rope_theta": 100000.0,
        "rope_interleaved": False,
        "is_llama_config": True,
    },
    "stretched": {
        "rope_scaling": {"type": "linear", "factor": 4.0},
        "num_hidden_layers": 1,
        "hidden_size": 35,
        "num_attention_heads": 1,
        "num_key_value_heads": None,
        "head_dim": 2,
        "intermediate_size": 7,
    },
    "yarn": {"rope_scaling": YARN, "rope_theta": 50.0, "head_dim": 24},
    "yarn_in_all": {
        "rope_parameters": {
            **YARN,
            "rope_theta": 1000.0,
            "beta_fast": 8,
            "beta_slow": 0.5,
            "mscale": 2.0,
            "mscale_all_dim": 0.5,
            "truncate": False,
        },
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 40,
    },
    "yarn_with_a_factor": {"rope_scaling": {**YARN, "attention_factor": 1.7}, "num_hidden_layers": 1},
    "dynamic": {"rope_scaling": {"type": "dynamic", "factor": 3.0}, "num_hidden_layers": 1},
}


def config_of(name: str) -> dict[str, Any]:
    """The whole config.json of a configuration."""
    return {**TINY, **CONFIGURATIONS[name]}


def sizes(config: Mapping[str, Any]) -> tuple[int, int, int]:
    """Heads, heads of keys and values, and the dimensions of a head."""
    heads = config["num_attention_heads"]
    return heads, config["num_key_value_heads"] or heads, config.get("head_dim") or config["hidden_size"] // heads


def tensor_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    width, inner, vocabulary = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    heads, kv_heads, dim = sizes(config)
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocabulary, width)}
    for layer in range(config["num_hidden_layers"]):
        linears = {
            "self_attn.q_proj": (heads * dim, width),
            "self_attn.k_proj": (kv_heads * dim, width),
            "self_attn.v_proj": (kv_heads * dim, width),
            "self_attn.o_proj": (width, heads * dim),
            "mlp.gate_proj": (inner, width),
            "mlp.up_proj": (inner, width),
            "mlp.down_proj": (width, inner),
        }
        for name, shape in linears.items():
            shapes[f"model.layers.{layer}.{name}.weight"] = shape
            if config.get("attention_bias" if name.startswith("self") else "mlp_bias"):
                shapes[f"model.layers.{layer}.{name}.bias"] = shape[:1]
        for name in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"model.layers.{layer}.{name}.weight"] = (width,)
    shapes["model.norm.weight"] = (width,)
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (vocabulary, width)
    return shapes


def write(directory: Path, config: Mapping[str, Any]) -> Path:
    """A checkpoint whose values keep activations near 1 and leave nothing without effect; returns its directory."""
    tensors = {}
    for name, shape in tensor_shapes(config).items():
        values = uniform(name, shape, seed=0)
        if "norm" in name:
            values = 1.0 + 0.3 * values
        elif name.endswith(".bias"):
            values = 0.4 * values
        else:
            values = values * (1.0 if "embed" in name else math.sqrt(3.0 / shape[1]))
        tensors[name] = values.astype(np.float32)
    directory.mkdir(parents=True, exist_ok=True)
    save_file(tensors, directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return directory


class Llama:
    """A checkpoint's logits."""

    def __init__(self, directory: Path) -> None:
        self.config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
        stored = load_file(directory / "model.safetensors")
        self.tensors = {name: tensor.astype(np.float64) for name, tensor in stored.items()}

    def logits(self, ids: NDArray[np.int64]) -> Array:
        """[batch, count] -> [batch, count, vocabulary]."""
        return np.stack([self._sequence(row) for row in ids])

    def _sequence(self, ids: NDArray[np.int64]) -> Array:
        table = self.tensors["model.embed_tokens.weight"]
        hidden = table[ids]
        for layer in range(self.config["num_hidden_layers"]):
            name = f"model.layers.{layer}"
            hidden = hidden + self._attention(name, self._norm(f"{name}.input_layernorm", hidden))
            hidden = hidden + self._mlp(name, self._norm(f"{name}.post_attention_layernorm", hidden))
        head = self.tensors.get("lm_head.weight", table)
        return self._norm("model.norm", hidden) @ head.T

    def _linear(self, name: str, x: Array) -> Array:
        return x @ self.tensors[f"{name}.weight"].T + self.tensors.get(f"{name}.bias", 0.0)

    def _norm(self, name: str, x: Array) -> Array:
        scale = np.sqrt((x * x).mean(-1, keepdims=True) + self.config.get("rms_norm_eps", 1e-6))
        return x / scale * self.tensors[f"{name}.weight"]

    def _mlp(self, name: str, x: Array) -> Array:
        gate, up = self._linear(f"{name}.mlp.gate_proj", x), self._linear(f"{name}.mlp.up_proj", x)
        if self.config.get("hidden_act", "silu") == "silu":
            activated = gate / (1 + np.exp(-gate))
        else:
            activated = 0.5 * gate * (1 + np.tanh(math.sqrt(2 / math.pi) * (gate + 0.044715 * gate**3)))
        return self._linear(f"{name}.mlp.down_proj", activated * up)

    def _attention(self, name: str, x: Array) -> Array:
        heads, kv_heads, dim = sizes(self.config)
        query = self._linear(f"{name}.self_attn.q_proj", x).reshape(len(x), heads, dim)
        key = self._linear(f"{name}.self_attn.k_proj", x).reshape(len(x), kv_heads, dim)
        value = self._linear(f"{name}.self_attn.v_proj", x).reshape(len(x), kv_heads, dim)
        query, key = (self._cosine_factor() * self._turn(each) for each in (query, key))
        attended = np.zeros_like(query)
        for head in range(heads):
            shared = head // (heads // kv_heads)
            scores = query[:, head] @ key[:, shared].T / math.sqrt(dim)
            scores[np.triu_indices(len(x), 1)] = -np.inf
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            attended[:, head] = weights / weights.sum(-1, keepdims=True) @ value[:, shared]
        return self._linear(f"{name}.self_attn.o_proj", attended.reshape(len(x), -1))

    def _turn(self, x: Array) -> Array:
        """Each pair (i, i + half) of [count, heads, dim] as a complex number, turned by its angle."""
        half = x.shape[-1] // 2
        angles = np.arange(len(x))[:, None] * self._frequencies(half)
        turned = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * angles)[:, None]
        return np.concatenate([turned.real, turned.imag], axis=-1)

    def _scaling(self) -> dict[str, Any]:
        return self.config.get("rope_parameters") or self.config.get("rope_scaling") or {}

    def _cosine_factor(self) -> float:
        """Of YaRN."""
        given = self._scaling()
        if given.get("rope_type") != "yarn":
            return 1.0
        logarithm = 0.1 * math.log(given["factor"])
        over, under = given.get("mscale", 1.0), given.get("mscale_all_dim", 0.0)
        return given.get("attention_factor", (1 + over * logarithm) / (1 + under * logarithm))

    def _frequencies(self, half: int) -> Array:
        given = self._scaling()
        theta = given.get("rope_theta", self.config.get("rope_theta", 10000.0))
        frequencies = np.array([theta ** (-pair / half) for pair in range(half)])
        kind = given.get("rope_type", given.get("type"))
        if kind == "linear":
            return frequencies / given["factor"]
        if kind == "yarn":
            return self._yarn(frequencies, given, theta)
        if kind != "llama3":
            return frequencies
        scaled = []
        for frequency in frequencies:
            wavelength, context = 2 * math.pi / frequency, given["original_max_position_embeddings"]
            low, high = given["low_freq_factor"], given["high_freq_factor"]
            if wavelength > context / low:
                scaled.append(frequency / given["factor"])
            elif wavelength < context / high:
                scaled.append(frequency)
            else:
                smooth = (context / wavelength - low) / (high - low)
                scaled.append((1 - smooth) * frequency / given["factor"] + smooth * frequency)
        return np.array(scaled)

    def _yarn(self, frequencies: Array, given: dict[str, Any], theta: float) -> Array:
        """Pairs that turn often in the original context stay, those that turn seldom are divided."""
        half, context = len(frequencies), given["original_max_position_embeddings"]
        often, seldom = given.get("beta_fast", 32), given.get("beta_slow", 1)
        low, high = (half * math.log(context / (2 * math.pi * turns), theta) for turns in (often, seldom))
        if given.get("truncate", True):
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, 2 * half - 1)
        divided = np.clip((np.arange(half) - low) / (high - low), 0, 1)
        return frequencies * (1 - divided) + frequencies / given["factor"] * divided


if __name__ == "__main__":
    write(Path(sys.argv[1]), TINY)
