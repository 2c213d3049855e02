"""Baking at run time: `bake` does what the build of the wheel does, through the same CMake function.

A bake validates the checkpoint, then lets CMake and Ninja work in a private temporary directory. CMake and
the tools beneath it see that directory's names alone: links stand for the checkpoint and for Kaoken itself,
so no space, quote, semicolon or dollar of a user's path ever reaches them.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import shutil
import sys
import tempfile
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import kaoken
from kaoken import codegen
from kaoken.arguments import file_path, integer
from kaoken.building import NINJA_STATUS, Progress, error_class, explanation, run, unwound
from kaoken.cache import cache_directory, install, locked, write_error
from kaoken.codegen.dtypes import Types, make_types
from kaoken.codegen.exploded import EXPLODED_LIMIT
from kaoken.codegen.isa import check_names, resolve
from kaoken.codegen.memory import make_budget
from kaoken.codegen.model_names import is_gguf
from kaoken.codegen.seal import is_intact
from kaoken.codegen.settings import KERNELS, SETTINGS, check_kernels
from kaoken.errors import BuildError, CheckpointError, GenerationConfigWarning, InputError, KaokenError
from kaoken.tools import Compiler, check_packages, find_cmake, find_compiler, find_ninja

if TYPE_CHECKING:
    from kaoken.codegen.checkpoint import Checkpoint
    from kaoken.codegen.hub import Source

# Kaoken's own files that a bake runs; in a wheel they lie in the package, in a source tree beside it.
_ROOT = Path(str(codegen.__file__)).parent.parent
_OWN_SOURCES = ("codegen", "runtime", "cmake")

# Beside what a build takes: both forms are built, and the faster one is kept.
_FASTEST = "fastest"

# Settings of which a cache key has the files' digests, or nothing.
_NOT_IN_KEY = ("jobs", "adapter", "recipe")

# What CMake reads from the environment and what therefore changes the library.
_FLAGS = ("CXXFLAGS", "CPPFLAGS", "CFLAGS", "ASMFLAGS", "LDFLAGS")

# A generator's settings that Ninja refuses, and what keeps `python -m codegen` from its working directory.
_HARMFUL = re.compile(r"CMAKE_|PYTHONSAFEPATH")

_SAFE_PATH = re.compile(r"[A-Za-z0-9_./+-]+")
_UNSAFE_TEXT = re.compile(r"[^\w ./@+,=~-]")


@dataclass(frozen=True)
class _Options:
    types: Types
    recipe: Path | None
    context: int | None
    kernels: str
    isa: str
    jobs: int | None
    compile_memory: int  # bytes


@dataclass(frozen=True)
class _Bake:
    """One bake, validated: nothing in it is a user's mistake any more."""

    source: Source
    checkpoint: Checkpoint
    options: _Options
    compiler: Compiler
    isas: tuple[str, ...]

    def settings(self) -> dict[str, str]:
        """Each as CMake gets it, but the revision, which has found the source."""
        options = self.options
        return {
            "dtype": options.types.dtype,
            "recipe": "" if options.recipe is None else str(options.recipe),
            "tensor-dtypes": ",".join(f"{pattern}={dtype}" for pattern, dtype in options.types.overrides),
            "cache-dtype": options.types.cache,
            "context": "" if options.context is None else str(options.context),
            "kernels": options.kernels,
            "adapter": "" if self.checkpoint.adapter is None else str(self.checkpoint.adapter.directory),
            "isa": ",".join(self.isas),
            "jobs": "" if options.jobs is None else str(options.jobs),
            "compile-memory": str(options.compile_memory),
        }

    def key(self) -> str:
        """SHA-256 of everything that decides the library: 64 hexadecimal digits."""
        adapter = self.checkpoint.adapter
        elsewhere = () if adapter is None else adapter.files
        inside = [file for file in self.checkpoint.files if file not in elsewhere]
        facts = {
            "checkpoint": [(os.path.relpath(file, self.source.path), _sha256(file)) for file in inside],
            "adapter": adapter and [adapter.directory.resolve().name, *map(_sha256, adapter.files)],
            "source": [self.source.name, self.source.revision],
            "settings": {name: value for name, value in self.settings().items() if name not in _NOT_IN_KEY},
            "recipe": self.options.recipe and _sha256(self.options.recipe),
            "kaoken": [kaoken.__version__, _own_digest()],
            "machine": self.compiler.machine,
            "compiler": [self.compiler.command, self.compiler.path, self.compiler.version],
            "flags": [os.environ.get(name, "") for name in _FLAGS],
        }
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def bake(
    checkpoint: str | os.PathLike[str],
    *,
    dtype: str = "own",
    recipe: str | os.PathLike[str] | None = None,
    tensor_dtypes: Mapping[str, str] | str | None = None,
    cache_dtype: str | None = None,
    context: int | None = None,
    kernels: str = "packed",
    isa: str = "native",
    out: str | os.PathLike[str] | None = None,
    revision: str | None = None,
    adapter: str | os.PathLike[str] | None = None,
    jobs: int | None = None,
    compile_memory: int | str | None = None,
    progress: bool | None = None,
) -> Path:
    """Compiles a checkpoint into a model library and returns the library's path, for `kaoken.load`.

    Args:
        checkpoint: A directory with config.json and model.safetensors, a GGUF file, or the id of a model on the
            Hugging Face hub, as OWNER/NAME:Q4_K_M for a GGUF; what exists wins.
        dtype: Of the baked weights: "float32", "bfloat16", "int8", "int8-g32", "int4" and "int4-min" (the head in
            int8), "int4-all", or "own": of a GGUF file the types nearest those of its own matrices, which keep groups
            of Q8_0, Q4_0 and Q4_1, and of other checkpoints "float32".
        recipe: A file that `kaoken.calibrate` or `kaoken calibrate` made of this checkpoint.
        tensor_dtypes: Of some matrices, by name or pattern: {"h.*.attn.*": "int8", "lm_head": "bfloat16"}; the types
            are these but the last two. A later pattern wins.
        cache_dtype: Of the KV cache: "float32", "bfloat16" or "int8"; None is the weights' own, int8 for int4.
        context: Positions of a decoder's sequences; None is all that the checkpoint has, and there are no more.
        kernels: "packed", or "exploded": float32 matrices of blocks with at most 16384 weights that are not zero become
            straight-line code, and the others stay packed. Pays for tiny or very sparse matrices alone. Or "fastest":
            of both, the one that decodes one sequence faster on this machine, which takes both bakes; it is named on
            stderr, and in the model's `info`.
        isa: "native" (this machine's best), "portable" (all of the compiler's architecture), or names with commas.
        out: The one file to write; the tokenizer travels inside it. Compile statistics go to out + ".json".
            None uses the cache ($KAOKEN_CACHE, else $XDG_CACHE_HOME/kaoken, else ~/.cache/kaoken), where a
            second bake of the same checkpoint, options, Kaoken and compiler finds the first one's library.
        revision: Of a hub id: a branch, tag or commit.
        adapter: The directory of a LoRA adapter, as peft's save_pretrained makes it, which is merged into the weights
            before they are quantized.
        jobs: Compilations at once; None is one a processor.
        compile_memory: A cap for each process of the build, in bytes or like "600M"; None is 512M.
        progress: Whether to draw a bar on stderr; None draws it on a terminal.

    Needs a C++17 compiler (CXX names one) and `pip install "kaoken[bake]"`.

    Raises:
        InputError: An option outside its range, or an `out` that cannot be written to.
        ISAError: An unknown instruction set.
        CheckpointError, UnsupportedModelError, HubError: See `kaoken.errors`.
        BuildError: A tool is missing, the build failed, the disk is full, or the cache is not private.
    """
    destination = None if out is None else _destination(file_path("out", out))
    types = make_types(dtype, overrides_text(tensor_dtypes), cache_dtype)
    options = _options(types, recipe, context, kernels, isa, jobs, compile_memory)
    check_packages()
    work = _validate(checkpoint, revision, None if adapter is None else file_path("adapter", adapter), options)
    with Progress(work.source.name, progress) as bar:
        if destination is None:
            return _bake_into_cache(work, bar)
        _build(work, destination, bar)
        return destination


