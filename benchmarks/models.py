"""The checkpoints that are measured: GPT-2 shapes with random weights, and the bundled model."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).parent.parent
BUNDLED = ROOT / "models" / "gptlite-shakespeare"

SHAPES: dict[str, dict[str, int]] = {
    "gpt2": {"n_embd": 768, "n_layer": 12, "n_head": 12},
    "gpt2-medium": {"n_embd": 1024, "n_layer": 24, "n_head": 16},
}
MODELS = (*SHAPES, "bundled")

SEED = 1
INITIAL_DEVIATION = 0.02  # GPT-2's


@dataclass(frozen=True)
class Checkpoint:
    """A GPT-2 checkpoint in a directory; `digest` names its weights in cache paths."""

    name: str
    directory: Path
    digest: str

    def config(self) -> dict[str, Any]:
        """config.json, with the fields that the runner needs."""
        config: dict[str, Any] = json.loads((self.directory / "config.json").read_text(encoding="utf-8"))
        return config

    def parameters(self) -> int:
        """Of a GPT-2 with a tied head, its embeddings and biases included."""
        config = self.config()
        width = int(config["n_embd"])
        blocks = int(config["n_layer"]) * (12 * width * width + 13 * width)
        return (int(config["vocab_size"]) + int(config["n_positions"])) * width + blocks + 2 * width


def get_checkpoint(name: str, cache: Path) -> Checkpoint:
    """The checkpoint of that name, made in the cache if it is one of random weights. Raises KeyError."""
    directory = BUNDLED if name == "bundled" else cache / "checkpoints" / f"{name}-seed{SEED}"
    if not (directory / "model.safetensors").is_file():
        _write_random(directory, {**_common_config(), **SHAPES[name]})
    return Checkpoint(name, directory, _digest(directory))


def _common_config() -> dict[str, Any]:
    return {
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


def _write_random(directory: Path, config: dict[str, Any]) -> None:
    """GPT-2's initialization from a seed: deviation 0.02, LayerNorm 1 and 0. Whole or not at all."""
    from safetensors.numpy import save_file

    temporary = directory.with_name(f"{directory.name}.{os.getpid()}")
    temporary.mkdir(parents=True)
    save_file(random_tensors(config, SEED), temporary / "model.safetensors", metadata={"format": "pt"})
    (temporary / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    shutil.rmtree(directory, ignore_errors=True)
    temporary.rename(directory)


def random_tensors(config: dict[str, Any], seed: int) -> dict[str, NDArray[np.float32]]:
    """Every tensor of a GPT-2 as transformers names them; biases are 0 as GPT-2 starts with."""
    generator = np.random.default_rng(seed)

    def normal(*shape: int) -> NDArray[np.float32]:
        return generator.standard_normal(shape, np.float32) * np.float32(INITIAL_DEVIATION)

    width = int(config["n_embd"])
    tensors = {"wte.weight": normal(config["vocab_size"], width), "wpe.weight": normal(config["n_positions"], width)}
    linears = {
        "attn.c_attn": (width, 3 * width),
        "attn.c_proj": (width, width),
        "mlp.c_fc": (width, 4 * width),
        "mlp.c_proj": (4 * width, width),
    }
    norms = [f"h.{layer}.{name}" for layer in range(config["n_layer"]) for name in ("ln_1", "ln_2")] + ["ln_f"]
    for layer in range(config["n_layer"]):
        for name, shape in linears.items():
            tensors[f"h.{layer}.{name}.weight"] = normal(*shape)
            tensors[f"h.{layer}.{name}.bias"] = np.zeros(shape[1], np.float32)
    for name in norms:
        tensors[f"{name}.weight"] = np.ones(width, np.float32)
        tensors[f"{name}.bias"] = np.zeros(width, np.float32)
    return {f"transformer.{name}": tensor for name, tensor in tensors.items()}


def _digest(directory: Path) -> str:
    """Of the configuration and of the weights' size and first megabyte: 12 hexadecimal digits."""
    weights = directory / "model.safetensors"
    digest = hashlib.sha256((directory / "config.json").read_bytes())
    digest.update(str(weights.stat().st_size).encode())
    with weights.open("rb") as file:
        digest.update(file.read(1 << 20))
    return digest.hexdigest()[:12]
