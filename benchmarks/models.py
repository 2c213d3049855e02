"""The checkpoints that are measured: known shapes with random weights, and the bundled model."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from benchmarks.shapes import SHAPES, TASKS, random_tensors

ROOT = Path(__file__).parent.parent
BUNDLED = ROOT / "models" / "gptlite-shakespeare"

MODELS = (*SHAPES, "bundled")
SEED = 1


def task_of(name: str) -> str:
    """What the model of that name is measured at."""
    return "decode" if name == "bundled" else TASKS[SHAPES[name]["model_type"]]


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint in a directory; `digest` names its weights in cache paths."""

    name: str
    directory: Path
    digest: str

    def config(self) -> dict[str, Any]:
        """config.json, with the fields that the runner needs."""
        config: dict[str, Any] = json.loads((self.directory / "config.json").read_text(encoding="utf-8"))
        return config

    def task(self) -> str:
        """What it is measured at, such as "decode"."""
        return TASKS[self.config()["model_type"]]

    def n_positions(self) -> int:
        """How long a sequence may be."""
        config = self.config()
        return int(config["n_positions"] if "n_positions" in config else config["max_position_embeddings"])

    def parameters(self) -> int:
        """All numbers in its weights; what is tied is there once."""
        with (self.directory / "model.safetensors").open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        return sum(prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__")


def get_checkpoint(name: str, cache: Path) -> Checkpoint:
    """The checkpoint of that name, made in the cache if it is one of random weights. Raises KeyError."""
    directory = BUNDLED if name == "bundled" else cache / "checkpoints" / f"{name}-seed{SEED}"
    if not (directory / "model.safetensors").is_file():
        _write_random(directory, SHAPES[name])
    return Checkpoint(name, directory, _digest(directory))


def _write_random(directory: Path, config: dict[str, Any]) -> None:
    """Its family's initialization from a seed. Whole or not at all."""
    from safetensors.numpy import save_file

    temporary = directory.with_name(f"{directory.name}.{os.getpid()}")
    temporary.mkdir(parents=True)
    save_file(random_tensors(config, SEED), temporary / "model.safetensors", metadata={"format": "pt"})
    (temporary / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    shutil.rmtree(directory, ignore_errors=True)
    temporary.rename(directory)


def _digest(directory: Path) -> str:
    """Of the configuration and of the weights' size and first megabyte: 12 hexadecimal digits."""
    weights = directory / "model.safetensors"
    digest = hashlib.sha256((directory / "config.json").read_bytes())
    digest.update(str(weights.stat().st_size).encode())
    with weights.open("rb") as file:
        digest.update(file.read(1 << 20))
    return digest.hexdigest()[:12]