def _destination(out: Path) -> Path:
    """Checked before an expensive build, though the disk has the last word."""
    try:
        _statistics(out).lstat()
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"out is {str(out)!r}, which cannot be a file ({reason}): choose another name") from error
    if out.exists() and not out.is_file():
        raise InputError(f"out is {out}, which is not a file: name the one file to write")
    if not out.parent.is_dir():
        raise InputError(f"out is {out}, but the directory {out.parent} does not exist: make it first")
    if not os.access(out.parent, os.W_OK | os.X_OK):
        raise InputError(f"out is {out}, but the directory {out.parent} is not writable: choose another")
    return out.absolute()


def _statistics(library: Path) -> Path:
    return library.parent / f"{library.name}.json"


def overrides_text(tensor_dtypes: Mapping[str, str] | str | None) -> str:
    """As settings write them."""
    if tensor_dtypes is None or isinstance(tensor_dtypes, str):
        return tensor_dtypes or ""
    if not isinstance(tensor_dtypes, Mapping):
        raise InputError(f"tensor_dtypes maps patterns to types, or is a text like h.*=int8; not {tensor_dtypes!r}")
    return ",".join(f"{pattern}={dtype}" for pattern, dtype in tensor_dtypes.items())


def _options(
    types: Types,
    recipe: str | os.PathLike[str] | None,
    context: int | None,
    kernels: str,
    isa: str,
    jobs: int | None,
    compile_memory: int | str | None,
) -> _Options:
    if not isinstance(isa, str):
        raise InputError(f'isa must be "native", "portable" or names with commas, not {isa!r}')
    check_names(isa)
    check_kernels(kernels, (*KERNELS, _FASTEST))
    if kernels == _FASTEST and isa != "native":
        raise InputError(
            f"kernels='fastest' measures on this machine, and isa={isa!r} may be for others: use isa='native', or "
            f"kernels={' or '.join(map(repr, KERNELS))}"
        )
    return _Options(
        types=types,
        recipe=None if recipe is None else Path(SETTINGS["recipe"].checked(os.fspath(file_path("recipe", recipe)))),
        context=None if context is None else integer("context", context, minimum=1),
        kernels=kernels,
        isa=isa,
        jobs=None if jobs is None else integer("jobs", jobs, minimum=1),
        compile_memory=_memory(compile_memory),
    )


