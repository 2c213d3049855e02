"""Codegen: the golden text of a toy, determinism, the rewrites, the packed layout, the budget, the ISA table."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from kaoken.codegen import rewrites
from kaoken.codegen.__main__ import main
from kaoken.codegen.checkpoint import open_checkpoint
from kaoken.codegen.dtypes import CACHE_DTYPES, DTYPES, TENSOR_DTYPES, make_types
from kaoken.codegen.emit.environment import hex_float
from kaoken.codegen.errors import BuildError, CheckpointError, InputError, ISAError
from kaoken.codegen.families import read_graph
from kaoken.codegen.families.fields import MAX_WIDTH
from kaoken.codegen.files import write_if_changed
from kaoken.codegen.graph import Attention, Graph, Mlp, Sublayer, check_ready
from kaoken.codegen.isa import canonical_machine, resolve, table
from kaoken.codegen.layout import (
    MATRIX_TYPES,
    PANEL,
    pack_bfloat16,
    pack_float32,
    pack_int4,
    pack_int4_min,
    pack_int8,
    pack_int8_groups,
    pad_columns,
    pad_vector,
    quantize_int4,
    round_up,
)
from kaoken.codegen.memory import MemoryBudget, cgroup_files, group_sources, make_budget, parse_size
from kaoken.codegen.packing import Table, pack
from kaoken.codegen.pipeline import Options, bake, generate
from numpy.typing import NDArray

from checkpoints import GOLDEN_TOY, write_checkpoint
from configurations import CONFIGURATIONS
from kaoken import codegen
from oracle import layer_norm
from oracles import llama

GOLDEN = Path(__file__).parent / "golden"
MIB = 1 << 20
TOY = GOLDEN_TOY
FLOAT32 = make_types("float32")


def options(**changes: object) -> Options:
    plain = Options(
        name="toy",
        source="toy",
        revision=None,
        types=FLOAT32,
        isas=("scalar", "avx2"),
        portable=("scalar", "avx2", "avx512"),
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
    assert "system" not in plan.replace("system_true", "")


def graph_of(checkpoint: Path) -> Graph:
    return read_graph(open_checkpoint(checkpoint))


@pytest.mark.parametrize("name", ["plain", "untied", "heads_of_12", "inverse_layer_scale", "irregular"])
def test_passes_keep_what_the_model_computes(name: str, tmp_path: Path) -> None:
    """One block's attention input and output and its MLP, before and after, in float64."""
    before = graph_of(CONFIGURATIONS[name].write(tmp_path / "model"))
    after = rewrites.run(before)
    x = np.random.default_rng(0).normal(0, 1, (5, before.width))
    for raw, folded in zip(before.blocks, after.blocks, strict=True):
        outputs = [attend(block, x) for block in (raw, folded)]
        np.testing.assert_allclose(outputs[0], outputs[1], rtol=0, atol=1e-12)
        mlps = [
            normed(block.sublayers[1].before, x) @ block.mlp.up.weight.load().T + block.mlp.up.bias.load()
            for block in (raw, folded)
        ]
        np.testing.assert_allclose(mlps[0], mlps[1], rtol=0, atol=1e-12)


def test_passes_leave_the_form_that_kernels_need(tmp_path: Path) -> None:
    graph = rewrites.run(graph_of(CONFIGURATIONS["untied"].write(tmp_path / "model")))
    check_ready(graph)
    for block in graph.blocks:
        assert block.attention.scale == 1
        assert block.attention.key.bias is None
        assert block.attention.value.bias is None
        assert block.sublayers[0].before.bare
        assert block.attention.width % 16 == 0
    assert graph.decoder.norm.bare
    assert graph.head.output.bias is not None


