"""Directories of sentence-transformers around a tiny BERT. Nothing of Kaoken is imported."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.numpy import save_file

from checkpoints import write_json
from oracles import bert

WIDTH = bert.TINY["hidden_size"]
MODELS = "sentence_transformers.models"

POOLING = (f"{MODELS}.Pooling", {"word_embedding_dimension": WIDTH, "pooling_mode_mean_tokens": True})
NORMALIZE = (f"{MODELS}.Normalize", {})

# As many as the tiny BERT has tokens.
LETTERS = "abcdefghijklmnopqrstuvwxyz"
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS, *(f"##{letter}" for letter in LETTERS)]
WORDS += ["ada", "london", "lives", "."]

Modules = list[tuple[str, dict[str, Any]]]


def dense(inputs: int, outputs: int, activation: str = "torch.nn.modules.activation.Tanh", **fields: Any) -> Any:
    """A Dense module."""
    config = {"in_features": inputs, "out_features": outputs, "activation_function": activation, **fields}
    return f"{MODELS}.Dense", config


def write(
    directory: Path,
    modules: Modules | None = None,
    *,
    transformer: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
    subfolder: str = "",
    config: Mapping[str, Any] | None = None,
) -> Path:
    """A checkpoint with the modules behind its transformer, by class and config; returns its directory.

    `transformer` is sentence_bert_config.json, `settings` config_sentence_transformers.json, `subfolder` where the
    transformer lies.
    """
    bert.write(directory / subfolder, {**bert.TINY, **(config or {})})
    return write_modules(directory, modules, transformer=transformer, settings=settings, subfolder=subfolder)


def write_modules(
    directory: Path,
    modules: Modules | None = None,
    *,
    transformer: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
    subfolder: str = "",
) -> Path:
    """What `write` writes around a transformer that is there already."""
    entries = [{"idx": 0, "name": "0", "path": subfolder, "type": f"{MODELS}.Transformer"}]
    for index, (kind, fields) in enumerate([POOLING, NORMALIZE] if modules is None else modules, 1):
        name = kind.rpartition(".")[2]
        entries.append({"idx": index, "name": str(index), "path": f"{index}_{name}", "type": kind})
        folder = directory / f"{index}_{name}"
        folder.mkdir(exist_ok=True)
        if fields:
            write_json(folder / "config.json", fields)
        shapes: dict[str, tuple[int, ...]] = {}
        if name == "Dense":
            shapes = {"linear.weight": (fields["out_features"], fields["in_features"])}
            shapes |= {"linear.bias": (fields["out_features"],)} if fields.get("bias", True) else {}
        if name == "LayerNorm":
            shapes = {f"norm.{part}": (fields["dimension"],) for part in ("weight", "bias")}
        if shapes:
            tensors = {
                part: bert.make_tensor(part.replace("norm", "LayerNorm"), shape) for part, shape in shapes.items()
            }
            save_file(tensors, folder / "model.safetensors")
    write_json(directory / "modules.json", entries)
    if transformer is not None:
        write_json(directory / subfolder / "sentence_bert_config.json", transformer)
    if settings is not None:
        write_json(directory / "config_sentence_transformers.json", settings)
    return directory


def write_vocabulary(directory: Path, **config: Any) -> Path:
    """vocab.txt, and tokenizer_config.json where there is something to say; returns the directory."""
    assert len(WORDS) == bert.TINY["vocab_size"]
    (directory / "vocab.txt").write_text("\n".join(WORDS) + "\n", encoding="utf-8")
    if config:
        write_json(directory / "tokenizer_config.json", config)
    return directory


def change(directory: Path, file: str, **fields: Any) -> None:
    """Lays fields over those of a JSON file, which may not be there yet."""
    path = directory / file
    values = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    write_json(path, values | fields)
