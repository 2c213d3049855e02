"""The programs of tests/native on this machine; the sanitizers and qemu run them elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from native_build import call, ninja


@pytest.mark.ci
def test_nothing_is_allocated_on_the_decode_path(native_tests: Path) -> None:
    ninja(native_tests, "allocations")
    call(native_tests / "tests" / "native" / "allocations")
