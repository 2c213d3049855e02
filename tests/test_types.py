"""Every type of weights and of the KV cache keeps the promise: threads, batch and prefill split change no bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from bits import random_splits, require_decode_equals_prefill, require_same_bits
from configurations import CONFIGURATIONS
from conftest import Checkpoints, wanted
from native_build import bake_together

if TYPE_CHECKING:
    from kaoken import BakedGPT2

Load = Callable[..., "BakedGPT2"]

# Sizes that fill no panel, and more positions than an attention tile has.
NAME = "heads_of_64"

# float32 is in test_model.py. The last has every kind of matrix in one block.
TYPES = {
    "bfloat16": "DTYPE bfloat16",
    "int8": "DTYPE int8",
    "int4": "DTYPE int4",
    "int4-all": "DTYPE int4-all",
    "int8-g32": "DTYPE int8-g32",
    "int4-min": "DTYPE int4-min",
    "float32, cache bfloat16": "CACHE_DTYPE bfloat16",
    "float32, cache int8": "CACHE_DTYPE int8",
    "mixed, cache float32": "DTYPE int4 CACHE_DTYPE float32 "
    "TENSOR_DTYPES h.*.attn.c_attn=bfloat16 h.*.mlp.c_fc=float32 h.*.mlp.c_proj=int8",
}
ONLY_IN_CI = {"int4", "int8-g32", "int4-min", "float32, cache bfloat16", "float32, cache int8"}

types = pytest.mark.parametrize(
    "types", [pytest.param(types, marks=pytest.mark.ci) if types in ONLY_IN_CI else types for types in TYPES]
)


@pytest.fixture(scope="module")
def typed(
    request: pytest.FixtureRequest, checkpoints: Checkpoints, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """The libraries of those TYPES that the selected tests use, baked together."""
    selected = wanted(request.session, "types", "types")
    types = [types for types in TYPES if types in selected]
    models = {f"model_{number}": (checkpoints(NAME), f"ISA native {TYPES[each]}") for number, each in enumerate(types)}
    libraries = bake_together(tmp_path_factory.mktemp("types"), models)
    return dict(zip(types, libraries.values(), strict=True))


@pytest.fixture
def load(types: str, typed: dict[str, Path]) -> Load:
    """`load(**options)` opens the library of the types at hand."""
    import kaoken

    return lambda **options: kaoken.load(typed[types], **options)


@types
def test_any_split_of_the_prompt_gives_the_same_bits(types: str, load: Load) -> None:
    ids = CONFIGURATIONS[NAME].ids(batch=2)
    for splits in (range(1, ids.shape[1]), *(random_splits(ids.shape[1], seed) for seed in range(4))):
        require_decode_equals_prefill(load(), ids, splits)


@types
def test_the_batch_around_a_row_does_not_change_its_bits(types: str, load: Load) -> None:
    ids = CONFIGURATIONS[NAME].ids(batch=17)
    alone = load().logits(ids[:1])
    for batch in (2, 3, 8, 17):
        require_same_bits(load().logits(ids[:batch])[:1], alone)
        steps = [load().session(batch), load().session(1)]
        for position in range(10):
            together, single = (session.append(ids[: session.batch, position : position + 1]) for session in steps)
            require_same_bits(together[:1], single)


@types
def test_a_batch_larger_than_a_pass_has_the_bits_of_its_rows(types: str, load: Load) -> None:
    """300 sequences go through a position at a time, of which only the last asks for logits."""
    ids = CONFIGURATIONS[NAME].ids(batch=300)[:, :5]
    together = load(threads=3).session(300).append(ids)
    for row in (0, 150, 299):
        require_same_bits(together[row : row + 1], load(threads=1).session(1).append(ids[row : row + 1]))


@types
def test_the_number_of_threads_does_not_change_a_bit(types: str, load: Load) -> None:
    ids = CONFIGURATIONS[NAME].ids(batch=3)
    one = load(threads=1)
    for threads in (2, 3, 4):
        model = load(threads=threads)
        assert model.session().threads == threads
        require_same_bits(model.logits(ids), one.logits(ids))
        require_same_bits(model.session(1).append(ids[:1, :1]), one.session(1).append(ids[:1, :1]))
        require_decode_equals_prefill(model, ids, random_splits(ids.shape[1], threads))


@types
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_sequences_of_other_lengths_do_not_change_a_bit(types: str, threads: int, load: Load) -> None:
    rows = CONFIGURATIONS[NAME].ids(batch=6)
    prompts = [row[:length].tolist() for row, length in zip(rows, (1, 65, 4, 67, 64, 2), strict=True)]
    model, alone = load(threads=threads), load(threads=1)
    for prompt, logits in zip(prompts, model.logits(prompts), strict=True):
        require_same_bits(logits, alone.logits(prompt)[0])
    session = model.session(6)
    session.append(prompts)
    session.fork(3, 0)
    session.rewind(50, 3)
    step = session.append([[5], [6, 7], [8]], sequences=[0, 3, 5])
    expected = ([*prompts[3], 5], [*prompts[3][:50], 6, 7], [*prompts[5], 8])
    for row, tokens in zip(step, expected, strict=True):
        require_same_bits(row, alone.logits(tokens)[0, -1])
