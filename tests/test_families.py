"""A family from elsewhere, in one file, and what the readers of families refuse."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from checkpoints import uniform
from native_build import call

# Attention whose queries are keys, too, a plain MLP, and a table of positions: nothing that Kaoken knows by name.
FAMILY = '''
"""Twins: a made-up family."""

import re

from ..graph import Attention, Block, Embeddings, Graph, Head, Linear, Mlp, Stack, Sublayer
from .fields import names

TITLE = "a Twins"
ARCHITECTURES = ("Twins",)
ALIASES = {}
OFF, HARMLESS = names(), names("colour")
PREFIX, IGNORED = "", re.compile("scratch")


def read(fields, tokens, weights):
    width, count = fields.integer("size", None, 64), fields.integer("words", None, 99)
    limit = fields.integer("length", None, 99)
    table = weights.tensor("words", (count, width))
    both, value = weights.linear("both", width, width, bias=False), weights.linear("value", width, width)
    attention = Attention(2, 2, width // 2, both, both, value, weights.linear("out", width, width), 0.5)
    mlp = Mlp(weights.linear("up", 3, width), weights.linear("down", width, 3), "relu")
    norms = [weights.rms_norm(f"norm_{index}", width, 1e-5) for index in range(3)]
    blocks = (Block((Sublayer(attention, norms[0]), Sublayer(mlp, norms[1]))),)
    stack = Stack(Embeddings(table, weights.tensor("places", (limit, width))), blocks, norms[2], limit)
    return Graph(decoder=stack, head=Head(Linear(table, None)), special=tokens.special_tokens(count, None, None))
'''

CONFIG = {"model_type": "twins", "size": 12, "words": 9, "length": 7, "colour": "blue"}

BAKE = """
import json, sys
import kaoken
model = kaoken.load(kaoken.bake(sys.argv[1]))
print(json.dumps(model.logits([[1, 2, 3, 8]])[0].tolist()))
"""


def write(directory: Path) -> dict[str, np.ndarray]:
    shapes: dict[str, tuple[int, ...]] = {"words": (9, 12), "places": (7, 12), "both.weight": (12, 12)}
    shapes |= {"value.weight": (12, 12), "value.bias": (12,), "out.weight": (12, 12), "out.bias": (12,)}
    shapes |= {"up.weight": (3, 12), "up.bias": (3,), "down.weight": (12, 3), "down.bias": (12,), "scratch": (2,)}
    shapes |= {f"norm_{index}.weight": (12,) for index in range(3)}
    tensors = {name: uniform(name, shape, seed=3).astype(np.float32) for name, shape in shapes.items()}
    directory.mkdir()
    save_file(tensors, directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    return {name: tensor.astype(np.float64) for name, tensor in tensors.items()}


def expected_logits(tensors: dict[str, np.ndarray], ids: list[int]) -> np.ndarray:
    def linear(name: str, x: np.ndarray) -> np.ndarray:
        return x @ tensors[f"{name}.weight"].T + tensors.get(f"{name}.bias", 0.0)

    def norm(index: int, x: np.ndarray) -> np.ndarray:
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5) * tensors[f"norm_{index}.weight"]

    hidden = tensors["words"][ids] + tensors["places"][: len(ids)]
    x = norm(0, hidden)
    heads = []
    for part in (slice(0, 6), slice(6, 12)):
        both, value = linear("both", x)[:, part], linear("value", x)[:, part]
        scores = np.exp(np.where(np.tri(len(ids)) > 0, 0.5 * both @ both.T, -np.inf))
        heads.append(scores / scores.sum(-1, keepdims=True) @ value)
    hidden = hidden + linear("out", np.concatenate(heads, -1))
    hidden = hidden + linear("down", np.maximum(linear("up", norm(1, hidden)), 0))
    return norm(2, hidden) @ tensors["words"].T


def test_a_family_in_one_file_is_baked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "families").mkdir()
    (tmp_path / "families" / "twins.py").write_text(FAMILY, encoding="utf-8")
    tensors = write(tmp_path / "model")
    monkeypatch.setenv("KAOKEN_FAMILIES", str(tmp_path / "families"))
    logits = json.loads(call(sys.executable, "-c", BAKE, tmp_path / "model").splitlines()[-1])
    np.testing.assert_allclose(logits, expected_logits(tensors, [1, 2, 3, 8]), rtol=0, atol=1e-5)
