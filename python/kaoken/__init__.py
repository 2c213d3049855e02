"""Kaoken: GPT-2-family checkpoints baked into native code, run on the CPU.

    >>> import kaoken
    >>> model = kaoken.BakedGPT2()
    >>> model.generate_text("ROMEO:", max_new_tokens=20)

Names are loaded on first use (PEP 562): `import kaoken` loads neither native code nor NumPy, so that a build
tool which looks into the package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kaoken.baking import bake
    from kaoken.errors import (
        BuildError,
        CheckpointError,
        GenerationConfigWarning,
        HubError,
        InputError,
        ISAError,
        KaokenError,
        LibraryError,
        UnsupportedModelError,
    )
    from kaoken.library import BlockConfig, MatrixInfo, ModelConfig, ModelInfo, verify
    from kaoken.model import BakedGPT2, Session, load

    __version__: str

__all__ = [
    "BakedGPT2",
    "BlockConfig",
    "BuildError",
    "CheckpointError",
    "GenerationConfigWarning",
    "HubError",
    "ISAError",
    "InputError",
    "KaokenError",
    "LibraryError",
    "MatrixInfo",
    "ModelConfig",
    "ModelInfo",
    "Session",
    "UnsupportedModelError",
    "__version__",
    "bake",
    "load",
    "verify",
]

_MODULES = {
    "kaoken.baking": ("bake",),
    "kaoken.library": ("BlockConfig", "MatrixInfo", "ModelConfig", "ModelInfo", "verify"),
    "kaoken.model": ("BakedGPT2", "Session", "load"),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        value: Any = version("kaoken")
    elif name in __all__:
        value = getattr(import_module(_HOME.get(name, "kaoken.errors")), name)
    else:
        raise AttributeError(f"module 'kaoken' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
