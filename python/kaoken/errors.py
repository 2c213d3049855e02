"""The errors that Kaoken raises; `KaokenError` catches them all. See `kaoken.codegen.errors` for each."""

from __future__ import annotations

from kaoken.codegen.errors import (
    BuildError,
    ChatWarning,
    CheckpointError,
    GenerationConfigWarning,
    HubError,
    InputError,
    ISAError,
    KaokenError,
    LibraryError,
    UnsupportedModelError,
)

__all__ = [
    "BuildError",
    "ChatWarning",
    "CheckpointError",
    "GenerationConfigWarning",
    "HubError",
    "ISAError",
    "InputError",
    "KaokenError",
    "LibraryError",
    "UnsupportedModelError",
]