def _memory(size: int | str | None) -> int:
    """The cap in bytes; codegen has the default and the least that works."""
    if size is None or isinstance(size, str):
        return make_budget(size, None).cap
    return make_budget(str(integer("compile_memory", size, minimum=1)), None).cap


def _validate(
    checkpoint: str | os.PathLike[str], revision: str | None, adapter: Path | None, options: _Options
) -> _Bake:
    """Everything that can fail without a build. Imports wait until `check_packages` has spoken."""
    from kaoken.codegen.checkpoint import open_checkpoint
    from kaoken.codegen.context import shorten
    from kaoken.codegen.families import read_graph
    from kaoken.codegen.generation import read_generation
    from kaoken.codegen.hub import resolve_model
    from kaoken.codegen.own_types import resolve as resolve_own
    from kaoken.codegen.recipe import read_recipe
    from kaoken.codegen.smooth import smooth

    named = checkpoint if isinstance(checkpoint, str) else os.path.abspath(file_path("checkpoint", checkpoint))
    if revision is not None and not isinstance(revision, str):
        raise InputError(f"revision must be a branch, tag or commit as a str, not {revision!r}")
    source = resolve_model(named, revision=revision, root=Path.cwd())
    opened = open_checkpoint(source.path, None if adapter is None else Path(os.path.abspath(adapter.expanduser())))
    graph = shorten(read_graph(opened), options.context)
    if options.recipe is not None:
        smooth(graph, read_recipe(options.recipe).factors, options.recipe)
    options = replace(options, types=resolve_own(options.types, opened))
    warning = read_generation(opened).warning()
    if warning:
        warnings.warn(warning, GenerationConfigWarning, stacklevel=3)
    compiler = find_compiler()
    return _Bake(source, opened, options, compiler, resolve(options.isa, compiler.machine, options.types.used()))


def _bake_into_cache(work: _Bake, progress: Progress) -> Path:
    directory = cache_directory()
    progress.say("looking into the cache")
    before = _stamps(work.checkpoint.files)
    path = directory / f"{_model_name(work)}-{_key(work)[:32]}.so"
    try:
        if _is_whole(path):
            return path
        with locked(path.with_suffix(".lock"), lambda: progress.say("waiting for another bake of it")):
            if not _is_whole(path):
                _build(work, path, progress, before)
    except OSError as error:
        raise write_error(path, error) from error
    return path


def _is_whole(path: Path) -> bool:
    """Whether the cache has the library; a damaged one is baked again. Reads it all, as the key read the checkpoint."""
    return path.is_file() and is_intact(path) is True


