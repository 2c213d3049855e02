"""Checkpoint directories: config.json and safetensors on disk, strictly validated, read as float32.

A checkpoint is untrusted input. JSON is parsed without duplicate keys, NaN or bottomless nesting; shard names
are bare file names; every tensor's size is checked against its file before anything is allocated; pickles are
never opened. What the numbers mean for a model is the business of its family.

The format: https://github.com/huggingface/safetensors#format (8 bytes of header length, a JSON header, data).
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import reprlib
import shlex
import stat
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from .errors import CheckpointError, UnsupportedModelError
from .model_names import GGUF, is_gguf
from .tokenizer import configured, refuse_sentencepiece, tokenizer_json, wordpiece_json

CONFIG = "config.json"
GENERATION_CONFIG = "generation_config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
TOKENIZER = "tokenizer.json"
VOCAB, MERGES = "vocab.json", "merges.txt"
# What a tokenizer.json is made from where there is none; the last three may be absent.
_TOKENIZER_CONFIG, _SPECIAL = "tokenizer_config.json", "special_tokens_map.json"
TOKENIZER_PARTS = (VOCAB, MERGES, _TOKENIZER_CONFIG, _SPECIAL, "added_tokens.json")
CHAT_TEMPLATE = "chat_template.jinja"  # which wins over the field of tokenizer_config.json
WORDPIECE = "vocab.txt"  # which takes the place of the first two
SENTENCEPIECE = ("spiece.model", "sentencepiece.bpe.model", "spm.model")  # of which none is made

# Of sentence-transformers: which modules a model has, how it is used, and how its transformer reads texts.
MODULES = "modules.json"
SENTENCE_CONFIG = "config_sentence_transformers.json"
TRANSFORMER_CONFIGS = tuple(
    f"sentence_{kind}_config.json"
    for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)

# Of peft: an adapter, in a directory of its own.
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"

# All files that a checkpoint may consist of, beside the shards that an index names and the directories of modules.
NAMES = (
    *(CONFIG, GENERATION_CONFIG, WEIGHTS, INDEX, TOKENIZER, *TOKENIZER_PARTS, WORDPIECE, *SENTENCEPIECE),
    *(CHAT_TEMPLATE, MODULES, SENTENCE_CONFIG, *TRANSFORMER_CONFIGS),
)

BYTES_PER_VALUE = {"F32": 4, "F16": 2, "BF16": 2}

# A GPT-2 tokenizer.json has 1.4 MB; nothing that Kaoken reads comes near these.
_MAX_JSON_BYTES = 64 << 20
_MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors library
_MAX_INTEGER_DIGITS = 100

_READ_VALUES = 1 << 20  # values converted at a time, so that reading needs little beyond its result
_HASH_BYTES = 1 << 20

_SHARD_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}\.safetensors")
_MODULE_PATH = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")
_MAX_MODULES = 100
_PICKLE = re.compile(r".*\.(bin|pt|pth|pkl|ckpt)")

_AGAIN = "download the checkpoint again, or save it anew with save_pretrained"


class _ShortRepr(reprlib.Repr):
    """A repr that stays short and shallow whatever it is given; control characters come out escaped."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = 2
        self.maxstring = self.maxother = 120
        self.maxlong = 40


_short_repr = _ShortRepr()


