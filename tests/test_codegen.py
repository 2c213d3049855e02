"""Codegen: the golden text of a toy, determinism, the passes, the packed layout, the budget, the ISA table."""

from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from kaoken.codegen import passes
from kaoken.codegen.__main__ import main
from kaoken.codegen.checkpoint import open_checkpoint
from kaoken.codegen.emit.environment import hex_float
from kaoken.codegen.errors import BuildError, CheckpointError, InputError, ISAError
from kaoken.codegen.files import write_if_changed
from kaoken.codegen.graph import Graph, build_graph
from kaoken.codegen.isa import canonical_machine, resolve, table
from kaoken.codegen.layout import PANEL, pack_panels, pad_columns, pad_rows, round_up
from kaoken.codegen.memory import MemoryBudget, cgroup_files, group_sources, make_budget, parse_size
from kaoken.codegen.packing import pack
from kaoken.codegen.pipeline import Options, bake, generate
from kaoken.codegen.spec import read_spec

from checkpoints import GOLDEN_TOY, write_checkpoint
from configurations import CONFIGURATIONS
from kaoken import codegen
from oracle import layer_norm

GOLDEN = Path(__file__).parent / "golden"
MIB = 1 << 20
TOY = GOLDEN_TOY


def options(**changes: object) -> Options:
    plain = Options(
        name="toy",
        source="toy",
        revision=None,
        dtype="float32",
        isas=("scalar", "avx2"),
        version="0",
        budget=MemoryBudget(512 * MIB, 2),
    )
    return replace(plain, **changes)


def generated(checkpoint: Path, out: Path, **changes: object) -> dict[str, bytes]:
    """Every generated file by name."""
    out.mkdir(parents=True, exist_ok=True)
    generate(bake(checkpoint, options(**changes)), out)
    return {path.name: path.read_bytes() for path in out.iterdir()}


def test_golden_text(tmp_path: Path) -> None:
    """The generated C++ of a two-layer toy; KAOKEN_UPDATE_GOLDEN=1 rewrites it. test_build.py compiles and runs it."""
    files = generated(write_checkpoint(tmp_path / "toy", TOY), tmp_path / "out")
    text = {name: content for name, content in files.items() if name.endswith((".cpp", ".h"))}
    if os.environ.get("KAOKEN_UPDATE_GOLDEN"):
        shutil.rmtree(GOLDEN, ignore_errors=True)
        GOLDEN.mkdir()
        for name, content in text.items():
            (GOLDEN / f"{name}.txt").write_bytes(content)
    assert text == {path.name.removesuffix(".txt"): path.read_bytes() for path in GOLDEN.iterdir()}


@pytest.mark.parametrize("name", ["irregular", "untied", "bfloat16"])
def test_files_do_not_depend_on_directories_or_jobs(name: str, tmp_path: Path) -> None:
    first = CONFIGURATIONS[name].write(tmp_path / "a")
    second = CONFIGURATIONS[name].write(tmp_path / 'somewhere "else"; with spaces')
    files = generated(first, tmp_path / "out a", budget=MemoryBudget(512 * MIB, 1))
    assert files == generated(second, tmp_path / "out;b", budget=MemoryBudget(512 * MIB, 2))
    for file, content in files.items():
        assert str(tmp_path).encode() not in content, file


