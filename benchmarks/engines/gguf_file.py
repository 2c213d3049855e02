"""A GPT-2, Llama, Qwen2 or BERT checkpoint as a float32 GGUF file, named as llama.cpp's converter names it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from benchmarks.models import Checkpoint

Tensors = Iterator[tuple[str, NDArray[np.float32]]]


def write_gguf(checkpoint: Checkpoint, path: Path) -> None:
    """Writes the file; it has no vocabulary, as only ids are fed. Raises KeyError for a tensor that GGUF has not."""
    config = checkpoint.config()
    family = config["model_type"]
    fields, tensors, architecture = {
        "gpt2": (_gpt2_fields, _gpt2_tensors, gguf.MODEL_ARCH.GPT2),
        "llama": (_llama_fields, _llama_tensors, gguf.MODEL_ARCH.LLAMA),
        "qwen2": (_llama_fields, _qwen2_tensors, gguf.MODEL_ARCH.QWEN2),
        "bert": (_bert_fields, _bert_tensors, gguf.MODEL_ARCH.BERT),
    }[family]
    writer = gguf.GGUFWriter(path, family)
    writer.add_name(checkpoint.name)
    layers = fields(writer, config)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_file_type(0)
    writer.add_tokenizer_model("no_vocab")
    names = gguf.get_tensor_name_map(architecture, layers)
    for name, tensor in tensors(checkpoint):
        found = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if found is None:
            raise KeyError(f"GGUF has no name for {name} of a {family}")
        writer.add_tensor(found, np.ascontiguousarray(tensor, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _gpt2_fields(writer: gguf.GGUFWriter, config: dict[str, Any]) -> int:
    """Writes the shape and returns the number of layers."""
    writer.add_context_length(config["n_positions"])
    writer.add_embedding_length(config["n_embd"])
    writer.add_feed_forward_length(4 * config["n_embd"])
    writer.add_block_count(config["n_layer"])
    writer.add_head_count(config["n_head"])
    writer.add_layer_norm_eps(config["layer_norm_epsilon"])
    return int(config["n_layer"])


def _gpt2_tensors(checkpoint: Checkpoint) -> Tensors:
    """With Conv1D's matrices [inputs, outputs] turned, and without the head, which is tied."""
    for name, tensor in load_file(checkpoint.directory / "model.safetensors").items():
        canonical = name.removeprefix("transformer.")
        if canonical != "lm_head.weight":
            turned = canonical.startswith("h.") and tensor.ndim == 2
            yield f"transformer.{canonical}", tensor.T if turned else tensor


def _common_fields(writer: gguf.GGUFWriter, config: dict[str, Any]) -> int:
    """What Llama, Qwen2 and BERT name alike; returns the number of layers."""
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_head_count(config["num_attention_heads"])
    return int(config["num_hidden_layers"])


def _llama_fields(writer: gguf.GGUFWriter, config: dict[str, Any]) -> int:
    """Writes the shape and returns the number of layers."""
    layers = _common_fields(writer, config)
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    return layers


def _neighbours(matrix: NDArray[np.float32], dims: int) -> NDArray[np.float32]:
    """The outputs of heads of `dims` with those side by side that rotary positions turn together."""
    return matrix.reshape(-1, 2, dims // 2, matrix.shape[1]).swapaxes(1, 2).reshape(matrix.shape)


def _llama_tensors(checkpoint: Checkpoint) -> Tensors:
    dims = checkpoint.config()["head_dim"]
    for name, tensor in load_file(checkpoint.directory / "model.safetensors").items():
        turned = name.endswith(("q_proj.weight", "k_proj.weight"))
        yield name, _neighbours(tensor, dims) if turned else tensor


def _qwen2_tensors(checkpoint: Checkpoint) -> Tensors:
    """As they are: llama.cpp turns the halves of this family's heads."""
    yield from load_file(checkpoint.directory / "model.safetensors").items()


def _bert_fields(writer: gguf.GGUFWriter, config: dict[str, Any]) -> int:
    """Writes the shape and returns the number of layers. Pooling is the context's choice."""
    layers = _common_fields(writer, config)
    writer.add_layer_norm_eps(config["layer_norm_eps"])
    writer.add_causal_attention(False)
    writer.add_token_type_count(config["type_vocab_size"])
    return layers


def _bert_tensors(checkpoint: Checkpoint) -> Tensors:
    """Without the pooler, which llama.cpp has only for rerankers."""
    for name, tensor in load_file(checkpoint.directory / "model.safetensors").items():
        if not name.startswith("pooler."):
            yield name, tensor