def _key(work: _Bake) -> str:
    try:
        return work.key()
    except OSError as error:
        raise CheckpointError(f"{error.filename} cannot be read ({error.strerror}): give a whole checkpoint") from error


def _model_name(work: _Bake) -> str:
    from kaoken.codegen.identifier import identifier

    return identifier(work.source.name)


def _build(
    work: _Bake, destination: Path, progress: Progress, before: dict[Path, tuple[int, ...]] | None = None
) -> None:
    """Builds in a temporary directory and installs the library, its statistics first."""
    before = before or _stamps(work.checkpoint.files)
    try:
        with unwound(), tempfile.TemporaryDirectory(prefix="kaoken-", dir=_temporary_root()) as name:
            build = _build_fastest if work.options.kernels == _FASTEST else _build_one
            workplace = build(Path(name).resolve(), work, progress)
            _check_unchanged(work.checkpoint, before)
            progress.say("writing")
            install({workplace.library_json: _statistics(destination), workplace.library: destination})
    except OSError as error:
        raise write_error(Path(error.filename or tempfile.gettempdir()), error) from error


def _build_one(root: Path, work: _Bake, progress: Progress, name: str = "") -> _Workplace:
    workplace = _Workplace(root, work, name)
    workplace.prepare()
    workplace.configure(progress)
    workplace.compile(progress)
    return workplace


def _build_fastest(root: Path, work: _Bake, progress: Progress) -> _Workplace:
    """Builds both forms and returns the one that decodes faster; a tie is packed's, which batches prefer."""

    def build(kernels: str) -> _Workplace:
        return _build_one(root, replace(work, options=replace(work.options, kernels=kernels)), progress, name=kernels)

    exploded: _Workplace | None
    try:
        exploded = build("exploded")
    except InputError:  # nothing to explode; where it is something else, packed meets it too
        exploded = None
    packed = build("packed")
    if exploded is None:
        small = f"a float32 matrix of at most {EXPLODED_LIMIT} weights that are not zero"
        progress.tell(f"kaoken: packed, as no block of {work.source.name} has {small}, to be exploded")
        return packed
    from kaoken import bench

    progress.say("measuring")
    seconds = bench.decode_seconds([exploded.library, packed.library])
    chosen = "exploded" if seconds[0] < seconds[1] else "packed"
    times = [f"{each * 1e6:.1f}" for each in seconds]
    progress.tell(f"kaoken: exploded {times[0]} us a token, packed {times[1]}: {chosen}")
    return exploded if chosen == "exploded" else packed


def _temporary_root() -> str:
    """tempfile's own choice, unless its path would not survive a trip through CMake and Ninja."""
    for root in (tempfile.gettempdir(), "/tmp", "/var/tmp"):
        if _SAFE_PATH.fullmatch(os.path.realpath(root)) and os.access(root, os.W_OK | os.X_OK):
            return root
    raise BuildError(
        f"the temporary directory {tempfile.gettempdir()} has characters that build tools cannot take: "
        "set TMPDIR to a path of letters, digits and /._+-"
    )