def quoted(value: object) -> str:
    """A value from a checkpoint as it may stand in a message: short, on one line, nothing unprintable."""
    text = _short_repr.repr(value[:8].tolist() if isinstance(value, np.ndarray) else value)
    return text if len(text) <= 200 else f"{text[:197]}..."


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies. `nbytes` equals the product of `shape` times the bytes of `dtype`, where that is known."""

    dtype: str  # one of BYTES_PER_VALUE, or one that Kaoken cannot read
    shape: tuple[int, ...]
    file: Path
    offset: int  # bytes from the start of the file to the tensor
    nbytes: int


@dataclass(frozen=True, eq=False)
class Module:
    """One module of a sentence-transformers checkpoint, as its files state it."""

    kind: str  # its class, "sentence_transformers.models.Pooling"
    path: str  # its directory's name; empty for the checkpoint's own
    config: dict[str, Any]  # its config.json; of the first module, which reads texts, its sentence_bert_config.json
    tensors: dict[str, TensorInfo]  # "2_Dense.linear.weight"; none of the first module
    files: tuple[Path, ...]  # those read, the one with weights last


@dataclass(frozen=True, eq=False)
class Sentence:
    """What sentence-transformers adds to a checkpoint; `codegen/families/sentence.py` says what it means."""

    file: Path  # modules.json
    modules: tuple[Module, ...]  # at least one
    config: dict[str, Any]  # config_sentence_transformers.json, {} where it is absent

    @property
    def files(self) -> list[Path]:
        """All that were read."""
        own = self.file.with_name(SENTENCE_CONFIG)
        return [self.file, *([own] if own.exists() else []), *(file for each in self.modules for file in each.files)]

    @property
    def weight_files(self) -> list[Path]:
        return [each.files[-1] for each in self.modules if each.tensors]


@dataclass(frozen=True, eq=False)
class Adapter:
    """A LoRA adapter, as its files state it; `codegen/families/adapter.py` says what it means."""

    directory: Path
    config: dict[str, Any]
    tensors: dict[str, TensorInfo]

    @property
    def weights(self) -> Path:
        return self.directory / ADAPTER_WEIGHTS

    @property
    def files(self) -> tuple[Path, ...]:
        """All that were read, the one with weights last."""
        return self.directory / ADAPTER_CONFIG, self.weights


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A checkpoint directory whose files have been found sound; weights are read only when asked for."""

    directory: Path  # of config.json: the one that was opened, or the one of its first module
    config: dict[str, Any]
    generation_config: dict[str, Any] | None  # None where the file is absent
    tensors: dict[str, TensorInfo]  # as the files name them
    files: tuple[Path, ...]  # every file that a bake depends on
    weight_files: tuple[Path, ...]  # the safetensors alone, in the order of the index
    tokenizer: bytes | None  # tokenizer.json as transformers would use it, or made of the older files
    # tokenizer_config.json over special_tokens_map.json, with the text of chat_template.jinja
    tokenizer_config: dict[str, Any] = field(default_factory=dict)
    sentence: Sentence | None = None
    adapter: Adapter | None = None  # to be merged into the weights

    @property
    def place(self) -> Path:
        """The directory, or the one file, as messages name it."""
        return self.directory

    @property
    def config_file(self) -> Path:
        """Where the config stands."""
        return self.directory / CONFIG

    def named(self, expected: Callable[[], Iterable[str]], prefix: str) -> Checkpoint:
        """With tensors by the names that a family has for them, which `expected` gives without its `prefix`.

        Only the file of another program has others.
        """
        return self

    def read(self, name: str, rows: slice | None = None) -> NDArray[np.float32]:
        """A tensor, or a range of its rows (axis 0, step 1), as C-contiguous float32.

        Only the bytes of those rows are read. Raises CheckpointError for an unknown name, for values that are
        NaN or infinite, and where the file has changed since it was opened.
        """
        info = self.tensors.get(name)
        if info is None:
            raise CheckpointError(f"{self.place} has no tensor {quoted(name)}: {_AGAIN}")
        self.check_type(name)
        first, shape = row_range(info.shape, rows)
        row_bytes = math.prod(info.shape[1:]) * BYTES_PER_VALUE[info.dtype]
        values = np.empty(shape, np.float32)
        bad = _fill(values.reshape(-1), info, info.offset + first * row_bytes)
        if bad:
            raise not_finite(info.file, name, bad, values.size)
        return values

    def check_type(self, name: str) -> None:
        """Raises CheckpointError for a tensor that `read` cannot convert."""
        info = self.tensors[name]
        if info.dtype not in BYTES_PER_VALUE:
            raise CheckpointError(
                f"{info.file}: {quoted(name)} is stored as {quoted(info.dtype)}; expected one of "
                f"{', '.join(BYTES_PER_VALUE)}: save the model in float32, float16 or bfloat16"
            )

    def sha256(self) -> str:
        """SHA-256 of the weights in hexadecimal, as the hub shows it for a file.

        Of several files it is the SHA-256 of their binary digests: shards in the order of the index, then modules, then
        an adapter.
        """
        digests = [_sha256(file) for file in self.weight_files]
        if len(digests) == 1:
            return digests[0].hex()
        return hashlib.sha256(b"".join(digests)).hexdigest()


