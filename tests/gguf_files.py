"""Writes GGUF files of tiny checkpoints with the gguf package, as llama.cpp's conversion lays them out.

Nothing of Kaoken is imported.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Kind
from numpy.typing import NDArray
from safetensors.numpy import load_file

Array = NDArray[Any]

LLAMA_KEYS = {
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
}
GPT2_KEYS = {
    "context_length": "n_positions",
    "embedding_length": "n_embd",
    "block_count": "n_layer",
    "attention.head_count": "n_head",
}


def write_file(
    path: Path,
    architecture: str,
    metadata: Mapping[str, Any],
    tensors: Mapping[str, Array],
    kinds: Mapping[str, Kind] | None = None,
) -> Path:
    """A GGUF of any keys and tensors; `kinds` are of those that are already blocks (uint8)."""
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in metadata.items():
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_array(key, value)
    for name, tensor in tensors.items():
        writer.add_tensor(name, np.ascontiguousarray(tensor), raw_dtype=(kinds or {}).get(name))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def quantized(tensors: Mapping[str, Array], kind: Kind) -> tuple[dict[str, Array], dict[str, Kind]]:
    """Matrices whose rows are whole blocks, quantized; others stay float32."""
    block = gguf.GGML_QUANT_SIZES[kind][0]
    fit = {name for name, tensor in tensors.items() if tensor.ndim == 2 and tensor.shape[1] % block == 0}
    made = {name: gguf.quants.quantize(tensor, kind) if name in fit else tensor for name, tensor in tensors.items()}
    return made, dict.fromkeys(fit, kind)


def dequantized(tensors: Mapping[str, Array], kinds: Mapping[str, Kind]) -> dict[str, Array]:
    return {
        name: gguf.quants.dequantize(tensor, kinds[name]) if name in kinds else tensor
        for name, tensor in tensors.items()
    }


def interleaved(tensor: Array, heads: int) -> Array:
    """llama.cpp turns neighbours, transformers the two halves of a head."""
    return tensor.reshape(heads, 2, -1, *tensor.shape[1:]).swapaxes(1, 2).reshape(tensor.shape)


def separated(tensor: Array, heads: int) -> Array:
    """What undoes that."""
    return tensor.reshape(heads, -1, 2, *tensor.shape[1:]).swapaxes(1, 2).reshape(tensor.shape)


LLAMA_NAMES = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
LLAMA_WHOLE = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}


def llama_parts(directory: Path) -> tuple[dict[str, Any], dict[str, Array], dict[str, Array]]:
    """The config of a checkpoint, its tensors as they are, and as llama.cpp has them."""
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    stored = load_file(directory / "model.safetensors")
    heads = config["num_attention_heads"]
    kv_heads = config.get("num_key_value_heads") or heads
    made = {}
    for name, tensor in stored.items():
        if name in LLAMA_WHOLE:
            made[LLAMA_WHOLE[name]] = tensor
            continue
        _, _, layer, rest = name.split(".", 3)
        part, kind = rest.rsplit(".", 1)
        if part in ("self_attn.q_proj", "self_attn.k_proj"):
            tensor = interleaved(tensor, heads if part == "self_attn.q_proj" else kv_heads)
        made[f"blk.{layer}.{LLAMA_NAMES[part]}.{kind}"] = tensor
    return config, stored, made


def llama_metadata(config: Mapping[str, Any], architecture: str = "llama") -> dict[str, Any]:
    keys = {key: config[name] for key, name in LLAMA_KEYS.items()}
    heads, dims = (
        config["num_attention_heads"],
        config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"],
    )
    keys |= {
        "attention.head_count_kv": config.get("num_key_value_heads") or heads,
        "attention.layer_norm_rms_epsilon": float(config.get("rms_norm_eps", 1e-6)),
        "attention.key_length": dims,
        "attention.value_length": dims,
        "rope.dimension_count": dims,
        "rope.freq_base": float((config.get("rope_parameters") or config).get("rope_theta", 10000.0)),
        "vocab_size": config["vocab_size"],
    }
    scaling = config.get("rope_scaling") or {}
    if scaling:
        keys |= {"rope.scaling.type": "linear", "rope.scaling.factor": float(scaling["factor"])}
    return {f"{architecture}.{key}": value for key, value in keys.items()}


def rope_factors(parameters: Mapping[str, Any], dims: int) -> Array:
    """What llama.cpp divides frequencies by, for the scaling of Llama 3."""
    turns = parameters["original_max_position_embeddings"] / (2 * np.pi)
    turns *= parameters["rope_theta"] ** -(np.arange(0, dims, 2) / dims)
    low, high = parameters["low_freq_factor"], parameters["high_freq_factor"]
    share = np.clip((turns - low) / (high - low), 0, 1)
    return (1 / ((1 - share) / parameters["factor"] + share)).astype(np.float32)


def write_llama(directory: Path, path: Path, kind: Kind | None = None, **more: Any) -> Path:
    """The GGUF of a Llama's checkpoint directory; `more` are keys that come on top."""
    config, _, tensors = llama_parts(directory)
    kinds: dict[str, Kind] = {}
    if kind is not None:
        tensors, kinds = quantized(tensors, kind)
    metadata = llama_metadata(config)
    if (config.get("rope_parameters") or {}).get("rope_type") == "llama3":
        dims = metadata["llama.rope.dimension_count"]
        tensors["rope_freqs.weight"] = rope_factors(config["rope_parameters"], dims)
    return write_file(path, "llama", metadata | more, tensors, kinds)


