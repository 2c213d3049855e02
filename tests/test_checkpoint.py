"""Reading checkpoints: every storage form gives the same values, and every damaged one is refused by name."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kaoken.codegen.checkpoint import Checkpoint, conversion_line, open_checkpoint, quoted
from kaoken.codegen.errors import CheckpointError
from kaoken.codegen.families import read_graph, read_weights
from kaoken.codegen.graph import Graph
from numpy.typing import NDArray
from safetensors.numpy import save_file

from checkpoints import (
    TINY,
    TOKENIZER,
    TOKENIZER_VOCAB,
    make_safetensors,
    make_tensors,
    raw_safetensors,
    rounded,
    write_checkpoint,
    write_json,
    write_weights,
)

VALUES: NDArray[np.float32] = np.arange(-8, 16, dtype=np.float32).reshape(4, 6) / np.float32(7)

# The storage of GPT-2 124M's embedding, 154 MB, in a file that takes up no disk.
WTE_ROWS, WTE_COLUMNS = 50257, 768


def refused(directory: Path, *parts: str, read: Callable[[Path], object] = open_checkpoint) -> str:
    """The message with which a directory is refused; it must contain all of `parts`."""
    with pytest.raises(CheckpointError) as caught:
        read(directory)
    message = str(caught.value)
    for part in parts:
        assert part in message
    assert len(message) < 3000
    assert message.isprintable()
    return message


def read_whole(directory: Path) -> Graph:
    return read_graph(open_checkpoint(directory))


def checkpoint_with_weights(directory: Path, data: bytes) -> Path:
    """A sound config.json beside any model.safetensors."""
    write_checkpoint(directory)
    (directory / "model.safetensors").write_bytes(data)
    return directory


# Sound checkpoints


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
@pytest.mark.parametrize(
    ("shards", "prefix", "old_buffers"),
    [(1, True, False), (1, False, True), (3, True, True), (2, False, False)],
)
def test_every_storage_form_gives_the_stored_values(
    tmp_path: Path, dtype: str, shards: int, prefix: bool, old_buffers: bool
) -> None:
    write_checkpoint(tmp_path, dtype=dtype, shards=shards, prefix=prefix, old_buffers=old_buffers)
    checkpoint = open_checkpoint(tmp_path)
    _, weights = read_weights(checkpoint)
    tensors = make_tensors(TINY)
    assert weights.expected.keys() == {*tensors, "lm_head.weight"}
    for name, values in tensors.items():
        read = weights.read(name)
        assert read.dtype == np.float32
        assert read.flags.c_contiguous
        np.testing.assert_array_equal(read, rounded(values, dtype))
    assert len(checkpoint.weight_files) == shards


def test_bfloat16_is_the_upper_half_of_a_float32(tmp_path: Path) -> None:
    values = np.array([[1.0, -2.5, 3.140625, 2.0**-130, 0.0, 1.0 / 3.0]], np.float32)
    write_checkpoint(tmp_path, dtype="BF16", prefix=False, tensors={"a": values})
    expected = np.array([[1.0, -2.5, 3.140625, 2.0**-130, 0.0, 0.333984375]], np.float32)
    np.testing.assert_array_equal(open_checkpoint(tmp_path).read("a"), expected)


def test_a_file_written_by_the_safetensors_library(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    save_file({"b": VALUES, "a": VALUES.astype(np.float16)}, tmp_path / "model.safetensors")
    checkpoint = open_checkpoint(tmp_path)
    np.testing.assert_array_equal(checkpoint.read("b"), VALUES)
    np.testing.assert_array_equal(checkpoint.read("a"), VALUES.astype(np.float16).astype(np.float32))


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
@pytest.mark.parametrize(
    "rows", [slice(1, 3), slice(0, 4), slice(2, None), slice(None, 1), slice(3, 9), slice(2, 2)], ids=str
)
def test_a_range_of_rows(tmp_path: Path, dtype: str, rows: slice) -> None:
    write_checkpoint(tmp_path, dtype=dtype, prefix=False, tensors={"before": VALUES, "a": VALUES, "bias": VALUES[0]})
    checkpoint = open_checkpoint(tmp_path)
    np.testing.assert_array_equal(checkpoint.read("a", rows), rounded(VALUES, dtype)[rows])
    np.testing.assert_array_equal(checkpoint.read("bias", rows), rounded(VALUES[0], dtype)[rows])


def test_only_the_rows_asked_for_are_read(tmp_path: Path) -> None:
    entry = {
        "dtype": "F32",
        "shape": [WTE_ROWS, WTE_COLUMNS],
        "data_offsets": [0, WTE_ROWS * WTE_COLUMNS * 4],
    }
    checkpoint_with_weights(tmp_path, raw_safetensors({"wte.weight": entry}))
    file = tmp_path / "model.safetensors"
    os.truncate(file, file.stat().st_size + WTE_ROWS * WTE_COLUMNS * 4)
    tracemalloc.start()
    rows = open_checkpoint(tmp_path).read("wte.weight", slice(50000, 50002))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert rows.shape == (2, WTE_COLUMNS)
    assert peak < 1 << 20


def test_reading_needs_little_beyond_its_result(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, dtype="BF16", prefix=False, tensors={"a": np.ones((4096, 1024), np.float32)})
    checkpoint = open_checkpoint(tmp_path)
    tracemalloc.start()
    checkpoint.read("a")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4096 * 1024 * 4 + (16 << 20)


def test_the_digest_of_one_file_is_the_file_s_own(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    data = (tmp_path / "model.safetensors").read_bytes()
    assert open_checkpoint(tmp_path).sha256() == hashlib.sha256(data).hexdigest()


def test_the_digest_of_shards_is_over_their_digests_in_order(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_checkpoint(tmp_path, shards=3))
    digests = [hashlib.sha256(file.read_bytes()).digest() for file in sorted(tmp_path.glob("*.safetensors"))]
    assert checkpoint.sha256() == hashlib.sha256(b"".join(digests)).hexdigest()


def test_the_files_that_a_bake_depends_on(tmp_path: Path) -> None:
    config = {"vocab_size": TOKENIZER_VOCAB}
    write_checkpoint(tmp_path, config, shards=2, tokenizer=True, generation={"eos_token_id": 1})
    (tmp_path / "README.md").write_text("unrelated")
    checkpoint = open_checkpoint(tmp_path)
    assert {file.name for file in checkpoint.files} == {
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "model.safetensors.index.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    }
    assert all(file.parent == tmp_path for file in checkpoint.files)
    assert checkpoint.tokenizer == TOKENIZER.read_bytes()
    assert checkpoint.generation_config == {"eos_token_id": 1}


def test_what_is_optional_may_be_absent(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_checkpoint(tmp_path))
    assert checkpoint.tokenizer is None
    assert checkpoint.generation_config is None
    assert [file.name for file in checkpoint.files] == ["config.json", "model.safetensors"]


def test_one_file_is_preferred_to_shards(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, shards=2, seed=1)
    write_checkpoint(tmp_path, prefix=False, seed=2)
    np.testing.assert_array_equal(open_checkpoint(tmp_path).read("wte.weight"), make_tensors(TINY, 2)["wte.weight"])


def test_symbolic_links_are_followed(tmp_path: Path) -> None:
    """The hub's cache is made of them."""
    write_checkpoint(tmp_path / "blobs")
    (tmp_path / "snapshot").mkdir()
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "snapshot" / name).symlink_to(Path("..") / "blobs" / name)
    assert open_checkpoint(tmp_path / "snapshot").read("transformer.ln_f.bias").shape == (TINY["n_embd"],)


