"""The header of a GGUF file: metadata and the tensor table, found sound before anything of their size is allocated.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Its constants are those of the gguf package. That
one's GGUFReader is not used: it trusts every length, and takes 8 s and 690 MiB for the metadata of a Gemma 3, which a
bake reads four times (0.3 s and 20 MiB here).
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from .checkpoint import file_size, quoted
from .errors import CheckpointError, UnsupportedModelError

# A Gemma 3 has 20 MB of metadata with 800,000 strings.
_MAX_BYTES = 64 << 20
_MAX_STRINGS = 1 << 21  # in arrays
_MAX_KEYS = 1 << 14
_MAX_TENSORS = 1 << 16
_MAX_NAME = 1 << 16  # bytes of a key, as the format says
_MAX_TENSOR_NAME = 256  # llama.cpp allows 64
_MAX_DIMENSIONS = 4
_MAX_ALIGNMENT = 1 << 20

_AGAIN = "download the file again, or convert the model anew"


@dataclass(frozen=True)
class TensorEntry:
    """Where a tensor lies and how it is stored; `nbytes` is what the product of `shape` takes in `ggml_type`."""

    ggml_type: str  # "Q4_1"; "type 99" for one that the gguf package does not know
    shape: tuple[int, ...]  # the last dimension is contiguous
    offset: int  # bytes from the start of the file
    nbytes: int


@dataclass(frozen=True)
class Header:
    """What stands before the weights. Numbers of 32 bits are the shortest decimals that round to them."""

    metadata: Mapping[str, Any]  # int, float, bool, str, list[str], or a NumPy array of one dimension
    tensors: Mapping[str, TensorEntry]


def require_gguf() -> Any:
    """The gguf package. Raises CheckpointError where it is missing."""
    try:
        import gguf
    except ImportError as error:
        raise CheckpointError(f"a GGUF file is read with the package gguf ({error}): `pip install gguf`") from None
    return gguf


def read_header(path: Path) -> Header:
    """Metadata and tensors of a file. Raises CheckpointError for what is damaged, or no GGUF at all.

    UnsupportedModelError for the formats of other machines and other times, and for a part of a divided model.
    """
    size = file_size(path)
    gguf = require_gguf()
    try:
        with path.open("rb") as file:
            return _read(_Source(file, path, size), gguf)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror}): check its permissions") from error


class _Source:
    """Takes values from the front of a file: little-endian, no more than there are and no more than a header has."""

    def __init__(self, file: BinaryIO, path: Path, size: int) -> None:
        self.path = path
        self.size = size
        self.position = 0
        self.strings = 0
        self._file = file

    def fail(self, problem: str) -> CheckpointError:
        return CheckpointError(f"{self.path} is not a sound GGUF file: {problem}; {_AGAIN}")

    def take(self, count: int, what: str) -> bytes:
        if count > self.size - self.position:
            raise self.fail(f"{what} needs {count} bytes at {self.position}, and the file has {self.size}")
        if self.position + count > _MAX_BYTES:
            raise self.fail(f"{what} needs {count} bytes at {self.position}; expected a header of at most {_MAX_BYTES}")
        data = self._file.read(count)
        if len(data) != count:
            raise self.fail(f"{what} ended early, as if the file were being changed")
        self.position += count
        return data

    def integer(self, form: str, what: str) -> int:
        (value,) = struct.unpack(form, self.take(struct.calcsize(form), what))
        return int(value)

    def count(self, what: str, most: int) -> int:
        value = self.integer("<Q", what)
        if value > most:
            raise self.fail(f"{what} is {value}; expected at most {most}")
        return value

    def string(self, what: str, most: int = _MAX_BYTES) -> str:
        data = self.take(self.count(f"the length of {what}", most), what)
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.fail(f"{what} is not UTF-8 (byte {error.start})") from None


def _read(source: _Source, gguf: Any) -> Header:
    _check_version(source, gguf)
    tensor_count = source.count("the number of tensors", _MAX_TENSORS)
    metadata: dict[str, Any] = {}
    for index in range(source.count("the number of keys", _MAX_KEYS)):
        key = source.string(f"the name of key {index}", _MAX_NAME)
        if key in metadata:
            raise source.fail(f"the key {quoted(key)} stands there twice")
        metadata[key] = _read_value(source, gguf, f"the key {quoted(key)}")
    _check_whole(source, metadata)
    entries: dict[str, tuple[int, tuple[int, ...], int]] = {}
    for index in range(tensor_count):
        name = source.string(f"the name of tensor {index}", _MAX_TENSOR_NAME)
        if name in entries:
            raise source.fail(f"the tensor {quoted(name)} stands there twice")
        entries[name] = _read_entry(source, f"the tensor {quoted(name)}")
    alignment = _alignment(source, metadata)
    start = -(-source.position // alignment) * alignment
    return Header(metadata, {name: _place(source, gguf, name, start, *entry) for name, entry in entries.items()})


def _check_version(source: _Source, gguf: Any) -> None:
    if source.take(4, "the magic number") != gguf.GGUF_MAGIC.to_bytes(4, "little"):
        raise source.fail("it does not begin with GGUF")
    version = source.integer("<I", "the version")
    if version not in (2, 3):
        big = version & 0xFFFF == 0
        raise UnsupportedModelError(
            f"{source.path} is a GGUF {'for big-endian machines' if big else f'of version {version}'}; expected "
            "version 2 or 3, little-endian: convert the model anew with a current llama.cpp"
        )


def _read_value(source: _Source, gguf: Any, what: str) -> Any:
    kind = source.integer("<I", f"the type of {what}")
    types = gguf.GGUFValueType
    if kind == types.STRING:
        return source.string(what)
    if kind != types.ARRAY:
        dtype = _dtype(source, gguf, kind, what)
        return _scalar(np.frombuffer(source.take(dtype.itemsize, what), dtype)[0])
    kind = source.integer("<I", f"the type of {what}")
    if kind == types.STRING:
        count = source.count(f"the length of {what}", _MAX_STRINGS - source.strings)
        source.strings += count
        return [source.string(f"a string of {what}") for _ in range(count)]
    dtype = _dtype(source, gguf, kind, what)
    count = source.count(f"the length of {what}", _MAX_BYTES)
    return np.frombuffer(source.take(count * dtype.itemsize, what), dtype)


def _dtype(source: _Source, gguf: Any, kind: int, what: str) -> np.dtype[Any]:
    """Of a number's type. Arrays of arrays, which the format has and no model uses, have none."""
    for each, scalar in gguf.GGUFReader.gguf_scalar_to_np.items():
        if each == kind:
            dtype: np.dtype[Any] = np.dtype(scalar).newbyteorder("<")
            return dtype
    raise source.fail(f"{what} has values of type {kind}; expected numbers, texts, or an array of these")


