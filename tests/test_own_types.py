"""dtype="own": the types nearest those of a GGUF's matrices, and groups that are kept as they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind
from kaoken.codegen.checkpoint import open_checkpoint
from kaoken.codegen.dtypes import Types, make_types
from kaoken.codegen.layout import quantize_int4, quantize_int4_min, quantize_int8_groups
from kaoken.codegen.own_types import resolve
from numpy.typing import NDArray

import kaoken
from gguf_files import llama_metadata, llama_parts, write_file
from kaoken.cli import main
from oracles import llama
from reference import relative_error

BLOCKY = {**llama.TINY, "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2}
MIXED = {"attn_q": Kind.Q4_1, "attn_k": Kind.Q4_1, "attn_v": Kind.Q5_0, "attn_output": Kind.Q4_1, "ffn_gate": Kind.Q4_0}
MIXED |= {"ffn_up": Kind.Q4_1, "ffn_down": Kind.Q4_1, "token_embd": Kind.Q8_0, "output": Kind.F16}

Groups = tuple[NDArray[np.int8], NDArray[np.float16]]


def blocks_of(kind: Kind) -> NDArray[np.uint8]:
    """Of 24 rows of 4 groups, of which one is zeros."""
    weight = np.random.default_rng(0).standard_normal((24, 128)).astype(np.float32)
    weight[3, 32:64] = 0
    blocks: NDArray[np.uint8] = gguf.quants.quantize(weight, kind)
    return blocks


def parts_of(blocks: NDArray[np.uint8], kind: Kind) -> Groups:
    """The integers [rows, columns] of blocks, and what goes with them [rows, groups, ...] (ggml-common.h)."""
    rows = blocks.reshape(len(blocks), -1, gguf.GGML_QUANT_SIZES[kind][1])
    if kind == Kind.Q8_0:
        return rows[..., 2:].view(np.int8).reshape(len(blocks), -1), rows[..., :2].copy().view(np.float16)[..., 0]
    halves = 1 if kind == Kind.Q4_0 else 2
    nibbles = rows[..., 2 * halves :]
    integers = np.concatenate([nibbles & 15, nibbles >> 4], axis=-1).view(np.int8) - (8 if kind == Kind.Q4_0 else 0)
    beside = rows[..., : 2 * halves].copy().view(np.float16)
    return integers.reshape(len(blocks), -1), beside[..., 0] if halves == 1 else beside


def values_of(groups: Groups) -> NDArray[np.float64]:
    """What integers and scales stand for [rows, columns]."""
    integers, beside = groups
    split = integers.reshape(*beside.shape[:2], 32).astype(np.float64)
    scale, least = (beside[..., 0], beside[..., 1]) if beside.ndim == 3 else (beside, np.zeros_like(beside))
    return (split * scale[..., None] + least[..., None]).reshape(integers.shape)


QUANTIZERS = {Kind.Q8_0: quantize_int8_groups, Kind.Q4_0: quantize_int4, Kind.Q4_1: quantize_int4_min}


@pytest.mark.parametrize("kind", QUANTIZERS, ids=lambda kind: kind.name)
def test_integers_and_scales_are_those_of_the_blocks(kind: Kind) -> None:
    blocks = blocks_of(kind)
    integers, beside = QUANTIZERS[kind](gguf.quants.dequantize(blocks, kind).astype(np.float64))
    expected, beside_expected = parts_of(blocks, kind)
    used = beside_expected.reshape(*beside_expected.shape[:2], -1)[..., 0] != 0  # integers of zeros are any
    np.testing.assert_array_equal(beside, beside_expected)
    np.testing.assert_array_equal(integers.reshape(24, 4, 32)[used], expected.reshape(24, 4, 32)[used])


@pytest.mark.parametrize("kind", QUANTIZERS, ids=lambda kind: kind.name)
@pytest.mark.parametrize("most", [1, 3, 5])
def test_groups_that_use_a_part_of_their_range(kind: Kind, most: int) -> None:
    """As a quantizer that searches for scales leaves some: values stay, on whatever step."""
    blocks = blocks_of(kind).reshape(24, 4, -1)
    integers = np.random.default_rng(1).integers(0, most + 1, (24, 4, 32))
    if kind == Kind.Q8_0:
        blocks[..., 2:] = (integers * 9).astype(np.int8).view(np.uint8)
    else:
        zero = 8 if kind == Kind.Q4_0 else 0
        blocks[..., -16:] = (integers[..., :16] + zero) | ((integers[..., 16:] + zero) << 4)
    values = gguf.quants.dequantize(blocks.reshape(24, -1), kind).astype(np.float64)
    found = values_of(QUANTIZERS[kind](values))
    np.testing.assert_allclose(found, values, rtol=1e-6 if kind == Kind.Q4_1 else 0)


def test_groups_of_q4_k() -> None:
    """Scales of 6 bits times a float16: both parts are rounded to float16, and no integer changes."""
    random = np.random.default_rng(2)
    blocks = random.integers(0, 256, (8, 2, 144), dtype=np.uint8)
    blocks[..., :4] = np.array([0.01, 0.02], np.float16).view(np.uint8)
    values = gguf.quants.dequantize(blocks.reshape(8, -1), Kind.Q4_K).astype(np.float64)
    found = values_of(quantize_int4_min(values))
    groups = values.reshape(8, -1, 32)
    bound = np.ptp(groups, axis=2) + np.abs(groups.min(axis=2))
    assert (np.abs(found.reshape(groups.shape) - groups).max(axis=2) <= bound * 2.0**-11 + 1e-9).all()


def test_weights_on_no_grid_are_rounded_as_ever() -> None:
    weight = np.random.default_rng(3).standard_normal((16, 64))
    _, scale = quantize_int8_groups(weight)
    np.testing.assert_array_equal(scale, (np.abs(weight.reshape(16, 2, 32)).max(axis=2) / 127).astype(np.float16))


def mixed_file(directory: Path) -> Path:
    llama.write(directory, BLOCKY)
    config, _, tensors = llama_parts(directory)
    tensors["output.weight"] = tensors["token_embd.weight"][::-1]
    kinds = {name: MIXED[name.split(".")[-2]] for name, tensor in tensors.items() if tensor.ndim == 2}
    made = {name: gguf.quants.quantize(tensors[name], kind) for name, kind in kinds.items()}
    return write_file(directory / "mixed.gguf", "llama", llama_metadata(config), tensors | made, kinds)


def own(path: Path, overrides: str = "") -> Types:
    return resolve(make_types("own", overrides), open_checkpoint(path))


def test_matrices_of_one_product_have_the_type_that_holds_all(tmp_path: Path) -> None:
    types = own(mixed_file(tmp_path), "layers.0.mlp.down_proj=int8")
    assert (types.dtype, types.cache) == ("int4-min", "int8")
    assert dict(types.overrides) == {
        **dict.fromkeys([f"layers.*.self_attn.{part}_proj" for part in "qkv"], "int8-g32"),
        "lm_head": "bfloat16",
        "wte": "int8-g32",
        "layers.0.mlp.down_proj": "int8",
    }
    assert {name: types.of(name) for name in ("wte", "layers.1.mlp.gate_proj", "layers.1.self_attn.o_proj")} == {
        "wte": "int8-g32",
        "layers.1.mlp.gate_proj": "int4-min",
        "layers.1.self_attn.o_proj": "int4-min",
    }


def test_other_checkpoints_are_float32(tmp_path: Path) -> None:
    llama.write(tmp_path, BLOCKY)
    assert own(tmp_path, "lm_head=int8") == make_types("float32", "lm_head=int8")


def test_baked_by_default(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = mixed_file(tmp_path)
    assert main(["bake", str(path), "--isa", "scalar", "-o", str(tmp_path / "own.so")]) == 0
    assert "kaoken: baked in int4-min, " in capsys.readouterr().err
    model: Any = kaoken.load(tmp_path / "own.so")
    assert model.info.dtype == "int4-min"
    exact: Any = kaoken.load(kaoken.bake(path, isa="scalar", dtype="float32", out=tmp_path / "float32.so"))
    ids = np.arange(3, 43)[None]
    assert relative_error(model.logits(ids), exact.logits(ids)) < 0.06