def open_checkpoint(path: Path, adapter: Path | None = None) -> Checkpoint:
    """Reads the configs and the safetensors headers of a directory, or the header of a GGUF file, and of an adapter's.

    As in transformers, `model.safetensors` wins over an index of shards. Raises CheckpointError, of a GGUF also
    UnsupportedModelError.
    """
    root = path.absolute()
    if is_gguf(root) and not os.path.isdir(root):
        from .gguf_checkpoint import open_gguf

        return _with_adapter(open_gguf(root), adapter)
    if not os.path.isdir(root):
        raise CheckpointError(f"{root} is not a directory: pass one with {CONFIG} and {WEIGHTS}, or a {GGUF} file")
    if os.path.lexists(root / ADAPTER_CONFIG) and not os.path.lexists(root / CONFIG):
        raise CheckpointError(
            f"{root} is an adapter, without the model that it changes: pass the model's checkpoint, and this directory "
            "as the adapter (--adapter)"
        )
    sentence = _read_sentence(root)
    directory = root / sentence.modules[0].path if sentence else root
    config = _read_json(directory / CONFIG)[1]
    generation_json, generation_config = _read_optional_json(directory / GENERATION_CONFIG)
    tokenizer, parts = read_tokenizer(directory, config.get("model_type"))
    special, tokenizer_config = (_read_optional_json(directory / name)[1] for name in (_SPECIAL, _TOKENIZER_CONFIG))
    template = _read_chat_template(directory)
    if tokenizer is not None:
        lower = sentence is not None and sentence.modules[0].config.get("do_lower_case") is True
        tokenizer = configured(tokenizer, tokenizer_config, lower)
    index, weight_files = _find_weights(directory)
    tensors = _read_headers(weight_files, index)
    others = dict.fromkeys((CONFIG, GENERATION_CONFIG, *parts, _TOKENIZER_CONFIG, _SPECIAL, CHAT_TEMPLATE))
    others |= {INDEX: None} if index else {}
    files = [*(directory / name for name in others if (directory / name).exists()), *weight_files]
    if sentence:
        files += sentence.files
        weight_files += tuple(sentence.weight_files)
    found = Checkpoint(
        directory,
        config,
        None if generation_json is None else generation_config,
        tensors,
        tuple(files),
        weight_files,
        tokenizer,
        special | tokenizer_config | template,
        sentence,
    )
    return _with_adapter(found, adapter)


def _with_adapter(checkpoint: Checkpoint, directory: Path | None) -> Checkpoint:
    if directory is None:
        return checkpoint
    adapter = open_adapter(directory)
    files, weight_files = (*checkpoint.files, *adapter.files), (*checkpoint.weight_files, adapter.weights)
    return replace(checkpoint, files=files, weight_files=weight_files, adapter=adapter)


def open_adapter(directory: Path) -> Adapter:
    """Reads the config and the safetensors header of an adapter; raises CheckpointError."""
    root = directory.absolute()
    for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
        if not os.path.lexists(root / name):
            raise CheckpointError(
                f"{root} has no {name}: expected the directory of a LoRA adapter that peft saved with save_pretrained, "
                "with safetensors"
            )
    return Adapter(root, _read_json(root / ADAPTER_CONFIG)[1], _read_headers((root / ADAPTER_WEIGHTS,), {}))


def watched_names(checkpoint: Checkpoint, root: Path) -> list[str]:
    """Of all files whose change, appearance or absence makes another library, from the directory that was opened.

    Of a GGUF it is the file alone, from the directory that it is in. Those of an adapter are absolute.
    """
    elsewhere = () if checkpoint.adapter is None else checkpoint.adapter.files
    if not os.path.isdir(root):
        return [root.name, *map(str, elsewhere)]
    names = dict.fromkeys(NAMES)
    if checkpoint.sentence:
        first, *behind = checkpoint.sentence.modules
        names |= dict.fromkeys(os.path.join(first.path, name) for name in NAMES)
        names |= dict.fromkeys(os.path.join(each.path, name) for each in behind for name in (CONFIG, WEIGHTS))
    inside = (file for file in checkpoint.files if file not in elsewhere)
    names |= dict.fromkeys(os.path.relpath(file, root.absolute()) for file in inside)
    return [*names, *map(str, elsewhere)]


def conversion_line(model: str, directory: str) -> str:
    """The shell line that turns pickled weights into safetensors in `directory`, tokenizer included."""
    code = (
        f"import transformers as t; m, d = {model!r}, {directory!r}; c = t.AutoConfig.from_pretrained(m); "
        "getattr(t, (c.architectures or ['AutoModel'])[0]).from_pretrained(m).save_pretrained(d); "
        "t.AutoTokenizer.from_pretrained(m).save_pretrained(d)"
    )
    return f"python -c {shlex.quote(code)}"


