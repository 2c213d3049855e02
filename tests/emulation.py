"""Runs tests/native/logits.cpp on processors that this machine is not, under qemu."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kaoken.codegen.checkpoint import open_checkpoint
from kaoken.codegen.evaluate import evaluate
from kaoken.codegen.families import read_graph
from numpy.typing import NDArray

import test_deberta
import test_modernbert
from oracle import open_oracle
from oracles import bert, masked, t5
from reference import relative_error

REQUIRED = os.environ.get("KAOKEN_REQUIRE_QEMU") == "1"  # continuous integration, where absence is a failure

IDS = list(b"ROMEO:\nWhat is the matter with you, sir? I am a little the worse for it, and so are all")

# The largest difference from the float64 oracle on the weights as they were trained, of max(1, largest logit).
LIMITS = {
    "float32": 1e-4,
    "bfloat16": 0.02,
    "int8": 0.02,
    "int8-g32": 0.02,
    "int4": 0.2,
    "int4-all": 0.2,
    "int4-min": 0.2,
}


# Of a checkpoint of a family how it is written, its config, and what its library gives of FAMILY_IDS.
Family = tuple[Callable[..., Path], dict[str, Any], Callable[[Path], NDArray[np.float64]]]

# A BERT, one with a head, and a T5, whose source these ids are as well. CMake writes their checkpoints.
FAMILY_IDS = [byte % 61 for byte in IDS]
FAMILIES: dict[str, Family] = {
    "bert": (bert.write, bert.TINY, lambda directory: bert.Bert(directory).hidden_states(FAMILY_IDS)),
    "masked": (bert.write, masked.CONFIG, lambda directory: bert.Bert(directory).logits(FAMILY_IDS)),
    "t5": (t5.write, t5.TINY, lambda directory: t5.T5(directory).logits(FAMILY_IDS, FAMILY_IDS)),
}


def evaluated(directory: Path) -> NDArray[np.float64]:
    return evaluate(read_graph(open_checkpoint(directory)), FAMILY_IDS)


# With windows, and with distances that have keys and queries.
ENCODERS: dict[str, Family] = {
    "modernbert": (test_modernbert.write, test_modernbert.config_of("plain"), evaluated),
    "deberta": (test_deberta.write, test_deberta.config_of("plain"), evaluated),
}
FAMILY_LIMITS = {"float32": 1e-4, "int8": 0.1}  # on such random weights


def family_error(family: str, outputs: NDArray[np.float32], directory: Path) -> float:
    """The largest difference from the oracle of a family's checkpoint, which is written to `directory`."""
    write, config, expected = {**FAMILIES, **ENCODERS}[family]
    return relative_error(expected(write(directory, config)), outputs)


def require_programs(*programs: str) -> None:
    """Skips the test where one is missing, unless this run must have it."""
    missing = [program for program in programs if not shutil.which(program)]
    if missing and not REQUIRED:
        pytest.skip(f"needs {' and '.join(missing)} (Debian: qemu-user-static, g++-aarch64-linux-gnu)")


def run_logits(
    command: Sequence[str | Path], library: Path, isa: str, ids: Sequence[int] = IDS
) -> tuple[str, NDArray[np.float32]]:
    """The ISA that ran (`isa` "best": whichever the library chose) and the logits of ids [count, vocab_size]."""
    arguments = [*map(str, command), str(library), isa, *map(str, ids)]
    ran = subprocess.run(arguments, capture_output=True)
    assert ran.returncode == 0, f"{' '.join(arguments[:6])} gave {ran.returncode}: {ran.stderr.decode()}"
    return ran.stderr.decode().split()[-1], np.frombuffer(ran.stdout, "<f4").reshape(len(ids), -1)


def error(logits: NDArray[np.float32], directory: Path) -> float:
    """The largest difference from the oracle on a checkpoint's weights, of max(1, largest logit)."""
    return relative_error(open_oracle(directory).logits(np.array([IDS]))[0], logits)
