"""The files of older tokenizers become a tokenizer.json, judged by the tokenizers library's own reading of them."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
from kaoken.codegen.checkpoint import open_checkpoint
from kaoken.codegen.errors import CheckpointError, UnsupportedModelError
from kaoken.codegen.tokenizer import describe
from tokenizers import BertWordPieceTokenizer, ByteLevelBPETokenizer, Tokenizer
from tokenizers.pre_tokenizers import ByteLevel

from checkpoints import write_checkpoint, write_json
from oracles import bert, sentence

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


# RoBERTa's byte-level BPE

ROBERTA = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]


def write_roberta(directory: Path, **config: object) -> Path:
    write(directory, **config)
    words = {**{token: index for index, token in enumerate(ROBERTA)}}
    words |= {token: index + len(ROBERTA) for token, index in vocabulary().items()}
    write_json(directory / "vocab.json", words)
    return directory


@pytest.mark.parametrize("prefix", [False, True])
def test_robertas_have_templates(prefix: bool, tmp_path: Path) -> None:
    own = converted(write_roberta(tmp_path, tokenizer_class="RobertaTokenizer", add_prefix_space=prefix))
    assert own.encode("hello", "hello").ids == [0, *(own.encode("hello").ids[1:]), 2, *own.encode("hello").ids[1:]]
    assert own.encode("hello <mask>").tokens[-2:] == [" <mask>", "</s>"]
    assert own.encode("hello world").offsets[1:-1] == [(0, 5), (6, 11)]


def test_a_roberta_is_known_by_its_model_type_where_no_class_is_named(tmp_path: Path) -> None:
    from kaoken.codegen.checkpoint import read_tokenizer

    for model_type, ends in (("roberta", True), ("gpt2", False)):
        data, _ = read_tokenizer(write_roberta(tmp_path), model_type)
        assert data is not None
        assert (Tokenizer.from_str(data.decode()).encode("hello").tokens[0] == "<s>") == ends


def test_a_roberta_without_its_special_tokens(tmp_path: Path) -> None:
    write_roberta(tmp_path, tokenizer_class="RobertaTokenizer", cls_token="<start>")
    with pytest.raises(CheckpointError, match=r"lacks '<start>', the cls_token"):
        open_checkpoint(tmp_path)


# WordPiece

WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    *"abcdefghijklmnopqrstuvwxyzHü日本",
    "##s",
    "hello",
    "world",
    "##ly",
]
WORDS += ["cafe", "café", "!", "'", "t", "hello"]
MIXED = ["Hello world!", "hello  WORLDly's\tcafé", "日本 hello", "hü Hello\u0000\u200b", "[MASK]s [SEP]", "", "x" * 150]


def write_wordpiece(directory: Path, words: list[str] | None = None, **config: object) -> Path:
    bert.write(directory, bert.TINY)
    (directory / "vocab.txt").write_text("\n".join(WORDS if words is None else words) + "\n", encoding="utf-8")
    if config:
        write_json(directory / "tokenizer_config.json", config)
    return directory


@pytest.mark.parametrize("lower", [True, False])
@pytest.mark.parametrize("accents", [None, True, False])
@pytest.mark.parametrize("chinese", [True, False])
def test_wordpiece_is_the_tokenizer_of_the_library(
    lower: bool, accents: bool | None, chinese: bool, tmp_path: Path
) -> None:
    write_wordpiece(tmp_path, do_lower_case=lower, strip_accents=accents, tokenize_chinese_chars=chinese)
    own = converted(tmp_path)
    theirs = BertWordPieceTokenizer(
        str(tmp_path / "vocab.txt"), lowercase=lower, strip_accents=accents, handle_chinese_chars=chinese
    )
    theirs.add_special_tokens(WORDS[:5])
    for first in MIXED:
        for text in ((first,), (first, "hello")):
            mine, other = own.encode(*text), theirs.encode(*text)
            assert (mine.ids, mine.type_ids, mine.offsets) == (other.ids, other.type_ids, other.offsets)
            assert own.decode(mine.ids) == theirs.decode(mine.ids)


def test_wordpiece_by_default(tmp_path: Path) -> None:
    """As BertTokenizer: lower case, without accents; of equal lines the last counts."""
    own = converted(write_wordpiece(tmp_path))
    assert own.encode("HELLO Café", "a").tokens == ["[CLS]", "hello", "cafe", "[SEP]", "a", "[SEP]"]
    assert own.encode("hello", "a").type_ids == [0, 0, 0, 1, 1]
    assert own.token_to_id("hello") == len(WORDS) - 1
    names = {file.name for file in open_checkpoint(tmp_path).files}
    assert names == {"config.json", "model.safetensors", "vocab.txt"}


def test_special_tokens_of_other_names(tmp_path: Path) -> None:
    words = ["<s>", "<pad>", "</s>", "[UNK]", "<mask>", "hello"]
    own = converted(write_wordpiece(tmp_path, words, tokenizer_class="MPNetTokenizer"))
    assert own.encode("hello", "hello").tokens == ["<s>", "hello", "</s>", "</s>", "hello", "</s>"]
    write_wordpiece(tmp_path, ["<unk>", "(", ")", "hello"])
    tokens = {"unk_token": "<unk>", "cls_token": {"content": "("}, "sep_token": ")"}
    write_json(tmp_path / "special_tokens_map.json", tokens)
    assert converted(tmp_path).encode("hello").tokens == ["(", "hello", ")"]


@pytest.mark.parametrize(
    ("words", "match"), [([], "lacks"), (["[UNK]", "[CLS]"], r"lacks '\[SEP\]', the sep_token"), (["[CLS]"], "lacks")]
)
def test_a_vocabulary_without_special_tokens(words: list[str], match: str, tmp_path: Path) -> None:
    write_wordpiece(tmp_path, words)
    with pytest.raises(CheckpointError, match=match) as caught:
        open_checkpoint(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_a_vocabulary_that_is_no_text(tmp_path: Path) -> None:
    (write_wordpiece(tmp_path) / "vocab.txt").write_bytes(b"[CLS]\n\xff\n")
    with pytest.raises(CheckpointError, match="UTF-8"):
        open_checkpoint(tmp_path)
    (tmp_path / "vocab.txt").write_bytes(b"")
    with pytest.raises(CheckpointError, match="empty"):
        open_checkpoint(tmp_path)


def test_a_vocabulary_of_another_tokenizer_is_refused(tmp_path: Path) -> None:
    write_wordpiece(tmp_path, tokenizer_class="PhobertTokenizer")
    with pytest.raises(UnsupportedModelError, match=r"'Phobert'.*expected one of Bert"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("added", ['{"x": -1}', '{"x": 1099511627776}', '{"x": 5}', '{"\\ud800": 700}'])
def test_added_tokens_of_wordpiece_are_checked(added: str, tmp_path: Path) -> None:
    (write_wordpiece(tmp_path) / "added_tokens.json").write_text(added, encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"vocab\.txt and the"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("name", ["spiece.model", "sentencepiece.bpe.model", "spm.model"])
def test_sentencepiece_alone_is_refused_with_the_line_that_converts_it(name: str, tmp_path: Path) -> None:
    (bert.write(tmp_path, bert.TINY) / name).write_bytes(b"model")
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(tmp_path)
    line = str(caught.value).partition("python -c ")[2].partition(", or remove")[0]
    code = shlex.split(line)[0]
    compile(code, "line", "exec")
    assert f"d = {str(tmp_path)!r}; t.AutoTokenizer.from_pretrained(d).save_pretrained(d)" in code
    (tmp_path / "tokenizer.json").write_text("{}")
    assert open_checkpoint(tmp_path).tokenizer == b"{}"


def normalizer_of(directory: Path) -> object:
    data = open_checkpoint(directory).tokenizer
    assert data is not None
    return json.loads(data)["normalizer"]


def test_a_config_beside_a_tokenizer(tmp_path: Path) -> None:
    """Its options of BERT's normalizer win, as in transformers."""
    plain = converted(write_wordpiece(tmp_path))
    plain.save(str(tmp_path / "tokenizer.json"))
    stored = (tmp_path / "tokenizer.json").read_bytes()
    assert open_checkpoint(tmp_path).tokenizer == stored
    write_json(
        tmp_path / "tokenizer_config.json", {"do_lower_case": True, "strip_accents": None, "model_max_length": 9}
    )
    assert open_checkpoint(tmp_path).tokenizer == stored
    assert open_checkpoint(tmp_path).tokenizer_config["model_max_length"] == 9
    write_json(tmp_path / "tokenizer_config.json", {"do_lower_case": False})
    assert converted(tmp_path).encode("Hello").tokens == ["[CLS]", "[UNK]", "[SEP]"]