@pytest.mark.parametrize("left_out", rewrites.PIPELINE, ids=lambda rewrite: rewrite.__name__)
def test_what_a_pass_has_left_is_found(left_out: Callable[[Graph], Graph], tmp_path: Path) -> None:
    """Without any one rewrite the graph is not what kernels need."""
    if left_out is rewrites.fill_biases:
        graph = graph_of(llama.write(tmp_path / "model", llama.TINY))
    else:
        graph = graph_of(CONFIGURATIONS["heads_of_12"].write(tmp_path / "model"))
    if left_out is rewrites.move_post_norms:
        graph = graph.map(lambda each: Sublayer(each.body, after=each.before))
    for rewrite in rewrites.PIPELINE:
        graph = graph if rewrite is left_out else rewrite(graph)
    with pytest.raises(AssertionError, match="block 0: the kernels need"):
        check_ready(graph)


def normed(norm, x):
    ones, zeros = np.ones(x.shape[-1]), np.zeros(x.shape[-1])
    weight = ones if norm.weight is None else norm.weight.load()
    bias = zeros if norm.bias is None else norm.bias.load()
    return layer_norm(x, weight, bias, norm.epsilon)


def attend(block, x):
    """The attention of a graph's block, projection included: x [positions, n_embd]."""
    attention = block.attention
    normal = normed(block.sublayers[0].before, x)
    query, key, value = (
        (normal @ part.weight.load().T + (0 if part.bias is None else part.bias.load()))
        .reshape(len(x), attention.heads, -1)
        .transpose(1, 0, 2)
        for part in (attention.query, attention.key, attention.value)
    )
    scores = attention.scale * query @ key.transpose(0, 2, 1)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights = weights / weights.sum(-1, keepdims=True)
    merged = (weights @ value).transpose(1, 0, 2).reshape(len(x), -1)
    return merged @ attention.out.weight.load().T + attention.out.bias.load()


def test_folding_past_float32_is_refused(tmp_path: Path) -> None:
    configuration = CONFIGURATIONS["plain"]
    huge = {"h.1.ln_2.weight": np.full(32, 3e38, np.float32)}
    checkpoint = configuration.write(
        tmp_path / "model", huge | {"h.1.mlp.c_fc.weight": np.full((32, 128), 9, np.float32)}
    )
    with pytest.raises(CheckpointError, match=r"h\.1\.mlp\.c_fc\.weight.*range of their type"):
        generated(checkpoint, tmp_path / "out")


def test_a_single_matrix_past_its_type_is_not_folded(tmp_path: Path) -> None:
    huge = {"h.1.mlp.c_proj.weight": np.full((128, 32), 3.4e38, np.float32)}
    checkpoint = CONFIGURATIONS["plain"].write(tmp_path / "model", huge)
    with pytest.raises(CheckpointError, match=r"h\.1\.mlp\.c_proj\.weight: some of its values pass the range of"):
        generated(checkpoint, tmp_path / "out", types=make_types("bfloat16"))


SHAPES = [(1, 1), (16, 3), (17, 5), (50, 33)]


def outputs_of(panels: np.ndarray) -> np.ndarray:
    """[N / 16][K / step][16][step] -> [N, K], padding included."""
    return panels.transpose(0, 2, 1, 3).reshape(-1, panels.shape[1] * panels.shape[3])


def check_padded(padded: np.ndarray, expected: np.ndarray) -> None:
    rows, columns = expected.shape
    np.testing.assert_array_equal(padded[:rows, :columns], expected)
    assert not padded[rows:].any()
    assert not padded[:, columns:].any()