GPT2_NAMES = {
    "ln_1": "attn_norm",
    "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output",
    "ln_2": "ffn_norm",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
}
GPT2_WHOLE = {"wte": "token_embd", "wpe": "position_embd", "ln_f": "output_norm", "lm_head": "output"}


def gpt2_tensors(directory: Path) -> dict[str, Array]:
    """As llama.cpp has them: matrices of blocks as [outputs, inputs]."""
    made = {}
    for stored, tensor in load_file(directory / "model.safetensors").items():
        name, kind = stored.removeprefix("transformer.").rsplit(".", 1)
        if name in GPT2_WHOLE:
            made[f"{GPT2_WHOLE[name]}.{kind}"] = tensor
        else:
            _, layer, part = name.split(".", 2)
            made[f"blk.{layer}.{GPT2_NAMES[part]}.{kind}"] = tensor.T
    return made


def write_gpt2(directory: Path, path: Path, kind: Kind | None = None, **more: Any) -> Path:
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    keys: dict[str, Any] = {key: config[name] for key, name in GPT2_KEYS.items()}
    keys["feed_forward_length"] = config.get("n_inner") or 4 * config["n_embd"]
    keys["attention.layer_norm_epsilon"] = float(config.get("layer_norm_epsilon", 1e-5))
    tensors, kinds = gpt2_tensors(directory), {}
    if kind is not None:
        tensors, kinds = quantized(tensors, kind)
    metadata = {f"gpt2.{key}": value for key, value in keys.items()}
    return write_file(path, "gpt2", metadata | more, tensors, kinds)


BERT_NAMES = {
    "attention.self.query": "attn_q",
    "attention.self.key": "attn_k",
    "attention.self.value": "attn_v",
    "attention.output.dense": "attn_output",
    "attention.output.LayerNorm": "attn_output_norm",
    "intermediate.dense": "ffn_up",
    "output.dense": "ffn_down",
    "output.LayerNorm": "layer_output_norm",
}
BERT_WHOLE = {
    "embeddings.word_embeddings": "token_embd",
    "embeddings.position_embeddings": "position_embd",
    "embeddings.token_type_embeddings": "token_types",
    "embeddings.LayerNorm": "token_embd_norm",
}


def write_bert(directory: Path, path: Path, metadata: Mapping[str, Any] | None = None) -> Path:
    """Of a BertModel, without its pooler."""
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    tensors = {}
    for stored, tensor in load_file(directory / "model.safetensors").items():
        name, kind = stored.removeprefix("bert.").rsplit(".", 1)
        if name in BERT_WHOLE:
            tensors[f"{BERT_WHOLE[name]}.{kind}"] = tensor
        elif name.startswith("encoder.layer."):
            layer, part = name.removeprefix("encoder.layer.").split(".", 1)
            tensors[f"blk.{layer}.{BERT_NAMES[part]}.{kind}"] = tensor
    keys: dict[str, Any] = {f"bert.{key}": config[name] for key, name in LLAMA_KEYS.items()}
    keys |= {
        "bert.attention.layer_norm_epsilon": float(config.get("layer_norm_eps", 1e-12)),
        "bert.attention.causal": False,
    }
    return write_file(path, "bert", {**keys, **(metadata or {})}, tensors)


def wordpiece_metadata(vocab: Mapping[str, int], special: Sequence[str]) -> dict[str, Any]:
    """The keys of a vocabulary behind tokenizer.ggml., as llama.cpp writes it: a space in front of a word, no ##."""
    tokens = sorted(vocab, key=vocab.__getitem__)

    def phantom(token: str) -> str:
        if token in special:
            return token
        return token[2:] if token.startswith("##") else f"\u2581{token}"

    return {
        "model": "bert",
        "tokens": list(map(phantom, tokens)),
        "token_type": [3 if token in special else 1 for token in tokens],
        "bos_token_id": vocab["[CLS]"],
        "seperator_token_id": vocab["[SEP]"],
        "unknown_token_id": vocab["[UNK]"],
        "padding_token_id": vocab["[PAD]"],
        "mask_token_id": vocab["[MASK]"],
    }
