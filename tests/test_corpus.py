"""A text as samples: windows against slices by hand, the cut, digests, and bad input."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from checkpoints import TOKENIZER, TOKENIZER_VOCAB
from kaoken.compress import corpus as module
from kaoken.compress.corpus import Corpus, read_corpus
from kaoken.errors import InputError

TEXT = "Où sont les neiges d'antan?\nIn the east.\n\n<|endoftext|>日本"
BYTES = Tokenizer.from_file(str(TOKENIZER))


def corpus(*tokens: int, vocab_size: int = 100) -> Corpus:
    return Corpus("a text", np.array(tokens, np.uint16), vocab_size, len(tokens))


def written(tmp_path: Path, text: str | bytes) -> Path:
    path = tmp_path / "text.txt"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def text_of(part: Corpus) -> str:
    return str(BYTES.decode(part.tokens.tolist(), skip_special_tokens=False))


@pytest.mark.parametrize("stride", [None, 1, 2, 3])
@pytest.mark.parametrize("count", [4, 5, 7, 10])
def test_samples_are_slices_of_the_tokens(count: int, stride: int | None) -> None:
    tokens = list(range(20, 20 + count))
    starts = [start for start in range(0, count, stride or 3) if start + 3 < count]  # a target for each of 3 inputs
    samples = corpus(*tokens).samples(3, stride)
    assert len(samples) == len(starts)
    order = np.random.default_rng(0).permutation(len(starts))
    inputs, targets = samples.gather(order)
    assert inputs.tolist() == [tokens[starts[i] : starts[i] + 3] for i in order]
    assert targets.tolist() == [tokens[starts[i] + 1 : starts[i] + 4] for i in order]
    assert samples.inputs(0, len(starts)).tolist() == [tokens[start : start + 3] for start in starts]
    assert (inputs.dtype, targets.dtype) == (np.int64, np.int64)


def test_the_end_of_the_text_is_held_out(tmp_path: Path) -> None:
    training, held_out = read_corpus(written(tmp_path, TEXT), BYTES, TOKENIZER_VOCAB, 0.25)
    cut = len(TEXT) - round(len(TEXT) * 0.25)  # of characters, so that none is torn
    assert (text_of(training), text_of(held_out)) == (TEXT[:cut], TEXT[cut:])
    assert (training.size, held_out.size) == (len(TEXT[:cut].encode()), len(TEXT[cut:].encode()))
    everything, nothing = read_corpus(written(tmp_path, TEXT), BYTES, TOKENIZER_VOCAB, 0)
    assert text_of(everything) == TEXT
    assert (len(nothing.tokens), nothing.size) == (0, 0)
    assert everything.tokens.dtype == np.uint16


def test_a_vocabulary_beyond_two_bytes(tmp_path: Path) -> None:
    training, _ = read_corpus(written(tmp_path, TEXT), BYTES, (1 << 16) + 1)
    assert training.tokens.dtype == np.uint32


@pytest.mark.parametrize("chunk", [1, 7, 30])
def test_pieces_of_a_long_text_join_to_the_same_tokens(
    chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "Où sont les neiges?\nIn the east, a line that is longer than a chunk.\r\n\n\n日本"
    whole, _ = read_corpus(written(tmp_path, text), BYTES, TOKENIZER_VOCAB, 0)
    monkeypatch.setattr(module, "_CHUNK", chunk)
    pieces, _ = read_corpus(written(tmp_path, text), BYTES, TOKENIZER_VOCAB, 0)
    np.testing.assert_array_equal(pieces.tokens, whole.tokens)
    assert bytes(pieces.tokens.tolist()) == text.encode()


def test_pieces_end_with_a_line_where_they_can(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CHUNK", 5)
    assert module._pieces("ab\ncd\nefghijk\nl") == ["ab\n", "cd\n", "efghi", "jk\nl"]


def test_the_digest_is_of_the_tokens_and_of_their_cut() -> None:
    different = [
        corpus(1, 2, 3, 4, 5).samples(2),
        corpus(1, 2, 3, 4, 6).samples(2),
        corpus(1, 2, 3, 4, 5).samples(3),
        corpus(1, 2, 3, 4, 5).samples(2, 1),
        corpus(1, 2, 3, 4, 5, vocab_size=101).samples(2),
        corpus(1, 2, 3, 4, 5, 6).samples(2),
    ]
    assert len({samples.digest for samples in different}) == len(different)
    assert corpus(1, 2, 3, 4, 5).samples(2).digest == different[0].digest
    by_hand = b"2 2 100 <u2\n" + b"\1\0\2\0\3\0\4\0\5\0"
    assert different[0].digest == hashlib.sha256(by_hand).hexdigest()


@pytest.mark.parametrize("count", [0, 1, 8])
def test_a_text_shorter_than_a_context(count: int) -> None:
    with pytest.raises(InputError, match=rf"has {count} tokens; expected more than the model's context of 8: use a"):
        corpus(*range(count)).samples(8)


@pytest.mark.parametrize("stride", [0, -1, 4])
def test_a_stride_outside_the_context(stride: int) -> None:
    with pytest.raises(InputError, match=rf"stride is {stride}; expected from 1 to the context of 3"):
        corpus(*range(9)).samples(3, stride)


@pytest.mark.parametrize("holdout", [-0.1, 1.0, float("nan")])
def test_a_share_outside_its_range(holdout: float, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"holdout is {holdout}; expected a share"):
        read_corpus(written(tmp_path, TEXT), BYTES, TOKENIZER_VOCAB, holdout)


@pytest.mark.parametrize(
    ("text", "error"), [(b"abc\xff", r"text\.txt is not UTF-8 \(byte 3\): convert it"), (b"", r"text\.txt is empty")]
)
def test_a_text_that_is_none(text: bytes, error: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=error):
        read_corpus(written(tmp_path, text), BYTES, TOKENIZER_VOCAB)


def test_a_tokenizer_of_another_vocabulary(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"makes token 122 of .*text\.txt, but the model has 122 tokens"):
        read_corpus(written(tmp_path, "a to z" * 9), BYTES, 122)
    assert len(read_corpus(written(tmp_path, "a to z" * 9), BYTES, 123)[0].tokens)
