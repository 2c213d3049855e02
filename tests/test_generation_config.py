"""generation_config.json: what generate follows, and what a bake says that it does not."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kaoken.codegen.checkpoint import open_checkpoint
from kaoken.codegen.generation import APPLIED, HARMLESS, NEUTRAL, read_generation

import kaoken
from checkpoints import write_checkpoint
from kaoken.cli import main
from kaoken.tools import find_cmake, find_ninja
from native_build import SOURCE

GENERATION = {
    "_from_model_config": True,
    "eos_token_id": None,
    "do_sample": True,
    "top_k": 3,
    "temperature": 0.7,
    "max_new_tokens": 5,
    "repetition_penalty": 1.3,
    "suppress_tokens": [1],
    "num_beams": 1,
    "min_length": 0,
    "new_option": "x",
    "transformers_version": "5.0.0",
}


def read(directory: Path, generation: dict[str, Any] | None, **config: Any) -> tuple[dict[str, Any], tuple[str, ...]]:
    found = read_generation(open_checkpoint(write_checkpoint(directory, config, generation=generation)))
    return dict(found.defaults), found.ignored


def test_options_are_applied_or_named(tmp_path: Path) -> None:
    defaults, ignored = read(tmp_path, GENERATION)
    assert defaults == {"do_sample": True, "top_k": 3, "temperature": 0.7, "max_new_tokens": 5}
    assert ignored == ("new_option", "repetition_penalty", "suppress_tokens")


@pytest.mark.parametrize("value", ["neutral", None, False, [], {}])
def test_neutral_values_are_not_named(value: Any, tmp_path: Path) -> None:
    options = {name: neutral if value == "neutral" else value for name, neutral in NEUTRAL.items()}
    assert read(tmp_path, options) == ({}, ())


@pytest.mark.parametrize(
    ("name", "value"), [("temperature", "hot"), ("top_k", -1), ("top_p", 1.5), ("do_sample", "yes"), ("top_k", True)]
)
def test_values_that_generate_would_refuse_are_named(name: str, value: Any, tmp_path: Path) -> None:
    assert read(tmp_path, {name: value}) == ({}, (name,))


@pytest.mark.parametrize("value", [0, 0.0])
def test_zero_is_no_false(value: float, tmp_path: Path) -> None:
    """As a token it is one like any other, and generate would refuse a temperature of it."""
    names = ("begin_suppress_tokens", "forced_bos_token_id", "forced_eos_token_id", "max_new_tokens", "num_beams")
    names += ("repetition_penalty", "temperature", "top_p")
    assert read(tmp_path, dict.fromkeys((*names, "min_length"), value)) == ({}, names)


def test_true_is_no_one(tmp_path: Path) -> None:
    assert read(tmp_path, {"num_beams": True, "repetition_penalty": True}) == ({}, ("num_beams", "repetition_penalty"))


def test_an_old_config_speaks_where_there_is_no_generation_config(tmp_path: Path) -> None:
    legacy = {"do_sample": True, "repetition_penalty": 1.2, "task_specific_params": {"text-generation": {"top_k": 1}}}
    assert read(tmp_path / "old", None, **legacy) == ({"do_sample": True}, ("repetition_penalty",))
    assert read(tmp_path / "new", {"eos_token_id": 3}, **legacy) == ({}, ())
    assert read(tmp_path / "empty", {}, **legacy) == ({}, ())


def test_no_option_stands_in_two_tables() -> None:
    assert not APPLIED.keys() & NEUTRAL.keys()
    assert not HARMLESS & (APPLIED.keys() | NEUTRAL.keys())


def test_a_bake_warns_and_generate_follows(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    checkpoint = write_checkpoint(tmp_path / "model", generation=GENERATION)
    with pytest.warns(kaoken.GenerationConfigWarning, match="new_option, repetition_penalty, suppress_tokens"):
        library = kaoken.bake(checkpoint, isa="scalar")
    model = kaoken.load(library)
    assert model.info.ignored_generation_options == ("new_option", "repetition_penalty", "suppress_tokens")
    assert model.info.generation_defaults["top_k"] == 3
    own = model.generate([1, 2], seed=1)
    said = model.generate([1, 2], seed=1, max_new_tokens=5, do_sample=True, temperature=0.7, top_k=3)
    np.testing.assert_array_equal(own, said)
    assert list(model.stream([1, 2], seed=1)) == own[0, 2:].tolist()
    greedy = model.generate([1, 2], do_sample=False, max_new_tokens=9)
    assert greedy[0, 2] == model.logits([1, 2])[0, -1].argmax()
    assert greedy.shape == (1, 11)
    assert model.generate([1, 2], max_new_tokens=None).shape == (1, 22)

    assert main(["bake", str(checkpoint), "--isa", "scalar"]) == 0
    assert capfd.readouterr().err.count("kaoken: warning: Kaoken does not follow new_option") == 1
    assert main(["info", "--model", str(library)]) == 0
    shown = capfd.readouterr().out
    assert "defaults  do_sample True" in shown
    assert "ignored   new_option, repetition_penalty" in shown
    assert main(["info", "--json", "--model", str(library)]) == 0
    assert "suppress_tokens" in json.loads(capfd.readouterr().out)["ignored_generation_options"]


def test_cmake_warns(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "model", generation=GENERATION)
    command = [find_cmake((3, 24)), "-G", "Ninja", "-S", str(SOURCE / "cmake" / "bake"), "-B", str(tmp_path / "build")]
    values = {"CMAKE_MAKE_PROGRAM": find_ninja(), "KAOKEN_PYTHON": sys.executable, "KAOKEN_MODEL": checkpoint}
    command += [f"-D{name}={value}" for name, value in values.items()]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "CMake Warning" in ran.stderr
    assert "repetition_penalty" in ran.stderr
