"""Model libraries: where the default one lies, how one is opened, and what it says of itself."""

from __future__ import annotations

import json
import os
import re
import struct
from dataclasses import MISSING, dataclass, field, fields
from itertools import count
from pathlib import Path
from typing import Any

from kaoken import _core
from kaoken.arguments import OPTION_NAMES, file_path
from kaoken.codegen.seal import is_intact
from kaoken.errors import LibraryError

# The ELF64 header's table of sections ends the file: its offset, the size of an entry, and their number.
_ELF64_LITTLE_ENDIAN = b"\x7fELF\x02\x01"
_ELF64_HEADER = struct.Struct("<40xQ10xHH2x")
_ELF_MACHINES = {62: "x86_64", 183: "aarch64"}

_LIKE_A_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?", re.ASCII)
_HOW_TO_MAKE_ONE = "make one with `kaoken bake CHECKPOINT -o FILE`"


@dataclass(frozen=True)
class BlockConfig:
    """One transformer block. Blocks of one model may differ (pruned models).

    `n_head` heads of queries share `n_kv_head` of keys and values.
    """

    n_head: int
    n_kv_head: int
    head_dim: int
    n_inner: int


@dataclass(frozen=True)
class ModelConfig:
    """What was baked, of whichever family; names are those of transformers' GPT2Config, heads and MLP widths per block.

    `kind` is "decoder", "encoder" or "encoder-decoder", whose decoder is the one described here; `family` is the
    model_type of transformers. `layer_norm_epsilon` is the last norm's. `type_vocab_size` is 0 where there are no token
    types, `source_positions` is of the texts that an encoder-decoder reads, with an encoder of `source_layers`.

    `task` is what the outputs are for, as the hub calls it. Without `has_head` they are hidden states. `pools` tells
    that an encoder gives one output for a text, and not one for a position; `output_width` is how wide it is. `labels`
    name the outputs of a classifier; `function` ("softmax", "sigmoid" or "none") makes probabilities of them,
    `score_function` the score of a reranker.
    """

    vocab_size: int
    n_positions: int
    n_embd: int
    n_layer: int
    blocks: tuple[BlockConfig, ...]
    activation_function: str
    layer_norm_epsilon: float
    tie_word_embeddings: bool
    eos_token_ids: tuple[int, ...]
    bos_token_id: int | None
    pad_token_id: int | None
    kind: str = "decoder"
    family: str = "gpt2"
    decoder_start_token_id: int | None = None
    type_vocab_size: int = 0
    source_positions: int = 0
    source_layers: int = 0
    task: str = "text-generation"
    labels: tuple[str, ...] = ()
    function: str = ""
    score_function: str = ""
    has_head: bool = True
    pools: bool = False
    output_width: int = 0


@dataclass(frozen=True)
class MatrixInfo:
    """One matrix as it is stored: the checkpoint's names of what it is made of, and its bytes with scales and sums."""

    name: str
    dtype: str
    outputs: int
    inputs: int
    nbytes: int


@dataclass(frozen=True)
class ModelInfo:
    """Where a baked model came from and how it was built.

    `isa` is the instruction set in use, `isa_reason` the sentence that says why no better one is, `isas` those inside
    the library, best last; `revision` is the hub's commit, None for a local directory; `tensor_dtypes` are the types
    of matrices that differ from `dtype`, by pattern; `statistics` is the JSON that the build left beside the library
    (processes, seconds, peak bytes), None where there is none. `generation_defaults` are the options of
    `generate` that the checkpoint's generation_config.json sets, `ignored_generation_options` those that Kaoken lacks.
    `chat_template` is the checkpoint's, a Jinja template, and `special_tokens` are the texts of the tokens that it may
    name; None and {} where it has none.
    `calibration` says of which recipe the model was baked: its sha256, the method, and the digests of the weights and
    of the token ids; None without one.
    `matrices` are those of all blocks and of the head, first the `decoding_matrices` that a token's decoding reads.
    """

    name: str
    source: str
    revision: str | None
    weights_sha256: str
    dtype: str
    cache_dtype: str
    kernels: str
    tensor_dtypes: dict[str, str]
    isa: str
    isa_reason: str
    isas: tuple[str, ...]
    kaoken_version: str
    settings: dict[str, Any]
    statistics: dict[str, Any] | None
    generation_defaults: dict[str, Any] = field(default_factory=dict)
    ignored_generation_options: tuple[str, ...] = ()
    matrices: tuple[MatrixInfo, ...] = ()
    chat_template: str | None = None
    special_tokens: dict[str, str] = field(default_factory=dict)
    calibration: dict[str, Any] | None = None
    decoding_matrices: int | None = None  # how many of the first of them decoding a token reads; None: all

    @property
    def bytes_per_token(self) -> int:
        """That decoding a token reads: every matrix of a decoder but a token table that is not the head."""
        return sum(matrix.nbytes for matrix in self.matrices[: self.decoding_matrices])