@pytest.mark.parametrize("limit", [0, -1, 0.5])
def test_a_limit_that_leaves_no_text(limit: float) -> None:
    with pytest.raises(CheckpointError, match=f"model_max_length = {limit}, which leaves no text: write how many"):
        describe(b"{}", {"model_max_length": limit})
    for fields, expected in (({}, None), ({"model_max_length": 1e30}, None), ({"model_max_length": 7.0}, 7)):
        described = describe(b"{}", fields)
        assert described is not None
        assert described["max_length"] == expected


def test_sentence_transformers_may_lowercase(tmp_path: Path) -> None:
    write_wordpiece(tmp_path, do_lower_case=False)
    sentence.write(tmp_path, transformer={"do_lower_case": True})
    assert converted(tmp_path).encode("HELLO Café").tokens == ["[CLS]", "hello", "café", "[SEP]"]
    lower = {"type": "Lowercase"}
    for given, expected in (
        (None, {"type": "Sequence", "normalizers": [lower]}),
        ({"type": "NFC"}, {"type": "Sequence", "normalizers": [lower, {"type": "NFC"}]}),
        ({"type": "Sequence", "normalizers": [{"type": "NFC"}, lower]}, None),
        (lower, None),
    ):
        write_json(tmp_path / "tokenizer.json", {"normalizer": given})
        assert normalizer_of(tmp_path) == (expected or given)


