"""Writes tiny GPT-2 checkpoints, sound ones in every storage form and the raw parts of unsound ones.

Values come from raw PCG64 bits and the CRC-32 of the tensors' names, so they are the same on every machine
and with every version of NumPy. Nothing of Kaoken is imported.
"""

from __future__ import annotations

import json
import math
import shutil
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]

TINY: dict[str, Any] = {
    "model_type": "gpt2",
    "architectures": ["GPT2LMHeadModel"],
    "activation_function": "gelu_new",
    "vocab_size": 61,
    "n_positions": 32,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 2,
}

# The toy whose generated text is tests/golden: small enough for literals, wide enough for blobs.
GOLDEN_TOY: dict[str, Any] = {"vocab_size": 21, "n_positions": 8, "n_embd": 4, "n_head": 2, "n_inner": 6}

# One token per byte; `<|endoftext|>` is 256.
TOKENIZER = Path(__file__).parent.parent / "models" / "gptlite-shakespeare" / "tokenizer.json"
TOKENIZER_VOCAB = 257

STORED = {"F32": "<f4", "F16": "<f2", "F64": "<f8", "U8": "u1", "BOOL": "u1"}


def uniform(name: str, shape: tuple[int, ...], seed: int) -> NDArray[np.float64]:
    """Values in [-1, 1) that depend on the name, the shape and the seed alone."""
    bits = np.random.PCG64(zlib.crc32(name.encode()) + (seed << 32)).random_raw(math.prod(shape))
    unit = (np.asarray(bits, np.uint64) >> np.uint64(11)).astype(np.float64) / 2**53
    return (2.0 * unit - 1.0).reshape(shape)


