"""GGUF files as checkpoints: metadata as a config.json, tensors by the family's names and laid out as it expects them.

llama.cpp's conversion (https://github.com/ggml-org/llama.cpp/tree/master/conversion) is undone here: what it names
otherwise stands in `gguf_config.py`, and where it moves rows in `Layout`. Names of tensors come from the gguf package's
own table, which that conversion uses.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .checkpoint import Checkpoint, Module, Sentence, TensorInfo, not_finite, quoted, row_range, truncated
from .errors import CheckpointError, UnsupportedModelError
from .gguf_config import ARCHITECTURES, make_config
from .gguf_header import TensorEntry, read_header, require_gguf
from .gguf_tokenizer import read_tokenizer

Values = NDArray[np.float32]
Blocks = NDArray[np.uint8]

_READ_VALUES = 1 << 18  # dequantized at a time


@dataclass(frozen=True)
class Layout:
    """What llama.cpp's conversion has done to a tensor, told as what undoes it.

    The file's rows fill a grid: in `grid` (3, 2, 4) row i * 8 + j * 4 + k is at (i, j, k). A zero stands for as many as
    there are. Exchanging two of its `axes` puts them into the family's order.
    """

    grid: tuple[int, ...] = (0,)
    axes: tuple[int, int] = (0, 0)
    transposed: bool = False
    plus: float = 0.0

    def order(self, rows: int) -> NDArray[np.intp]:
        """For each row of the family, its row in the file."""
        known = math.prod(size for size in self.grid if size)
        shape = [size or rows // known for size in self.grid]
        return np.arange(rows).reshape(shape).swapaxes(*self.axes).ravel()


@dataclass(frozen=True)
class GgufTensor(TensorInfo):
    """A tensor of a GGUF file. `shape` is the family's, `dtype` the type's name in ggml ("Q4_1")."""

    stored: tuple[int, ...] = ()  # its shape in the file
    layout: Layout = field(default_factory=Layout)

    @property
    def row_bytes(self) -> int:
        """Of a row in the file; of a tensor of one dimension each value is a row."""
        return self.nbytes // self.stored[0]


_MODULE = "sentence_transformers.models"
_POOLINGS = {0: None, 1: "mean", 2: "cls", 3: "lasttoken"}  # llama.cpp's enum llama_pooling_type
_ROPE_FACTORS = "rope_freqs.weight"
_FLOATS = ("F32", "F16", "BF16")


@dataclass(frozen=True, eq=False)
class GgufCheckpoint(Checkpoint):
    """A GGUF file. `tensors` have llama.cpp's names until `named` gives them a family's."""

    architecture: str = ""

    @property
    def place(self) -> Path:
        return self.weight_files[0]

    @property
    def config_file(self) -> Path:
        return self.weight_files[0]

    def named(self, expected: Callable[[], Iterable[str]], prefix: str) -> GgufCheckpoint:
        wanted = expected()  # which has checked the config
        table = _name_table(self.architecture, self.config[ARCHITECTURES[self.architecture].fields["block_count"]])
        tensors = dict(self.tensors)
        for name in wanted:
            stem, dot, kind = name.rpartition(".")
            known = table.get_name(prefix + stem) or table.get_name(stem)
            theirs = f"{known}{dot}{kind}"
            if known and theirs in self.tensors:
                tensors[name] = self._laid_out(theirs)
                tensors.pop(theirs, None)
        return replace(self, tensors=tensors)

    def _laid_out(self, name: str) -> GgufTensor:
        tensor = self._tensor(name)
        layout = _layout(self.architecture, name, self.config)
        shape = tensor.stored[::-1] if layout.transposed else tensor.stored
        return replace(tensor, layout=layout, shape=shape)

    def _tensor(self, name: str) -> GgufTensor:
        tensor = self.tensors.get(name)
        if not isinstance(tensor, GgufTensor):
            raise CheckpointError(f"{self.place} has no tensor {quoted(name)}: pass a whole model")
        return tensor

    def check_type(self, name: str) -> None:
        tensor = self.tensors[name]
        if not isinstance(tensor, GgufTensor):
            super().check_type(name)
            return
        known = _FLOATS if len(tensor.stored) == 1 else readable_types()
        if tensor.dtype not in known:
            raise CheckpointError(
                f"{tensor.file}: {quoted(name)} is stored as {tensor.dtype}; expected one of {', '.join(known)}: "
                "convert or quantize the model anew"
            )

    def read(self, name: str, rows: slice | None = None) -> Values:
        """As of a directory; values of blocks are those that the gguf package's `dequantize` makes of them."""
        tensor = self.tensors.get(name)
        if not isinstance(tensor, GgufTensor):  # of a safetensors file that stands beside it, or of none
            return super().read(name, rows)
        self.check_type(name)
        first, shape = row_range(tensor.shape, rows)
        values = np.empty((shape[0], math.prod(shape[1:])), np.float32)
        if not values.size:
            return values.reshape(shape)
        if tensor.layout.transposed:
            _read_columns(tensor, values, first)
        else:
            _read_rows(tensor, values, first)
        bad = values.size - int(np.count_nonzero(np.isfinite(values)))
        if bad:
            raise not_finite(tensor.file, name, bad, values.size)
        return values.reshape(shape)


