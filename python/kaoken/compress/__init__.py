"""Smaller models: training, distillation and pruning with transformers and torch (`pip install "kaoken[distill]"`).

Everything here works on checkpoints, before baking. `kaoken.compress.gpt2` alone knows GPT-2's names.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from kaoken.errors import KaokenError

if TYPE_CHECKING:
    from kaoken.compress.gpt2 import GPT2LMHeadModel

__all__ = ["load_model"]


def load_model(directory: str | Path) -> GPT2LMHeadModel:
    """The torch model of a checkpoint directory, pruned ones with blocks of their own sizes too.

    A GPT2LMHeadModel of transformers in float32 and evaluation mode, to run, train and save as any other. KaokenError
    where torch or transformers are missing, and where baking would refuse the checkpoint.
    """
    try:
        from kaoken.compress import gpt2
    except ModuleNotFoundError as error:
        raise KaokenError(f'{error.name} is not installed: pip install "kaoken[distill]"') from error
    return gpt2.load(directory)