CORPUS = [
    *("Hello, world! It's 3.14%.", "Ünïcödé Café naïve ÀÉ", "日本語とEnglish 混ぜる", "Ελληνικά Русский", "🙂🙃 done"),
    *("\ttabs\n\nlines\r x\u200bzero\u00a0nbsp\0nul\a", "[MASK] in [SEP] the [CLS]", "a" * 150, "", "ﬁ ½ ﷺ İ ẞ"),
]


@pytest.mark.ci
@pytest.mark.parametrize(
    "config",
    [{}, {"do_lower_case": False}, {"strip_accents": False}, {"do_lower_case": False, "strip_accents": True}],
)
@pytest.mark.parametrize("kind", ["bert", "mpnet", "roberta"])
def test_transformers_makes_the_same(kind: str, config: dict[str, object], tmp_path: Path) -> None:
    """Ids, types and offsets of a corpus of many scripts, single and in pairs."""
    transformers = pytest.importorskip("transformers")
    from kaoken.codegen.checkpoint import read_tokenizer

    characters = sorted({character for text in CORPUS for character in text if not character.isspace()})
    words = [*(ROBERTA if kind == "mpnet" else WORDS[:5]), *characters, *(f"##{each}" for each in characters)]
    if kind == "roberta":
        write_roberta(tmp_path, **config)
    else:
        write_wordpiece(tmp_path, ["[UNK]", *(word for word in words if word != "[UNK]"), "hello"], **config)
    write_json(tmp_path / "config.json", {"model_type": kind})
    data, _ = read_tokenizer(tmp_path, kind)
    assert data is not None
    own, theirs = Tokenizer.from_str(data.decode()), transformers.AutoTokenizer.from_pretrained(tmp_path)
    for first in CORPUS:
        for text in ((first,), (first, "second, 日本")):
            mine = own.encode(*text)
            other = theirs(*text, return_token_type_ids=True, return_offsets_mapping=True)
            assert mine.ids == other["input_ids"]
            assert (mine.type_ids, mine.offsets) == (other["token_type_ids"], other["offset_mapping"])
