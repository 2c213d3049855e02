"""The metadata of a GGUF file as the fields of a config.json.

Each key of the architecture has to be known, as any other might change the model's arithmetic. What the keys mean:
llama.cpp's conversion (https://github.com/ggml-org/llama.cpp/tree/master/conversion) and its src/llama-model.cpp.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .checkpoint import quoted
from .errors import CheckpointError, UnsupportedModelError
from .gguf_header import Header

_SIZES = {
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
}
_LLAMA = {**_SIZES, "attention.layer_norm_rms_epsilon": "rms_norm_eps"}
_LLAMA_OPTIONAL = {
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "rope.freq_base": "rope_theta",
}
_NO_EXPERTS = dict.fromkeys(("expert_count", "expert_used_count", "expert_group_count", "expert_group_used_count"), 0)

# Keys that the tensors say too.
_HARMLESS = ("vocab_size", "tensor_data_layout")


@dataclass(frozen=True)
class Architecture:
    """What llama.cpp calls a family. Keys stand without the architecture's name and the dot behind it."""

    model_type: str
    class_name: str
    fields: Mapping[str, str]  # of config.json, by key; each key has to be there
    optional: Mapping[str, str] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(
        default_factory=dict
    )  # what all of them are, unless an optional key says otherwise
    off: Mapping[str, Any] = field(default_factory=dict)  # keys that may only have this value
    more: Callable[[_Metadata], Mapping[str, Any]] = lambda metadata: {}  # what is computed


def make_config(path: Path, header: Header) -> dict[str, Any]:
    """The config.json of a file. Raises UnsupportedModelError for an architecture or a key that Kaoken does not know.

    CheckpointError for keys that are missing or no numbers.
    """
    return _Metadata(path, header).config()


