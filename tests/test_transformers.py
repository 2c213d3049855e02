"""The compiled model beside transformers itself, live: logits, greedy tokens, ends of text, and sampling.

Skipped without torch and transformers, unless KAOKEN_REQUIRE_TRANSFORMERS=1 makes their absence a failure.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

if os.environ.get("KAOKEN_REQUIRE_TRANSFORMERS") != "1":
    pytest.importorskip("torch")
    pytest.importorskip("transformers")

import torch
from numpy.typing import NDArray

import make_references as live
import reference
from configurations import CONFIGURATIONS
from conftest import Baked, Checkpoints, RecordError
from oracle import distribution, open_oracle
from test_model import PROMPTS, bundled_ids
from test_sampling import require_distribution

if TYPE_CHECKING:
    from kaoken import BakedGPT2

pytestmark = pytest.mark.ci

Load = Callable[[Path], Any]


@pytest.fixture(scope="module")
def load() -> Load:
    """GPT2LMHeadModel of a checkpoint directory, loaded once."""
    return cache(live.load)


@pytest.fixture(scope="module")
def bundled_live(load: Load, bundled_directory: Path) -> Any:
    return load(bundled_directory)


@pytest.mark.parametrize("name", reference.comparable())
def test_logits(name: str, load: Load, checkpoints: Checkpoints, baked: Baked, record_error: RecordError) -> None:
    ids = CONFIGURATIONS[name].ids()
    expected = live.logits(load(checkpoints(name)), ids)
    error = reference.relative_error(expected, baked(name).logits(ids))
    record_error("logits against transformers, live", error)
    assert error < reference.LIMIT


def test_logits_of_the_bundled_model(bundled_live: Any, bundled: BakedGPT2, record_error: RecordError) -> None:
    ids = bundled_ids(bundled, batch=4)
    error = reference.relative_error(live.logits(bundled_live, ids), bundled.logits(ids))
    record_error("logits against transformers, live", error)
    assert error < reference.LIMIT


@pytest.mark.parametrize("name", reference.comparable())
def test_the_stored_reference_is_what_transformers_gives(name: str, load: Load, checkpoints: Checkpoints) -> None:
    stored = reference.read(name)
    stored.require_checkpoint(checkpoints(name))
    logits = live.logits(load(checkpoints(name)), stored.ids)[:, stored.positions]
    assert reference.relative_error(stored.logits, logits) < 2e-5


@pytest.mark.parametrize("prompt", live.PROMPTS)
def test_200_greedy_tokens(prompt: str, bundled_live: Any, bundled: BakedGPT2, bundled_directory: Path) -> None:
    ids = list(prompt.encode())
    expected = live.greedy(bundled_live, ids, 200)
    margins = open_oracle(bundled_directory).greedy(ids, 200).margins
    tokens = bundled.generate(ids, max_new_tokens=200, eos_token_id=None)[0, len(ids) :]
    reference.require_same_greedy(tokens.tolist(), expected, margins)
    assert reference.greedy()[prompt] == expected, "run tests/make_references.py and commit what it writes"


def generate(model: Any, prompts: list[list[int]], **options: Any) -> Any:
    """transformers' generate() of prompts of one length, with no padding among them."""
    ids = torch.tensor(prompts)
    with torch.inference_mode():
        return model.generate(ids, attention_mask=torch.ones_like(ids), **options)


@pytest.mark.parametrize("pad", [None, 0])
@pytest.mark.parametrize("eos", [10, [10, 32], [46], [32, 10, 46]], ids=str)
def test_ends_of_text_in_a_batch(eos: int | list[int], pad: int | None, bundled_live: Any, bundled: BakedGPT2) -> None:
    options = {"max_new_tokens": 40, "do_sample": False, "eos_token_id": eos}
    padding = pad if pad is not None else np.ravel(eos).tolist()[0]
    expected = generate(bundled_live, PROMPTS, pad_token_id=padding, **options)
    assert bundled.generate(PROMPTS, pad_token_id=pad, **options).tolist() == expected.tolist()


def test_the_checkpoints_own_end_and_padding(load: Load, checkpoints: Checkpoints, baked: Baked) -> None:
    prompts = CONFIGURATIONS["three_heads"].ids()[:, :4].tolist()
    expected = generate(load(checkpoints("three_heads")), prompts, max_new_tokens=12, do_sample=False)
    assert baked("three_heads").generate(prompts, max_new_tokens=12).tolist() == expected.tolist()


OPTIONS: list[dict[str, Any]] = [
    {"top_k": 0},
    {"top_k": 50},
    {"top_k": 5, "temperature": 0.6},
    {"top_k": 0, "top_p": 0.9},
    {"top_k": 0, "top_p": 0.05},
    {"top_k": 20, "top_p": 0.8, "temperature": 1.7},
]


def processed(model: Any, prompt: list[int], options: dict[str, Any]) -> NDArray[np.float64]:
    """The probabilities [vocab_size] from which generate() draws its first token."""
    result = generate(
        model,
        [prompt],
        max_new_tokens=1,
        do_sample=True,
        eos_token_id=None,
        pad_token_id=0,
        output_scores=True,
        return_dict_in_generate=True,
        **options,
    )
    probabilities: NDArray[np.float64] = result.scores[0][0].double().softmax(-1).numpy()
    return probabilities


@pytest.mark.parametrize("prompt", PROMPTS[:3], ids=lambda prompt: bytes(prompt).decode())
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_options_of_sampling_mean_the_same(
    options: dict[str, Any],
    prompt: list[int],
    bundled_live: Any,
    bundled: BakedGPT2,
    bundled_directory: Path,
) -> None:
    expected = processed(bundled_live, prompt, options)
    logits = open_oracle(bundled_directory).logits([prompt])[0, -1]
    np.testing.assert_allclose(distribution(logits, **options), expected, atol=2e-5)
    drawn = bundled.generate([prompt] * 2048, max_new_tokens=1, do_sample=True, seed=17, eos_token_id=None, **options)
    require_distribution(drawn[:, -1], expected)
