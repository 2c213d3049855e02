"""What must not change by itself: the bits of GPT-2's logits in every type on every instruction set, and its barriers.

KAOKEN_UPDATE_PINS=1 adds what pins.json lacks; a pin that is wrong has to be taken out of it by hand.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from pathlib import Path

import numpy as np
import pytest
from kaoken.codegen.dtypes import DTYPES, make_types
from kaoken.codegen.isa import resolve, table
from numpy.typing import NDArray

from configurations import CONFIGURATIONS
from conftest import BundledLibraries, Checkpoints
from emulation import IDS
from kaoken import _core
from native_build import bake_together, call, ninja
from native_kernels import processor_features

pytestmark = pytest.mark.ci

PINS = Path(__file__).parent / "pins.json"
TOY = "irregular"  # blocks that differ, heads that fill no panel
TOY_DTYPES = ("float32", "int8", "int4")
EVERY = [(dtype, isa) for dtype in DTYPES for isa in resolve("portable", platform.machine(), make_types(dtype).used())]


@pytest.fixture(scope="module")
def toys(checkpoints: Checkpoints, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    models = {dtype: (checkpoints(TOY), f"DTYPE {dtype} ISA portable") for dtype in TOY_DTYPES}
    return bake_together(tmp_path_factory.mktemp("toys"), models)


def require(isa: str) -> None:
    if not set(table()[isa].cpu) <= processor_features():
        pytest.skip(f"this processor has no {isa}")


def digest(library: Path, isa: str, ids: NDArray[np.int64]) -> str:
    """Of the logits of every position of ids [batch, count], the last of them decoded by itself."""
    session = _core.Library(library).session(len(ids), 2, isa)
    state = hashlib.sha256()
    for part in (ids[:, :-1], ids[:, -1:]):
        logits = session.append(np.ascontiguousarray(part), _core.LOGITS_ALL)
        assert logits is not None
        state.update(np.ascontiguousarray(logits, "<f4").tobytes())
    assert session.executed_isa == isa
    return state.hexdigest()


def require_pinned(name: str, found: str) -> None:
    pins = json.loads(PINS.read_text(encoding="utf-8"))
    if name not in pins:
        if not os.environ.get("KAOKEN_UPDATE_PINS"):
            pytest.skip(f"{name} has no pin yet: KAOKEN_UPDATE_PINS=1 adds it")
        PINS.write_text(json.dumps({**pins, name: found}, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    assert found == pins.get(name, found)


@pytest.mark.parametrize(("dtype", "isa"), EVERY)
def test_logits_of_the_bundled_model(dtype: str, isa: str, bundled_libraries: BundledLibraries) -> None:
    require(isa)
    require_pinned(f"bundled {dtype} {isa}", digest(bundled_libraries[dtype], isa, np.array([IDS])))


@pytest.mark.parametrize(("dtype", "isa"), [each for each in EVERY if each[0] in TOY_DTYPES])
def test_logits_of_a_toy(dtype: str, isa: str, toys: dict[str, Path]) -> None:
    require(isa)
    require_pinned(f"{TOY} {dtype} {isa}", digest(toys[dtype], isa, CONFIGURATIONS[TOY].ids(batch=3)))


def test_barriers_of_a_pass(native_tests: Path) -> None:
    ninja(native_tests, "barriers")
    call(native_tests / "tests" / "native" / "barriers")
