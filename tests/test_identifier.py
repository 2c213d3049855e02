"""The names of models in generated code."""

from __future__ import annotations

import pytest
from kaoken.codegen.identifier import identifier


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("gpt2", "gpt2"),
        ("openai-community/gpt2-XL", "gpt2_xl"),
        ("gptlite-shakespeare", "gptlite_shakespeare"),
        ("__a..b--c__", "a_b_c"),
        ("7b", "model_7b"),
        ("", "model"),
        ("é", "model"),
        ('x"; system("y', "x_system_y"),
        ("İstanbul", "i_stanbul"),
        ("a" * 48, "a" * 48),
    ],
)
def test_identifiers(name: str, expected: str) -> None:
    assert identifier(name) == expected


@pytest.mark.parametrize("name", ["a" * 49, "a-" * 60, "x" * 38 + "-" + "y" * 60, "a" * 60 + "\ud800"], ids=len)
def test_long_names_stay_apart(name: str) -> None:
    assert len(identifier(name)) <= 48
    assert identifier(name).isidentifier()
    assert "__" not in identifier(name)
    assert identifier(name) != identifier(f"{name}z")
