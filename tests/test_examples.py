"""The C programs: the one of README prints what Python generates, and that of encoders what the oracle says."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np

from conftest import Baked, Checkpoints
from native_build import SOURCE, build_example, build_storyteller, call
from oracles import sentence
from oracles.bert import Bert

IDS = [3, 1, 4, 1, 5]


def test_readme_shows_the_c_program() -> None:
    program = (SOURCE / "examples" / "c" / "story.c").read_text(encoding="utf-8")
    assert f"```c\n{program}```\n" in (SOURCE / "README.md").read_text(encoding="utf-8")


def test_the_c_program_generates_what_python_does(baked: Baked, checkpoints: Checkpoints, tmp_path: Path) -> None:
    program = build_storyteller(tmp_path, checkpoints("plain"), "native")
    expected = baked("plain").generate(IDS, max_new_tokens=20)[0, len(IDS) :].tolist()
    assert call(program, "20", *map(str, IDS)).split() == list(map(str, expected))
    refused = subprocess.run([program, "1", "999"], capture_output=True, text=True)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "999" in refused.stderr


def test_the_c_program_compares_texts(tmp_path: Path) -> None:
    directory = sentence.write(tmp_path / "model")
    values = {"CHECKPOINT": directory, "DTYPE": "float32", "ISA": "native"}
    program = build_example("embed", tmp_path / "build", **values) / "similar"
    texts = [[2, 7, 9, 3], [2, 8, 3], [2, 5, 5, 11, 3]]
    found = [float(line) for line in call(program, *(",".join(map(str, text)) for text in texts)).split()]
    vectors = np.stack([Bert(directory).hidden_states(text).mean(0) for text in texts])
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    np.testing.assert_allclose(found, vectors[1:] @ vectors[0], rtol=0, atol=2e-6)
    for wrong, code, says in (("2,999", 1, "999"), ("2,x", 2, "2,7,9,3"), ("", 2, "2,7,9,3")):
        refused = subprocess.run([program, "2,3", wrong], capture_output=True, text=True)
        assert (refused.returncode, refused.stdout) == (code, "")
        assert says in refused.stderr