def random_weight(shape: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng(shape[0]).normal(0, 0.1, shape)


@pytest.mark.parametrize("shape", SHAPES)
def test_float32_panels(shape: tuple[int, int]) -> None:
    weight = random_weight(shape)
    (panels,) = pack_float32(weight)
    assert panels.shape == (round_up(shape[0]) // 16, shape[1], 16, 1)
    check_padded(outputs_of(panels), weight.astype(np.float32))


@pytest.mark.parametrize("shape", SHAPES)
def test_bfloat16_panels(shape: tuple[int, int]) -> None:
    """Rounded once from float64, ties to even, as PyTorch rounds a float32 that holds the same value."""
    weight = random_weight(shape)
    weight[0, 0] = 1 + 2.0**-8  # a tie
    (panels,) = pack_bfloat16(weight)
    values = (outputs_of(panels).astype(np.uint32) << 16).view(np.float32)
    check_padded(values, values[: shape[0], : shape[1]])
    assert values[0, 0] == 1
    assert np.abs(values[: shape[0], : shape[1]] / weight - 1).max() <= 2.0**-8
    exact = values[: shape[0], : shape[1]].astype(np.float64)
    np.testing.assert_array_equal(outputs_of(pack_bfloat16(exact)[0]), outputs_of(panels))


@pytest.mark.parametrize("shape", SHAPES)
def test_int8_panels(shape: tuple[int, int]) -> None:
    """Each output's largest weight is at 127, and every weight within half a step."""
    weight = random_weight(shape)
    weight[-1] = 0
    panels, scale = pack_int8(weight)
    integers = outputs_of(panels).astype(np.int64) - 128
    restored = integers * scale[:, None].astype(np.float64)
    check_padded(np.where(integers == 0, 0, restored), restored[: shape[0], : shape[1]])
    assert np.all(np.abs(restored[: shape[0], : shape[1]] - weight) <= scale[: shape[0], None] * 0.5001)
    assert set(np.abs(integers[: shape[0] - 1]).max(axis=1)) <= {127}
    assert not integers[shape[0] - 1].any()


@pytest.mark.parametrize("shape", SHAPES)
def test_panels_of_int8_groups(shape: tuple[int, int]) -> None:
    """The largest weight of each group is at 127, but for the rounding of its scale, and each within half a step."""
    weight = random_weight(shape)
    panels, scale = pack_int8_groups(weight)
    integers = outputs_of(panels).astype(np.int64) - 128
    scales = np.repeat(scale.transpose(0, 2, 1).reshape(len(integers), -1).astype(np.float64), 32, axis=1)
    restored = integers * scales
    check_padded(restored, restored[: shape[0], : shape[1]])
    assert np.all(np.abs(restored - padded_to(weight, restored.shape)) <= scales * (0.5 + 127 * 2.0**-11))
    largest = np.abs(integers).reshape(len(integers), -1, 32).max(axis=2)
    assert set(largest[scales[:, ::32] > 2.0**-14]) <= {126, 127}


def nibbles_of(packed: NDArray[np.uint8]) -> NDArray[np.int64]:
    """The pairs of a packed matrix [N / 16][groups][4][16][4] as [N, groups, 32]."""
    groups = packed.shape[1]
    nibbles = np.stack([packed & 15, packed >> 4], axis=2).reshape(-1, groups, 2, 4, 16, 4).astype(np.int64)
    return nibbles.transpose(0, 4, 1, 2, 3, 5).reshape(-1, groups, 32)


def padded_to(weight: NDArray[np.float64], shape: tuple[int, ...]) -> NDArray[np.float64]:
    padded = np.zeros(shape)
    padded[: weight.shape[0], : weight.shape[1]] = weight
    return padded


@pytest.mark.parametrize("shape", SHAPES)
def test_panels_of_int4_with_minima(shape: tuple[int, int]) -> None:
    """Each value is within half a step of scale * integer + minimum, but for the rounding of those two."""
    weight = random_weight(shape)
    packed, both = pack_int4_min(weight)
    scale, minimum = both.astype(np.float64).transpose(2, 0, 3, 1).reshape(2, -1, both.shape[1], 1)
    restored = nibbles_of(packed) * scale + minimum
    wanted = padded_to(weight, (len(restored), restored[0].size)).reshape(restored.shape)
    assert np.all(np.abs(restored - wanted) <= scale * (0.5 + 15 * 2.0**-11) + np.abs(minimum) * 2.0**-11)
    assert nibbles_of(packed).max() == 15
    assert nibbles_of(packed).min() == 0


@pytest.mark.parametrize("shape", SHAPES)
def test_int4_panels(shape: tuple[int, int]) -> None:
    """Nibbles where the layout says, with float16 scales."""
    weight = random_weight(shape)
    weight[0] *= 1e-9
    packed, scale = pack_int4(weight)
    integers = nibbles_of(packed) - 8
    scales = scale.transpose(0, 2, 1).reshape(-1, scale.shape[1]).astype(np.float64)
    assert np.all((scales == 0) | (np.abs(scales) >= 2.0**-24))
    restored = integers * scales[:, :, None]
    check_padded(restored.reshape(len(scales), -1), restored.reshape(len(scales), -1)[: shape[0], : shape[1]])
    padded = padded_to(weight, (len(scales), integers[0].size)).reshape(integers.shape)
    plain = np.maximum(np.abs(padded).max(axis=2, keepdims=True) / 7, 2.0**-24).astype(np.float16).astype(np.float64)
    errors = [((values - padded) ** 2).sum(axis=2) for values in (restored, np.rint(padded / plain) * plain)]
    assert np.all(errors[0] <= errors[1] + 1e-15)


def test_int4_takes_the_scale_with_the_smaller_error() -> None:
    group = np.linspace(-8, 7, 32)[None]
    integers, scale = quantize_int4(group)
    assert scale[0, 0] == 1
    np.testing.assert_array_equal(integers[0], np.rint(group[0]))


def test_padding() -> None:
    assert pad_vector(np.ones(17)).tolist() == [1.0] * 17 + [0.0] * 15
    assert pad_columns(np.ones((2, 3))).tolist() == [[1.0] * 3 + [0.0] * 13] * 2


def joined(table: Table) -> list[bytes]:
    """Each of a table's arrays over all its slices, by what it holds."""
    parts = zip(*(each.arrays for each in table.slices), strict=True)
    return [b"".join(chunk.tobytes() for array in arrays for chunk in array.chunks()) for arrays in parts]


@pytest.mark.parametrize(
    ("dtype", "limit"), [("float32", 262144), ("bfloat16", 131072), ("int8", 65536), ("int4", 36000)]
)
def test_tables_and_units_are_cut_at_the_blob_limit(dtype: str, limit: int, tmp_path: Path) -> None:
    """The largest matrix of a block, [512, 128], fits the limit; the head has 528 rows, the positions 35840 bytes."""
    graph = rewrites.run(graph_of(CONFIGURATIONS["heads_of_64"].write(tmp_path / "model")))
    whole, cut = pack(graph, make_types(dtype), 1 << 30), pack(graph, make_types(dtype), limit)
    assert len(whole.head.table.slices) == 1
    assert len(cut.head.table.slices) > 1
    assert len(cut.blocks[0].unit.blobs) > len(whole.blocks[0].unit.blobs)
    assert all(blob.nbytes <= limit for unit in cut.units for blob in unit.blobs)
    assert joined(cut.head.table) == joined(whole.head.table)
    for blob in (blob for unit in cut.units for blob in unit.blobs):
        assert sum(map(len, blob.chunks())) == blob.nbytes
    with pytest.raises(BuildError, match="raise it"):
        pack(graph, make_types(dtype), limit // 2)


def test_types_of_matrices(tmp_path: Path) -> None:
    graph = rewrites.run(graph_of(CONFIGURATIONS["untied"].write(tmp_path / "model")))
    types = make_types("int4", "h.*.mlp.*=int8; h.1.mlp.c_fc=bfloat16, wte=float32", "float32")
    model = pack(graph, types, 1 << 30)
    assert [[matrix.dtype for matrix in block.matrices] for block in model.blocks] == [
        ["int4", "int4", "int8", "int8"],
        ["int4", "int4", "bfloat16", "int8"],
    ]
    assert model.stacks[0].tokens.slices[0].dtype == "float32"
    assert model.head.table.slices[0].dtype == "int8"
    assert types.used() == {"float32", "bfloat16", "int8", "int4"}
    with pytest.raises(InputError, match=r"h\.9\.\* *.*matches no matrix|'h\.9\.\*' matches no matrix"):
        pack(graph, make_types("int8", "h.9.*=int4"), 1 << 30)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("float16",), "float16.*expected one of float32, bfloat16"),
        (("int8", "h.*"), "no override; write PATTERN=TYPE"),
        (("int8", "h.*=int4-all"), "no override"),
        (("int8", "", "int4"), "cache_dtype='int4'"),
    ],
)
def test_unknown_types_are_refused(arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_types(*arguments)


def test_each_dtype_has_a_default_cache() -> None:
    assert [make_types(dtype).cache for dtype in DTYPES] == ["float32", "bfloat16", *["int8"] * (len(DTYPES) - 2)]


def test_every_type_has_a_row() -> None:
    assert tuple(MATRIX_TYPES) == TENSOR_DTYPES
    assert tuple(dtype for dtype, row in MATRIX_TYPES.items() if any(row.cache_bytes)) == CACHE_DTYPES


@pytest.mark.parametrize("dtype", MATRIX_TYPES)
def test_a_packer_returns_what_its_row_says(dtype: str) -> None:
    row = MATRIX_TYPES[dtype]
    arrays = row.pack(np.ones((17, 33)))
    assert [array.dtype.str[1:] for array in arrays] == [array.type for array in row.arrays]
    assert tuple(array.size for array in arrays) == row.packed_sizes(17, 33)


def with_bodies(graph: Graph, kind: type[Attention | Mlp], **changes: object) -> Graph:
    """The graph with its bodies of a kind changed."""
    return graph.map(
        lambda each: replace(each, body=replace(each.body, **changes)) if isinstance(each.body, kind) else each
    )


def test_matrices_of_one_product_have_one_type(tmp_path: Path) -> None:
    graph = rewrites.run(graph_of(CONFIGURATIONS["plain"].write(tmp_path / "model")))
    value = graph.blocks[0].attention.value
    renamed = replace(value, weight=replace(value.weight, sources=("h.0.attn.value.weight",)))
    apart = with_bodies(graph, Attention, value=renamed)
    with pytest.raises(InputError, match=r"they are one product: give them one type"):
        pack(apart, make_types("int8", "*.attn.value=bfloat16"), 1 << 30)


def test_every_head_fits_an_int8_cache() -> None:
    assert MAX_WIDTH * 255 * 127 < 1 << 31


def test_a_pattern_that_is_given_twice_counts_where_it_comes_last() -> None:
    types = make_types("float32", "h.*=int8,h.0.*=int4,h.*=bfloat16")
    assert types.overrides == (("h.0.*", "int4"), ("h.*", "bfloat16"))
    assert types.of("h.0.mlp.c_fc") == "bfloat16"


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
    float32 = ("scalar", "avx2", "avx512")
    assert resolve("portable", "x86_64", {"float32"}) == float32
    assert resolve("portable", "x86_64", {"bfloat16"}) == (*float32, "avx512bf16")
    assert resolve("portable", "x86_64", {"int8"}) == ("scalar", "avx2", "avxvnni", "avx512", "avx512vnni")
    assert set(resolve("portable", "x86_64")) == {name for name, row in table().items() if row.runs_on("x86_64")}
    assert resolve("portable", "arm64", {"float32"}) == ("scalar", "neon")
    assert resolve("portable", "arm64", {"int4"}) == ("scalar", "neon", "dotprod", "i8mm")
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
    assert description["dtype"] == description["cache_dtype"] == "float32"


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