def open_gguf(path: Path) -> GgufCheckpoint:
    """A GGUF file as a checkpoint, from its header alone (and the factors of rotary positions, where it has some).

    Raises CheckpointError for a damaged file, UnsupportedModelError for an architecture, an option or a tokenizer that
    Kaoken does not know.
    """
    header = read_header(path)
    tensors: dict[str, TensorInfo] = {name: _info(path, entry) for name, entry in header.tensors.items()}
    config = make_config(path, header)
    architecture = header.metadata["general.architecture"]
    tokenizer, tokenizer_config = read_tokenizer(path, header.metadata)
    _check_tokens(path, header.metadata, config["vocab_size"])
    sentence = _sentence(path, header.metadata) if architecture == "bert" else None
    opened = GgufCheckpoint(
        directory=path.parent,
        config=config,
        generation_config=None,
        tensors=tensors,
        files=(path,),
        weight_files=(path,),
        tokenizer=tokenizer,
        tokenizer_config=tokenizer_config,
        sentence=sentence,
        architecture=architecture,
    )
    if _ROPE_FACTORS in tensors:
        if "rope_scaling" in config:
            raise UnsupportedModelError(
                f"{path} has {_ROPE_FACTORS} beside {architecture}.rope.scaling; expected one of the two: "
                "choose another model"
            )
        factors = opened.read(_ROPE_FACTORS).ravel().tolist()
        config["rope_scaling"] = {"rope_type": "factors", "factors": factors}
        del tensors[_ROPE_FACTORS]
    return opened


@cache
def readable_types() -> tuple[str, ...]:
    """Names of the types of matrices that the gguf package turns into float32."""
    gguf = require_gguf()
    readable = []
    for kind, (_, block_bytes) in gguf.GGML_QUANT_SIZES.items():
        try:
            gguf.quants.dequantize(np.zeros((1, block_bytes), np.uint8), kind)
        except NotImplementedError:
            continue
        readable.append(kind.name)
    return tuple(readable)


