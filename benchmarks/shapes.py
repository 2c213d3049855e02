"""The shapes that are measured, and random weights for them as transformers names and initializes them."""

from __future__ import annotations

from collections.abc import Iterator
from math import sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

Config = dict[str, Any]
Rule = tuple[str, tuple[int, ...], float]  # a tensor's name, its shape and its deviation, or ONES

ONES = -1.0  # of norms; a deviation of 0 is a bias, which starts with zeros

_GPT2: Config = {
    "model_type": "gpt2",
    "architectures": ["GPT2LMHeadModel"],
    "activation_function": "gelu_new",
    "vocab_size": 50257,
    "n_positions": 1024,
    "layer_norm_epsilon": 1e-5,
    "bos_token_id": 50256,
    "eos_token_id": 50256,
    "tie_word_embeddings": True,
}

_BERT: Config = {
    "model_type": "bert",
    "architectures": ["BertModel"],
    "hidden_act": "gelu",
    "vocab_size": 30522,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
    "position_embedding_type": "absolute",  # CTranslate2's converter asks for it
    "initializer_range": 0.02,
    "pad_token_id": 0,
}

SHAPES: dict[str, Config] = {
    "gpt2": {**_GPT2, "n_embd": 768, "n_layer": 12, "n_head": 12},
    "gpt2-medium": {**_GPT2, "n_embd": 1024, "n_layer": 24, "n_head": 16},
    "smollm2-135m": {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_act": "silu",
        "vocab_size": 49152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "head_dim": 64,
        "max_position_embeddings": 2048,  # of 8192: an engine may reserve a cache of all
        "rms_norm_eps": 1e-5,
        "rope_theta": 100000.0,
        "initializer_range": 1 / 24,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "tie_word_embeddings": True,
    },
    "qwen2.5-0.5b": {
        "model_type": "qwen2",
        "architectures": ["Qwen2ForCausalLM"],
        "hidden_act": "silu",
        "vocab_size": 151936,
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "max_position_embeddings": 2048,  # of 32768, as above
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "initializer_range": 0.02,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "tie_word_embeddings": True,
    },
    "bert-base": {
        **_BERT,
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
    },
    "minilm-l6": {
        **_BERT,
        "hidden_size": 384,
        "intermediate_size": 1536,
        "num_hidden_layers": 6,
        "num_attention_heads": 12,
    },
    "t5-small": {
        "model_type": "t5",
        "architectures": ["T5ForConditionalGeneration"],
        "feed_forward_proj": "relu",
        "vocab_size": 32128,
        "d_model": 512,
        "d_kv": 64,
        "d_ff": 2048,
        "num_layers": 6,
        "num_decoder_layers": 6,
        "num_heads": 8,
        "n_positions": 512,
        "relative_attention_num_buckets": 32,
        "relative_attention_max_distance": 128,
        "layer_norm_epsilon": 1e-6,
        "is_encoder_decoder": True,
        "decoder_start_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 0,
        "tie_word_embeddings": True,
    },
}

# model_type -> what such a model is measured at; rows.py and engines/ have a part for each.
TASKS = {"gpt2": "decode", "llama": "decode", "qwen2": "decode", "bert": "encode", "t5": "translate"}


def random_tensors(config: Config, seed: int) -> dict[str, NDArray[np.float32]]:
    """Every tensor of a model of this shape, the same for each seed; what is tied is there once."""
    generator = np.random.default_rng(seed)

    def draw(shape: tuple[int, ...], deviation: float) -> NDArray[np.float32]:
        if deviation in (0, ONES):
            return np.full(shape, abs(deviation), np.float32)
        return generator.standard_normal(shape, np.float32) * np.float32(deviation)

    return {name: draw(shape, deviation) for name, shape, deviation in _RULES[config["model_type"]](config)}


def _gpt2(config: Config) -> Iterator[Rule]:
    width = int(config["n_embd"])
    yield "transformer.wte.weight", (config["vocab_size"], width), 0.02
    yield "transformer.wpe.weight", (config["n_positions"], width), 0.02
    linears = {
        "attn.c_attn": (width, 3 * width),
        "attn.c_proj": (width, width),
        "mlp.c_fc": (width, 4 * width),
        "mlp.c_proj": (4 * width, width),
    }
    for layer in range(config["n_layer"]):
        block = f"transformer.h.{layer}"
        for name, shape in linears.items():
            yield from _with_bias(f"{block}.{name}", shape, shape[1], 0.02)
        for norm in ("ln_1", "ln_2"):
            yield from _with_bias(f"{block}.{norm}", (width,), width, ONES)
    yield from _with_bias("transformer.ln_f", (width,), width, ONES)


