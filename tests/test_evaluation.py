"""`kaoken eval`: its figures against their definitions, and what it refuses."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tokenizers import Tokenizer, models, pre_tokenizers, processors

import kaoken
from conftest import Bake, BakedBundled
from kaoken.cli import main
from kaoken.evaluation import EncoderEvaluation, _ranks, evaluate
from kaoken.windows import cut
from oracles import bert, sentence

TEXT = "ROMEO:\nBut soft, what light through yonder window breaks?\nIt is the east, and Juliet is the sun.\n" * 12


def log_probabilities(logits: NDArray[Any]) -> NDArray[np.float64]:
    exact = logits.astype(np.float64)
    return exact - np.log(np.exp(exact).sum(axis=-1, keepdims=True))


def test_a_decoder_against_its_definition(baked_bundled: BakedBundled) -> None:
    ours, theirs = baked_bundled("int4"), baked_bundled("float32")
    result: Any = evaluate(ours, TEXT, against=theirs._arguments[0], context=64)
    windows = np.frombuffer(TEXT.encode(), np.uint8).astype(np.int64)
    windows = windows[: len(windows) // 64 * 64].reshape(-1, 64)
    p, q = (log_probabilities(model.logits(windows))[:, 7:-1] for model in (theirs, ours))
    chosen = windows[:, 8:, None]
    nats = [-np.take_along_axis(each, chosen, axis=-1).mean() for each in (q, p)]
    assert (result.windows, result.context, result.tokens) == (len(windows), 64, len(windows) * 56)
    assert result.perplexity == pytest.approx(math.exp(nats[0]), rel=1e-6)
    assert result.against_perplexity == pytest.approx(math.exp(nats[1]), rel=1e-6)
    assert result.bits_per_byte == pytest.approx(nats[0] / math.log(2), rel=1e-6)
    assert result.kl_divergence == pytest.approx((np.exp(p) * (p - q)).sum(axis=-1).mean(), rel=1e-3)
    assert result.top1_agreement == pytest.approx((p.argmax(axis=-1) == q.argmax(axis=-1)).mean())
    assert 0 < result.kl_divergence < 0.1
    assert 0.9 < result.top1_agreement < 1


def test_a_decoder_against_its_checkpoint(bundled: kaoken.BakedGPT2, bundled_directory: Path) -> None:
    """The wheel's model is this checkpoint in float32, so nothing differs."""
    result: Any = evaluate(bundled, TEXT, against=bundled_directory)
    assert (result.kl_divergence, result.top1_agreement) == (0, 1)
    assert result.perplexity == result.against_perplexity


def test_what_a_tokenizer_puts_in_front_begins_each_window() -> None:
    tokenizer = Tokenizer(models.WordLevel({"<s>": 0, "</s>": 1, "a": 2, "é": 3, "?": 4}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A </s>", None, [("<s>", 0), ("</s>", 1)])
    windows, first, size = cut(tokenizer, "a a a é é a é", 4)
    assert windows.tolist() == [[0, 2, 2, 2], [0, 3, 3, 2]]
    assert (first, size) == (1, len("a a a é é a".encode()))


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory, bake_checkpoint: Bake) -> dict[str, str]:
    directory = sentence.write(tmp_path_factory.mktemp("eval") / "sentence")
    sentence.write_vocabulary(directory, tokenizer_class="BertTokenizer")
    bare = bert.write(directory.parent / "bare", bert.TINY)
    baked = {dtype: str(bake_checkpoint(directory, dtype=dtype)) for dtype in ("float32", "int4")}
    return {**baked, "checkpoint": str(directory), "bare": str(bake_checkpoint(bare))}


LINES = "\n".join(" ".join(sentence.WORDS[5 + (3 * i + j * j) % 20] for j in range(2 + i % 7)) for i in range(30))


def test_an_encoder_against_its_definition(encoders: dict[str, str]) -> None:
    result = evaluate(kaoken.load(encoders["int4"]), LINES + "\n\n", against=encoders["checkpoint"])
    assert isinstance(result, EncoderEvaluation)
    ours, theirs = (kaoken.load(encoders[dtype]).encode(LINES.split("\n")) for dtype in ("int4", "float32"))
    ours, theirs = (each / np.linalg.norm(each, axis=1, keepdims=True) for each in (ours, theirs))
    cosines = (ours * theirs).sum(axis=1)
    assert result.lines == 30
    assert result.least_cosine == pytest.approx(cosines.min(), abs=1e-6)
    assert result.mean_cosine == pytest.approx(cosines.mean(), abs=1e-6)
    assert 0.5 < result.rank_correlation < 1


def test_an_encoder_against_itself(encoders: dict[str, str]) -> None:
    result: Any = evaluate(kaoken.load(encoders["float32"]), LINES, against=encoders["float32"])
    assert result.least_cosine == pytest.approx(1)
    assert result.rank_correlation == pytest.approx(1)


def test_ranks_share_their_places() -> None:
    assert _ranks(np.array([3.0, 1.0, 3.0, 2.0, 3.0])).tolist() == [4, 1, 4, 2, 4]


@pytest.mark.parametrize(
    ("model", "text", "options", "message"),
    [
        ("bundled", "too short", {}, "the text has 9 tokens, and a window of 256 takes 256"),
        ("bundled", TEXT, {"context": 1}, "context is 1; expected 2 to the model's 256"),
        ("bundled", TEXT, {"context": 257}, "context is 257"),
        ("bundled", TEXT, {"against": "encoder"}, "is another kind of model than"),
        ("float32", LINES, {}, "name its checkpoint"),
        ("float32", LINES, {"against": "float32", "context": 8}, "context is for decoders"),
        ("float32", "a line\n", {"against": "float32"}, "the text has 1 lines that are not empty"),
        ("float32", LINES, {"against": "bare"}, "another kind of model"),
        ("bare", LINES, {"against": "bare"}, "expected a decoder, or an encoder with a modules.json"),
    ],
)
def test_what_is_refused(
    model: str,
    text: str,
    options: dict[str, Any],
    message: str,
    bundled: kaoken.BakedGPT2,
    encoders: dict[str, str],
) -> None:
    libraries = {**encoders, "encoder": encoders["float32"]}
    options = {name: libraries.get(str(value), value) for name, value in options.items()}
    with pytest.raises(kaoken.KaokenError, match=message):
        evaluate(bundled if model == "bundled" else kaoken.load(encoders[model]), text, **options)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    def run(*arguments: object) -> tuple[int, str]:
        code = main(["eval", *map(str, arguments)])
        printed = capsys.readouterr()
        return code, printed.out if code == 0 else printed.err

    return run


def test_the_command(run: Any, encoders: dict[str, str], bundled_directory: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text(TEXT, encoding="utf-8")
    code, printed = run("--text", text, "--against", bundled_directory)
    assert code == 0
    assert "perplexity  " in printed
    assert "+0.00 %" in printed
    assert json.loads(run("--text", text, "--context", 100, "--json")[1])["against"] is None
    text.write_text(LINES, encoding="utf-8")
    assert "least cosine  " in run(encoders["int4"], "--text", text, "--against", encoders["float32"])[1]
    text.write_bytes(b"ab\xff")
    assert "is not UTF-8 (byte 2 of it)" in run("--text", text)[1]
    assert "cannot read" in run("--text", tmp_path)[1]
    assert "cannot read" in run("--text", tmp_path / "none")[1]