def default_library() -> Path:
    """The library of the model that was baked into this wheel. Raises LibraryError if there is none."""
    path = Path(_core.__file__).parent / "models" / "default.so"
    if not path.is_file():
        raise LibraryError(
            f"this Kaoken has no default model ({path} is missing): pass the path of a baked library, or "
            "reinstall Kaoken with the setting model=CHECKPOINT"
        )
    return path


def open_library(path: Path) -> _core.Library:
    """Loads a model library, which runs its code: open only files that you trust.

    Raises LibraryError if the file is missing, truncated, not a model library, or of an incompatible Kaoken.
    """
    status = check_file(path, _how_to_make(path))
    _check_machine(path)
    identity = (status.st_dev, status.st_ino)
    stamp = (status.st_size, status.st_mtime_ns)
    loaded = _loaded.get(identity)
    if loaded is None:
        loaded = _loaded.setdefault(identity, (stamp, _core.Library(_fresh_name(path))))
    if loaded[0] != stamp:
        raise LibraryError(
            f"{path} was overwritten while this process has it loaded: start a new process, and replace a "
            "library by renaming a new file over it, as `kaoken bake -o` does"
        )
    return loaded[1]


# A library is never unloaded, so a file seen before needs no second look.
_loaded: dict[tuple[int, int], tuple[tuple[int, int], _core.Library]] = {}
_names: dict[str, count[int]] = {}


def _fresh_name(path: Path) -> str:
    """A spelling of the path that dlopen has not seen.

    glibc compares spellings before it looks at the file, and would answer with the old library where a new
    one has been renamed over it.
    """
    directory, name = os.path.split(os.path.abspath(path))
    repeat = next(_names.setdefault(os.path.join(directory, name), count()))
    return os.path.join(directory, "./" * repeat + name)


def check_file(path: Path, how_to_make: str = _HOW_TO_MAKE_ONE) -> os.stat_result:
    """Refuses what is no whole file before dlopen sees it; raises LibraryError."""
    try:
        if path.exists() and not path.is_file():
            kind = "a directory" if path.is_dir() else "no regular file"
            raise LibraryError(f"{path} is {kind}, not a baked model library: {_HOW_TO_MAKE_ONE}")
        with path.open("rb") as file:
            header = file.read(_ELF64_HEADER.size)
            status = os.fstat(file.fileno())
    except FileNotFoundError:
        raise LibraryError(f"{path} does not exist, so no model can be loaded from it: {how_to_make}") from None
    except ValueError as error:  # a NUL inside
        raise LibraryError(f"{str(path)!r} cannot be read ({error}): check its spelling") from error
    except OSError as error:
        raise LibraryError(f"{path} cannot be read ({error}): check its permissions and its path") from error
    _check_whole(path, header, status.st_size)
    return status


def _how_to_make(path: Path) -> str:
    """Where the path looks like a hub id, how it is baked first."""
    if not _LIKE_A_HUB_ID.fullmatch(str(path)) or path.suffix == ".so":
        return _HOW_TO_MAKE_ONE
    return f"if that is a hub id, bake it first, as in kaoken.load(kaoken.bake({str(path)!r})) or `kaoken bake {path}`"


def _check_whole(path: Path, header: bytes, size: int) -> None:
    """Refuses a truncated ELF file, on which dlopen itself would die with SIGBUS."""
    if len(header) < _ELF64_HEADER.size or not header.startswith(_ELF64_LITTLE_ENDIAN):
        return
    offset, entry_size, entries = _ELF64_HEADER.unpack(header)
    needed = offset + entry_size * entries
    if size < needed:
        raise LibraryError(f"{path} is truncated ({size} of at least {needed} bytes): bake or copy it again")