@cache
def _name_table(architecture: str, blocks: int) -> Any:
    """transformers' names -> llama.cpp's."""
    gguf = require_gguf()
    (kind,) = (each for each, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    return gguf.get_tensor_name_map(kind, blocks)


def _info(path: Path, entry: TensorEntry) -> GgufTensor:
    return GgufTensor(entry.ggml_type, entry.shape, path, entry.offset, entry.nbytes, entry.shape)


def _layout(architecture: str, name: str, config: Mapping[str, Any]) -> Layout:
    """Of a tensor that llama.cpp calls `name`."""
    stem, _, kind = name.rpartition(".")
    part = stem.rpartition(".")[2]
    if architecture == "llama" and part in ("attn_q", "attn_k"):
        heads = config["num_attention_heads"]
        return Layout((heads if part == "attn_q" else config.get("num_key_value_heads", heads), 0, 2), (1, 2))
    if architecture == "gptneox" and part == "attn_qkv":
        return Layout((3, config["num_attention_heads"], 0), (0, 1))
    if architecture == "gpt2" and kind == "weight" and part in ("attn_qkv", "attn_output", "ffn_up", "ffn_down"):
        return Layout(transposed=True)
    if architecture == "gemma3" and kind == "weight" and part.endswith("norm"):
        return Layout(plus=-1.0)
    return Layout()


def _check_tokens(path: Path, metadata: Mapping[str, Any], rows: int) -> None:
    tokens = metadata.get("tokenizer.ggml.tokens")
    if isinstance(tokens, list) and len(tokens) > rows:
        raise CheckpointError(
            f"{path} has {len(tokens)} tokens, and token_embd.weight has {rows} rows; expected one for each: "
            "convert the model anew"
        )


def _sentence(path: Path, metadata: Mapping[str, Any]) -> Sentence | None:
    """The pooling behind an encoder, as modules.json would have it; that vectors are normalized no key says."""
    kind = metadata.get("bert.pooling_type", 0)
    if not isinstance(kind, int) or kind not in _POOLINGS:
        raise UnsupportedModelError(
            f"{path}: bert.pooling_type is {quoted(kind)}; expected one of {', '.join(map(str, _POOLINGS))} (none, the "
            "mean, the first or the last position): choose another model"
        )
    mode = _POOLINGS[kind]
    if mode is None:
        return None
    modules = {"Transformer": {}, "Pooling": {"pooling_mode": mode}}
    return Sentence(
        path, tuple(Module(f"{_MODULE}.{name}", "", config, {}, ()) for name, config in modules.items()), {}
    )


# Values


def _stored_rows(tensor: GgufTensor, first: int, last: int) -> Blocks:
    """Rows [first, last) in the family's order as the file has them: uint8 [rows, row_bytes]."""
    order = tensor.layout.order(tensor.stored[0])[first:last]
    found = np.empty((len(order), tensor.row_bytes), np.uint8)
    starts = np.flatnonzero(np.diff(order, prepend=-2) != 1)  # of runs that follow each other in the file
    try:
        with tensor.file.open("rb") as file:
            for begin, end in pairwise([*starts.tolist(), len(order)]):
                file.seek(tensor.offset + int(order[begin]) * tensor.row_bytes)
                if file.readinto(found[begin:end].data) != found[begin:end].nbytes:
                    raise truncated(tensor.file)
    except OSError as error:
        raise CheckpointError(f"{tensor.file} cannot be read ({error.strerror}): check its permissions") from error
    return found


def _read_rows(tensor: GgufTensor, values: Values, first: int) -> None:
    """Fills [rows, columns] with rows from `first` on."""
    step = max(1, _READ_VALUES // max(1, values.shape[1]))
    for start in range(0, len(values), step):
        part = values[start : start + step]
        part[:] = _dequantized(_stored_rows(tensor, first + start, first + start + len(part)), tensor)


def _read_columns(tensor: GgufTensor, values: Values, first: int) -> None:
    """Fills [columns, rows] of the file with columns from `first` on; only the blocks that have them are converted."""
    gguf = require_gguf()
    block, block_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[tensor.dtype]]
    begin, end = first // block, -(-(first + len(values)) // block)
    rows, last = tensor.stored[0], first - begin * block + len(values)
    step = max(1, _READ_VALUES // max(1, (end - begin) * block))
    for start in range(0, rows, step):
        stored = _stored_rows(tensor, start, min(rows, start + step))[:, begin * block_bytes : end * block_bytes]
        found = _dequantized(np.ascontiguousarray(stored), tensor)
        values[:, start : start + len(found)] = found[:, first - begin * block : last].T


def _dequantized(stored: Blocks, tensor: GgufTensor) -> Values:
    gguf = require_gguf()
    with np.errstate(all="ignore"):  # what is not finite is refused by its name
        values: Values = gguf.quants.dequantize(stored, gguf.GGMLQuantizationType[tensor.dtype])
    return values + np.float32(tensor.layout.plus) if tensor.layout.plus else values