# Files


def file_size(path: Path) -> int:
    """The size in bytes of a regular file, so that no pipe or device is ever opened."""
    try:
        status = path.stat()
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} does not exist: a checkpoint needs it; {_AGAIN}") from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror}): {_AGAIN}") from error
    if not stat.S_ISREG(status.st_mode):
        raise CheckpointError(f"{path} is not a regular file: {_AGAIN}")
    return status.st_size


def _read_bytes(path: Path, count: int, offset: int = 0) -> bytes:
    """Exactly `count` bytes from `offset`."""
    try:
        with path.open("rb") as file:
            file.seek(offset)
            data = file.read(count)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror}): check its permissions") from error
    if len(data) != count:
        raise truncated(path)
    return data


def not_finite(file: Path, name: str, bad: int, count: int) -> CheckpointError:
    return CheckpointError(
        f"{file}: {bad} of the {count} values read from {quoted(name)} are NaN or infinite; expected finite weights: "
        "save the checkpoint again from a sound model"
    )


def truncated(path: Path) -> CheckpointError:
    return CheckpointError(f"{path} ended early; it was truncated or is being changed: {_AGAIN}")


def _sha256(path: Path) -> bytes:
    state = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(_HASH_BYTES):
                state.update(block)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror}): check its permissions") from error
    return state.digest()


# JSON


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise ValueError(f"the key {quoted(key)} stands there twice")
        result[key] = value
    return result


def _parse_integer(text: str) -> int:
    if len(text) > _MAX_INTEGER_DIGITS:
        raise ValueError(f"a number of {len(text)} digits")
    return int(text)


def _parse_float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {quoted(text)} is not finite")
    return value


def parse_object(data: bytes, path: Path) -> dict[str, Any]:
    """The JSON object in UTF-8 `data`, which came from `path`; raises CheckpointError.

    Stricter than the json module: no duplicate keys, no NaN or infinity, no number of absurd length.
    """
    value = _parse(data, path)
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds {quoted(value)}; expected a JSON object: {_AGAIN}")
    return value


def _parse(data: bytes, path: Path) -> Any:
    try:
        return json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_int=_parse_integer,
            parse_float=_parse_float,
            parse_constant=_parse_float,
        )
    except RecursionError:
        raise CheckpointError(f"{path} is nested too deeply for any checkpoint: {_AGAIN}") from None
    except ValueError as error:  # also json.JSONDecodeError and UnicodeDecodeError
        raise CheckpointError(f"{path} is not valid JSON ({error}): {_AGAIN}") from error


def read_small(path: Path) -> bytes:
    """The whole of a file that holds no weights."""
    size = file_size(path)
    if size > _MAX_JSON_BYTES:
        raise CheckpointError(f"{path} has {size} bytes; expected at most {_MAX_JSON_BYTES}: {_AGAIN}")
    return _read_bytes(path, size)


def _read_json(path: Path) -> tuple[bytes, dict[str, Any]]:
    data = read_small(path)
    return data, parse_object(data, path)


def _read_optional_json(path: Path) -> tuple[bytes | None, dict[str, Any]]:
    return _read_json(path) if os.path.lexists(path) else (None, {})


def _read_chat_template(directory: Path) -> dict[str, str]:
    """chat_template.jinja as the field of tokenizer_config.json that it stands for; {} where it is absent."""
    path = directory / CHAT_TEMPLATE
    if not os.path.lexists(path):
        return {}
    try:
        return {"chat_template": read_small(path).decode("utf-8")}
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path} is not UTF-8 (byte {error.start}): {_AGAIN}") from error


def read_tokenizer(directory: Path, model_type: object = None) -> tuple[bytes | None, tuple[str, ...]]:
    """tokenizer.json, or one made of the older files, and the names of the files that may be there.

    `model_type` is config.json's, which decides where no file names the class of a tokenizer. Raises CheckpointError
    for older files that do not fit each other, and for a SentencePiece model alone.
    """
    present = {name for name in (TOKENIZER, VOCAB, MERGES, WORDPIECE) if os.path.lexists(directory / name)}
    parts = TOKENIZER_PARTS[2:]
    if TOKENIZER in present:
        return _read_json(directory / TOKENIZER)[0], (TOKENIZER,)
    config, special, added = (_read_optional_json(directory / name)[1] for name in parts)
    try:
        if {VOCAB, MERGES} <= present:
            vocab, merges = _read_json(directory / VOCAB)[1], read_small(directory / MERGES)
            return tokenizer_json(vocab, merges, config, special, added, model_type), TOKENIZER_PARTS
        if WORDPIECE in present:
            words = read_small(directory / WORDPIECE)
            return wordpiece_json(words, config, special, added, model_type), (WORDPIECE, *parts)
    except (CheckpointError, UnsupportedModelError) as error:
        raise type(error)(f"{directory}: {error}") from error
    for name in SENTENCEPIECE:
        if os.path.lexists(directory / name):
            raise refuse_sentencepiece(name, str(directory))
    return None, ()


