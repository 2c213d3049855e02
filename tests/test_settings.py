"""One table of settings: README, `kaoken.bake`, the command line and CMake agree with codegen/settings.py."""

from __future__ import annotations

import inspect
import os
import re
from pathlib import Path

import pytest
from kaoken.codegen.dtypes import CACHE_DTYPES, DTYPES
from kaoken.codegen.isa import table
from kaoken.codegen.settings import KERNELS, OPTIONS, SETTINGS

import kaoken
from kaoken.cli import main

ROOT = Path(__file__).parent.parent


def readme_table() -> str:
    lines = ["| setting | meaning | default |", "|---|---|---|"]
    for setting in SETTINGS.values():
        default = f"`{setting.default}`" if setting.default else setting.absence
        lines.append(f"| `{setting.name}` | {setting.meaning}{setting.for_build} | {default} |")
    return "\n".join(lines) + "\n"


def test_readmes_table() -> None:
    """KAOKEN_UPDATE_README=1 rewrites it."""
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    (found,) = re.findall(r"^\| setting \|.*\n(?:\|.*\n)+", text, re.MULTILINE)
    if os.environ.get("KAOKEN_UPDATE_README"):
        readme.write_text(text.replace(found, readme_table()), encoding="utf-8")
    else:
        assert found == readme_table()


def test_bake_has_every_setting() -> None:
    """With the defaults of the rows, beside what is of Python alone."""
    parameters = inspect.signature(kaoken.bake).parameters
    own = {"checkpoint", "out", "progress"}
    assert {name: parameter.default for name, parameter in parameters.items() if name not in own} == {
        setting.parameter: setting.bake_value for setting in OPTIONS
    }
    assert [name for name in parameters if f"\n        {name}: " not in (kaoken.bake.__doc__ or "")] == []


def test_the_command_line_has_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["bake", "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert [setting.name for setting in OPTIONS if f"--{setting.singular or setting.name} " not in shown] == []


def test_cmake_has_every_setting() -> None:
    text = (ROOT / "cmake" / "Kaoken.cmake").read_text(encoding="utf-8")
    (names,) = re.findall(r"^set\(KAOKEN_SETTINGS (.*)\)$", text, re.MULTILINE)
    assert [f"KAOKEN_{name}" for name in names.split()] == [setting.cmake for setting in OPTIONS]


@pytest.mark.parametrize(
    ("setting", "values"), [("dtype", DTYPES), ("cache-dtype", CACHE_DTYPES), ("kernels", KERNELS), ("isa", table())]
)
def test_a_meaning_names_every_value(setting: str, values: tuple[str, ...]) -> None:
    assert [value for value in values if f"`{value}`" not in SETTINGS[setting].meaning] == []
