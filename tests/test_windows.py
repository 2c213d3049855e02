"""Blocks that see a window of the past keep no more than it: bits, rewinds, forks and memory, texts of many windows."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kaoken.codegen.checkpoint import open_checkpoint
from kaoken.codegen.evaluate import evaluate
from kaoken.codegen.families import read_graph
from numpy.typing import NDArray

import kaoken
from bits import require_same_bits
from decoders import ids_of, write
from kaoken.causal import GenerateOptions, generation_options_of
from native_build import bake_together
from reference import LIMIT, relative_error
from test_long import MiB, status
from windowed import MODELS, WINDOWS

PAGE, REWIND = 64, 512  # of runtime/include/kaoken/pass.h
COUNT = 1500  # positions of a text
EVERY = [(name, dtype) for name in MODELS for dtype in ("float32", "int8")]
models = pytest.mark.parametrize(("name", "dtype"), EVERY)


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("windows")
    checkpoints = {name: write(root / "checkpoints" / name, config) for name, config in MODELS.items()}
    return bake_together(
        root, {f"{name}_{dtype}": (checkpoints[name], f"ISA native DTYPE {dtype}") for name, dtype in EVERY}
    )


def load(libraries: dict[str, Path], name: str, dtype: str = "float32", **options: Any) -> kaoken.BakedCausalLM:
    model: kaoken.BakedCausalLM = kaoken.load(libraries[f"{name}_{dtype}"], **options)
    return model


def ids_for(name: str, batch: int = 1, count: int = COUNT) -> NDArray[np.int64]:
    return ids_of(MODELS[name], batch, count)


def kept_pages(name: str) -> int:
    """Of a sequence: a window and a rewind, wherever in a page they begin."""
    return -(-(WINDOWS[name] - 1 + REWIND + PAGE - 1) // PAGE)


def earliest(name: str, longest: int) -> int:
    """Of a sequence that never had more positions than that."""
    first = -(-longest // PAGE) - kept_pages(name)
    return first * PAGE + WINDOWS[name] - 1 if first > 0 else 0


@pytest.mark.parametrize("name", MODELS)
def test_logits_of_many_windows(name: str, libraries: dict[str, Path]) -> None:
    checkpoint = libraries[f"{name}_float32"].parent.parent / "checkpoints" / name
    ids = ids_for(name)
    expected = evaluate(read_graph(open_checkpoint(checkpoint)), ids[0].tolist())
    assert relative_error(expected, load(libraries, name).logits(ids)[0]) < LIMIT


@models
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_splits_and_threads_keep_the_bits(name: str, dtype: str, threads: int, libraries: dict[str, Path]) -> None:
    ids = ids_for(name)
    expected = load(libraries, name, dtype).logits(ids)[0]
    session = load(libraries, name, dtype, threads=threads).session()
    random, at = np.random.default_rng(threads), 0
    while at < COUNT:
        count = min(int(random.choice([1, 1, 1, 7, 64, 90, 300, 700])), COUNT - at)
        (row,) = session.append(ids[:, at : at + count])
        at += count
        require_same_bits(row, expected[at - 1])
        assert session.earliest == (earliest(name, at),)


@dataclass
class Held:
    """What a sequence of a session has."""

    ids: list[int] = field(default_factory=list)
    longest: int = 0  # that it was since it was empty


@models
@pytest.mark.parametrize("seed", [1, 2])
def test_sequences_in_company(name: str, dtype: str, seed: int, libraries: dict[str, Path]) -> None:
    """Appends, rewinds as far as they go, and forks, in any order."""
    model, batch, random = load(libraries, name, dtype), 3, np.random.default_rng(seed)
    session, held = model.session(batch), [Held() for _ in range(batch)]
    texts = ids_for(name, batch).tolist()
    for _ in range(60):
        action, each = random.choice(["append", "append", "append", "rewind", "fork"]), int(random.integers(batch))
        if action == "append":
            chosen = [one for one in range(batch) if random.random() < 0.7 and len(held[one].ids) < 1400]
            if not chosen:
                continue
            new = [texts[one][: random.choice([1, 30, 200, 500])] for one in chosen]
            rows = session.append(new, sequences=chosen)
            for one, tokens, row in zip(chosen, new, rows, strict=True):
                ids = held[one].ids + tokens
                held[one] = Held(ids, max(held[one].longest, len(ids)))
                require_same_bits(row, model.logits(ids)[0, -1])
        elif action == "rewind":
            ids, least = held[each].ids, session.earliest[each]
            length = int(random.choice([least, random.integers(least, len(ids) + 1), 0]))
            session.rewind(length, each)
            held[each] = Held(ids[:length], held[each].longest if length else 0)
        else:
            other = int(random.integers(batch))
            session.fork(each, other)
            held[other] = held[each]
        assert session.lengths == tuple(len(one.ids) for one in held)
        assert session.earliest == tuple(earliest(name, one.longest) for one in held)


@pytest.mark.parametrize("name", MODELS)
def test_a_rewind_that_goes_too_far(name: str, libraries: dict[str, Path]) -> None:
    model, ids = load(libraries, name), ids_for(name)
    session = model.session(batch=2)
    session.append(np.concatenate([ids, ids]))
    least = session.earliest[0]
    assert WINDOWS[name] <= least <= COUNT - REWIND
    session.rewind(COUNT - REWIND, 0)
    message = f"slot 0 to {least - 1} of its {COUNT - REWIND} positions.*allows {least} or more; rewind to 0"
    for rewind in (lambda: session.rewind(least - 1, 0), lambda: session.rewind(least - 1)):
        with pytest.raises(kaoken.InputError, match=message):
            rewind()
        assert session.lengths == (COUNT - REWIND, COUNT)
    session.rewind(least)
    expected = model.logits(ids[:, : least + 1])[0, -1]
    for row in session.append(ids[:, [least, least]].T):
        require_same_bits(row, expected)
    session.rewind(0)
    assert session.earliest == (0, 0)
    require_same_bits(session.append(np.concatenate([ids, ids]))[1], model.logits(ids)[0, -1])
    assert session._native.earliest(2) == session._native.earliest(-1) == -1


def test_other_blocks_keep_everything(bundled: kaoken.BakedGPT2) -> None:
    session = bundled.session()
    session.append([[1] * 256])
    assert session.earliest == (0,)
    session.rewind(1)


@pytest.mark.parametrize("name", MODELS)
def test_a_chat_is_read_anew_where_it_goes_back_too_far(name: str, libraries: dict[str, Path]) -> None:
    model, ids = load(libraries, name), ids_for(name)[0].tolist()
    options: GenerateOptions = {"max_new_tokens": 4, "eos_token_id": None}
    session = model.session()
    for length, kept in ((COUNT, 0), (COUNT - 300, COUNT - 300), (40, 0), (39, 39)):
        prompt = [*ids[:length], 7]
        found = list(session._continue(prompt, generation_options_of(model, **options)))
        assert session.reused == kept
        assert found == model.generate(prompt, **options)[0, len(prompt) :].tolist()


def test_a_long_text_takes_the_memory_of_a_window(libraries: dict[str, Path]) -> None:
    """Two blocks of three heads, padded to 32, in float32: 1.5 KiB for each position."""
    model, ids = load(libraries, "mistral"), ids_for("mistral", count=40000)
    memory = status("RssAnon")
    session = model.session(batch=2)
    session.append(ids, sequences=[1])
    session.fork(1, 0)
    session.append(np.concatenate([ids[:, :2000], ids[:, :2000]]))
    assert status("RssAnon") - memory < 16 * MiB  # all positions would take 60 MiB, and huge pages take some
    assert session.lengths == (42000, 42000)
