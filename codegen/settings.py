"""The settings of a bake, a row each: what the build backend, `kaoken bake`, the plan and README's table are made from.

Their names stand again in KAOKEN_SETTINGS of cmake/Kaoken.cmake and in the signature of `kaoken.bake`;
tests/test_settings.py holds both, and README, to the rows.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass

from .dtypes import make_types
from .errors import InputError, KaokenError
from .memory import DEFAULT_CAP, PYTHON_MODULE, MiB, make_budget
from .model_names import GGUF, is_checkpoint, is_path, split_file

KERNELS = ("packed", "exploded")

# Each check takes a setting's text, as the build gets it, and returns it for CMake. It raises a KaokenError, or a
# ValueError whose text goes on behind the value.


def _model(value: str) -> str:
    """A directory or a file as its absolute path, by the rule of resolve_model; a hub id as it is."""
    path = os.path.abspath(os.path.expanduser(value))
    if is_checkpoint(path):
        return path
    if is_path(value) or os.path.exists(path):
        raise ValueError(
            f"is not a directory: {path}; expected one with config.json and model.safetensors, or a {GGUF} file. "
            f"Relative paths start at the source root, which is {os.getcwd()} (`python -m build` makes the "
            "wheel from an unpacked sdist: give it an absolute path)"
        )
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", split_file(value)[0], re.ASCII):
        raise ValueError(
            f"is neither a directory ({path}) nor a hub id; expected a path, OWNER/NAME or OWNER/NAME:FILE of a GGUF"
        )
    return value


def _adapter(value: str) -> str:
    """A directory as its absolute path."""
    path = os.path.abspath(os.path.expanduser(value))
    if not os.path.isdir(path):
        raise ValueError(
            f"is not a directory: {path}; expected one with adapter_config.json and adapter_model.safetensors, as "
            "peft's save_pretrained makes it"
        )
    return path


def _recipe(value: str) -> str:
    """A file as its absolute path."""
    path = os.path.abspath(os.path.expanduser(value))
    if not os.path.isfile(path):
        raise ValueError(f"is no file: {path}; expected one that `kaoken calibrate` made of the same checkpoint")
    return path


def _revision(value: str) -> str:
    if not re.fullmatch(r"\w[\w./+-]*", value, re.ASCII):
        raise ValueError("is not a revision; expected a branch, a tag or a commit of the hub")
    return value


def _tensor_dtypes(value: str) -> str:
    make_types("float32", value)
    return value.replace(";", ",")


def check_kernels(kernels: str, known: tuple[str, ...] = KERNELS) -> str:
    """The setting as it is. Raises InputError for an unknown one."""
    if kernels not in known:
        raise InputError(f"kernels={kernels!r} is unknown; expected one of {', '.join(known)}")
    return kernels


def _isa(value: str) -> str:
    from .isa import resolve  # NumPy comes with it, and --help needs the rows alone

    resolve(value)
    return ",".join(name.strip() for name in re.split("[,;]", value))


def _context(value: str) -> str:
    if not re.fullmatch("[1-9][0-9]{0,8}", value):
        raise ValueError("is not a number of positions; expected a whole number from 1 to what the checkpoint has")
    return value


def _jobs(value: str) -> str:
    if not re.fullmatch("[1-9][0-9]{0,3}", value):
        raise ValueError("is not a number of processes; expected a whole number from 1 to 9999")
    return value


def _compile_memory(value: str) -> str:
    make_budget(value, None, least=PYTHON_MODULE)
    return value


@dataclass(frozen=True)
class Setting:
    """One row. Texts are Markdown; a default is a value, or without one what its absence means."""

    name: str  # as in `pip install . -C name=value`
    meaning: str
    check: Callable[[str], str]
    default: str | None = None
    absence: str = ""
    for_build: str = ""  # what else README says, of the wheel's build
    for_bake: str = ""  # what else `kaoken bake --help` says
    bake_default: str | None = None  # where `kaoken bake` has another
    metavar: str | None = None
    type: Callable[[str], str | int] = str
    singular: str = ""  # the option of `kaoken bake` that is given once for each of several

    @property
    def parameter(self) -> str:
        """Of `kaoken.bake`."""
        return self.name.replace("-", "_")

    @property
    def cmake(self) -> str:
        """The cache entry."""
        return f"KAOKEN_{self.parameter.upper()}"

    @property
    def bake_value(self) -> str | None:
        """What `kaoken bake` and `kaoken.bake` take where it is not given."""
        return self.bake_default or self.default

    @property
    def help(self) -> str:
        """Of `kaoken bake`'s option."""
        return f"{self.meaning}{self.for_bake} (default: {self.bake_value or self.absence})".replace("`", "")

    def checked(self, value: str) -> str:
        """The value as CMake gets it. Raises InputError."""
        try:
            return self.check(value)
        except KaokenError as error:
            raise InputError(f"{self.name}={value}: {error}") from error
        except ValueError as error:
            raise InputError(f"{self.name}={value} {error}") from error