# Weights that are no weights


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_values_that_are_not_finite_are_refused(tmp_path: Path, dtype: str, value: float) -> None:
    values = VALUES.copy()
    values[2, 1:4] = value
    checkpoint = open_checkpoint(write_checkpoint(tmp_path, dtype=dtype, prefix=False, tensors={"wte.weight": values}))
    with pytest.raises(CheckpointError, match=r"3 of the 24 values read from 'wte\.weight' are NaN or infinite"):
        checkpoint.read("wte.weight")
    assert checkpoint.read("wte.weight", slice(0, 2)).shape == (2, 6)


def test_an_unknown_tensor_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"h\.7\.ln_1\.weight"):
        open_checkpoint(write_checkpoint(tmp_path)).read("h.7.ln_1.weight")


@pytest.mark.parametrize(
    "use", [lambda opened: opened.read("transformer.ln_f.bias"), Checkpoint.sha256], ids=["read", "sha256"]
)
def test_weights_that_vanish_after_they_were_opened(tmp_path: Path, use: Callable[[Checkpoint], object]) -> None:
    checkpoint = open_checkpoint(write_checkpoint(tmp_path))
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors cannot be read"):
        use(checkpoint)


def test_weights_that_shrink_after_they_were_opened(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_checkpoint(tmp_path))
    os.truncate(tmp_path / "model.safetensors", 100)
    with pytest.raises(CheckpointError, match=r"model\.safetensors ended early"):
        checkpoint.read("transformer.ln_f.bias")


