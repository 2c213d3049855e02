"""Models to train from nothing: their sizes, and how long and how fast they learn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from kaoken.compress.training import Schedule
from kaoken.errors import InputError

END = "<|endoftext|>"


@dataclass(frozen=True)
class Preset:
    """A configuration (fields of transformers' GPT2Config), in how many samples each token is, and a schedule."""

    config: dict[str, Any]
    overlap: int = 1
    schedule: Schedule | None = None


def _bytes_config(layers: int, heads: int, width: int, context: int, **fields: Any) -> dict[str, Any]:
    sizes = {"n_layer": layers, "n_head": heads, "n_embd": width, "n_positions": context}
    tokens = {"vocab_size": 257, "bos_token_id": 256, "eos_token_id": 256}
    dropout = {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}
    return {"model_type": "gpt2", **sizes, **tokens, **dropout, **fields}


PRESETS = {
    # The bundled model: its card has the command. This activation is one kernel of torch, gelu_new the same in eight.
    "gptlite": Preset(
        _bytes_config(6, 8, 256, 256, embd_pdrop=0.1, resid_pdrop=0.15, activation_function="gelu_pytorch_tanh"),
        overlap=4,
        schedule=Schedule(
            max_steps=2600, batch_size=24, learning_rate=2e-3, min_learning_rate=2e-4, warmup_steps=100, seed=1337
        ),
    ),
    # Smaller, with as many layers as make tenths of a scale.
    "gptlite-deep": Preset(
        _bytes_config(10, 6, 96, 128, activation_function="gelu_pytorch_tanh"),
        overlap=2,
        schedule=Schedule(max_steps=2000, batch_size=16, learning_rate=2e-3, min_learning_rate=2e-4),
    ),
}


def find(name: str) -> Preset:
    """Raises InputError for an unknown one."""
    if name not in PRESETS:
        raise InputError(f"there is no preset {name!r}; expected one of {', '.join(PRESETS)}")
    return PRESETS[name]


def byte_tokenizer() -> Any:
    """A `tokenizers.Tokenizer` with a token a byte, ids 0 to 255, and `<|endoftext|>`, 256. It encodes any text."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    # GPT-2's letters for bytes: printable ones stand for themselves, the others follow at 256.
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)]
    others = iter(range(256, 512))
    letters = [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]
    tokenizer = Tokenizer(models.BPE({letter: byte for byte, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(END, special=True, normalized=False)])
    return tokenizer
