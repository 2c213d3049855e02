"""Long contexts: what a session of 131072 positions takes of memory and time."""

from __future__ import annotations

import resource
import time
from pathlib import Path

import numpy as np
import pytest

import kaoken
from decoders import SMALL, write
from native_build import bake_together

POSITIONS = 131072
LLAMA = {**SMALL, "model_type": "llama", "architectures": ["LlamaForCausalLM"], "max_position_embeddings": POSITIONS}
CACHE = 4 * 3 * 2 * 32 * 4 * POSITIONS  # bytes of a sequence of 4 blocks in float32: heads of 8 are padded to 32
MiB = 1 << 20


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("long")
    checkpoint = write(root / "llama", {**LLAMA, "num_hidden_layers": 4})
    return bake_together(root, {"llama": (checkpoint, "ISA native")})


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