def verify(path: str | os.PathLike[str] | None = None) -> None:
    """Checks every byte of a library against the digest that its build left in it; None is the one in this wheel.

    This finds damage, not malice. It reads the whole file, which loading does not.
    Raises LibraryError if the file is damaged, is no library, or has no digest.
    """
    library = default_library() if path is None else file_path("path", path)
    check_file(library)
    try:
        intact = is_intact(library)
    except OSError as error:
        raise LibraryError(f"{library} cannot be read ({error}): bake or copy it again") from error
    if intact is None:
        raise LibraryError(
            f"{library} has no digest recorded, so it cannot be verified: it is no model library, is cut short, or "
            "was stripped after its build; bake or copy it again"
        )
    if not intact:
        raise LibraryError(
            f"{library} does not fit the digest recorded in it, so it was damaged or changed after its build: "
            "bake or copy it again"
        )
    if not _start(library).startswith(_ELF64_LITTLE_ENDIAN):
        raise LibraryError(f"{library} fits the digest recorded in it, but is no model library: {_HOW_TO_MAKE_ONE}")


def _start(path: Path) -> bytes:
    """Of the ELF header, up to the machine."""
    with path.open("rb") as file:
        return file.read(20)


def _check_machine(path: Path) -> None:
    """Refuses a library of another architecture, of which dlopen says that the file does not exist."""
    header = _start(path)
    machine, here = _ELF_MACHINES.get(int.from_bytes(header[18:], "little")), os.uname().machine
    if header.startswith(_ELF64_LITTLE_ENDIAN) and machine not in (None, here):
        raise LibraryError(f"{path} is for {machine} and this machine is {here}: bake the checkpoint again without CXX")


def task_of(library: _core.Library) -> str:
    """What its outputs are for, as the hub calls it; "" where it does not say so. `describe` complains of the rest."""
    try:
        return str(json.loads(library.description)["config"]["task"])
    except (ValueError, TypeError, LookupError):
        return ""


def describe(library: _core.Library, path: Path, session: _core.Session) -> tuple[ModelConfig, ModelInfo]:
    """The model's configuration and origin, from the JSON inside the library and the one beside it."""
    try:
        description = json.loads(library.description)
        return _config(description["config"]), _info(description, library, path, session)
    except (ValueError, TypeError, LookupError) as error:
        raise LibraryError(
            f"{path} describes itself wrongly ({type(error).__name__}: {error}): bake the checkpoint again"
        ) from error


def _config(description: dict[str, Any]) -> ModelConfig:
    values = _known(ModelConfig, description)
    blocks = ({"n_kv_head": block["n_head"], **block} for block in values["blocks"])  # which older libraries lack
    values["blocks"] = tuple(BlockConfig(**_known(BlockConfig, block)) for block in blocks)
    values |= {name: tuple(values[name]) for name in ("eos_token_ids", "labels")}
    return ModelConfig(**values)


def _known(kind: type[ModelConfig | BlockConfig | MatrixInfo], description: dict[str, Any]) -> dict[str, Any]:
    """The fields of `kind`: a newer Kaoken of the same ABI may describe more."""
    named = {field.name: description.get(field.name, field.default) for field in fields(kind)}
    missing = [name for name, value in named.items() if value is MISSING]
    if missing:
        raise KeyError(missing[0])
    return named


def _info(description: dict[str, Any], library: _core.Library, path: Path, session: _core.Session) -> ModelInfo:
    """A newer Kaoken of the same ABI may have more options: this one does not follow them."""
    defaults = description.get("generation_defaults", {})
    unknown = sorted(defaults.keys() - set(OPTION_NAMES))
    return ModelInfo(
        name=description["name"],
        source=description["source"],
        revision=description["revision"] or None,
        weights_sha256=description["weights_sha256"],
        dtype=description["dtype"],
        cache_dtype=description["cache_dtype"],
        kernels=description["kernels"],
        tensor_dtypes=description["tensor_dtypes"],
        isa=session.isa,
        isa_reason=session.isa_reason,
        isas=tuple(library.isas.split(",")),
        kaoken_version=library.kaoken_version,
        settings=description["settings"],
        statistics=_statistics(path.with_name(path.name + ".json")),
        generation_defaults={name: value for name, value in defaults.items() if name not in unknown},
        ignored_generation_options=(*description.get("ignored_generation_options", ()), *unknown),
        decoding_matrices=description.get("decoding_matrices"),
        calibration=description.get("calibration"),
        chat_template=description.get("chat", {}).get("template"),
        special_tokens=description.get("chat", {}).get("special_tokens", {}),
        matrices=tuple(MatrixInfo(**_known(MatrixInfo, matrix)) for matrix in description.get("matrices", ())),
    )


def _statistics(path: Path) -> dict[str, Any] | None:
    """The JSON beside a library: of use to people, so a missing or damaged one is no error."""
    try:
        statistics = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return statistics if isinstance(statistics, dict) else None