# Modules of sentence-transformers


def read_modules(file: Path) -> list[tuple[str, str]]:
    """Class and directory of each module of modules.json, the latter a bare name beside it or empty."""
    entries = _parse(read_small(file), file)
    if not isinstance(entries, list) or not 1 <= len(entries) <= _MAX_MODULES:
        raise CheckpointError(f"{file} holds {quoted(entries)}; expected a list of modules: {_AGAIN}")
    modules = []
    for entry in entries:
        kind, path = (entry.get(name) if isinstance(entry, dict) else None for name in ("type", "path"))
        if not isinstance(kind, str) or not isinstance(path, str):
            raise CheckpointError(f"{file} has the entry {quoted(entry)}; expected a type and a path: {_AGAIN}")
        if path and (not _MODULE_PATH.fullmatch(path) or ".." in path):
            raise CheckpointError(
                f"{file} places {quoted(kind)} in {quoted(path)}; expected the bare name of a directory beside it "
                "(letters, digits, '.', '_', '-'): rename the directory"
            )
        modules.append((kind, path))
    return modules


def _read_sentence(root: Path) -> Sentence | None:
    file = root / MODULES
    if not os.path.lexists(file):
        return None
    modules = read_modules(file)
    for _, path in modules:
        _check_inside(root, path)
    read = (_read_first(root, *modules[0]), *(_read_module(root, *each) for each in modules[1:]))
    return Sentence(file, read, _read_optional_json(root / SENTENCE_CONFIG)[1])


def _read_first(root: Path, kind: str, path: str) -> Module:
    """The transformer, whose weights are the checkpoint's."""
    files = tuple(root / path / name for name in TRANSFORMER_CONFIGS if os.path.lexists(root / path / name))[:1]
    return Module(kind, path, _read_json(files[0])[1] if files else {}, {}, files)


def _read_module(root: Path, kind: str, path: str) -> Module:
    """Normalize may have no files, nor a directory."""
    config, weights = (root / path / name for name in (CONFIG, WEIGHTS))
    files = tuple(each for each in (config, weights) if path and os.path.lexists(each))
    tensors = _read_headers((weights,), {}) if weights in files else {}
    named = {f"{path}.{name}": info for name, info in tensors.items()}
    return Module(kind, path, _read_json(config)[1] if config in files else {}, named, files)


def _check_inside(root: Path, path: str) -> None:
    """A module's directory may be no link to another place; its files may be, as in the hub's cache."""
    if not (root / path).resolve().is_relative_to(root.resolve()):
        raise CheckpointError(f"{root / path} leads out of the checkpoint: put the module's own directory there")


# Weights


def _find_weights(directory: Path) -> tuple[dict[str, str], tuple[Path, ...]]:
    """The index's map from tensor to shard ({} for a single file), and the weight files in order."""
    if os.path.lexists(directory / WEIGHTS):
        return {}, (directory / WEIGHTS,)
    if os.path.lexists(directory / INDEX):
        index = _read_index(directory / INDEX)
        return index, tuple(directory / name for name in dict.fromkeys(index.values()))
    raise CheckpointError(_explain_no_weights(directory))


def _explain_no_weights(directory: Path) -> str:
    pickles = sorted(path.name for path in directory.glob("*") if _PICKLE.fullmatch(path.name))
    if not pickles:
        return f"{directory} has neither {WEIGHTS} nor {INDEX}: pass the directory of a whole checkpoint"
    return (
        f"{directory} has only pickled weights ({quoted(pickles[0])}), which can run code when they are "
        "opened, and Kaoken reads safetensors alone: if you trust them, convert them with "
        f"{conversion_line(str(directory), f'{directory}-safetensors')}"
    )


