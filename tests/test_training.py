"""Training by the Trainer: the same bits by seed and after a kill, what a step computes, presets, and evaluation.

Skipped without torch and transformers, unless KAOKEN_REQUIRE_TRANSFORMERS=1 makes their absence a failure.
"""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tokenizers import Tokenizer

if os.environ.get("KAOKEN_REQUIRE_TRANSFORMERS") != "1":
    pytest.importorskip("torch")
    pytest.importorskip("transformers")

import torch
from kaoken.codegen.families.fields import ACTIVATIONS
from transformers import TrainerCallback

from checkpoints import TOKENIZER, TOKENIZER_VOCAB
from kaoken.compress import gpt2, presets
from kaoken.compress.corpus import Corpus, Samples
from kaoken.compress.training import Evaluation, Schedule, evaluate, plain_loss, train_model
from kaoken.errors import InputError, KaokenError
from oracle import open_oracle
from toys import TEXT, TOY

pytestmark = pytest.mark.ci

TOKENS = np.frombuffer(TEXT.encode(), np.uint8).astype(np.uint16)
CORPUS = Corpus("the toy text", TOKENS, TOKENIZER_VOCAB, len(TOKENS))
SAMPLES = Samples(TOKENS[: 22 * 16 + 1], 16, 16, TOKENIZER_VOCAB)  # 22 of them
DROPOUT = {**TOY, "embd_pdrop": 0.2}  # its random numbers must go on behind a checkpoint, too
SCHEDULE = Schedule(max_steps=13, batch_size=4, learning_rate=3e-3, min_learning_rate=3e-4, warmup_steps=3, seed=5)

Bits = dict[str, bytes]


def bits(model: Any) -> Bits:
    return {name: tensor.numpy().tobytes() for name, tensor in model.state_dict().items()}


def trained(work: Path, schedule: Schedule = SCHEDULE, config: dict[str, Any] = DROPOUT, **options: Any) -> Bits:
    model = gpt2.new(config, schedule.seed)
    result = train_model(model, SAMPLES, schedule, work, **options)
    assert result.steps == schedule.max_steps
    assert not model.training
    return bits(model)


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> Bits:
    """The weights of a run that nothing has stopped."""
    return trained(tmp_path_factory.mktemp("expected"))


class Stop(TrainerCallback):
    """Raises what Ctrl-C raises, behind a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise KeyboardInterrupt


def stopped(work: Path, step: int) -> None:
    with pytest.raises(KeyboardInterrupt):
        trained(work, callbacks=[Stop(step)])


def test_the_seed_decides_every_bit(expected: Bits, tmp_path: Path) -> None:
    assert trained(tmp_path / "same") == expected
    other = trained(tmp_path / "other", replace(SCHEDULE, seed=6))
    assert other["transformer.wte.weight"] != expected["transformer.wte.weight"]


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import test_training

class Kill(test_training.Stop):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)

test_training.trained(Path(sys.argv[2]), callbacks=[Kill(8)])
"""


def test_a_killed_run_goes_on_to_the_same_bits(expected: Bits, tmp_path: Path) -> None:
    run = subprocess.run([sys.executable, "-c", KILLED, str(Path(__file__).parent), str(tmp_path)], check=False)
    assert run.returncode == -signal.SIGKILL
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-6"]
    assert trained(tmp_path) == expected


@pytest.mark.parametrize("damage", ["truncated", "missing", "weights only"])
def test_a_checkpoint_that_was_not_finished_is_passed_over(damage: str, expected: Bits, tmp_path: Path) -> None:
    stopped(tmp_path, 13)  # where checkpoints of the steps 6 and 12 are
    state = tmp_path / "checkpoint-12" / "trainer_state.json"
    if damage == "truncated":
        os.truncate(state, 100)
    else:
        state.unlink()
        if damage == "weights only":
            (tmp_path / "checkpoint-12" / "optimizer.pt").unlink()
            os.truncate(tmp_path / "checkpoint-12" / "model.safetensors", 1000)
    assert trained(tmp_path) == expected


def test_a_run_that_has_ended_is_loaded(expected: Bits, tmp_path: Path) -> None:
    first = trained(tmp_path)
    again = trained(tmp_path, callbacks=[Stop(1)])  # which no step reaches
    assert first == again == expected


def test_stopped_before_the_first_checkpoint(expected: Bits, tmp_path: Path) -> None:
    stopped(tmp_path, 2)
    assert trained(tmp_path) == expected


def test_what_a_training_took(tmp_path: Path) -> None:
    model = gpt2.new(TOY, 0)
    schedule = replace(SCHEDULE, max_steps=None, epochs=2, accumulate=2)
    result = train_model(model, SAMPLES, schedule, tmp_path)
    assert (result.steps, result.tokens) == (6, 6 * 8 * 16)  # 2 * 22 samples in steps of 8
    assert result.seconds > 0
    assert result.loss == pytest.approx(math.log(TOKENIZER_VOCAB), rel=0.2)  # hardly begun
    again = train_model(gpt2.new(TOY, 0), SAMPLES, schedule, tmp_path)
    assert (again.steps, again.tokens, again.loss) == (result.steps, result.tokens, result.loss)
    assert 0 < again.seconds <= result.seconds


