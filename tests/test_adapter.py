"""LoRA adapters: what they add to weights against NumPy, the bits of a bake, its cache, and what is refused."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kaoken.codegen.checkpoint import open_checkpoint, watched_names
from kaoken.codegen.errors import CheckpointError, InputError, UnsupportedModelError
from kaoken.codegen.evaluate import evaluate
from kaoken.codegen.families import read_graph
from kaoken.codegen.graph import Graph
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

import decoders
import kaoken
from bits import require_same_bits
from checkpoints import uniform, write_checkpoint
from configurations import CONFIGURATIONS
from kaoken.cli import main
from native_build import bake_together, ninja
from reference import LIMIT, relative_error

Tensors = dict[str, NDArray[np.float32]]

PREFIX = "base_model.model."
CONFIG: dict[str, Any] = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "base_model_name_or_path": "somewhere/else",
    "r": 4,
    "lora_alpha": 8,
    "lora_dropout": 0.1,
    "target_modules": ["q_proj", "v_proj", "down_proj"],
    "bias": "none",
    "fan_in_fan_out": False,
    "inference_mode": True,
    "init_lora_weights": True,
    "modules_to_save": None,
    "rank_pattern": {},
    "alpha_pattern": {},
    "use_rslora": False,
    "use_dora": False,
    "peft_version": "0.21.2",
    "runtime_config": {"ephemeral_gpu_offload": False},
}
LAYER = "model.layers.{}.self_attn.{}"
MODULES = [LAYER.format(0, "q_proj"), LAYER.format(1, "v_proj"), "model.layers.1.mlp.down_proj", "lm_head"]
NAME = "mistral"  # of decoders.CONFIGURATIONS: one that is not tied


def whole(name: str, shape: tuple[int, ...], step: float) -> NDArray[np.float32]:
    """Multiples of `step`, so few that sums of products stay exact in float32."""
    return (np.rint(8 * uniform(name, shape, seed=1)) * step).astype(np.float32)


def write_model(directory: Path) -> Path:
    """A checkpoint whose weights are whole multiples of 1/64."""
    file = decoders.write(directory, decoders.config_of(NAME)) / "model.safetensors"
    save_file({name: whole(name, values.shape, 1 / 64) for name, values in load_file(file).items()}, file)
    return directory


def write_adapter(
    directory: Path, base: Path, modules: list[str], ranks: Mapping[str, int] | None = None, **fields: Any
) -> Path:
    """An adapter of modules of a checkpoint, of rank 4 but for those in `ranks`."""
    shapes = {name: values.shape for name, values in load_file(base / "model.safetensors").items()}
    tensors: Tensors = {}
    for module in modules:
        outputs, inputs = shapes[f"{module}.weight"]
        rank = (ranks or {}).get(module, 4)
        if "c_" in module:  # of a Conv1D
            outputs, inputs = inputs, outputs
        name = PREFIX + module
        if module.endswith(("embed_tokens", "wte")):
            parts = {f"{name}.lora_embedding_A": (rank, outputs), f"{name}.lora_embedding_B": (inputs, rank)}
        else:
            parts = {f"{name}.lora_A.weight": (rank, inputs), f"{name}.lora_B.weight": (outputs, rank)}
        tensors |= {part: whole(part, shape, 1 / 16) for part, shape in parts.items()}
    directory.mkdir(exist_ok=True)
    save_file(tensors, directory / "adapter_model.safetensors")
    (directory / "adapter_config.json").write_text(json.dumps({**CONFIG, **fields}), encoding="utf-8")
    return directory


def merge(base: Path, adapter: Path, out: Path, scales: Mapping[str, float]) -> Path:
    """The checkpoint with the adapter merged in float64."""
    tensors, parts = load_file(base / "model.safetensors"), load_file(adapter / "adapter_model.safetensors")
    for module, scale in scales.items():
        name, stored = PREFIX + module, tensors[f"{module}.weight"].astype(np.float64)
        if f"{name}.lora_A.weight" in parts:
            first, second = parts[f"{name}.lora_A.weight"], parts[f"{name}.lora_B.weight"]
            added = second.astype(np.float64) @ first
        else:
            first, second = parts[f"{name}.lora_embedding_A"], parts[f"{name}.lora_embedding_B"]
            added = (second.astype(np.float64) @ first).T
        tensors[f"{module}.weight"] = (stored + scale * (added.T if "c_" in module else added)).astype(np.float32)
    out.mkdir()
    save_file(tensors, out / "model.safetensors")
    (out / "config.json").write_bytes((base / "config.json").read_bytes())
    return out


def weights_of(graph: Graph) -> list[NDArray[np.float64]]:
    linears = [each for sublayer in graph.stack.sublayers for each in sublayer.body.linears.values()]
    assert graph.head is not None
    assert graph.head.output is not None
    tables = [graph.stack.embeddings.tokens, graph.head.output.weight]
    return [tensor.load() for tensor in (*(linear.weight for linear in linears), *tables)]


def require_merged(base: Path, adapter: Path, scales: Mapping[str, float], out: Path) -> None:
    """The weights with the adapter, and their pieces, are those of the merged checkpoint and differ from the base's."""
    found = read_graph(open_checkpoint(base, adapter))
    merged = read_graph(open_checkpoint(merge(base, adapter, out, scales)))
    for actual, expected in zip(weights_of(found), weights_of(merged), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-6)
    changed = zip(weights_of(found), weights_of(read_graph(open_checkpoint(base))), strict=True)
    assert sum(not np.array_equal(*pair) for pair in changed) >= len(scales)
    query = found.blocks[0].attention.query.weight
    np.testing.assert_array_equal(query.rows(3, 9), query.load()[3:9])


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write_model(tmp_path / "base")


