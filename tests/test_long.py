"""Long contexts: what a session of 131072 positions takes of memory and time."""

from __future__ import annotations

import pickle
import resource
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kaoken.codegen.checkpoint import open_checkpoint
from kaoken.codegen.evaluate import evaluate
from kaoken.codegen.families import read_graph

import kaoken
from bits import require_same_bits
from conftest import RecordError
from decoders import LIMITED, SMALL, config_of, ids_of, write
from native_build import bake_together
from oracles import bert, t5
from reference import LIMIT, relative_error

POSITIONS = 131072
LLAMA = {**SMALL, "model_type": "llama", "architectures": ["LlamaForCausalLM"], "max_position_embeddings": POSITIONS}
CACHE = 4 * 3 * 2 * 32 * 4 * POSITIONS  # bytes of a sequence of 4 blocks in float32: heads of 8 are padded to 32
MiB = 1 << 20
CUT = ("opt", "bloom", "mistral", "mistral_wide_window")  # tables of positions, of distances and of angles; windows
CONTEXT = 70


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("long")
    models = {"llama": (write(root / "llama", {**LLAMA, "num_hidden_layers": 4}), "ISA native")}
    for name in CUT:
        checkpoint = write(root / name, config_of(name))
        models |= {name: (checkpoint, "ISA native"), f"{name}_cut": (checkpoint, f"ISA native CONTEXT {CONTEXT}")}
    return bake_together(root, models)


@pytest.fixture(scope="module")
def model(libraries: dict[str, Path]) -> kaoken.BakedCausalLM:
    model: kaoken.BakedCausalLM = kaoken.load(libraries["llama"])
    return model


def status(name: str) -> int:
    """Bytes, as /proc/self/status says."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def test_a_session_takes_the_memory_that_it_uses(model: kaoken.BakedCausalLM) -> None:
    """Huge pages of 2 MiB at both ends of the arena, and where a second sequence begins, are allowed for."""
    memory, began = status("RssAnon"), time.perf_counter()
    session = model.session(batch=2)
    assert time.perf_counter() - began < 0.05
    session.append(np.arange(100)[None].repeat(2, 0) % 61)
    assert status("VmSize") > 2 * CACHE
    assert status("RssAnon") - memory < 16 * MiB


@pytest.mark.parametrize("batch", [1 << 17, 1 << 20])
def test_huge_batches_take_nothing(batch: int, model: kaoken.BakedCausalLM) -> None:
    """The larger one's cache has more addresses than a process."""
    memory, began = status("VmHWM"), time.perf_counter()
    try:
        session = model.session(batch=batch)
    except MemoryError:
        assert batch == 1 << 20
    else:
        session.append([[1]], sequences=[batch - 1])
    assert time.perf_counter() - began < 1
    assert status("VmHWM") - memory < 128 * MiB


def test_the_next_session_finds_the_memory_of_the_last(model: kaoken.BakedCausalLM) -> None:
    """As many page faults would take longer than a short prompt does."""
    faults = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        model.session(batch=3).append(np.arange(300)[None].repeat(3, 0) % 61)
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    assert max(faults[1:]) < faults[0] / 4, faults


@pytest.mark.parametrize("name", CUT)
def test_a_shorter_context_is_the_beginning_of_the_whole(name: str, libraries: dict[str, Path]) -> None:
    whole, cut = kaoken.load(libraries[name]), kaoken.load(libraries[f"{name}_cut"])
    assert (whole.config.n_positions, cut.config.n_positions) == (LIMITED, CONTEXT)
    ids = ids_of(config_of(name), count=CONTEXT)
    require_same_bits(cut.logits(ids), whole.logits(ids))
    assert cut.generate(ids[:, :-3], max_new_tokens=50, eos_token_id=None).shape == (1, CONTEXT)
    with pytest.raises(kaoken.InputError, match="71 tokens, but the model has n_positions = 70"):
        cut.logits([0] * 71)
    assert libraries[f"{name}_cut"].stat().st_size <= libraries[name].stat().st_size


def test_a_context_is_of_decoders(tmp_path: Path) -> None:
    for oracle, kind in ((bert, "encoder"), (t5, "encoder-decoder")):
        directory = oracle.write(tmp_path / kind, oracle.config_of(next(iter(oracle.CONFIGURATIONS))))
        with pytest.raises(kaoken.InputError, match=f"context=8 is for decoders, and this model is an {kind}: leave"):
            kaoken.bake(directory, context=8)


def test_logits_far_into_a_text(libraries: dict[str, Path], record_error: RecordError) -> None:
    """A float32 angle, as transformers computes it, would err by 1e-4 at its end."""
    checkpoint = libraries["llama"].parent.parent / "llama"
    ids = ids_of(LLAMA, count=1500)
    expected = evaluate(read_graph(open_checkpoint(checkpoint)), ids[0].tolist())
    error = relative_error(expected, kaoken.load(libraries["llama"]).logits(ids)[0])
    record_error("logits of 1500 positions against their graph in float64", error)
    assert error < LIMIT


def test_a_context_of_a_loaded_model(libraries: dict[str, Path], model: kaoken.BakedCausalLM) -> None:
    """Its results are the model's, and it ends where the context does."""
    short = pickle.loads(pickle.dumps(kaoken.load(libraries["llama"], context=70)))
    assert (short.config.n_positions, model.config.n_positions) == (70, POSITIONS)
    ids = ids_of(LLAMA, count=70)
    require_same_bits(short.logits(ids), model.logits(ids))
    assert short.generate(ids[:, :-3], max_new_tokens=50, eos_token_id=None).shape == (1, 70)
    ragged = short.generate([[1] * 68, [1] * 3], max_new_tokens=5, eos_token_id=None)
    assert [len(row) for row in ragged] == [70, 8]
    with pytest.raises(kaoken.InputError, match="71 tokens, but the model has n_positions = 70"):
        short.generate([1] * 71)
    session = short.session()
    session.append(ids)
    with pytest.raises(kaoken.InputError, match="would pass n_positions = 70"):
        session.append([1])
    with pytest.raises(kaoken.InputError, match="1 tokens behind 70 pass the session's 70 positions; give fewer"):
        session._native.append(ids[:, :1], 1)


@pytest.mark.parametrize(
    ("context", "message"),
    [
        (
            POSITIONS + 1,
            f"context={POSITIONS + 1} is more than the {POSITIONS} positions that the model was baked with",
        ),
        (0, "context must be an integer of at least 1, not 0"),
        ("4k", "context must be an integer of at least 1, not '4k'"),
    ],
)
def test_contexts_that_are_refused(context: Any, message: str, libraries: dict[str, Path]) -> None:
    with pytest.raises(kaoken.InputError, match=message):
        kaoken.load(libraries["llama"], context=context)
