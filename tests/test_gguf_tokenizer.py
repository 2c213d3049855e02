"""The tokenizers of GGUF files, against those that the files are made of."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kaoken.codegen.checkpoint import open_checkpoint
from kaoken.codegen.errors import CheckpointError, UnsupportedModelError
from kaoken.codegen.gguf_tokenizer import read_tokenizer
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from gguf_files import wordpiece_metadata, write_file
from oracles import sentence

ROOT = Path(__file__).parent.parent
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)

ODD = [
    "",
    " ",
    "  two  and   three    spaces ",
    "\n\n\t tabs\r\nand lines \n",
    "don't I'LL we've THEY'RE it's 'tis",
    "1 12 123 1234 12345.678 ¾ ٣٤٥ Ⅷ",
    "日本語とEnglish 混ぜる。한국어 조금",
    "e\u0301te\u0301 été \u1e9b\u0323 ﬁn \u212b",
    "🙂👩‍👩‍👧 \u200b zero\u00a0width \ufeff",
    "x=y**2; def f(a_b): return {'k': [1,2]}  # done!!!???",
    "<s>special</s> <|endoftext|> <|im_start|>user\nhi<|im_end|> [MASK] [CLS] <pad>",
    "\x00\x07 control \x7f",
    "Ünïcödé ÀÉÎÕÜ straße ŁÓDŹ",
]


def corpus() -> list[str]:
    """Prose, code and what is odd."""
    from pydoc_data.topics import topics

    texts = [topics[name] for name in sorted(topics)][::4]
    texts += (ROOT / "README.md").read_text(encoding="utf-8").split("\n")
    texts += (ROOT / "codegen" / "tokenizer.py").read_text(encoding="utf-8").split("\n\n")
    return [*ODD, *texts]


def rebuilt(metadata: Mapping[str, Any]) -> Tokenizer:
    made = {"general.architecture": "llama", **{f"tokenizer.ggml.{key}": value for key, value in metadata.items()}}
    arrays = {
        key: np.array(value)
        for key, value in made.items()
        if isinstance(value, list) and value[:1] and not isinstance(value[0], str)
    }
    data, _ = read_tokenizer(Path("model.gguf"), made | arrays)
    assert data is not None
    return Tokenizer.from_str(data.decode())


def require_same(own: Tokenizer, theirs: Any, texts: Sequence[str], *, decode: bool = True) -> None:
    """Ids of every text, and the text of these."""
    for text in texts:
        ids = theirs.encode(text).ids
        assert own.encode(text).ids == ids, repr(text[:80])
        if decode:
            assert own.decode(ids) == theirs.decode(ids)


# Byte-level BPE

GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# As the tokenizer.json of Llama 3 and of Qwen 2 have it.
LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+"
)
PATTERNS = {
    "gpt-2": [GPT2_PATTERN],
    "olmo": [GPT2_PATTERN],
    "smollm": [r"\p{N}", GPT2_PATTERN],
    "llama-bpe": [LLAMA3_PATTERN],
    "qwen2": [LLAMA3_PATTERN.replace("{1,3}", "")],
}
COMPOSED = ("olmo", "qwen2")


def train_bytes(pre: str) -> Tokenizer:
    """Byte-level BPE of the corpus that cuts texts as `pre` says."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=pre == "llama-bpe"))
    if pre in COMPOSED:
        tokenizer.normalizer = normalizers.NFC()
    cuts = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in PATTERNS[pre]]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [*cuts, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=2000, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    return tokenizer


def bytes_metadata(tokenizer: Tokenizer, pre: str) -> dict[str, Any]:
    content = json.loads(tokenizer.to_str())
    vocab = content["model"]["vocab"]
    special = {entry["content"] for entry in content["added_tokens"]}
    tokens = sorted(vocab, key=vocab.__getitem__)
    merges = [" ".join(merge) for merge in content["model"]["merges"]]
    return {
        "model": "gpt2",
        "pre": pre,
        "tokens": [*tokens, "[PAD2000]"],
        "token_type": [*(CONTROL if token in special else NORMAL for token in tokens), UNUSED],
        "merges": merges,
        "eos_token_id": 0,
        "bos_token_id": 1,
        "add_bos_token": False,
    }


@pytest.mark.parametrize("pre", PATTERNS)
def test_byte_level_bpe(pre: str) -> None:
    theirs = train_bytes(pre)
    own = rebuilt(bytes_metadata(theirs, pre))
    require_same(own, theirs, [*corpus(), "[PAD2000]"])
    assert own.get_vocab() == theirs.get_vocab()
    assert own.decode([0, own.token_to_id("a"), 2], skip_special_tokens=True) == "a"


@pytest.mark.parametrize(("flags", "expected"), [
    ({"add_bos_token": True}, [1, "a"]),
    ({"add_eos_token": True}, ["a", 0]),
    ({"add_bos_token": True, "add_eos_token": True}, [1, "a", 0]),
    ({"add_bos_token": None}, ["a"]),
    ({"add_bos_token": None, "pre": "llama-bpe"}, [1, "a"]),
])  # fmt: skip
def test_tokens_around_a_text(flags: dict[str, Any], expected: list[Any]) -> None:
    metadata = {**bytes_metadata(train_bytes("gpt-2"), "gpt-2"), **flags}
    own = rebuilt({key: value for key, value in metadata.items() if value is not None})
    ids = [own.token_to_id(each) if isinstance(each, str) else each for each in expected]
    assert own.encode("a").ids == ids
    assert own.encode("a", add_special_tokens=False).ids == [own.token_to_id("a")]


def test_user_defined_tokens_are_never_cut() -> None:
    metadata = bytes_metadata(train_bytes("gpt-2"), "gpt-2")
    metadata["tokens"].append("<think>")
    metadata["token_type"].append(USER_DEFINED)
    own = rebuilt(metadata)
    ids = own.encode("a<think>b").ids
    assert ids[1:-1] == [len(metadata["tokens"]) - 1]
    assert own.decode(ids) == "a<think>b"


# SentencePiece


def sentencepiece_metadata(processor: Any, prefix: bool) -> dict[str, Any]:
    """As llama.cpp's conversion writes them."""
    kinds = []
    for index in range(len(processor)):
        tests = {
            UNKNOWN: processor.is_unknown,
            CONTROL: processor.is_control,
            UNUSED: processor.is_unused,
            BYTE: processor.is_byte,
        }
        kinds.append(next((kind for kind, test in tests.items() if test(index)), NORMAL))
    tokens = [processor.id_to_piece(index) for index in range(len(processor))]
    for token in ("<think>", "<start_of_turn>"):
        if token in tokens:
            kinds[tokens.index(token)] = USER_DEFINED
    return {
        "model": "llama",
        "pre": "default",
        "tokens": tokens,
        "scores": [processor.get_score(index) for index in range(len(processor))],
        "token_type": kinds,
        "bos_token_id": processor.bos_id(),
        "eos_token_id": processor.eos_id(),
        "unknown_token_id": processor.unk_id(),
        "add_space_prefix": prefix,
    }


@pytest.mark.ci
@pytest.mark.parametrize("prefix", [True, False])
def test_sentencepiece(prefix: bool, tmp_path: Path) -> None:
    """Against the library itself, as Llama 2's and Gemma's were trained: byte fallback, no normalization."""
    library = pytest.importorskip("sentencepiece")
    file = tmp_path / "corpus.txt"
    file.write_text(
        "\n".join(line for text in corpus() for line in text.split("\n") if "\0" not in line), encoding="utf-8"
    )
    library.SentencePieceTrainer.train(
        input=str(file),
        model_prefix=str(tmp_path / "model"),
        model_type="bpe",
        vocab_size=2000,
        byte_fallback=True,
        split_digits=True,
        add_dummy_prefix=prefix,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        allow_whitespace_only_pieces=True,
        user_defined_symbols=["<think>", "<start_of_turn>"],
        minloglevel=2,
    )
    processor = library.SentencePieceProcessor(model_file=str(tmp_path / "model.model"))
    own = rebuilt(sentencepiece_metadata(processor, prefix))
    texts = [text for text in corpus() if not any(special in text for special in ("<s>", "</s>", "\0"))]
    texts += ["<think>so</think>", "a <start_of_turn>b"] if not prefix else []
    for text in texts:
        ids = processor.encode(text)
        encoding = own.encode(text)
        assert encoding.ids == [processor.bos_id(), *ids], repr(text[:80])
        assert own.decode(encoding.ids) == processor.decode(ids)


def test_a_small_sentencepiece() -> None:
    """By hand: the best score merges first, spaces are tokens, what has no token is bytes."""
    tokens = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        "\u2581",
        "a",
        "b",
        "c",
        "ab",
        "bc",
        "\u2581a",
    ]
    types = [UNKNOWN, CONTROL, CONTROL, *[BYTE] * 256, *[NORMAL] * 7]
    scores = [0.0] * 263 + [-3.0, -1.0, -2.0]
    metadata = {
        "model": "llama",
        "tokens": tokens,
        "token_type": types,
        "scores": scores,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    own = rebuilt(metadata)
    names = [own.id_to_token(index) for index in own.encode("abc é").ids]
    assert names == ["<s>", "\u2581a", "bc", "\u2581", "<0xC3>", "<0xA9>"]
    assert own.decode(own.encode("abc é").ids) == "abc é"
    assert [own.id_to_token(index) for index in own.encode("<s>a").ids] == ["<s>", "<s>", "\u2581a"]
    unprefixed = rebuilt({**metadata, "add_space_prefix": False, "add_bos_token": False, "add_eos_token": True})
    assert [unprefixed.id_to_token(index) for index in unprefixed.encode("abc").ids] == ["a", "bc", "</s>"]


def test_spaces_that_are_never_cut() -> None:
    """As Gemma has runs of them."""
    metadata = {
        "model": "llama",
        "tokens": ["<unk>", "\u2581", "a", "\u2581\u2581", "\u2581a"],
        "token_type": [UNKNOWN, NORMAL, NORMAL, USER_DEFINED, NORMAL],
        "add_space_prefix": False,
        "add_bos_token": False,
    }
    own = rebuilt(metadata)
    assert own.encode("a  a a").ids == [2, 3, 2, 4]
    assert own.decode([2, 3, 2, 4]) == "a  a a"


# WordPiece


@pytest.mark.parametrize("capital", [False, True])
def test_wordpiece(capital: bool, tmp_path: Path) -> None:
    """Lower case where the vocabulary has no capitals, as by the library from vocab.txt."""
    words = [*sentence.WORDS, *(["Ada", "L", "É"] if capital else [])]
    file = tmp_path / "vocab.txt"
    file.write_text("\n".join(words) + "\n", encoding="utf-8")
    theirs = Tokenizer(models.WordPiece.from_file(str(file), unk_token="[UNK]"))
    theirs.normalizer = normalizers.BertNormalizer(lowercase=not capital)
    theirs.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    theirs.decoder = decoders.WordPiece()
    theirs.add_special_tokens(words[:5])
    own = rebuilt(wordpiece_metadata({word: index for index, word in enumerate(words)}, words[:5]))
    for text in (*ODD, "Ada lives in London.", "ÉA", "[MASK]x"):
        ids = theirs.encode(text).ids
        assert own.encode(text).ids == [2, *ids, 3]
        assert own.decode(ids) == theirs.decode(ids)
    pair = own.encode("ada", "lives")
    assert (pair.ids, pair.type_ids) == ([2, 57, 3, 59, 3], [0, 0, 0, 1, 1])


@pytest.mark.ci
def test_wordpiece_of_minilm(minilm: Path) -> None:
    """A GGUF's vocabulary of it, on a large corpus."""
    theirs = Tokenizer.from_file(str(minilm / "tokenizer.json"))
    theirs.no_truncation()
    theirs.no_padding()
    special = [token.content for token in theirs.get_added_tokens_decoder().values()]
    own = rebuilt(wordpiece_metadata(theirs.get_vocab(), special))
    require_same(own, theirs, corpus())
    assert own.get_vocab() == theirs.get_vocab()
    assert own.encode("a", "b").type_ids == theirs.encode("a", "b").type_ids


# The real SmolLM2


@pytest.mark.ci
def test_smollm2(smollm2: Path) -> None:
    """Against transformers, which does not set digits apart, as SmolLM2 does: of these the ids are known."""
    transformers = pytest.importorskip("transformers")
    opened = open_checkpoint(smollm2)
    assert opened.tokenizer is not None
    own = Tokenizer.from_str(opened.tokenizer.decode())
    theirs = transformers.AutoTokenizer.from_pretrained(smollm2.parent, gguf_file=smollm2.name).backend_tokenizer
    require_same(own, theirs, [text for text in corpus() if not any(letter.isnumeric() for letter in text)])
    assert own.encode("Hello world! 123").ids == [19556, 905, 17, 216, 33, 34, 35]
    assert own.encode("<|im_start|>user\n<|im_end|>").ids == [1, 4093, 198, 2]
    config = opened.tokenizer_config
    assert (config["bos_token"], config["eos_token"], config["unk_token"]) == (
        "<|im_start|>",
        "<|im_end|>",
        "<|endoftext|>",
    )
    assert config["chat_template"].startswith("{% for message in messages %}")


# What is refused


def tokenizer_file(path: Path, metadata: Mapping[str, Any]) -> Path:
    keys = {f"tokenizer.ggml.{key}": value for key, value in metadata.items()}
    return write_file(path, "llama", keys, {"x": np.zeros(4, np.float32)})


SMALL = {"model": "gpt2", "pre": "gpt-2", "tokens": ["a", "b", "ab"], "merges": ["a b"], "token_type": [1, 1, 1]}
REFUSED: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "another way to cut": ({"pre": "tekken"}, UnsupportedModelError, "tokenizer.ggml.pre, .* is 'tekken'"),
    "no way to cut": ({"pre": None}, UnsupportedModelError, "tokenizer.ggml.pre, .* is 'default'"),
    "another kind": ({"model": "rwkv"}, UnsupportedModelError, "tokenizer.ggml.model is 'rwkv'"),
    "no tokens": ({"tokens": None}, CheckpointError, "tokenizer.ggml.tokens is None"),
    "no merges": ({"merges": None}, CheckpointError, "tokenizer.ggml.merges is None"),
    "a merge of three": ({"merges": ["a b c"]}, CheckpointError, "has 'a b c'; expected two tokens"),
    "a merge of no tokens": ({"merges": ["a z"]}, CheckpointError, "its vocabulary cannot be used"),
    "too few types": ({"token_type": [1]}, CheckpointError, "token_type is not a list of 3 numbers"),
    "a text for a truth": ({"add_bos_token": "yes"}, CheckpointError, "add_bos_token is 'yes'"),
    "no token to begin with": ({"add_bos_token": True}, CheckpointError, "bos_token_id names no token"),
    "one that is not there": (
        {"add_bos_token": True, "bos_token_id": 3},
        CheckpointError,
        "bos_token_id names no token",
    ),
    "fewer spaces": (
        {"model": "llama", "remove_extra_whitespaces": True},
        UnsupportedModelError,
        "remove_extra_whitespaces is true",
    ),
    "a word without end": ({"tokens": ["a", "b", "ab" * 600]}, CheckpointError, "has 1200 characters in one token"),
    "too many characters": (
        {"tokens": ["ab" * 500] * 8500, "token_type": None},
        CheckpointError,
        "has 8500000 characters; expected",
    ),
    "too many tokens": ({"tokens": ["a"] * (1 << 21), "token_type": None}, CheckpointError, "has 2097152 tokens;"),
    "too many that are never cut": (
        {"tokens": ["a"] * 40000, "token_type": [3] * 40000},
        CheckpointError,
        "has 40000 tokens that are never cut",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_vocabularies_are_refused_by_name(name: str) -> None:
    changes, kind, message = REFUSED[name]
    metadata = {key: value for key, value in {**SMALL, **changes}.items() if value is not None}
    with pytest.raises(kind, match=message) as caught:
        rebuilt(metadata)
    assert str(caught.value).startswith("model.gguf: ")


@pytest.mark.parametrize("model", [None, "no_vocab", "none"])
def test_a_file_may_have_no_vocabulary(model: str | None) -> None:
    metadata = {} if model is None else {"tokenizer.ggml.model": model}
    assert read_tokenizer(Path("model.gguf"), metadata) == (None, {})
