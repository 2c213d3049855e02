"""Kaoken: checkpoints of small transformers baked into native code, run on the CPU.

    >>> import kaoken
    >>> model = kaoken.load()
    >>> model.generate_text("ROMEO:", max_new_tokens=20)

Names are loaded on first use (PEP 562): `import kaoken` loads neither native code nor NumPy, so that a build
tool which looks into the package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kaoken.baking import bake
    from kaoken.calibrating import calibrate
    from kaoken.causal import BakedCausalLM, BakedGPT2, Session
    from kaoken.classification import BakedClassifier
    from kaoken.encoder import BakedEncoder
    from kaoken.errors import (
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
    from kaoken.evaluation import evaluate
    from kaoken.library import BlockConfig, MatrixInfo, ModelConfig, ModelInfo, verify
    from kaoken.masked_lm import BakedMaskedLM
    from kaoken.model import BakedModel, load
    from kaoken.question_answering import BakedQuestionAnswering
    from kaoken.seq2seq import BakedSeq2SeqLM
    from kaoken.tagging import BakedTokenClassifier

    __version__: str

__all__ = [
    "BakedCausalLM",
    "BakedClassifier",
    "BakedEncoder",
    "BakedGPT2",
    "BakedMaskedLM",
    "BakedModel",
    "BakedQuestionAnswering",
    "BakedSeq2SeqLM",
    "BakedTokenClassifier",
    "BlockConfig",
    "BuildError",
    "ChatWarning",
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
    "calibrate",
    "evaluate",
    "load",
    "verify",
]

_MODULES = {
    "kaoken.baking": ("bake",),
    "kaoken.calibrating": ("calibrate",),
    "kaoken.evaluation": ("evaluate",),
    "kaoken.library": ("BlockConfig", "MatrixInfo", "ModelConfig", "ModelInfo", "verify"),
    "kaoken.causal": ("BakedCausalLM", "BakedGPT2", "Session"),
    "kaoken.classification": ("BakedClassifier",),
    "kaoken.encoder": ("BakedEncoder",),
    "kaoken.masked_lm": ("BakedMaskedLM",),
    "kaoken.model": ("BakedModel", "load"),
    "kaoken.question_answering": ("BakedQuestionAnswering",),
    "kaoken.seq2seq": ("BakedSeq2SeqLM",),
    "kaoken.tagging": ("BakedTokenClassifier",),
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
