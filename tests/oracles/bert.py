"""BERT in NumPy float64, with its heads, and tiny checkpoints of it. Nothing of Kaoken is imported.

Its config is that of transformers' BertConfig; its tensors are named as BertModel's. `python -m oracles.bert DIRECTORY`
writes a checkpoint.
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
    "model_type": "bert",
    "architectures": ["BertModel"],
    "vocab_size": 61,
    "hidden_size": 48,
    "intermediate_size": 100,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "max_position_embeddings": 150,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
    "hidden_act": "gelu",
}

# Fields that differ from TINY.
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "odd_heads": {"hidden_size": 35, "num_attention_heads": 5, "intermediate_size": 33, "hidden_act": "gelu_new"},
    "one_type": {"type_vocab_size": 1, "num_hidden_layers": 3, "hidden_act": "relu", "layer_norm_eps": 1e-5},
    "four_types": {"type_vocab_size": 4, "hidden_size": 52, "num_attention_heads": 2, "hidden_act": "silu"},
    "one_head": {
        "num_hidden_layers": 1,
        "hidden_size": 23,
        "num_attention_heads": 1,
        "intermediate_size": 7,
        "hidden_act": "tanh",
    },
    "masked": {  # as BertForMaskedLM stores it
        "architectures": ["BertForMaskedLM"],
        "hidden_size": 90,
        "num_attention_heads": 9,
        "intermediate_size": 160,
        "vocab_size": 131,
    },
    "first_names": {  # as the first checkpoints were stored: gamma, beta and the heads of pre-training
        "architectures": ["BertForPreTraining"],
        "hidden_size": 64,
        "num_attention_heads": 1,
        "intermediate_size": 65,
    },
}


def config_of(name: str) -> dict[str, Any]:
    """The whole config.json of a configuration."""
    return {**TINY, **CONFIGURATIONS[name]}


def tensor_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor of a BertModel without a pooler."""
    width, inner = config["hidden_size"], config["intermediate_size"]
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (config["vocab_size"], width),
        "embeddings.position_embeddings.weight": (config["max_position_embeddings"], width),
        "embeddings.token_type_embeddings.weight": (config["type_vocab_size"], width),
    }
    norms = ["embeddings"]
    for index in range(config["num_hidden_layers"]):
        layer = f"encoder.layer.{index}"
        linears = {f"attention.self.{part}": (width, width) for part in ("query", "key", "value")}
        linears |= {"attention.output.dense": (width, width)}
        linears |= {"intermediate.dense": (inner, width), "output.dense": (width, inner)}
        for name, shape in linears.items():
            shapes |= {f"{layer}.{name}.weight": shape, f"{layer}.{name}.bias": shape[:1]}
        norms += [f"{layer}.attention.output", f"{layer}.output"]
    for name in norms:
        shapes |= {f"{name}.LayerNorm.weight": (width,), f"{name}.LayerNorm.bias": (width,)}
    return shapes


def head_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor of the architecture's head."""
    width, vocabulary = config["hidden_size"], config["vocab_size"]
    labels = len(config.get("id2label", "01"))
    kind = config["architectures"][0].removeprefix("BertFor")
    if kind in ("MaskedLM", "PreTraining"):
        name = "cls.predictions"
        shapes: dict[str, tuple[int, ...]] = {
            f"{name}.transform.dense.weight": (width, width),
            **dict.fromkeys(
                (f"{name}.transform.{each}" for each in ("dense.bias", "LayerNorm.weight", "LayerNorm.bias")), (width,)
            ),
            f"{name}.bias": (vocabulary,),
        }
        if not config.get("tie_word_embeddings", True):
            shapes |= {f"{name}.decoder.weight": (vocabulary, width), f"{name}.decoder.bias": (vocabulary,)}
        return shapes
    linears = {
        "SequenceClassification": {"bert.pooler.dense": width, "classifier": labels},
        "TokenClassification": {"classifier": labels},
        "QuestionAnswering": {"qa_outputs": 2},
    }[kind]
    return {
        f"{name}.{part}": shape
        for name, outputs in linears.items()
        for part, shape in (("weight", (outputs, width)), ("bias", (outputs,)))
    }


