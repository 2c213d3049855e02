"""vocab.json and merges.txt become a tokenizer.json, judged by the tokenizers library's own reading of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from kaoken.codegen.checkpoint import open_checkpoint
from kaoken.codegen.errors import CheckpointError
from tokenizers import ByteLevelBPETokenizer, Tokenizer
from tokenizers.pre_tokenizers import ByteLevel

from checkpoints import write_checkpoint, write_json

MERGES = ["h e", "l l", "he ll", "hell o", "Ġ w", "o r", "Ġw or", "Ġwor l", "Ġworl d", "Ġ hello"]
TEXTS = ["hello world", " hello  hello\n\tworld", "Ünï 🙂 don't 123", "<|endoftext|>hello<pad>", ""]


def vocabulary() -> dict[str, int]:
    tokens = [*sorted(ByteLevel.alphabet()), *(merge.replace(" ", "") for merge in MERGES), "<|endoftext|>"]
    return {token: index for index, token in enumerate(tokens)}


def write(directory: Path, **config: object) -> Path:
    write_checkpoint(directory, {"vocab_size": 300})
    write_json(directory / "vocab.json", vocabulary())
    (directory / "merges.txt").write_text("\n".join(["#version: 0.2", *MERGES, ""]), encoding="utf-8")
    if config:
        write_json(directory / "tokenizer_config.json", config)
    return directory


def converted(directory: Path) -> Tokenizer:
    data = open_checkpoint(directory).tokenizer
    assert data is not None
    return Tokenizer.from_str(data.decode())


@pytest.mark.parametrize("prefix", [False, True])
def test_it_is_the_tokenizer_of_the_library(prefix: bool, tmp_path: Path) -> None:
    write(tmp_path, add_prefix_space=prefix)
    write_json(tmp_path / "added_tokens.json", {"<pad>": len(vocabulary())})
    write_json(tmp_path / "special_tokens_map.json", {"pad_token": {"content": "<pad>"}, "eos_token": "<|endoftext|>"})
    own = converted(tmp_path)
    theirs = ByteLevelBPETokenizer(str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt"), add_prefix_space=prefix)
    theirs.add_special_tokens(["<|endoftext|>", "<pad>"])
    for text in TEXTS:
        ids = own.encode(text).ids
        assert ids == theirs.encode(text).ids
        assert own.decode(ids) == theirs.decode(ids)
    assert own.encode("hello").ids == [vocabulary()["Ġhello" if prefix else "hello"]]


def test_tokens_that_the_config_describes(tmp_path: Path) -> None:
    entry = {"content": "<mark>", "lstrip": True, "special": False}
    write(tmp_path, added_tokens_decoder={"290": entry, "none": entry, "291": "text"})
    own = converted(tmp_path)
    assert own.encode("hello <mark>").ids == [vocabulary()["hello"], 290]
    assert own.decode([290]) == "<mark>"
    assert own.decode([vocabulary()["<|endoftext|>"]]) == ""


def test_its_files_decide_the_library(tmp_path: Path) -> None:
    names = {file.name for file in open_checkpoint(write(tmp_path, unk_token=None)).files}
    assert names == {"config.json", "model.safetensors", "vocab.json", "merges.txt", "tokenizer_config.json"}
    (tmp_path / "tokenizer.json").write_text("{}")
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.tokenizer == b"{}"
    assert not {file.name for file in checkpoint.files} & {"vocab.json", "merges.txt"}


@pytest.mark.parametrize(
    ("file", "content", "match"),
    [
        ("vocab.json", '{"a": 0, "b": 0}', "an id of its own"),
        ("vocab.json", '{"a": "0"}', "an id of its own"),
        ("vocab.json", '{"a": -1}', "an id of its own"),
        ("vocab.json", "{}", "an id of its own"),
        ("vocab.json", "[", "not valid JSON"),
        ("vocab.json", '{"a": 0}', "do not fit each other"),
        ("added_tokens.json", '{"<pad>": 3}', "an id of its own"),
        ("merges.txt", "h e\nh e l", "line 2"),
        ("merges.txt", "h z", "do not fit each other"),
        ("merges.txt", b"\xff", "UTF-8"),
    ],
)
def test_malformed_files_are_named(file: str, content: str | bytes, match: str, tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(CheckpointError, match=match) as caught:
        open_checkpoint(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_a_vocabulary_alone_makes_no_tokenizer(tmp_path: Path) -> None:
    (write(tmp_path) / "merges.txt").unlink()
    assert open_checkpoint(tmp_path).tokenizer is None
    assert json.loads((tmp_path / "vocab.json").read_text())