MODEL = Setting(
    "model",
    "a directory, a GGUF file or a hub id (`OWNER/NAME:Q4_K_M` for a GGUF); what exists wins, relative paths start at "
    "the source root",
    _model,
    absence="the bundled model",
)
OPTIONS = (  # of whichever model
    Setting("revision", "branch, tag or commit of a hub id", _revision, absence="the newest"),
    Setting(
        "adapter",
        "a LoRA adapter that is merged into the weights: a directory that peft's `save_pretrained` made",
        _adapter,
        absence="none",
        metavar="DIR",
    ),
    Setting(
        "dtype",
        "of the weights: `float32`, `bfloat16`, `int8`, `int8-g32`, `int4` and `int4-min` (the head in int8), "
        "`int4-all`, or `own`: those nearest a GGUF's own, and `float32` of other checkpoints",
        lambda value: make_types(value).dtype,
        default="own",
    ),
    Setting(
        "recipe",
        "what `kaoken calibrate` found out about this checkpoint, for quantized types: a file",
        _recipe,
        absence="none",
        metavar="FILE",
    ),
    Setting(
        "tensor-dtypes",
        "of some matrices, by pattern: `h.*.attn.*=int8,lm_head=bfloat16`; of a Llama `layers.*.mlp.*=int4`",
        _tensor_dtypes,
        absence="none",
        metavar="PATTERN=TYPE",
        singular="tensor-dtype",
    ),
    Setting(
        "cache-dtype",
        "of the KV cache: `float32`, `bfloat16` or `int8`",
        lambda value: make_types("float32", cache=value).cache,
        absence="as the weights; `int8` for int4",
        metavar="TYPE",
    ),
    Setting(
        "context",
        "positions of a decoder's sequences, at most those of the checkpoint",
        _context,
        absence="the checkpoint's",
        metavar="N",
        type=int,
    ),
    Setting(
        "kernels",
        "`packed`, or `exploded`: small float32 matrices of blocks become straight-line code",
        check_kernels,
        default="packed",
        for_build=" ([when that pays](ARCHITECTURE.md#the-exploded-form))",
        for_bake="; or `fastest`, which only this command has: the one of both that decodes faster here",
    ),
    Setting(
        "isa",
        "`portable` (all of this architecture, chosen when the model is loaded), `native` (the best of this machine), "
        "or a list of `scalar`, `avx2`, `avxvnni`, `avx512`, `avx512vnni`, `avx512bf16`; `neon`, `dotprod`, `i8mm`",
        _isa,
        default="portable",
        bake_default="native",
    ),
    Setting(
        "jobs",
        "processes of the build at a time, as far as memory allows at `compile-memory` each",
        _jobs,
        absence="one a processor",
        metavar="N",
        type=int,
    ),
    Setting(
        "compile-memory",
        "what each process of the build may take",
        _compile_memory,
        absence=f"`{DEFAULT_CAP // MiB}M`",
        for_build=f", at least `{PYTHON_MODULE // MiB}M` here",
        metavar="SIZE",
    ),
)
SETTINGS = {setting.name: setting for setting in (MODEL, *OPTIONS)}