def write(directory: Path, config: Mapping[str, Any]) -> Path:
    """A checkpoint whose values keep activations near 1 and leave nothing without effect; returns its directory."""
    architecture, width = config["architectures"][0], config["hidden_size"]
    tensors = {name: make_tensor(name, shape) for name, shape in tensor_shapes(config).items()}
    others = {"pooler.dense.weight": (width, width), "pooler.dense.bias": (width,)}
    if architecture != "BertModel":
        tensors = {f"bert.{name}": values for name, values in tensors.items()}
        others = head_shapes(config)
    tensors |= {name: make_tensor(name, shape) for name, shape in others.items()}
    others = {}
    if architecture == "BertForPreTraining":
        tensors = {name: values for name, values in tensors.items() if "LayerNorm" not in name} | {
            name.replace("Norm.weight", "Norm.gamma").replace("Norm.bias", "Norm.beta"): values
            for name, values in tensors.items()
            if "LayerNorm" in name
        }
        tensors["bert.embeddings.position_ids"] = np.arange(config["max_position_embeddings"])[None]
        others = {"bert.pooler.dense.weight": (width, width), "cls.seq_relationship.weight": (2, width)}
    tensors |= {name: make_tensor(name, shape) for name, shape in others.items()}
    directory.mkdir(parents=True, exist_ok=True)
    save_file(tensors, directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return directory


def make_tensor(name: str, shape: tuple[int, ...]) -> NDArray[Any]:
    values = uniform(name, shape, seed=0)
    if name.endswith("LayerNorm.weight"):
        values = 1.0 + 0.4 * values
    elif name.endswith(".bias"):
        values = 0.4 * values
    elif not name.startswith("embeddings."):
        values = values * math.sqrt((9.0 if ".self.query" in name or ".self.key" in name else 3.0) / shape[1])
    return values.astype(np.float32)


class Bert:
    """A checkpoint's vectors."""

    def __init__(self, directory: Path) -> None:
        self.config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
        self.tensors = {}
        for name, tensor in load_file(directory / "model.safetensors").items():
            name = name.removeprefix("bert.").replace("Norm.gamma", "Norm.weight").replace("Norm.beta", "Norm.bias")
            self.tensors[name] = tensor.astype(np.float64)

    def hidden_states(self, ids: Sequence[int], token_types: Sequence[int] | None = None) -> Array:
        """The last block's outputs, [length, hidden_size]; a token's type is 0 where none is given."""
        types = [0] * len(ids) if token_types is None else list(token_types)
        words, positions, kinds = (
            self.tensors[f"embeddings.{table}_embeddings.weight"] for table in ("word", "position", "token_type")
        )
        hidden = self._norm("embeddings", words[list(ids)] + positions[: len(ids)] + kinds[types])
        for index in range(self.config["num_hidden_layers"]):
            layer = f"encoder.layer.{index}"
            hidden = self._norm(f"{layer}.attention.output", hidden + self._attention(f"{layer}.attention", hidden))
            inner = self._activate(self._linear(f"{layer}.intermediate.dense", hidden))
            hidden = self._norm(f"{layer}.output", hidden + self._linear(f"{layer}.output.dense", inner))
        return hidden

    def logits(self, ids: Sequence[int], token_types: Sequence[int] | None = None) -> Array:
        """What the head gives: [outputs], or of a head that reads each position [length, outputs]."""
        hidden = self.hidden_states(ids, token_types)
        if "qa_outputs.weight" in self.tensors:
            return self._linear("qa_outputs", hidden)
        if "pooler.dense.weight" in self.tensors:
            hidden = np.tanh(self._linear("pooler.dense", hidden[0]))
        if "classifier.weight" in self.tensors:
            return self._linear("classifier", hidden)
        name = "cls.predictions"
        hidden = self._activate(self._linear(f"{name}.transform.dense", hidden))
        hidden = self._norm(f"{name}.transform", hidden)
        words = self.tensors["embeddings.word_embeddings.weight"]
        bias = self.tensors.get(f"{name}.decoder.bias", self.tensors[f"{name}.bias"])
        return hidden @ self.tensors.get(f"{name}.decoder.weight", words).T + bias

    def _linear(self, name: str, x: Array) -> Array:
        return x @ self.tensors[f"{name}.weight"].T + self.tensors[f"{name}.bias"]

    def _norm(self, name: str, x: Array) -> Array:
        weight, bias = (self.tensors[f"{name}.LayerNorm.{part}"] for part in ("weight", "bias"))
        scale = np.sqrt(x.var(-1, keepdims=True) + self.config["layer_norm_eps"])
        return (x - x.mean(-1, keepdims=True)) / scale * weight + bias

    def _activate(self, x: Array) -> Array:
        name = self.config["hidden_act"]
        if name == "gelu":
            return x * np.vectorize(lambda each: 0.5 * math.erfc(-each / math.sqrt(2)))(x)
        if name == "gelu_new":
            return x / (1 + np.exp(-2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
        return {"relu": np.maximum(x, 0), "silu": x / (1 + np.exp(-x)), "tanh": np.tanh(x)}[name]

    def _attention(self, name: str, x: Array) -> Array:
        heads = self.config["num_attention_heads"]
        dim = x.shape[1] // heads
        query, key, value = (self._linear(f"{name}.self.{part}", x) for part in ("query", "key", "value"))
        attended = np.zeros_like(query)
        for head in range(heads):
            part = slice(head * dim, (head + 1) * dim)
            scores = query[:, part] @ key[:, part].T / math.sqrt(dim)
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            attended[:, part] = weights / weights.sum(-1, keepdims=True) @ value[:, part]
        return self._linear(f"{name}.output.dense", attended)


if __name__ == "__main__":
    write(Path(sys.argv[1]), TINY)
