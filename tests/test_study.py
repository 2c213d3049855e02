"""The study of smaller models: its report says what its figures say, and a run that was stopped goes on."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.distill_tables import distill_sections

MACHINE = {
    "cpu": "a processor",
    "processors": 2,
    "caches": {"L1": "32K"},
    "memory_gib": 8,
    "features": ["avx2"],
    "system": "Linux",
    "python": "3.11",
}


def run_of(arm: str, seed: int, loss: float, parameters: int = 50) -> dict[str, Any]:
    evaluation = {"loss": loss, "bits_per_byte": loss / 0.6931, "accuracy": 0.5}
    return {
        "arm": arm,
        "seed": seed,
        "parameters": parameters,
        "evaluation": evaluation,
        "total_tokens": 2_000_000,
        "total_seconds": 90.0,
    }


def document(losses: dict[str, list[float]]) -> dict[str, Any]:
    """A made-up result: a loss a seed for each arm."""
    baked = {
        "arm": "one-shot",
        "dtype": "int8",
        "bytes_per_token": 1_000_000,
        "library_bytes": 2_000_000,
        "loss": 1.5,
        "bits_per_byte": 2.2,
        "accuracy": 0.5,
        "tokens_per_second": [2000.0, 1900.0, 2100.0],
        "teacher_tokens_per_second": [1000.0, 1000.0, 1000.0],
    }
    return {
        "command": "distill",
        "commit": "0" * 40,
        "date": "today",
        "threads": 2,
        "machine": MACHINE,
        "study": {
            "name": "made up",
            "config": {"n_layer": 10, "n_embd": 64, "n_head": 4, "n_positions": 128},
            "factors": [0.75, 0.5],
            "axes": ["layers"],
            "schedule": {"max_steps": 10, "epochs": None, "batch_size": 16},
            "teacher_steps": 3,
        },
        "runs": [
            run_of(arm, seed, loss, 100 if arm == "teacher" else 50)
            for arm, each in losses.items()
            for seed, loss in enumerate(each)
        ],
        "baked": [baked],
    }


def report(losses: dict[str, list[float]]) -> str:
    return "\n".join(distill_sections(document(losses)))


def test_the_report_says_what_wins() -> None:
    text = report(
        {
            "teacher": [1.5],
            "iterative 0.75": [1.51, 1.52],
            "iterative 0.5": [1.6, 1.7],
            "direct": [1.8, 1.9],
            "direct long": [1.65, 1.65],
            "one-shot long": [1.5, 1.5],
            "pruned": [1.54, 1.54],
            "pruned long": [1.56, 1.57],
        }
    )
    assert "beats direct (-0.2000 ± 0.0000 nats) at equal steps" in text
    assert "beats on 1 of 2 seeds direct long (0.0000 ± 0.0707 nats) at equal tokens" in text
    assert "does not beat one-shot long (0.1500 ± 0.0707 nats) at equal tokens" in text
    assert "pruned, with 0.500 of the parameters: 0.0400 ± 0.0000 nats over the teacher, within 0.05" in text
    assert "pruned long, with 0.500 of the parameters: 0.0650 ± 0.0071 nats over the teacher, not within 0.05" in text
    assert "The half in int8 makes 2.00 times the teacher's tokens a second" in text


def test_rows_have_means_and_deviations() -> None:
    text = report({"teacher": [1.5], "iterative 0.75": [1.4, 1.6], "iterative 0.5": [1.6, 1.8]})
    row = "| iterative 0.5 | 50 | 0.500 | 1.7000 ± 0.1414 | +0.2000 | 2.453 ± 0.204 | 0.500 | 2.00 | 1.5 |"
    assert row in text.splitlines()
    assert "| one-shot | int8 | 1.00 | 2.00 | 1.5000 | 2.200 | 0.500 | 0.5000 | 2,000 | 2.00 |" in text.splitlines()


@pytest.mark.ci
def test_the_tiny_study_runs_and_goes_on(tmp_path: Path) -> None:
    if os.environ.get("KAOKEN_REQUIRE_TRANSFORMERS") != "1":
        pytest.importorskip("torch")
        pytest.importorskip("transformers")
    from benchmarks.distill import run
    from benchmarks.report import write_report

    text = tmp_path / "text.txt"
    text.write_text("".join(f"{number} times {number} is {number * number}.\n" for number in range(400)))
    options = argparse.Namespace(
        study="tiny", text=text, work=tmp_path / "work", out=tmp_path, seeds=None, train_only=False, threads=1
    )
    said: list[str] = []
    result = run(options, [], said.append)
    assert {"teacher", "iterative 0.75", "iterative 0.5", "pruned long", "int8 labels"} <= {
        each["arm"] for each in result["runs"]
    }
    assert {(each["arm"], each["dtype"]) for each in result["baked"]} == {
        (name, "int8") for name in ("teacher", "iterative 0.75", "iterative 0.5", "pruned")
    }
    assert json.loads((tmp_path / "distill.json").read_text())["runs"] == json.loads(json.dumps(result["runs"]))
    assert write_report(tmp_path, plots=False) == [tmp_path / "distill.md"]

    options.train_only = True
    said.clear()
    assert run(options, [], said.append)["runs"] == result["runs"]
    assert said == []