def entry(**fields: Any) -> dict[str, Any]:
    return {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **fields}


DAMAGED = {
    "empty": b"",
    "shorter_than_a_length": b"abc",
    "length_beyond_the_file": raw_safetensors({"a": entry()}, bytes(8), length=10**6),
    "length_beyond_any_memory": raw_safetensors({"a": entry()}, bytes(8), length=2**63),
    "truncated": raw_safetensors({"a": entry()}, bytes(4)),
    "too_long": raw_safetensors({"a": entry()}, bytes(12)),
    "offsets_reversed": raw_safetensors({"a": entry(data_offsets=[8, 0])}, bytes(8)),
    "offsets_beyond_the_file": raw_safetensors({"a": entry(data_offsets=[8, 16])}, bytes(8)),
    "shape_larger_than_its_bytes": raw_safetensors({"a": entry(shape=[3])}, bytes(8)),
    "shape_that_overflows": raw_safetensors({"a": entry(shape=[2**62, 8])}, bytes(8)),
    "shape_negative": raw_safetensors({"a": entry(shape=[-2])}, bytes(8)),
    "shape_fractional": raw_safetensors({"a": entry(shape=[2.0])}, bytes(8)),
    "overlap": raw_safetensors({"a": entry(), "b": entry()}, bytes(8)),
    "hole": raw_safetensors({"a": entry(), "b": entry(data_offsets=[12, 20])}, bytes(20)),
    "unknown_dtype": raw_safetensors({"a": entry(dtype="F33")}, bytes(8)),
    "no_offsets": raw_safetensors({"a": {"dtype": "F32", "shape": [2]}}, bytes(8)),
    "not_json": raw_safetensors(b"hello"),
    "a_list": raw_safetensors(b"[]"),
    "not_utf8": raw_safetensors(b'{"\xff": 1}'),
    "nested": raw_safetensors(b'{"a": ' + b"[" * 100_000),
    "twice": raw_safetensors(f'{{"a": {json.dumps(entry())}, "a": {json.dumps(entry())}}}'.encode(), bytes(8)),
    "a_pickle": b"\x80\x04\x95" + bytes(64),
}


@pytest.mark.parametrize("data", DAMAGED.values(), ids=DAMAGED.keys())
def test_damaged_safetensors_are_refused(tmp_path: Path, data: bytes) -> None:
    checkpoint_with_weights(tmp_path, data)
    refused(tmp_path, str(tmp_path / "model.safetensors"), "download the checkpoint again")


def test_control_characters_in_names_do_not_reach_the_terminal(tmp_path: Path) -> None:
    write_weights(tmp_path, [("transformer.a\x1b[2J\n", "F64", VALUES)])
    write_json(tmp_path / "config.json", TINY)
    refused(tmp_path, r"\x1b[2J", "F64", read=read_whole)