def block_sizes(config: Mapping[str, Any]) -> list[tuple[int, int, int]]:
    """(n_head, head_dim, n_inner) of every layer."""
    if "kaoken_blocks" in config:
        return [(each["n_head"], each["head_dim"], each["n_inner"]) for each in config["kaoken_blocks"]]
    width, heads = config["n_embd"], config["n_head"]
    return [(heads, width // heads, config.get("n_inner") or 4 * width)] * config["n_layer"]


def tensor_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor of a GPT-2; matrices of the blocks are Conv1D's [inputs, outputs]."""
    width, vocabulary = config["n_embd"], config["vocab_size"]
    shapes: dict[str, tuple[int, ...]] = {
        "wte.weight": (vocabulary, width),
        "wpe.weight": (config["n_positions"], width),
    }
    for layer, (heads, head_dim, inner) in enumerate(block_sizes(config)):
        attention = heads * head_dim
        linears = {
            "attn.c_attn": (width, 3 * attention),
            "attn.c_proj": (attention, width),
            "mlp.c_fc": (width, inner),
            "mlp.c_proj": (inner, width),
        }
        for name, shape in linears.items():
            shapes |= {f"h.{layer}.{name}.weight": shape, f"h.{layer}.{name}.bias": shape[1:]}
        for name in ("ln_1", "ln_2"):
            shapes |= {f"h.{layer}.{name}.weight": (width,), f"h.{layer}.{name}.bias": (width,)}
    shapes |= {"ln_f.weight": (width,), "ln_f.bias": (width,)}
    if not config.get("tie_word_embeddings", True):
        shapes["lm_head.weight"] = (vocabulary, width)
    return shapes


def make_tensor(name: str, shape: tuple[int, ...], seed: int) -> Array:
    """Values that keep activations near 1 and leave no bias, scale or position without effect."""
    values = uniform(name, shape, seed)
    if name.rsplit(".", 2)[-2].startswith("ln_"):
        values = 1.0 + 0.3 * values if name.endswith(".weight") else 0.2 * values
    elif name.endswith(".bias"):
        values = 0.2 * values
    elif name in ("wte.weight", "wpe.weight"):
        values = 0.8 * values
    else:
        values = values * math.sqrt(3.0 / shape[0])
    return values.astype(np.float32)


def make_tensors(config: Mapping[str, Any], seed: int = 0) -> dict[str, Array]:
    """Every tensor of a GPT-2 by its canonical name."""
    return {name: make_tensor(name, shape, seed) for name, shape in tensor_shapes(config).items()}


def to_bytes(values: NDArray[Any], dtype: str) -> bytes:
    """Values as a safetensors file stores them; bfloat16 rounds to the nearest, ties to even."""
    if dtype == "BF16":
        bits = values.astype("<f4").view("<u4").astype(np.int64)
        return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype("<u2").tobytes()
    return values.astype(STORED[dtype]).tobytes()


def rounded(values: Array, dtype: str) -> Array:
    """Values as they come back from storage."""
    if dtype == "BF16":
        stored = np.frombuffer(to_bytes(values, dtype), "<u2").astype("<u4")
        return (stored << np.uint32(16)).view("<f4").reshape(values.shape)
    return values.astype({"F32": np.float32, "F16": np.float16}[dtype]).astype(np.float32)


def raw_safetensors(header: Mapping[str, Any] | bytes, data: bytes = b"", length: int | None = None) -> bytes:
    """The bytes of a safetensors file from any header, sound or not; `length` may lie about the header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def make_safetensors(tensors: Iterable[tuple[str, str, NDArray[Any]]]) -> bytes:
    """A sound safetensors file of (name, dtype, values)."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    parts: list[bytes] = []
    end = 0
    for name, dtype, values in tensors:
        parts.append(to_bytes(values, dtype))
        begin, end = end, end + len(parts[-1])
        header[name] = {"dtype": dtype, "shape": list(values.shape), "data_offsets": [begin, end]}
    return raw_safetensors(header, b"".join(parts))


def stored_name(name: str) -> str:
    """A canonical name as GPT2LMHeadModel stores it."""
    return name if name.startswith("lm_head.") else f"transformer.{name}"


def mask_buffers(config: Mapping[str, Any]) -> list[tuple[str, str, NDArray[Any]]]:
    """The causal masks that transformers stored before 4.30, in the two types it used."""
    positions = config["n_positions"]
    mask = np.tril(np.ones((1, 1, positions, positions)))
    found: list[tuple[str, str, NDArray[Any]]] = []
    for layer in range(config["n_layer"]):
        found.append((f"h.{layer}.attn.bias", "U8" if layer % 2 else "F32", mask))
        found.append((f"h.{layer}.attn.masked_bias", "F32", np.array(-1e4)))
    return found


def write_weights(directory: Path, entries: list[tuple[str, str, NDArray[Any]]], shards: int = 1) -> None:
    """`model.safetensors`, or so many shards and their index."""
    if shards == 1:
        (directory / "model.safetensors").write_bytes(make_safetensors(entries))
        return
    weight_map: dict[str, str] = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        own = entries[len(entries) * shard // shards : len(entries) * (shard + 1) // shards]
        (directory / file).write_bytes(make_safetensors(own))
        weight_map |= dict.fromkeys((name for name, _, _ in own), file)
    total = sum(len(to_bytes(values, dtype)) for _, dtype, values in entries)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    write_json(directory / "model.safetensors.index.json", index)


def write_json(path: Path, value: Any) -> None:
    """Any JSON value, as transformers would lay it out."""
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def write_checkpoint(
    directory: Path,
    config: Mapping[str, Any] | None = None,
    *,
    dtype: str = "F32",
    shards: int = 1,
    prefix: bool = True,
    old_buffers: bool = False,
    tokenizer: bool = False,
    generation: Mapping[str, Any] | None = None,
    seed: int = 0,
    tensors: Mapping[str, NDArray[Any]] | None = None,
) -> Path:
    """Writes a checkpoint to `directory`, which it makes and returns.

    `config` is laid over TINY; a field whose value is `...` is left out. `dtype` is F32, F16 or BF16, for all
    tensors. `prefix` puts "transformer." before all names but the head's. `tokenizer` copies the bundled
    model's, and needs a vocabulary of at least TOKENIZER_VOCAB. `generation` becomes generation_config.json.
    `tensors`, by canonical name, take the place of those that `make_tensors` makes.
    """
    fields = {name: value for name, value in {**TINY, **(config or {})}.items() if value is not ...}
    directory.mkdir(parents=True, exist_ok=True)
    write_json(directory / "config.json", fields)
    if generation is not None:
        write_json(directory / "generation_config.json", generation)
    if tokenizer:
        assert fields["vocab_size"] >= TOKENIZER_VOCAB, f"the tokenizer has {TOKENIZER_VOCAB} tokens"
        shutil.copyfile(TOKENIZER, directory / "tokenizer.json")
    values = make_tensors(fields, seed) if tensors is None else tensors
    entries = [(name, dtype, array) for name, array in values.items()]
    entries += mask_buffers(fields) if old_buffers else []
    if prefix:
        entries = [(stored_name(name), kind, array) for name, kind, array in entries]
    write_weights(directory, entries, shards)
    return directory


def change_config(directory: Path, **fields: Any) -> Path:
    """Lays fields over those of a config.json that exists, and leaves the tensors as they are."""
    path = directory / "config.json"
    config = json.loads(path.read_text(encoding="utf-8")) | fields
    write_json(path, {name: value for name, value in config.items() if value is not ...})
    return directory
