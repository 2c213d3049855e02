"""The tables for GGUF files by transformers: a model's file gives back its config and its tensors.

What llama.cpp's conversion does is done here again, to tiny models of transformers, and what is read of the files goes
into new ones. So families need not be baked yet. Skipped without torch and transformers, unless
KAOKEN_REQUIRE_TRANSFORMERS=1 makes their absence a failure.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from kaoken.codegen.checkpoint import open_checkpoint
from kaoken.codegen.families import read_graph
from kaoken.codegen.gguf_config import ARCHITECTURES

if os.environ.get("KAOKEN_REQUIRE_TRANSFORMERS") != "1":
    pytest.importorskip("torch")
    pytest.importorskip("transformers")

import torch
import transformers

from gguf_files import interleaved, llama_metadata, write_file

pytestmark = pytest.mark.ci

SIZES: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 48,
    "intermediate_size": 100,
    "num_hidden_layers": 7,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "head_dim": 12,
    "max_position_embeddings": 150,
    "initializer_range": 0.3,
}
GPT2_SIZES = {"vocab_size": 61, "n_positions": 32, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_inner": 50}
GPT2_SIZES |= {"initializer_range": 0.3, "bos_token_id": 0, "eos_token_id": 0}
NEOX_SIZES = {name: value for name, value in SIZES.items() if name not in ("num_key_value_heads", "head_dim")}

# For each architecture the fields of a config, and keys that it has beside those of a Llama.
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "bert": (NEOX_SIZES, {}),
    "gemma3": (
        {**SIZES, "sliding_window": 5, "query_pre_attn_scalar": 12, "rms_norm_eps": 1e-5},
        {"attention.sliding_window": 5, "rope.freq_base": 1e6},
    ),
    "gpt2": (GPT2_SIZES, {}),
    "gptneox": (
        {**NEOX_SIZES, "rotary_pct": 0.5, "use_parallel_residual": False, "layer_norm_eps": 1e-4},
        {"attention.layer_norm_epsilon": 1e-4, "use_parallel_residual": False, "rope.dimension_count": 4},
    ),
    "llama": ({**SIZES, "tie_word_embeddings": False, "rope_theta": 20000.0}, {}),
    "qwen2": ({**SIZES, "rms_norm_eps": 1e-5, "head_dim": 8}, {}),
    "qwen3": ({**SIZES, "tie_word_embeddings": True}, {}),
}


def make(architecture: str, fields: dict[str, Any]) -> Any:
    """A model of transformers with random weights, biases and norms included."""
    made = ARCHITECTURES[architecture]
    torch.manual_seed(1)
    config = transformers.AutoConfig.for_model(made.model_type, **{**fields, "attn_implementation": "eager"})
    model = getattr(transformers, made.class_name)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter += 0.2 * torch.randn_like(parameter)
    return model


def converted(architecture: str, name: str, tensor: Any, config: Any) -> Any:
    """As llama.cpp's conversion stores a tensor."""
    values = tensor.numpy()
    heads = config.num_attention_heads
    if architecture == "llama" and ".q_proj." in name:
        return interleaved(values, heads)
    if architecture == "llama" and ".k_proj." in name:
        return interleaved(values, config.num_key_value_heads)
    if architecture == "gpt2" and ".h." in name and values.ndim == 2:
        return values.T
    if architecture == "gemma3" and name.endswith("norm.weight"):
        return values + 1
    if architecture == "gptneox" and ".query_key_value." in name:
        rest = values.shape[1:]
        return values.reshape(heads, 3, -1, *rest).swapaxes(0, 1).reshape(values.shape)
    return values


def metadata_of(architecture: str, fields: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    keys: dict[str, Any]
    if architecture == "gpt2":
        keys = {"context_length": 32, "embedding_length": 32, "block_count": 2, "attention.head_count": 2}
        keys |= {"feed_forward_length": 50, "attention.layer_norm_epsilon": 1e-5}
    else:
        keys = {key.partition(".")[2]: value for key, value in llama_metadata(fields).items()}
    if architecture == "bert":
        left_out = ("rope.", "attention.layer_norm_rms", "attention.head_count_kv")
        keys = {key: value for key, value in keys.items() if not key.startswith(left_out)}
        keys |= {"attention.layer_norm_epsilon": 1e-12, "attention.causal": False}
    if architecture == "gptneox":
        keys = {key: value for key, value in keys.items() if not key.startswith(("attention.layer_norm_rms", "rope."))}
    return {f"{architecture}.{key}": value for key, value in {**keys, **more}.items()}


def write(path: Path, architecture: str, model: Any, fields: dict[str, Any], more: dict[str, Any]) -> Path:
    (kind,) = (each for each, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    table = gguf.get_tensor_name_map(kind, model.config.num_hidden_layers)
    tensors = {}
    for name, tensor in model.state_dict().items():
        tied = name == "lm_head.weight" and model.config.tie_word_embeddings
        known = table.get_name(name, (".weight", ".bias"))
        if not tied and not name.startswith("pooler.") and known is not None:
            tensors[known] = converted(architecture, name, tensor, model.config)
    return write_file(path, architecture, metadata_of(architecture, fields, more), tensors)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_file_gives_back_the_model(architecture: str, tmp_path: Path) -> None:
    fields, more = CASES[architecture]
    model = make(architecture, fields)
    path = write(tmp_path / "model.gguf", architecture, model, fields, more)
    opened = open_checkpoint(path)
    names = [name for name in model.state_dict() if not name.startswith("pooler.")]
    found = opened.named(lambda: names, "")
    assert not [name for name in found.tensors if name not in names]
    read = {name: torch.from_numpy(found.read(name)) for name in names if name in found.tensors}
    # A family takes the head of a file for the table of tokens only where they are the same.
    tied = architecture != "bert" and "lm_head.weight" not in read and "embed_out.weight" not in read
    config = {name: value for name, value in opened.config.items() if name not in ("model_type", "architectures")}
    again = make(architecture, config | {"tie_word_embeddings": tied})
    missing, unexpected = again.load_state_dict(read, strict=False)
    assert set(missing) & set(names) <= ({"lm_head.weight"} if tied else set())
    assert not unexpected
    ids = torch.from_numpy(np.random.Generator(np.random.PCG64(2)).integers(0, 61, (2, 30)))
    with torch.inference_mode():
        expected, actual = (each(ids)[0].numpy() for each in (model, again))
    assert np.abs(actual - expected).max() < 1e-5 * max(1, np.abs(expected).max())
    read_graph(opened)  # which knows every field and every tensor