@pytest.mark.parametrize("dtype", ["F64", "BOOL", "U8"])
def test_other_dtypes_are_refused_by_name(tmp_path: Path, dtype: str) -> None:
    checkpoint_with_weights(tmp_path, make_safetensors([("transformer.wte.weight", dtype, VALUES)]))
    refused(tmp_path, "transformer.wte.weight", dtype, "F32, F16, BF16", read=read_whole)


def test_a_tensor_with_and_without_its_prefix(tmp_path: Path) -> None:
    twice = [("wte.weight", "F32", VALUES), ("transformer.wte.weight", "F32", VALUES)]
    checkpoint_with_weights(tmp_path, make_safetensors(twice))
    refused(tmp_path, "'transformer.wte.weight'", "'wte.weight'", read=read_whole)


# Shards


def sharded(directory: Path, **names: Any) -> Path:
    """A checkpoint of two shards whose index also places tensors as `names` say."""
    write_checkpoint(directory, shards=2, prefix=False)
    path = directory / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"] |= names
    write_json(path, index)
    return directory


@pytest.mark.parametrize(
    "name",
    [
        "../model.safetensors",
        "/etc/model.safetensors",
        "a/b.safetensors",
        "a\\b.safetensors",
        "..safetensors",
        "a..safetensors",
        "model.safetensors\n",
        "a\x00.safetensors",
        "a\x1b[2J.safetensors",
        "a b.safetensors",
        'a";system("x.safetensors',
        "$(x).safetensors",
        "pytorch_model.bin",
        "m" * 300 + ".safetensors",
        "",
        ".safetensors",
        "é.safetensors",
        7,
        None,
        ["model.safetensors"],
    ],
    ids=repr,
)
def test_shards_are_bare_file_names(tmp_path: Path, name: object) -> None:
    refused(sharded(tmp_path, extra=name), "model.safetensors.index.json", "'extra'", quoted(name), "bare name")


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    (sharded(tmp_path) / "model-00002-of-00002.safetensors").unlink()
    refused(tmp_path, str(tmp_path / "model-00002-of-00002.safetensors"), "does not exist")


def test_a_tensor_that_is_not_in_its_shard(tmp_path: Path) -> None:
    sharded(tmp_path, extra="model-00001-of-00002.safetensors")
    refused(tmp_path, "model-00001-of-00002.safetensors", "lacks 'extra'")


def test_a_tensor_in_two_shards(tmp_path: Path) -> None:
    sharded(tmp_path, extra="model-00003-of-00003.safetensors")
    again = make_safetensors([("extra", "F32", VALUES), ("wte.weight", "F32", VALUES)])
    (tmp_path / "model-00003-of-00003.safetensors").write_bytes(again)
    refused(tmp_path, "model-00003-of-00003.safetensors", "'wte.weight'", "model-00001-of-00002.safetensors")


@pytest.mark.parametrize("index", [{}, {"weight_map": {}}, {"weight_map": []}, {"weight_map": "x"}], ids=str)
def test_an_index_without_a_map(tmp_path: Path, index: dict[str, Any]) -> None:
    write_json(sharded(tmp_path) / "model.safetensors.index.json", index)
    refused(tmp_path, "model.safetensors.index.json", "weight_map")


# JSON