def test_weights_are_those_of_the_merged_checkpoint(base: Path, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter", base, MODULES)
    require_merged(base, adapter, dict.fromkeys(MODULES, 8 / 4), tmp_path / "merged")


def test_ranks_and_scales_by_module(base: Path, tmp_path: Path) -> None:
    """The first pattern that fits counts; rsLoRA divides by the root of the rank."""
    ranks = {MODULES[0]: 2, MODULES[1]: 9}
    adapter = write_adapter(
        tmp_path / "adapter",
        base,
        MODULES,
        ranks,
        rank_pattern={"^model.layers.0.self_attn.q_proj": 2, "v_proj": 9, r"layers\.1\.self_attn\.v_proj": 7},
        alpha_pattern={"q_proj": 3, "^q_proj": 5, "layers.1.mlp.down_proj": 16, "own_proj": 1},
        use_rslora=True,
    )
    scales = {
        MODULES[0]: 3 / math.sqrt(2),
        MODULES[1]: 8 / 3,
        MODULES[2]: 16 / 2,
        MODULES[3]: 8 / 2,
    }
    require_merged(base, adapter, scales, tmp_path / "merged")


def test_embeddings_that_are_not_tied(base: Path, tmp_path: Path) -> None:
    modules = ["model.embed_tokens", MODULES[0]]
    adapter = write_adapter(tmp_path / "adapter", base, modules)
    require_merged(base, adapter, dict.fromkeys(modules, 2.0), tmp_path / "merged")


def test_copies_of_what_is_added_to(base: Path, tmp_path: Path) -> None:
    """peft stores them of embeddings and heads, and what they hold counts."""
    adapter = write_adapter(tmp_path / "adapter", base, MODULES)
    file, copy = adapter / "adapter_model.safetensors", whole("a copy", (61, 48), 1 / 64)
    save_file({**load_file(file), f"{PREFIX}lm_head.base_layer.weight": copy}, file)
    stored = load_file(base / "model.safetensors")
    (tmp_path / "other").mkdir()
    save_file({**stored, "lm_head.weight": copy}, tmp_path / "other" / "model.safetensors")
    (tmp_path / "other" / "config.json").write_bytes((base / "config.json").read_bytes())
    merged = merge(tmp_path / "other", adapter, tmp_path / "merged", dict.fromkeys(MODULES, 2.0))
    found, expected = (
        weights_of(read_graph(open_checkpoint(base, adapter))),
        weights_of(read_graph(open_checkpoint(merged))),
    )
    for pair in zip(found, expected, strict=True):
        np.testing.assert_array_equal(*pair)
    save_file({**load_file(file), f"{PREFIX}lm_head.base_layer.weight": copy[:7]}, file)
    with pytest.raises(CheckpointError, match=r"added to 'lm_head.weight' has shape \[7, 48\]; expected \[61, 48\]"):
        read_graph(open_checkpoint(base, adapter))


def test_matrices_that_are_stored_transposed(tmp_path: Path) -> None:
    base = CONFIGURATIONS["untied"].write(tmp_path / "base")
    modules = ["transformer.h.0.attn.c_attn", "transformer.h.1.mlp.c_fc", "transformer.h.1.mlp.c_proj"]
    adapter = write_adapter(tmp_path / "adapter", base, modules, fan_in_fan_out=True)
    require_merged(base, adapter, dict.fromkeys(modules, 2.0), tmp_path / "merged")


def test_names_without_the_prefix_of_a_head(tmp_path: Path) -> None:
    base = decoders.write(tmp_path / "base", decoders.config_of(NAME), prefixed=False)
    modules = ["layers.0.self_attn.q_proj"]
    adapter = write_adapter(tmp_path / "adapter", base, modules)
    require_merged(base, adapter, {modules[0]: 2.0}, tmp_path / "merged")


@pytest.mark.parametrize("dtype", ["float32", pytest.param("int8", marks=pytest.mark.ci)])
def test_a_bake_has_the_bits_of_the_merged_checkpoint(dtype: str, base: Path, tmp_path: Path) -> None:
    """The sums are exact in float32, so merging before and behind the rounding is the same."""
    adapter = write_adapter(tmp_path / "an adapter", base, MODULES)
    merged = merge(base, adapter, tmp_path / "merged", dict.fromkeys(MODULES, 2.0))
    ids = decoders.ids_of(decoders.config_of(NAME), count=70)
    found, expected = (
        kaoken.load(kaoken.bake(directory, dtype=dtype, adapter=own))
        for directory, own in ((base, adapter), (merged, None))
    )
    require_same_bits(found.logits(ids), expected.logits(ids))
    assert found.info.settings["adapter"] == "an adapter"
    assert "adapter" not in expected.info.settings
    assert found.info.weights_sha256 != kaoken.load(kaoken.bake(base, dtype=dtype)).info.weights_sha256


def test_the_command_and_the_cache(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A second bake is found, wherever the adapter lies; another adapter makes another library."""
    adapter = write_adapter(tmp_path / "adapter", base, MODULES)
    (tmp_path / "elsewhere").mkdir()
    moved = write_adapter(tmp_path / "elsewhere" / "adapter", base, MODULES)
    assert main(["bake", str(base), "--adapter", str(adapter)]) == 0
    path = capsys.readouterr().out.strip()
    assert str(kaoken.bake(base, adapter=moved)) == path
    assert str(kaoken.bake(base)) != path
    write_adapter(moved, base, MODULES, lora_alpha=9)
    assert str(kaoken.bake(base, adapter=moved)) != path


def test_files_that_rebuilds_watch(base: Path, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter", base, MODULES)
    opened = open_checkpoint(base, adapter)
    files = {str(adapter / name) for name in ("adapter_config.json", "adapter_model.safetensors")}
    assert files <= set(watched_names(opened, base))
    assert files <= set(map(str, opened.files))


@pytest.mark.ci
def test_a_changed_adapter_is_baked_again(base: Path, tmp_path: Path) -> None:
    """By CMake, from a path with a blank in it, relative to the project."""
    project = tmp_path / "project"
    project.mkdir()
    adapter = write_adapter(project / "an adapter", base, MODULES)
    library = bake_together(project, {"adapted": (base, 'ISA native ADAPTER "an adapter"')})["adapted"]
    ids = decoders.ids_of(decoders.config_of(NAME), count=9)
    for turn, alpha in enumerate((8, 24, 8)):
        write_adapter(adapter, base, MODULES, lora_alpha=alpha)
        ninja(project / "build")
        expected = evaluate(read_graph(open_checkpoint(base, adapter)), ids[0])
        copy = shutil.copy(library, tmp_path / f"{turn}.so")  # a process loads a file once
        assert relative_error(expected, kaoken.load(copy).logits(ids)[0]) < LIMIT


MERGED = "expected a plain LoRA: merge it with peft's merge_and_unload"
REFUSED: dict[str, tuple[type[Exception], dict[str, Any], str]] = {
    "DoRA": (UnsupportedModelError, {"use_dora": True}, f"use_dora.*{MERGED}"),
    "another method": (UnsupportedModelError, {"peft_type": "IA3"}, f"peft_type 'IA3'.*{MERGED}"),
    "no method": (UnsupportedModelError, {"peft_type": None}, "peft_type None"),
    "whole modules": (UnsupportedModelError, {"modules_to_save": ["lm_head"]}, "whole modules, \\['lm_head'\\]"),
    "biases": (UnsupportedModelError, {"bias": "lora_only"}, "has biases"),
    "a bias of the adapter": (UnsupportedModelError, {"lora_bias": True}, "lora_bias is True"),
    "another beginning": (UnsupportedModelError, {"init_lora_weights": "pissa_niter_4"}, "'pissa_niter_4'"),
    "an unknown field": (UnsupportedModelError, {"use_elora": True}, "does not know the field 'use_elora'"),
    "tokens": (UnsupportedModelError, {"trainable_token_indices": [3]}, "trainable_token_indices is \\[3\\]"),
    "copies of layers": (UnsupportedModelError, {"layer_replication": [[0, 2]]}, "layer_replication is"),
    "a rank": (CheckpointError, {"r": 5}, "have shapes.*expected \\[5, inputs\\]"),
    "no rank": (CheckpointError, {"r": 0}, "r is 0; expected a whole number"),
    "a scale": (CheckpointError, {"lora_alpha": "much"}, "lora_alpha is 'much'"),
    "a huge scale": (CheckpointError, {"lora_alpha": 1e300}, "lora_alpha is 1e\\+300"),
    "a rank of a module": (CheckpointError, {"rank_pattern": {"q_proj": 1 << 40}}, "q_proj is 1099511627776"),
    "no patterns": (CheckpointError, {"alpha_pattern": ["q_proj"]}, "alpha_pattern is"),
    "an expression": (
        UnsupportedModelError,
        {"rank_pattern": {"(a+)+$": 4}},
        "the pattern '\\(a\\+\\)\\+\\$'.*write the names out",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(case: str, base: Path, tmp_path: Path) -> None:
    kind, fields, message = REFUSED[case]
    adapter = write_adapter(tmp_path / "adapter", base, MODULES, **fields)
    with pytest.raises(kind, match=message):
        read_graph(open_checkpoint(base, adapter))


def changed(adapter: Path, **tensors: NDArray[Any] | None) -> Path:
    """With other tensors of the first module; None leaves one out."""
    file = adapter / "adapter_model.safetensors"
    found = load_file(file)
    for part, values in tensors.items():
        name = f"{PREFIX}{MODULES[0]}.{part}.weight"
        found.pop(name)
        if values is not None:
            found[name] = values
    save_file(found, file)
    return adapter


def test_parts_that_do_not_fit(base: Path, tmp_path: Path) -> None:
    def refused(message: str, **tensors: NDArray[Any] | None) -> None:
        adapter = changed(write_adapter(tmp_path / "adapter", base, MODULES), **tensors)
        with pytest.raises(CheckpointError, match=message):
            read_graph(open_checkpoint(base, adapter))

    refused("q_proj' has lora_A.weight alone", lora_B=None)
    refused("q_proj' has lora_B.weight alone", lora_A=None)
    refused("have shapes \\[3, 48\\] and \\[48, 4\\]", lora_A=np.ones((3, 48), np.float32))
    refused("have shapes \\[4, 48, 1\\]", lora_A=np.ones((4, 48, 1), np.float32))
    refused("what is added to 'layers.0.self_attn.q_proj.weight' has shape", lora_A=np.ones((4, 47), np.float32))
    refused("lora_A.weight' is stored as 'I32'", lora_A=np.ones((4, 48), np.int32))


def test_values_that_are_no_numbers(base: Path, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter", base, MODULES)
    graph = read_graph(open_checkpoint(base, changed(adapter, lora_B=np.full((48, 4), np.nan, np.float32))))
    with pytest.raises(CheckpointError, match=r"lora_B.weight' are NaN"):
        graph.blocks[0].attention.query.weight.load()


def test_modules_that_are_not_there(base: Path, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter", base, MODULES)
    file = adapter / "adapter_model.safetensors"
    tensors = load_file(file)
    save_file({name.replace("layers.1", "layers.7"): values for name, values in tensors.items()}, file)
    with pytest.raises(CheckpointError, match=r"'layers.7.*no matrix of a Mistral.*that the adapter was trained with"):
        read_graph(open_checkpoint(base, adapter))
    save_file({**tensors, f"{PREFIX}model.norm.weight": np.ones(48, np.float32)}, file)
    with pytest.raises(UnsupportedModelError, match=r"norm.weight' is no part of a LoRA"):
        read_graph(open_checkpoint(base, adapter))


@pytest.mark.parametrize("module", ["transformer.wte", "lm_head"])
def test_a_table_that_is_used_twice(module: str, tmp_path: Path) -> None:
    base = write_checkpoint(tmp_path / "base")
    adapter = write_adapter(tmp_path / "adapter", base, ["transformer.wte"])
    file = adapter / "adapter_model.safetensors"
    if module == "lm_head":
        shapes = {"A": (4, 32), "B": (61, 4)}
        save_file({f"{PREFIX}lm_head.lora_{part}.weight": np.ones(shapes[part], np.float32) for part in "AB"}, file)
    with pytest.raises(UnsupportedModelError, match=r"a table that the model uses twice.*merge_and_unload"):
        read_graph(open_checkpoint(base, adapter))


def test_directories_that_are_none(base: Path, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter", base, MODULES)
    with pytest.raises(CheckpointError, match="is an adapter, without the model that it changes"):
        kaoken.bake(adapter)
    with pytest.raises(CheckpointError, match=r"has no adapter_config.json: expected the directory of a LoRA"):
        kaoken.bake(base, adapter=tmp_path / "nowhere")
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    with pytest.raises(CheckpointError, match=r"has no adapter_model.safetensors"):
        kaoken.bake(base, adapter=adapter)
    with pytest.raises(InputError, match="adapter must be a path"):
        kaoken.bake(base, adapter=3)  # type: ignore[arg-type]
