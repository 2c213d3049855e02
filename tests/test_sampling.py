"""Sampling: the tokens drawn follow the oracle's distribution. Draws are seeded: no test is flaky."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from numpy.typing import ArrayLike, NDArray

from configurations import CONFIGURATIONS
from conftest import Bake, Baked, Checkpoints
from oracle import distribution, open_oracle

if TYPE_CHECKING:
    from kaoken import BakedGPT2

Ids = NDArray[np.int64]

DRAWS = 4096


def require_distribution(tokens: ArrayLike, probabilities: NDArray[np.float64]) -> None:
    """Pearson's chi-square of tokens [draws]; right ones would fail at one seed in millions."""
    counts = np.bincount(np.asarray(tokens).ravel(), minlength=probabilities.size)
    assert not counts[probabilities == 0.0].any(), "a token was drawn that the options exclude"
    expected = probabilities * counts.sum()
    rare = expected < 5.0  # too few for the statistic: counted as one
    expected, counts = (np.append(each[~rare], each[rare].sum()) for each in (expected, counts))
    kept = expected > 0.0
    statistic = float(((counts[kept] - expected[kept]) ** 2 / expected[kept]).sum())
    freedom = int(kept.sum()) - 1
    limit = freedom + 7.0 * (2.0 * freedom) ** 0.5 + 10.0
    assert statistic < limit, f"chi-square {statistic:.1f} with {freedom} degrees of freedom"


def draw(model: BakedGPT2, prompt: Sequence[int], **options: Any) -> Ids:
    """New tokens [DRAWS, max_new_tokens] that follow the prompt, independent rows of one batch."""
    options = {"max_new_tokens": 1, "do_sample": True, "top_k": 0, "seed": 0, "eos_token_id": None} | options
    return model.generate([list(prompt)] * DRAWS, **options)[:, len(prompt) :]


PROMPT = (3, 1, 4, 1, 5)


@pytest.mark.parametrize("seed", [0, 1, 2**64 - 1])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.5},
        {"temperature": 3.0},
        {"top_k": 1},
        {"top_k": 7},
        {"top_k": 50},
        {"top_k": 61},
        {"top_k": 1000},
        {"top_p": 0.3},
        {"top_p": 0.9},
        {"top_p": 1e-6},
        {"temperature": 0.7, "top_k": 20, "top_p": 0.8},
        {"temperature": 2.0, "top_k": 5, "top_p": 0.5},
    ],
    ids=str,
)
def test_tokens_follow_the_distribution(
    options: dict[str, Any], seed: int, tiny_model: BakedGPT2, checkpoints: Checkpoints
) -> None:
    logits = open_oracle(checkpoints("plain")).logits([PROMPT])[0, -1]
    require_distribution(draw(tiny_model, PROMPT, seed=seed, **options), distribution(logits, **options))


def test_the_default_top_k_is_50(tiny_model: BakedGPT2, checkpoints: Checkpoints) -> None:
    logits = open_oracle(checkpoints("plain")).logits([PROMPT])[0, -1]
    tokens = tiny_model.generate([list(PROMPT)] * DRAWS, max_new_tokens=1, do_sample=True, seed=3)
    require_distribution(tokens[:, -1], distribution(logits, top_k=50))


def test_consecutive_seeds_draw_independently(tiny_model: BakedGPT2, checkpoints: Checkpoints) -> None:
    logits = open_oracle(checkpoints("plain")).logits([PROMPT])[0, -1]
    options: dict[str, Any] = {"max_new_tokens": 1, "do_sample": True, "top_k": 0}
    tokens = [tiny_model.generate(PROMPT, seed=seed, **options)[0, -1] for seed in range(1024)]
    require_distribution(tokens, distribution(logits))


def test_consecutive_steps_draw_independently(baked: Baked, checkpoints: Checkpoints) -> None:
    """Of five tokens, all 125 triples have the probabilities that three steps of the oracle give them."""
    oracle, model = open_oracle(checkpoints("odd_width")), baked("odd_width")
    first, joint = len(PROMPT) - 1, np.ones((5, 5, 5))
    prompts = [[each % 5 for each in PROMPT] + [a, b] for a in range(5) for b in range(5)]
    logits = oracle.logits(prompts).reshape(5, 5, -1, 5)
    for a, b in np.ndindex(5, 5):
        steps = [distribution(logits[a, b, first + step]) for step in range(3)]
        joint[a, b] = steps[0][a] * steps[1][b] * steps[2]
    assert joint.sum() == pytest.approx(1.0)
    tokens = draw(model, [each % 5 for each in PROMPT], max_new_tokens=3)
    require_distribution(tokens @ np.array([25, 5, 1]), joint.ravel())


