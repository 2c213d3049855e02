"""Writes tests/references from transformers: `python tests/make_references.py`, with torch and transformers.

Run it again whenever a configuration or the checkpoint factory changes, and commit what it writes.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray

import decoders
import reference
from configurations import CONFIGURATIONS

BUNDLED_DIRECTORY = Path(__file__).parent.parent / "models" / reference.BUNDLED
TEXT = "ROMEO:\nBut, soft! what light through yonder window breaks?\nIt is the east, and Juliet is the sun.\n"
PROMPTS = ("ROMEO:", "\n", "First Citizen:\nBefore we proceed any further")


def load(directory: Path) -> Any:
    """GPT2LMHeadModel in float32; eager attention, because only that honours reorder_and_upcast_attn."""
    model = transformers.GPT2LMHeadModel.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager", local_files_only=True
    )
    return model.eval()


def logits(model: Any, ids: NDArray[np.int64]) -> NDArray[np.float32]:
    """Logits [batch, count, vocab_size] of ids [batch, count]."""
    with torch.inference_mode():
        result: NDArray[np.float32] = model(torch.from_numpy(ids)).logits.numpy()
    return result


def greedy(model: Any, prompt: Sequence[int], steps: int) -> list[int]:
    """The tokens that generate() appends to the prompt, with no end of text."""
    ids = torch.tensor([list(prompt)])
    with torch.inference_mode():
        output = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=steps, do_sample=False, eos_token_id=None
        )
    tokens: list[int] = output[0, len(prompt) :].tolist()
    return tokens


def positions(count: int) -> list[int]:
    """A few positions of a sequence: the ends, both sides of the 16th and 64th, the middle."""
    return sorted({each for each in (0, 1, 15, 16, 63, 64, count // 2, count - 1) if each < count})


def sources(checkpoints: Path) -> dict[str, tuple[Path, NDArray[np.int64]]]:
    """Directory and ids of the bundled model and of every comparable configuration, written here."""
    found = {
        name: (CONFIGURATIONS[name].write(checkpoints / name), CONFIGURATIONS[name].ids())
        for name in reference.comparable()
    }
    text = np.array([list(TEXT.encode())], dtype=np.int64)
    return found | {reference.BUNDLED: (BUNDLED_DIRECTORY, text)}


def make_arrays(name: str, directory: Path, ids: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
    """What `reference.read` reads back."""
    kept = np.array(positions(ids.shape[1]))
    parts = {"ids": ids.astype(np.int16), "positions": kept, "logits": logits(load(directory), ids)[:, kept]}
    return {f"{name}.{part}": array for part, array in parts.items()}


def make_index(digests: dict[str, str]) -> dict[str, Any]:
    """The references' checkpoints, what made them, and the greedy texts of the bundled model."""
    bundled = load(BUNDLED_DIRECTORY)
    return {
        "made_with": {"torch": torch.__version__, "transformers": transformers.__version__},
        "greedy": {prompt: bytes(greedy(bundled, prompt.encode(), 200)).decode("ascii") for prompt in PROMPTS},
        "digests": digests,
    }


def main() -> None:
    """Writes the index and the arrays."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    arrays: dict[str, NDArray[Any]] = {}
    digests: dict[str, str] = {}
    reference.FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as checkpoints:
        for name, (directory, ids) in sources(Path(checkpoints)).items():
            digests[name] = reference.digest(directory)
            arrays |= make_arrays(name, directory, ids)
        np.savez_compressed(decoders.REFERENCES, **decoders.make_references(Path(checkpoints) / "decoders"))
    reference.INDEX.write_text(json.dumps(make_index(digests), indent=2) + "\n", encoding="utf-8")
    np.savez_compressed(reference.ARRAYS, **arrays)
    size = sum(path.stat().st_size for path in (reference.INDEX, reference.ARRAYS, decoders.REFERENCES))
    print(f"wrote {size} bytes to {reference.FOLDER}")


if __name__ == "__main__":
    main()