class _Workplace:
    """The directory of one build, the temporary `root` or in it: links in, `model.so` and `model.so.json` out."""

    def __init__(self, root: Path, work: _Bake, name: str = "") -> None:
        self._root = root
        self._directory = root / name
        self._work = work
        self._checkpoint = self._directory / ("checkpoint.gguf" if is_gguf(work.source.path) else "checkpoint")
        self._build = self._directory / "build"
        self._ninja = self._directory / "ninja"
        self.library = self._build / "model.so"
        self.library_json = self._build / "model.so.json"

    def prepare(self) -> None:
        self._directory.mkdir(exist_ok=True)
        self._checkpoint.symlink_to(self._work.source.path)
        if self._work.checkpoint.adapter is not None:
            (self._directory / "adapter").symlink_to(self._work.checkpoint.adapter.directory)
        if self._work.options.recipe is not None:
            (self._directory / "recipe").symlink_to(self._work.options.recipe)
        (self._directory / "kaoken").symlink_to(_ROOT.absolute())
        self._ninja.symlink_to(find_ninja())

    def configure(self, progress: Progress) -> None:
        source = self._directory / "kaoken" / "cmake" / "bake"
        cmake = find_cmake(_minimum_cmake(source / "CMakeLists.txt"))
        definitions = [f"-D{name}={value}" for name, value in self._definitions().items()]
        progress.say("configuring")
        self._run([cmake, "-G", "Ninja", "-S", str(source), "-B", str(self._build), *definitions], progress)

    def compile(self, progress: Progress) -> None:
        jobs = self._work.options.jobs
        limit = [] if jobs is None else ["-j", str(jobs)]
        progress.say("compiling")
        self._run([str(self._ninja), "-C", str(self._build), *limit, "model"], progress)

    def _definitions(self) -> dict[str, str]:
        source = self._work.source
        settings = {SETTINGS[name].cmake: value for name, value in self._work.settings().items()}
        if self._work.checkpoint.adapter is not None:
            settings[SETTINGS["adapter"].cmake] = str(self._directory / "adapter")
        if self._work.options.recipe is not None:
            settings[SETTINGS["recipe"].cmake] = str(self._directory / "recipe")
        return {
            "CMAKE_BUILD_TYPE": "Release",
            "CMAKE_MAKE_PROGRAM": str(self._ninja),
            "KAOKEN_MODEL": str(self._checkpoint),
            "KAOKEN_MODEL_NAME": _model_name(self._work),
            "KAOKEN_SOURCE": _UNSAFE_TEXT.sub("_", source.name),
            "KAOKEN_COMMIT": source.revision or "",
            "KAOKEN_PYTHON": self._python(),
            **settings,
        }

    def _python(self) -> str:
        """This interpreter; by way of a script where its own path is not safe (a link would lose a venv)."""
        if _SAFE_PATH.fullmatch(sys.executable):
            return sys.executable
        script = self._directory / "python"
        script.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n', encoding="utf-8")
        script.chmod(0o700)
        return str(script)

    def _run(self, command: list[str], progress: Progress) -> None:
        environment = {name: value for name, value in os.environ.items() if not _HARMFUL.match(name)}
        environment |= {"CXX": self._work.compiler.command, "NINJA_STATUS": NINJA_STATUS}
        status, lines = run(command, environment, progress.line, self._root)
        if status != 0:
            raise self._failure(lines)

    def _failure(self, lines: list[str]) -> KaokenError:
        """The output with the user's own names in the place of this directory's."""
        text = explanation(lines).replace(str(self._checkpoint), str(self._work.source.path))
        if self._work.checkpoint.adapter is not None:
            text = text.replace(str(self._directory / "adapter"), str(self._work.checkpoint.adapter.directory))
        root = self._root.parent
        if "No space left on device" in text or shutil.disk_usage(root).free < 1 << 20:
            return BuildError(f"the disk is full: {root} has no room for the build; free some or set TMPDIR\n{text}")
        return error_class(lines)(f"baking {self._work.source.name} failed: {text}")


def _minimum_cmake(project: Path) -> tuple[int, ...]:
    """The version that the project itself asks for, so that it stands in one place."""
    match = re.search(r"cmake_minimum_required\(VERSION (\d+)\.(\d+)", project.read_text(encoding="utf-8"))
    return (int(match[1]), int(match[2])) if match else (0,)


def _stamps(files: Iterable[Path]) -> dict[Path, tuple[int, ...]]:
    return {file: _stamp(file) for file in files}


def _stamp(file: Path) -> tuple[int, ...]:
    """Differs when a file was written, replaced or removed."""
    try:
        status = file.stat()
    except OSError:
        return ()
    return status.st_ino, status.st_size, status.st_mtime_ns


def _check_unchanged(checkpoint: Checkpoint, before: dict[Path, tuple[int, ...]]) -> None:
    """A library must be of the files that its cache key was made from."""
    for file, stamp in _stamps(checkpoint.files).items():
        if stamp != before[file]:
            raise CheckpointError(f"{file} changed while it was baked: bake again when the checkpoint is complete")


def _own_digest() -> str:
    """SHA-256 over Kaoken's generator, runtime and CMake files, and families from elsewhere."""
    from kaoken.codegen.families import EXTRA

    digest = hashlib.sha256()
    for root in (*(_ROOT / name for name in _OWN_SOURCES), *EXTRA):
        for file in sorted(root.rglob("*")):
            if file.is_file() and "__pycache__" not in file.parts:
                digest.update(f"{file.relative_to(root.parent)}\0{_sha256(file)}\n".encode())
    return digest.hexdigest()


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