def _llama(config: Config) -> Iterator[Rule]:
    width, inner, deviation = config["hidden_size"], config["intermediate_size"], config["initializer_range"]
    heads, kv_heads = (config[name] * config["head_dim"] for name in ("num_attention_heads", "num_key_value_heads"))
    yield "model.embed_tokens.weight", (config["vocab_size"], width), deviation
    linears = {
        "self_attn.q_proj": (heads, width),
        "self_attn.k_proj": (kv_heads, width),
        "self_attn.v_proj": (kv_heads, width),
        "self_attn.o_proj": (width, heads),
        "mlp.gate_proj": (inner, width),
        "mlp.up_proj": (inner, width),
        "mlp.down_proj": (width, inner),
    }
    for layer in range(config["num_hidden_layers"]):
        for name, shape in linears.items():
            yield f"model.layers.{layer}.{name}.weight", shape, deviation
            if config["model_type"] == "qwen2" and name.endswith(("q_proj", "k_proj", "v_proj")):
                yield f"model.layers.{layer}.{name}.bias", shape[:1], 0.0
        for norm in ("input_layernorm", "post_attention_layernorm"):
            yield f"model.layers.{layer}.{norm}.weight", (width,), ONES
    yield "model.norm.weight", (width,), ONES


def _bert(config: Config) -> Iterator[Rule]:
    width, inner, deviation = config["hidden_size"], config["intermediate_size"], config["initializer_range"]
    tables = {"word": "vocab_size", "position": "max_position_embeddings", "token_type": "type_vocab_size"}
    for name, size in tables.items():
        yield f"embeddings.{name}_embeddings.weight", (config[size], width), deviation
    yield from _with_bias("embeddings.LayerNorm", (width,), width, ONES)
    linears = {
        "attention.self.query": (width, width),
        "attention.self.key": (width, width),
        "attention.self.value": (width, width),
        "attention.output.dense": (width, width),
        "intermediate.dense": (inner, width),
        "output.dense": (width, inner),
    }
    for layer in range(config["num_hidden_layers"]):
        block = f"encoder.layer.{layer}"
        for name, shape in linears.items():
            yield from _with_bias(f"{block}.{name}", shape, shape[0], deviation)
        for norm in ("attention.output.LayerNorm", "output.LayerNorm"):
            yield from _with_bias(f"{block}.{norm}", (width,), width, ONES)
    yield from _with_bias("pooler.dense", (width, width), width, deviation)


def _t5(config: Config) -> Iterator[Rule]:
    """Deviations as T5 itself begins with, in which attention has no other scale, but for the table's: with its 1 the
    start token would follow itself for ever, which hides what engines do differently."""
    width = config["d_model"]
    yield "shared.weight", (config["vocab_size"], width), 0.1
    for stack, layers in (("encoder", config["num_layers"]), ("decoder", config["num_decoder_layers"])):
        attentions = ["SelfAttention"] if stack == "encoder" else ["SelfAttention", "EncDecAttention"]
        for layer in range(layers):
            block = f"{stack}.block.{layer}.layer"
            for place, attention in enumerate(attentions):
                yield from _t5_attention(config, f"{block}.{place}.{attention}", first=layer == place == 0)
            mlp = f"{block}.{len(attentions)}.DenseReluDense"
            yield f"{mlp}.wi.weight", (config["d_ff"], width), 1 / sqrt(width)
            yield f"{mlp}.wo.weight", (width, config["d_ff"]), 1 / sqrt(config["d_ff"])
            for place in range(len(attentions) + 1):
                yield f"{block}.{place}.layer_norm.weight", (width,), ONES
        yield f"{stack}.final_layer_norm.weight", (width,), ONES


def _t5_attention(config: Config, name: str, first: bool) -> Iterator[Rule]:
    width, inner = config["d_model"], config["num_heads"] * config["d_kv"]
    yield f"{name}.q.weight", (inner, width), 1 / sqrt(width * config["d_kv"])
    yield f"{name}.k.weight", (inner, width), 1 / sqrt(width)
    yield f"{name}.v.weight", (inner, width), 1 / sqrt(width)
    yield f"{name}.o.weight", (width, inner), 1 / sqrt(inner)
    if first:
        buckets = config["relative_attention_num_buckets"]
        yield f"{name}.relative_attention_bias.weight", (buckets, config["num_heads"]), 1 / sqrt(width)


def _with_bias(name: str, shape: tuple[int, ...], outputs: int, deviation: float) -> Iterator[Rule]:
    yield f"{name}.weight", shape, deviation
    yield f"{name}.bias", (outputs,), 0.0


_RULES = {"gpt2": _gpt2, "llama": _llama, "qwen2": _llama, "bert": _bert, "t5": _t5}