class _Metadata:
    """The keys of one architecture. Reading a key marks it as known."""

    def __init__(self, path: Path, header: Header) -> None:
        self.path = path
        self.metadata = header.metadata
        self.tensors = header.tensors
        name = header.metadata.get("general.architecture")
        if not isinstance(name, str) or name not in ARCHITECTURES:
            raise UnsupportedModelError(
                f"{path}: general.architecture is {quoted(name)}; expected one of {', '.join(ARCHITECTURES)}: choose a "
                "model of one of these"
            )
        self.architecture = name
        self._known = set(_HARMLESS)

    def config(self) -> dict[str, Any]:
        made = ARCHITECTURES[self.architecture]
        config: dict[str, Any] = {"model_type": made.model_type, "architectures": [made.class_name], **made.fixed}
        for key, name in made.fields.items():
            config[name] = self.get(key)
            if config[name] is None:
                raise CheckpointError(f"{self.path} lacks {self.architecture}.{key}: convert the model anew")
        for key, name in made.optional.items():
            value = self.get(key)
            config |= {} if value is None else {name: value}
        for key, value in made.off.items():
            self.require(key, value)
        if "attention.head_count_kv" not in made.optional:
            self.require("attention.head_count_kv", self.get("attention.head_count"))
        config["vocab_size"] = self.rows("token_embd.weight")
        config |= made.more(self)
        self._finish()
        return config

    def get(self, key: str) -> Any:
        """A number, a text or a truth; None where it is absent."""
        self._known.add(key)
        value = self.metadata.get(f"{self.architecture}.{key}")
        if isinstance(value, list | np.ndarray):
            raise UnsupportedModelError(
                f"{self.path}: {self.architecture}.{key} has a value for each layer; expected one for all: choose a "
                "model whose layers are alike"
            )
        return value

    def require(self, key: str, expected: Any) -> None:
        """Refuses another value than `expected`, which absence stands for too."""
        value = self.get(key)
        if value not in (None, expected):
            raise UnsupportedModelError(
                f"{self.path}: {self.architecture}.{key} is {quoted(value)}; expected {quoted(expected)}: choose a "
                "model of that kind"
            )

    def integer(self, key: str) -> int:
        value = self.get(key)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise CheckpointError(
                f"{self.path}: {self.architecture}.{key} is {quoted(value)}; expected a whole number from 1 on: "
                "convert the model anew"
            )
        return value

    def rows(self, name: str) -> int:
        """Of a tensor."""
        if name not in self.tensors:
            raise CheckpointError(
                f"{self.path} lacks the tensor {name}, which a {self.architecture} has: pass a whole one"
            )
        return self.tensors[name].shape[0]

    def has(self, name: str) -> bool:
        return name in self.tensors

    def head_dim(self) -> int:
        """Of queries, keys and values alike."""
        heads, width = self.integer("attention.head_count"), self.integer("embedding_length")
        given = self.get("attention.key_length")
        dims = max(1, width // heads) if given is None else self.integer("attention.key_length")
        self.require("attention.value_length", dims)
        return dims

    def _finish(self) -> None:
        prefix = f"{self.architecture}."
        for key in self.metadata:
            if key.startswith(prefix) and key.removeprefix(prefix) not in self._known:
                raise UnsupportedModelError(
                    f"{self.path}: Kaoken does not know the key {quoted(key)}; expected only those of a plain "
                    f"{self.architecture}, as any other might change the model's arithmetic: choose another model"
                )


# What is computed


def _decoder(metadata: _Metadata) -> dict[str, Any]:
    """The tokens, and a head that is the table of tokens unless the file has one that differs, as families read it."""
    metadata.require("attention.causal", True)
    metadata.require("pooling_type", 0)  # none: with another it makes vectors of texts
    ends = [_token(metadata, key) for key in ("eos_token_id", "eot_token_id", "eom_token_id")]
    return {
        "bos_token_id": _token(metadata, "bos_token_id"),
        "eos_token_id": list(dict.fromkeys(token for token in ends if token is not None)),
        "pad_token_id": _token(metadata, "padding_token_id"),
        "tie_word_embeddings": True,
    }


def _token(metadata: _Metadata, key: str) -> int | None:
    value = metadata.metadata.get(f"tokenizer.ggml.{key}")
    return value if isinstance(value, int) else None


def _llama(metadata: _Metadata) -> dict[str, Any]:
    attention = metadata.has("blk.0.attn_q.bias")
    return {**_rotary_decoder(metadata), "attention_bias": attention, "mlp_bias": metadata.has("blk.0.ffn_up.bias")}


def _rotary_decoder(metadata: _Metadata) -> dict[str, Any]:
    """A decoder that turns the whole of each head."""
    metadata.require("rope.dimension_count", metadata.head_dim())
    return {**_decoder(metadata), **_scaling(metadata)}


def _scaling(metadata: _Metadata) -> dict[str, Any]:
    """Of rotary positions. Factors for each pair of dimensions, which are a tensor, are no matter of metadata."""
    kind, factor = metadata.get("rope.scaling.type"), metadata.get("rope.scaling.factor")
    context = metadata.get("rope.scaling.original_context_length")
    metadata.get("rope.scaling.finetuned")
    factor = metadata.get("rope.scale_linear") if factor is None else factor
    if kind == "none" or (kind in (None, "linear") and factor in (None, 0, 1)):
        return {}
    scaling = {"rope_type": kind or "linear", "factor": factor}
    if kind == "yarn" and context is not None:
        scaling["original_max_position_embeddings"] = context
    return {"rope_scaling": scaling}


def _gemma3(metadata: _Metadata) -> dict[str, Any]:
    """Five layers with a window, then one without; scores are scaled by the width of a head, but in the largest."""
    heads, width, dims = (
        metadata.integer("attention.head_count"),
        metadata.integer("embedding_length"),
        metadata.head_dim(),
    )
    large = metadata.integer("block_count") == 62
    scale = {"query_pre_attn_scalar": width // heads if large else dims}
    pattern = {"sliding_window_pattern": metadata.get("attention.sliding_window_pattern") or 6}
    return {**_rotary_decoder(metadata), **scale, **pattern}


def _gptneox(metadata: _Metadata) -> dict[str, Any]:
    dims = metadata.head_dim()
    return {**_decoder(metadata), "rotary_pct": metadata.integer("rope.dimension_count") / dims}


def _bert(metadata: _Metadata) -> dict[str, Any]:
    metadata.head_dim()
    metadata.get("pooling_type")  # which stands behind the encoder
    return {"type_vocab_size": metadata.rows("token_types.weight")}


# By general.architecture.
ARCHITECTURES = {
    "bert": Architecture(
        "bert",
        "BertModel",
        {**_SIZES, "attention.layer_norm_epsilon": "layer_norm_eps"},
        fixed={"hidden_act": "gelu"},
        off={"attention.causal": False},
        more=_bert,
    ),
    "gemma3": Architecture(
        "gemma3_text",
        "Gemma3ForCausalLM",
        {**_LLAMA, "attention.key_length": "head_dim", "rope.freq_base": "rope_theta"},
        {
            "attention.head_count_kv": "num_key_value_heads",
            "attention.sliding_window": "sliding_window",
            "rope.freq_base_swa": "rope_local_base_freq",
            "final_logit_softcapping": "final_logit_softcapping",
        },
        {"hidden_activation": "gelu_pytorch_tanh", "rope_local_base_freq": 10000.0},
        more=_gemma3,
    ),
    "gpt2": Architecture(
        "gpt2",
        "GPT2LMHeadModel",
        {
            "context_length": "n_positions",
            "embedding_length": "n_embd",
            "block_count": "n_layer",
            "feed_forward_length": "n_inner",
            "attention.head_count": "n_head",
            "attention.layer_norm_epsilon": "layer_norm_epsilon",
        },
        fixed={"activation_function": "gelu_new"},
        more=_decoder,
    ),
    "gptneox": Architecture(
        "gpt_neox",
        "GPTNeoXForCausalLM",
        {
            **_SIZES,
            "attention.layer_norm_epsilon": "layer_norm_eps",
            "use_parallel_residual": "use_parallel_residual",
        },
        {"rope.freq_base": "rotary_emb_base"},
        {"hidden_act": "gelu"},
        more=_gptneox,
    ),
    "llama": Architecture(
        "llama", "LlamaForCausalLM", _LLAMA, _LLAMA_OPTIONAL, {"rope_theta": 10000.0}, _NO_EXPERTS, _llama
    ),
    "qwen2": Architecture(
        "qwen2", "Qwen2ForCausalLM", _LLAMA, _LLAMA_OPTIONAL, {"rope_theta": 10000.0}, _NO_EXPERTS, _rotary_decoder
    ),
    "qwen3": Architecture(
        "qwen3", "Qwen3ForCausalLM", _LLAMA, _LLAMA_OPTIONAL, {"rope_theta": 10000.0}, _NO_EXPERTS, _rotary_decoder
    ),
}