def test_the_loss_falls(tmp_path: Path) -> None:
    model = gpt2.new(TOY, 0)
    before = evaluate(model, CORPUS, 16)
    result = train_model(model, SAMPLES, replace(SCHEDULE, max_steps=100, learning_rate=1e-2), tmp_path)
    after = evaluate(model, CORPUS, 16)
    assert before.loss == pytest.approx(math.log(TOKENIZER_VOCAB), rel=0.05)
    assert after.loss < 0.6 * before.loss
    assert after.accuracy > 0.2 > before.accuracy
    assert result.loss == pytest.approx(after.loss, rel=0.2)


def test_steps_are_those_of_adamw_by_hand(tmp_path: Path) -> None:
    """Two steps of the Trainer against torch's AdamW: clipping, decay of matrices alone, warm-up and cosine."""
    seen: list[list[int]] = []

    def batches(indices: list[int]) -> dict[str, Any]:
        seen.append(indices)
        inputs, targets = SAMPLES.gather(np.asarray(indices))
        return {"input_ids": torch.from_numpy(inputs.copy()), "targets": torch.from_numpy(targets.copy())}

    schedule = replace(SCHEDULE, max_steps=2, batch_size=8, warmup_steps=1, weight_decay=0.3)
    model, by_hand = gpt2.new(TOY, 5), gpt2.new(TOY, 5)
    train_model(model, SAMPLES, schedule, tmp_path, batches=batches)
    decayed = [p for p in by_hand.parameters() if p.dim() > 1]
    others = [p for p in by_hand.parameters() if p.dim() == 1]
    groups = [{"params": decayed, "weight_decay": 0.3}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, schedule.beta2))
    for step, indices in enumerate(seen[:2]):
        for group in optimizer.param_groups:
            group["lr"] = (0.0, 3e-3)[step]
        plain_loss(by_hand, batches(indices)).backward()
        torch.nn.utils.clip_grad_norm_(by_hand.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, by_hand.state_dict()[name], rtol=1e-5, atol=1e-7, msg=name)


def test_accumulated_batches_are_one_large_batch(tmp_path: Path) -> None:
    large = trained(tmp_path / "large", replace(SCHEDULE, batch_size=8, max_steps=2), TOY)
    small = trained(tmp_path / "small", replace(SCHEDULE, batch_size=4, accumulate=2, max_steps=2), TOY)
    for name, expected in large.items():
        pair = [np.frombuffer(each, np.float32) for each in (expected, small[name])]
        np.testing.assert_allclose(*pair, atol=1e-5, err_msg=name)


def test_fewer_samples_than_a_batch(tmp_path: Path) -> None:
    model = gpt2.new(TOY, 0)
    result = train_model(model, Samples(TOKENS[:50], 16, 16, TOKENIZER_VOCAB), SCHEDULE, tmp_path)  # 3 samples
    assert (result.steps, result.tokens) == (13, 13 * 3 * 16)


@pytest.mark.parametrize("option", ["bf16", "gradient_checkpointing"])
def test_options_of_the_arithmetic(option: str, expected: Bits, tmp_path: Path) -> None:
    plain, other = (
        trained(tmp_path / name, replace(SCHEDULE, **options), TOY)
        for name, options in (("plain", {}), ("other", {option: True}))
    )
    pair = [np.frombuffer(each["transformer.wte.weight"], np.float32) for each in (plain, other)]
    np.testing.assert_allclose(*pair, atol=1e-6 if option == "gradient_checkpointing" else 1e-2)
    assert (option == "bf16") == (plain != other)  # recomputing changes no bit


def test_a_loss_that_is_not_finite_ends_the_training(tmp_path: Path) -> None:
    model = gpt2.new(TOY, 0)
    with torch.no_grad():
        model.transformer.ln_f.bias[3] = math.nan
    with pytest.raises(KaokenError, match="the loss is nan after 0 steps; expected a finite one: lower"):
        train_model(model, SAMPLES, SCHEDULE, tmp_path)


