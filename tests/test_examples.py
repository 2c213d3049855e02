"""The C program of README: what it prints is what Python generates."""

from __future__ import annotations

import subprocess
from pathlib import Path

from conftest import Baked, Checkpoints
from native_build import SOURCE, build_storyteller, call

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