def _scalar(value: np.generic) -> Any:
    """As Python has it; a float32 as the decimal that it was made of, so that 1e-5 does not become 9.99999974e-06."""
    return float(str(value)) if isinstance(value, np.float32) else value.item()


def _check_whole(source: _Source, metadata: Mapping[str, Any]) -> None:
    parts, kind = metadata.get("split.count", 1), metadata.get("general.type", "model")
    if not isinstance(parts, int) or parts > 1:
        raise UnsupportedModelError(
            f"{source.path} is one of {quoted(parts)} files of a model; expected a whole one: join them with "
            "`llama-gguf-split --merge` of llama.cpp"
        )
    if not isinstance(kind, str) or kind != "model":
        raise UnsupportedModelError(f"{source.path} holds {quoted(kind)}; expected a model: pass the model's own file")


def _read_entry(source: _Source, what: str) -> tuple[int, tuple[int, ...], int]:
    """The number of the type, the shape, and the offset from where the weights begin."""
    dimensions = source.integer("<I", f"the number of dimensions of {what}")
    if not 1 <= dimensions <= _MAX_DIMENSIONS:
        raise source.fail(f"{what} has {dimensions} dimensions; expected 1 to {_MAX_DIMENSIONS}")
    stored = struct.unpack(f"<{dimensions}Q", source.take(8 * dimensions, f"the shape of {what}"))
    if 0 in stored:
        raise source.fail(f"{what} has the shape {list(stored[::-1])}; expected no zeros")
    kind = source.integer("<I", f"the type of {what}")
    return kind, stored[::-1], source.integer("<Q", f"the offset of {what}")


def _alignment(source: _Source, metadata: Mapping[str, Any]) -> int:
    value = metadata.get("general.alignment", 32)
    if not isinstance(value, int) or not 0 < value <= _MAX_ALIGNMENT or value & (value - 1):
        raise source.fail(f"general.alignment is {quoted(value)}; expected a power of two up to {_MAX_ALIGNMENT}")
    return value


def _place(
    source: _Source, gguf: Any, name: str, start: int, kind: int, shape: tuple[int, ...], offset: int
) -> TensorEntry:
    """An entry of the table, its size checked against its shape and the file."""
    types = gguf.GGMLQuantizationType
    if kind not in set(types):
        return TensorEntry(f"type {kind}", shape, start, 0)
    block, block_bytes = gguf.GGML_QUANT_SIZES[types(kind)]
    if shape[-1] % block:
        raise source.fail(
            f"the tensor {quoted(name)} has rows of {shape[-1]} values, of which {types(kind).name} stores {block} "
            "together"
        )
    nbytes = math.prod(shape) // block * block_bytes
    if start + offset + nbytes > source.size:
        raise source.fail(
            f"the tensor {quoted(name)} of shape {list(shape)} needs {nbytes} bytes at {start + offset}, and the file "
            f"has {source.size}"
        )
    return TensorEntry(types(kind).name, shape, start + offset, nbytes)