def test_nothing_is_printed_but_the_bar(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    trained(tmp_path, what="learning")
    captured = capfd.readouterr()
    lines = [line for line in captured.err.replace("\r", "\n").split("\n") if line]
    assert captured.out == ""
    assert all(line.startswith("learning: ") for line in lines)
    assert 1 <= len(lines) <= 4  # this is no terminal


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({}, "expected one of epochs and max_steps"),
        ({"epochs": 1, "max_steps": 1}, "expected one of epochs and max_steps"),
        ({"epochs": 0}, "epochs is 0; expected a number above 0"),
        ({"epochs": math.inf}, "epochs is inf"),
        ({"epochs": math.nan}, "epochs is nan"),
        ({"max_steps": 0}, "max_steps is 0; expected a number at least 1"),
        ({"max_steps": 1, "batch_size": 0}, "batch_size is 0"),
        ({"max_steps": 1, "accumulate": 0}, "accumulate is 0"),
        ({"max_steps": 1, "learning_rate": 0.0}, "learning_rate is 0.0"),
        ({"max_steps": 1, "learning_rate": math.nan}, "learning_rate is nan"),
        ({"max_steps": 1, "min_learning_rate": 1.0}, "min_learning_rate is 1.0; expected a number from 0 to learning"),
        ({"max_steps": 1, "warmup_steps": -1}, "warmup_steps is -1"),
        ({"max_steps": 1, "weight_decay": -1}, "weight_decay is -1"),
        ({"max_steps": 1, "beta2": 1.0}, "beta2 is 1.0"),
        ({"max_steps": 1, "seed": -1}, "seed is -1; expected a number from 0 to"),
        ({"max_steps": 1, "seed": 2**32}, "seed is 4294967296"),
    ],
    ids=str,
)
def test_a_schedule_outside_its_limits(options: dict[str, Any], error: str) -> None:
    with pytest.raises(InputError, match=error):
        Schedule(**options)


@pytest.mark.parametrize(("epochs", "expected"), [(1, 3), (2, 6), (0.5, 2), (0.01, 1)])
def test_steps_of_epochs(epochs: float, expected: int) -> None:
    assert Schedule(epochs=epochs, batch_size=4, accumulate=2).steps(22) == expected


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of random weights, large enough that logits differ."""
    return gpt2.save(gpt2.new({**TOY, "initializer_range": 0.3}, 1), tmp_path_factory.mktemp("saved") / "model")


def by_oracle(directory: Path, tokens: NDArray[Any], context: int) -> tuple[float, float, int]:
    """Mean loss, accuracy and tokens, window by window in NumPy."""
    oracle, losses, right = open_oracle(directory), [], []
    for start in range(0, len(tokens) - context, context):
        window = tokens[start : start + context + 1].astype(np.int64)
        logits = oracle.logits(window[None, :-1])[0]
        log_p = logits - logits.max(-1, keepdims=True)
        log_p -= np.log(np.exp(log_p).sum(-1, keepdims=True))
        losses += [-log_p[place, target] for place, target in enumerate(window[1:])]
        right += [logits[place].argmax() == target for place, target in enumerate(window[1:])]
    return float(np.mean(losses)), float(np.mean(right)), len(losses)


@pytest.mark.parametrize("count", [17, 32, 33, 200])
def test_evaluation_is_the_oracles(count: int, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kaoken.compress.training.TOKENS_AT_ONCE", 3 * 16)
    corpus = Corpus("some text", TOKENS[:count], TOKENIZER_VOCAB, 3 * count)
    actual = evaluate(gpt2.load(saved), corpus, 16)
    loss, accuracy, tokens = by_oracle(saved, corpus.tokens, 16)
    assert actual == Evaluation(pytest.approx(loss), pytest.approx(loss / math.log(2) / 3), accuracy, tokens)


def test_evaluation_of_a_text_that_is_too_short(saved: Path) -> None:
    with pytest.raises(InputError, match="16 tokens; expected more than the model's context of 16"):
        evaluate(gpt2.load(saved), Corpus("some text", TOKENS[:16], TOKENIZER_VOCAB, 16), 16)


def test_the_byte_tokenizer_is_the_bundled_models() -> None:
    ours, bundled = presets.byte_tokenizer(), Tokenizer.from_file(str(TOKENIZER))
    assert ours.get_vocab() == bundled.get_vocab()
    every = bytes(range(256)).decode("latin-1") + "日本 <|endoftext|> \n\n  x"
    for text in (TEXT, every, " ", "", "\x00"):
        ids = ours.encode(text).ids
        assert ids == bundled.encode(text).ids
        assert ours.decode(ids, skip_special_tokens=False) == bundled.decode(ids, skip_special_tokens=False) == text
    for token in range(257):  # also bytes that alone are no text
        assert ours.decode([token]) == bundled.decode([token])
        assert ours.id_to_token(token) == bundled.id_to_token(token)
    assert ours.encode("é日").ids == list("é日".encode())


def test_the_gptlite_preset_is_the_bundled_model(bundled_directory: Path) -> None:
    bundled = gpt2.load(bundled_directory)
    preset = gpt2.new(presets.find("gptlite").config, None)
    own = ("architectures", "dtype", "transformers_version", "_name_or_path", "activation_function")
    ours, theirs = (
        {name: value for name, value in model.config.to_dict().items() if name not in own}
        for model in (preset, bundled)
    )
    assert ours == theirs
    assert ACTIVATIONS[preset.config.activation_function] == ACTIVATIONS[bundled.config.activation_function]
    shapes = [{name: tensor.shape for name, tensor in model.state_dict().items()} for model in (preset, bundled)]
    assert shapes[0] == shapes[1]


def test_an_unknown_preset() -> None:
    with pytest.raises(InputError, match="there is no preset 'gptheavy'; expected one of gptlite, gptlite-deep"):
        presets.find("gptheavy")