def test_the_same_seed_gives_the_same_tokens(tiny_model: BakedGPT2) -> None:
    options: dict[str, Any] = {"max_new_tokens": 20, "do_sample": True, "top_p": 0.95, "seed": 11}
    once = tiny_model.generate([[1, 2], [3, 4], [1, 2]], **options)
    assert once.tolist() == tiny_model.generate([[1, 2], [3, 4], [1, 2]], **options).tolist()
    assert once[0].tolist() != once[2].tolist(), "rows of a batch must draw for themselves"
    assert once.tolist() != tiny_model.generate([[1, 2], [3, 4], [1, 2]], **options | {"seed": 12}).tolist()


def test_stream_draws_what_generate_draws(tiny_model: BakedGPT2) -> None:
    options: dict[str, Any] = {"max_new_tokens": 20, "do_sample": True, "seed": 5}
    assert list(tiny_model.stream([7, 8], **options)) == tiny_model.generate([7, 8], **options)[0, 2:].tolist()


def test_without_a_seed_each_call_draws_anew(tiny_model: BakedGPT2) -> None:
    # Sixty-four rows of 24 tokens each: that two calls agree by chance is out of the question.
    options: dict[str, Any] = {"max_new_tokens": 24, "do_sample": True}
    once = tiny_model.generate([[1]] * 64, **options)
    assert once.tolist() != tiny_model.generate([[1]] * 64, **options).tolist()


def test_top_k_of_one_is_greedy(bundled: BakedGPT2) -> None:
    prompt = list(b"ROMEO:")
    greedy = bundled.generate(prompt, max_new_tokens=100)
    sampled = bundled.generate(prompt, max_new_tokens=100, do_sample=True, top_k=1, seed=9)
    assert sampled.tolist() == greedy.tolist()


def test_greedy_ignores_the_sampling_options(tiny_model: BakedGPT2) -> None:
    greedy = tiny_model.generate(PROMPT)
    assert tiny_model.generate(PROMPT, temperature=9.0, top_k=2, top_p=0.1, seed=4).tolist() == greedy.tolist()


# Ties. The head has rows that are equal to the bit, so their logits are.

TIED = [3, 17, 40, 66]


@pytest.fixture(scope="module")
def ties(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of 67 tokens whose best logits, four of them, are equal; the others differ."""
    directory = tmp_path_factory.mktemp("checkpoints") / "ties"
    untied = CONFIGURATIONS["untied"]
    untied.write(directory)
    head = open_oracle(directory).tensors["lm_head.weight"]
    logits = open_oracle(directory).logits([PROMPT])[0, -1]
    head[TIED] = head[np.argmax(logits)]
    head[np.argmax(logits)] = -head[np.argmax(logits)]
    untied.write(directory, {"lm_head.weight": head.astype(np.float32)})
    return directory


def test_the_first_of_equal_tokens_is_taken(ties: Path, bake_checkpoint: Bake) -> None:
    from kaoken import load

    model = load(bake_checkpoint(ties))
    logits = model.logits([PROMPT])[0, -1]
    assert np.flatnonzero(logits == logits.max()).tolist() == TIED
    assert model.generate(PROMPT, max_new_tokens=1)[0, -1] == TIED[0]


@pytest.mark.parametrize("options", [{"top_k": 1}, {"top_k": 3}, {"top_k": 4}, {"top_k": 6}], ids=str)
def test_top_k_keeps_all_that_equal_the_last(options: dict[str, Any], ties: Path, bake_checkpoint: Bake) -> None:
    from kaoken import load

    # NumPy's product may sum equal rows in different orders; rounding makes them equal again.
    logits = open_oracle(ties).logits([PROMPT])[0, -1].round(9)
    tokens = draw(load(bake_checkpoint(ties)), PROMPT, **options)
    require_distribution(tokens, distribution(logits, **options))


@pytest.mark.ci
def test_top_p_cuts_among_equals(tmp_path: Path, bake_checkpoint: Bake) -> None:
    """With 67 equal logits, 0.5 keeps 34 of them, whichever, each as likely as another."""
    from kaoken import load

    CONFIGURATIONS["untied"].write(tmp_path / "flat", {"lm_head.weight": np.zeros((67, 32), np.float32)})
    tokens = draw(load(bake_checkpoint(tmp_path / "flat")), PROMPT, top_p=0.5)
    kept = np.unique(tokens)
    assert kept.size == 34
    require_distribution(tokens, np.isin(np.arange(67), kept) / 34.0)