def test_unchanged_files_are_not_written(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "toy", TOY)
    generated(checkpoint, tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    generated(checkpoint, tmp_path / "out")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == before


def test_each_file_says_what_it_came_from(tmp_path: Path) -> None:
    files = generated(write_checkpoint(tmp_path / "toy", TOY), tmp_path / "out")
    for name in ("h.1.attn.c_attn.weight", "h.1.ln_1.bias", "h.1.mlp.c_proj.bias"):
        assert name in files["block_01.cpp"].decode()
    assert "wpe.weight" in files["embeddings.cpp"].decode()
    assert "ln_f.weight" in files["head.cpp"].decode()


def test_the_plan_names_every_generated_file(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "toy", {**TOY, "vocab_size": 257}, tokenizer=True)
    out = tmp_path / "out"
    arguments = ["--checkpoint", str(checkpoint), "--isa", "portable", "--out", str(out)]
    assert main(["plan", *arguments]) == 0
    planned = set((out / "plan.cmake").read_text().partition("set(KAOKEN_PLAN_INPUTS")[0].replace(")", " ").split())
    planned |= {"library.cpp", "model.h"}
    before = set(os.listdir(out))
    assert main(["generate", "--out", str(out)]) == 0
    assert set(os.listdir(out)) - before - {"codegen.d"} == {name for name in planned if "." in name}


def test_hostile_strings_reach_no_generated_code(tmp_path: Path) -> None:
    hostile = '"); system("true"); //${x};$(y)`z`'
    checkpoint = write_checkpoint(tmp_path / hostile.replace("/", "_"), {**TOY, "_name_or_path": hostile})
    out = tmp_path / "out"
    assert main(["plan", "--checkpoint", str(checkpoint), "--out", str(out)]) == 0
    assert main(["generate", "--out", str(out)]) == 0
    for path in out.iterdir():
        if path.suffix in (".cpp", ".h"):
            assert b"system" not in path.read_bytes().replace(b"system_true", b""), path
    plan = (out / "plan.cmake").read_text()
    assert re.search(r"\[=+\[[^\]]*system[^\]]*\]=+\]", plan)  # the path of an input, in a bracket argument
    assert "system(" not in re.sub(r"\[(=+)\[.*?\]\1\]", "", plan)


def graph_of(checkpoint: Path) -> Graph:
    opened = open_checkpoint(checkpoint)
    return build_graph(opened, read_spec(opened))


@pytest.mark.parametrize("name", ["plain", "untied", "heads_of_12", "inverse_layer_scale", "irregular"])
def test_passes_keep_what_the_model_computes(name: str, tmp_path: Path) -> None:
    """One block's attention input and output and its MLP, before and after, in float64."""
    before = graph_of(CONFIGURATIONS[name].write(tmp_path / "model"))
    after = passes.run(before)
    x = np.random.default_rng(0).normal(0, 1, (5, before.spec.n_embd))
    for raw, folded in zip(before.blocks, after.blocks, strict=True):
        outputs = [attend(block, x) for block in (raw, folded)]
        np.testing.assert_allclose(outputs[0], outputs[1], rtol=0, atol=1e-12)
        mlps = [
            normed(block.ln_2, x) @ block.mlp_in.weight.load().T + block.mlp_in.bias.load() for block in (raw, folded)
        ]
        np.testing.assert_allclose(mlps[0], mlps[1], rtol=0, atol=1e-12)


def test_passes_leave_the_form_that_kernels_need(tmp_path: Path) -> None:
    graph = passes.run(graph_of(CONFIGURATIONS["untied"].write(tmp_path / "model")))
    for block in graph.blocks:
        assert block.attn_scale == 1
        assert block.key.bias is None
        assert block.value.bias is None
        assert block.ln_1.weight is None
        assert block.query.weight.shape[0] % 16 == 0
    assert graph.ln_f.weight is None
    assert graph.head.bias is not None


def normed(norm, x):
    ones, zeros = np.ones(x.shape[-1]), np.zeros(x.shape[-1])
    weight = ones if norm.weight is None else norm.weight.load()
    bias = zeros if norm.bias is None else norm.bias.load()
    return layer_norm(x, weight, bias, norm.epsilon)


def attend(block, x):
    """The attention of a graph's block, projection included: x [positions, n_embd]."""
    normal = normed(block.ln_1, x)
    query, key, value = (
        (normal @ part.weight.load().T + (0 if part.bias is None else part.bias.load()))
        .reshape(len(x), block.spec.n_head, -1)
        .transpose(1, 0, 2)
        for part in (block.query, block.key, block.value)
    )
    scores = block.attn_scale * query @ key.transpose(0, 2, 1)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights = weights / weights.sum(-1, keepdims=True)
    merged = (weights @ value).transpose(1, 0, 2).reshape(len(x), -1)
    return merged @ block.attn_out.weight.load().T + block.attn_out.bias.load()


def test_folding_past_float32_is_refused(tmp_path: Path) -> None:
    configuration = CONFIGURATIONS["plain"]
    huge = {"h.1.ln_2.weight": np.full(32, 3e38, np.float32)}
    checkpoint = configuration.write(
        tmp_path / "model", huge | {"h.1.mlp.c_fc.weight": np.full((32, 128), 9, np.float32)}
    )
    with pytest.raises(CheckpointError, match=r"h\.1\.mlp\.c_fc\.weight.*float32"):
        generated(checkpoint, tmp_path / "out")


@pytest.mark.parametrize("shape", [(1, 1), (16, 3), (17, 5), (50, 16)])
def test_panels(shape: tuple[int, int]) -> None:
    weight = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    panels = pack_panels(weight)
    assert panels.shape == (round_up(shape[0]) // 16, shape[1], 16)
    assert panels[shape[0] // 16 if shape[0] % 16 else -1, -1, (shape[0] - 1) % 16] == weight[-1, -1]
    outputs = panels.transpose(0, 2, 1).reshape(-1, shape[1])
    np.testing.assert_array_equal(outputs[: shape[0]], weight)
    assert not outputs[shape[0] :].any()


def test_padding() -> None:
    assert pad_rows(np.ones(17)).tolist() == [1.0] * 17 + [0.0] * 15
    assert pad_columns(np.ones((2, 3))).tolist() == [[1.0] * 3 + [0.0] * 13] * 2


def test_tables_and_units_are_cut_at_the_blob_limit(tmp_path: Path) -> None:
    graph = passes.run(graph_of(CONFIGURATIONS["heads_of_64"].write(tmp_path / "model")))
    limit = 512 * 128 * 4  # the largest matrix of a block; the head has 528 rows
    whole, cut = pack(graph, 1 << 30), pack(graph, limit)
    assert len(whole.head_table.shards) == 1
    assert len(cut.head_table.shards) > 1
    assert len(cut.blocks[0].blobs) > len(whole.blocks[0].blobs)
    assert all(blob.nbytes <= limit for unit in cut.units for blob in unit.blobs)
    joined = np.concatenate([np.concatenate([c.ravel() for c in shard.chunks()]) for shard in cut.head_table.shards])
    np.testing.assert_array_equal(joined, np.concatenate([c.ravel() for c in whole.head_table.shards[0].chunks()]))
    with pytest.raises(BuildError, match="raise it"):
        pack(graph, limit // 2)


def test_hex_floats_are_exact() -> None:
    for value in (1e-5, 0.1, 1.0, 3.4028234663852886e38, 1.401298464324817e-45):
        assert np.float32(float.fromhex(hex_float(value)[:-1])) == np.float32(value)


@pytest.mark.parametrize(
    ("text", "size"),
    [("1048576", MIB), ("512M", 512 * MIB), ("512MiB", 512 * MIB), ("1.5g", 3 << 29), ("2 GB", 2 << 30)],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "M", "-1M", "12X", "1e9", "0x10"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="compile memory"):
        parse_size(text)


def test_budget() -> None:
    assert make_budget("1G", 1).pool == 1
    assert make_budget("100T", 8).pool == 1
    assert make_budget(None, None).cap == 512 * MIB
    assert make_budget("200M", 1).group_limit < make_budget("1G", 1).group_limit
    with pytest.raises(InputError, match="100M"):
        make_budget("100M", None)
    with pytest.raises(InputError, match="jobs"):
        make_budget(None, 0)


def test_unity_groups_hold_neighbours_up_to_the_limit() -> None:
    sizes = [("a", 4), ("b", 4), ("c", 4), ("d", 20), ("e", 1)]
    assert group_sources(sizes, 20) == [["a", "b", "c"], ["d"], ["e"]]
    with pytest.raises(BuildError, match=r"compiling d .* give"):
        group_sources(sizes, 10)


def test_cgroups_bound_memory_and_processors(tmp_path: Path) -> None:
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / "proc" / "self" / "cgroup").write_text("3:memory:/x\n0::/a/b\n")
    for directory, name, text in (
        ("a", "memory.max", "4096"),
        ("a/b", "memory.max", "max"),
        ("memory/x", "memory.limit_in_bytes", "77"),
        ("a", "cpu.max", "150000 100000"),
    ):
        (tmp_path / directory).mkdir(parents=True, exist_ok=True)
        (tmp_path / directory / name).write_text(text)
    places = (tmp_path / "proc", tmp_path)
    assert cgroup_files("memory", "memory.max", *places) == ["max", "4096"]
    assert cgroup_files("memory", "memory.limit_in_bytes", *places) == ["77"]
    assert cgroup_files("cpu", "cpu.max", *places) == ["150000 100000"]


@pytest.mark.parametrize("name", ["9a", "A", "a-b", 'a"', "a" * 49, "\u00fc"])
def test_a_name_that_is_no_identifier_is_refused(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = write_checkpoint(tmp_path / "toy", TOY)
    assert main(["plan", "--checkpoint", str(checkpoint), "--name", name, "--out", str(tmp_path / "out")]) == 1
    assert "identifier" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_where_a_directory_came_from_is_recorded(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "toy", TOY)
    out = tmp_path / "out"
    assert main(["plan", "--checkpoint", str(checkpoint), "--commit", "abc123", "--out", str(out)]) == 0
    assert main(["generate", "--out", str(out)]) == 0
    assert json.loads((out / "description.json").read_text())["revision"] == "abc123"


def test_the_panel_is_the_runtimes() -> None:
    header = Path(str(codegen.__file__)).parent.parent / "runtime" / "include" / "kaoken" / "pass.h"
    assert f"kPanel = {PANEL};" in header.read_text(encoding="utf-8")


def test_isas() -> None:
    assert resolve("portable", "x86_64") == ("scalar", "avx2", "avx512")
    assert resolve("portable", "arm64") == ("scalar", "neon")
    assert resolve("avx512, scalar", "AMD64") == ("scalar", "avx512")
    assert resolve("native")[0] in table()
    assert canonical_machine("AMD64") == "x86_64"


@pytest.mark.parametrize(
    ("isa", "machine", "message"),
    [
        ("avx51", "x86_64", "avx512"),
        ("", "x86_64", "empty"),
        ("neon", "x86_64", "aarch64"),
        ("native", "riscv64", "portable"),
    ],
)
def test_unknown_isas_are_refused(isa: str, machine: str, message: str) -> None:
    with pytest.raises(ISAError, match=message):
        resolve(isa, machine)


def test_the_description_is_json_about_the_model(tmp_path: Path) -> None:
    files = generated(write_checkpoint(tmp_path / "toy", TOY), tmp_path / "out", source="org/toy", revision="abc")
    description = json.loads(files["description.json"])
    assert description["source"] == "org/toy"
    assert description["revision"] == "abc"
    assert len(description["weights_sha256"]) == 64
    assert description["config"]["n_layer"] == 2


def test_a_full_disk_leaves_no_half_written_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def chunks():
        yield b"new"
        raise OSError(28, "No space left on device")

    with pytest.raises(BuildError, match=r"No space left.*free some space"):
        write_if_changed(path, chunks())
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]