NOT_A_CONFIG = {
    "empty": (b"", "not valid JSON"),
    "text": (b"hello", "not valid JSON"),
    "truncated": (b'{"n_embd": 32,', "not valid JSON"),
    "a_list": (b"[1, 2]", "[1, 2]"),
    "a_string": (b'"gpt2"', "'gpt2'"),
    "null": (b"null", "None"),
    "not_utf8": (b'{"model_type": "\xff"}', "utf-8"),
    "utf16": ('{"model_type": "gpt2"}'.encode("utf-16"), "utf-8"),
    "nul": (b'{"model_type": "gpt2\x00"}', "not valid JSON"),
    "duplicate": (b'{"n_embd": 32, "n_embd": 64}', "'n_embd' stands there twice"),
    "duplicate_within": (b'{"a": [{"b": 1, "b": 1}]}', "'b' stands there twice"),
    "nested_lists": (b'{"a": ' + b"[" * 200_000 + b"]" * 200_000 + b"}", "nested too deeply"),
    "nested_objects": (b'{"a":' * 200_000 + b"1" + b"}" * 200_000, "nested too deeply"),
    "nan": (b'{"layer_norm_epsilon": NaN}', "NaN"),
    "infinity": (b'{"layer_norm_epsilon": -Infinity}', "-Infinity"),
    "overflow": (b'{"layer_norm_epsilon": 1e999}', "1e999"),
    "enormous_integer": (b'{"n_embd": ' + b"9" * 100_000 + b"}", "a number of 100000 digits"),
}


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer.json"])
@pytest.mark.parametrize(("data", "part"), NOT_A_CONFIG.values(), ids=NOT_A_CONFIG.keys())
def test_json_that_is_none(tmp_path: Path, name: str, data: bytes, part: str) -> None:
    (write_checkpoint(tmp_path) / name).write_bytes(data)
    refused(tmp_path, str(tmp_path / name), part)


def test_a_huge_config_is_not_read(tmp_path: Path) -> None:
    os.truncate(write_checkpoint(tmp_path) / "config.json", 1 << 34)
    refused(tmp_path, "config.json", "17179869184 bytes")


# Directories


def test_a_directory_that_does_not_exist(tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", str(tmp_path / "nowhere"), "not a directory")


def test_a_file_in_place_of_a_directory(tmp_path: Path) -> None:
    refused(write_checkpoint(tmp_path) / "model.safetensors", "not a directory")


def test_a_config_is_needed(tmp_path: Path) -> None:
    (write_checkpoint(tmp_path) / "config.json").unlink()
    refused(tmp_path, str(tmp_path / "config.json"), "does not exist")


def test_weights_are_needed(tmp_path: Path) -> None:
    (write_checkpoint(tmp_path) / "model.safetensors").unlink()
    refused(tmp_path, str(tmp_path), "neither model.safetensors nor model.safetensors.index.json")


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_link_to_itself(tmp_path: Path, name: str) -> None:
    path = write_checkpoint(tmp_path) / name
    path.unlink(missing_ok=True)
    path.symlink_to(name)
    refused(tmp_path, str(path), "cannot be read")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_pipe_is_never_opened(tmp_path: Path, name: str) -> None:
    path = write_checkpoint(tmp_path) / name
    path.unlink()
    os.mkfifo(path)
    refused(tmp_path, str(path), "not a regular file")


@pytest.mark.parametrize("pickle", ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "model.pt"])
def test_pickles_alone_are_refused_with_the_line_that_converts_them(tmp_path: Path, pickle: str) -> None:
    directory = write_checkpoint(tmp_path / "my model's")
    (directory / "model.safetensors").rename(directory / pickle)
    line = conversion_line(str(directory), f"{directory}-safetensors")
    refused(directory, pickle, line)
    python, option, code = shlex.split(line)
    assert (python, option) == ("python", "-c")
    compile(code, "line", "exec")
    assert repr(str(directory)) in code
    assert repr(f"{directory}-safetensors") in code


def test_values_in_messages_are_short() -> None:
    nested: list[object] = []
    for _ in range(900):
        nested = [nested]
    for value in (
        nested,
        "x" * 10_000,
        10**99,
        {str(key): key for key in range(1000)},
        [["y" * 10_000] * 100] * 100,
    ):
        assert len(quoted(value)) < 1000


def test_every_value_is_read_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kaoken.codegen.checkpoint._READ_VALUES", 5)
    checkpoint = open_checkpoint(write_checkpoint(tmp_path, dtype="F16", prefix=False, tensors={"a": VALUES}))
    np.testing.assert_array_equal(checkpoint.read("a"), rounded(VALUES, "F16"))