def _read_index(path: Path) -> dict[str, str]:
    weight_map = _read_json(path)[1].get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{path} has no weight_map from tensors to files: {_AGAIN}")
    for tensor, shard in weight_map.items():
        if not isinstance(shard, str) or not _SHARD_NAME.fullmatch(shard) or ".." in shard:
            raise CheckpointError(
                f"{path} places {quoted(tensor)} in {quoted(shard)}; expected the bare name of a "
                ".safetensors file beside it (letters, digits, '.', '_', '-'): rename the shard"
            )
    return weight_map


def _read_headers(files: tuple[Path, ...], index: dict[str, str]) -> dict[str, TensorInfo]:
    """The tensors of all files. Each has to be there once, in the file that the index names."""
    tensors: dict[str, TensorInfo] = {}
    stored: set[tuple[str, str]] = set()
    for file in files:
        header = _read_header(file)
        stored.update((name, file.name) for name in header.entries)
        for name in header.entries:
            if name in tensors:
                raise CheckpointError(
                    f"{file} has {quoted(name)}, but {tensors[name].file.name} already has it: {_AGAIN}"
                )
            tensors[name] = _tensor_info(header, name)
    for tensor, shard in index.items():
        if (tensor, shard) not in stored:
            raise CheckpointError(
                f"{files[0].parent / shard} lacks {quoted(tensor)}, which {INDEX} places there: {_AGAIN}"
            )
    return tensors


@dataclass(frozen=True)
class _Header:
    """The JSON header of one safetensors file."""

    file: Path
    entries: dict[str, Any]  # by stored name
    start: int  # byte where the data begin, from which offsets count
    size: int  # bytes of the file


def _read_header(path: Path) -> _Header:
    """The header of a file that the safetensors library has found sound."""
    size = file_size(path)
    try:
        with safe_open(str(path), framework="np"):
            pass
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} ({size} bytes) is not a sound safetensors file ({quoted(str(error))}): {_AGAIN}"
        ) from error
    length = int.from_bytes(_read_bytes(path, 8), "little")
    if length > min(size - 8, _MAX_HEADER_BYTES):
        raise CheckpointError(f"{path} claims a header of {length} bytes and has {size} in all: {_AGAIN}")
    entries = parse_object(_read_bytes(path, length, 8), path)
    entries.pop("__metadata__", None)
    return _Header(path, entries, 8 + length, size)


def _tensor_info(header: _Header, name: str) -> TensorInfo:
    """One entry of a header, its size checked against its shape and its file."""
    entry = header.entries[name]
    shape, (begin, end) = tuple(entry["shape"]), entry["data_offsets"]
    width = BYTES_PER_VALUE.get(entry["dtype"])
    nbytes = end - begin if width is None else math.prod(shape) * width
    if end - begin != nbytes or not 0 <= begin <= end <= header.size - header.start:
        raise CheckpointError(
            f"{header.file}: {quoted(name)} of shape {list(shape)} needs {nbytes} bytes, but its offsets are "
            f"{begin} and {end} of {header.size - header.start}: {_AGAIN}"
        )
    return TensorInfo(entry["dtype"], shape, header.file, header.start + begin, nbytes)


# Values


def row_range(shape: tuple[int, ...], rows: slice | None) -> tuple[int, tuple[int, ...]]:
    """The first row of a slice, and the shape [rows, ...] that it selects."""
    if rows is None:
        return 0, shape
    first, last, step = rows.indices(shape[0])
    if step != 1:
        raise ValueError(f"rows are read in order; expected a slice of step 1, got {rows}")
    return first, (max(0, last - first), *shape[1:])


def _to_float32(data: bytes, dtype: str) -> NDArray[np.float32]:
    """Stored little-endian values as float32, exactly."""
    if dtype == "BF16":  # the upper half of a float32
        return (np.frombuffer(data, "<u2").astype(np.uint32) << np.uint32(16)).view(np.float32)
    return np.frombuffer(data, {"F32": "<f4", "F16": "<f2"}[dtype]).astype(np.float32)


def _fill(values: NDArray[np.float32], info: TensorInfo, offset: int) -> int:
    """Reads flat `values` from `offset` of the tensor's file; returns how many are NaN or infinite."""
    width = BYTES_PER_VALUE[info.dtype]
    finite = 0
    for start in range(0, values.size, _READ_VALUES):
        part = values[start : start + _READ_VALUES]
        part[:] = _to_float32(_read_bytes(info.file, part.size * width, offset + start * width), info.dtype)
        finite += int(np.count_nonzero(np.isfinite(part)))
    return values.size - finite
