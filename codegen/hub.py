"""Where a model comes from: a local directory, or a repository of the Hugging Face hub.

huggingface_hub is imported only for a hub id, so that a local checkpoint needs neither it nor a network. Its
cache and its environment (HF_HOME, HF_HUB_OFFLINE, HF_ENDPOINT, HF_TOKEN) are respected.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from .checkpoint import (
    CHAT_TEMPLATE,
    CONFIG,
    INDEX,
    MODULES,
    SENTENCE_CONFIG,
    SENTENCEPIECE,
    TOKENIZER,
    TOKENIZER_PARTS,
    TRANSFORMER_CONFIGS,
    WEIGHTS,
    WORDPIECE,
    conversion_line,
    quoted,
    read_modules,
)
from .errors import CheckpointError, HubError
from .model_names import GGUF, is_checkpoint, is_gguf, is_path, split_file

# All that is ever fetched, and from the folders that a modules.json names. Pickles, other frameworks' weights and other
# folders' copies stay where they are.
ALLOW_PATTERNS = (
    "config.json",
    "generation_config.json",
    "model*.safetensors",
    INDEX,
    TOKENIZER,
    *TOKENIZER_PARTS,
    CHAT_TEMPLATE,
    WORDPIECE,
    *SENTENCEPIECE,
    MODULES,
    SENTENCE_CONFIG,
    *TRANSFORMER_CONFIGS,
)
IGNORE_PATTERNS = ("*/*",)

# The hub's own rules, as huggingface_hub's validate_repo_id states them.
_PART = r"[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?"
_HUB_ID = re.compile(rf"(?:{_PART}/)?{_PART}")
_REVISION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._/+-]{0,254}")
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Source:
    """A checkpoint and where it is from."""

    path: Path  # the directory, or the GGUF file
    name: str  # the hub id, or the path's own name
    revision: str | None  # the commit hash of a hub id


def resolve_model(model: str, *, revision: str | None, root: Path) -> Source:
    """The directory or GGUF file of a checkpoint that is named by a path or a hub id.

    What exists, relative to `root`, wins over a hub id; what begins with ./ ../ / or ~ is always a path. A hub id may
    name one GGUF of its repository, as OWNER/NAME:Q4_K_M or OWNER/NAME:FILE.gguf. `revision` is a branch, tag or commit
    of a hub id. Raises CheckpointError for a path that is neither, and HubError for what cannot be fetched.
    """
    if not model:
        raise CheckpointError("the model is an empty string; expected a directory or a hub id: pass one")
    path = _resolve_path(model, root)
    if not is_checkpoint(path):
        name, file = split_file(model)
        _require_hub_id(model, name, revision, path)
        return _fetch(name, revision, path) if file is None else _fetch_gguf(name, file, revision, path)
    if revision is not None:
        kind = "directory" if os.path.isdir(path) else "file"
        raise CheckpointError(
            f"{path} is a local {kind} and has no revision {quoted(revision)}: leave the revision out"
        )
    return Source(path, (path.name if os.path.isdir(path) else path.stem) or "model", None)


def _require_hub_id(model: str, name: str, revision: str | None, path: Path) -> None:
    """Refuses a path without a checkpoint, an invalid id and an invalid revision, before the hub is asked."""
    if is_path(model) or os.path.exists(path):
        raise CheckpointError(
            f"{_shown(path)} is not a directory: pass one with config.json and model.safetensors, or a {GGUF} file"
        )
    if not _is_hub_id(name):
        raise HubError(
            f"{quoted(model)} is neither a directory ({_shown(path)}) nor a hub id; expected a path, 'name', "
            "'organization/name' or 'organization/name:Q4_K_M': pass one of these"
        )
    if revision is not None and (not _REVISION.fullmatch(revision) or ".." in revision):
        raise HubError(
            f"{quoted(revision)} is not a revision of {model}; expected a branch, a tag or a commit: pass one"
        )


def _resolve_path(model: str, root: Path) -> Path:
    """Absolute and without `..`; symbolic links are kept, as their names are what the user knows."""
    return Path(os.path.normpath(root.absolute() / os.path.expanduser(model)))


def _shown(path: Path) -> str:
    """A path as it may stand in a message, whatever the user typed."""
    return str(path) if str(path).isprintable() else quoted(str(path))


def _is_hub_id(model: str) -> bool:
    forbidden = "--" in model or ".." in model or model.endswith(".git")
    return bool(_HUB_ID.fullmatch(model)) and len(model) <= 96 and not forbidden


def _import_hub(model: str) -> ModuleType:
    try:
        import huggingface_hub
        import huggingface_hub.constants
        import huggingface_hub.utils
    except ImportError as error:
        raise HubError(
            f"fetching {model} needs huggingface_hub ({error}): pip install huggingface_hub, or pass a local "
            "directory, as in model=./my-checkpoint"
        ) from error
    return huggingface_hub


def _fetch(model: str, revision: str | None, path: Path) -> Source:
    """The snapshot of a hub id, from the cache if it has it."""
    hub = _import_hub(model)
    with _explained(hub, model, revision, path):
        directory = _snapshot(hub, model, revision, ALLOW_PATTERNS)
        folders = _module_folders(directory)
        if any(folders):  # of the same commit, whatever has been pushed in between
            hub.snapshot_download(model, revision=directory.name, **_module_patterns(folders))
    weights = directory / folders[0] if folders else directory
    if not any(weights.glob("model*.safetensors")) and not (weights / INDEX).exists():
        raise HubError(_explain_no_weights(model, directory, offline=bool(hub.constants.HF_HUB_OFFLINE)))
    return Source(directory, model, _commit(directory))


def _fetch_gguf(model: str, file: str, revision: str | None, path: Path) -> Source:
    """One GGUF of a repository: the file of that name, or the one whose name ends with it."""
    hub = _import_hub(model)
    patterns = _gguf_patterns(file)
    with _explained(hub, model, revision, path):
        directory = _snapshot(hub, model, revision, patterns)
    found = sorted({each for pattern in patterns for each in directory.glob(pattern)})
    if len(found) != 1:
        names = ", ".join(each.name for each in found[:5]) or "none"
        raise HubError(
            f"{model} should have one file {' or '.join(patterns)}, and has {names}: choose one from "
            f"https://huggingface.co/{model}/tree/main and name it whole, as in {model}:FILE{GGUF}"
        )
    return Source(found[0], f"{model}:{file}", _commit(directory))


def _gguf_patterns(file: str) -> list[str]:
    """For Q4_K_M, names that end with -Q4_K_M.gguf, .Q4_K_M.gguf or the same in small letters."""
    if is_gguf(file):
        return [file]
    return [f"*[-._]{spelled}{GGUF}" for spelled in dict.fromkeys((file, file.upper(), file.lower()))]


def _snapshot(hub: ModuleType, model: str, revision: str | None, patterns: Sequence[str]) -> Path:
    ignored = list(IGNORE_PATTERNS)
    found = hub.snapshot_download(model, revision=revision, allow_patterns=list(patterns), ignore_patterns=ignored)
    return Path(found)


def _commit(snapshot: Path) -> str | None:
    return snapshot.name if _COMMIT.fullmatch(snapshot.name) else None


@contextmanager
def _explained(hub: ModuleType, model: str, revision: str | None, path: Path) -> Iterator[None]:
    """Turns what goes wrong into a HubError."""
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:  # the library, its HTTP client and its file system raise what they like
        raise HubError(
            f"{model} could not be fetched from the hub: {_explain(error, hub, model, revision)}. To use a "
            f"local directory instead, pass its path, as in model=./my-checkpoint (there is no {path})"
        ) from error


def _module_folders(snapshot: Path) -> list[str]:
    """Of each module that modules.json names, the transformer first; an empty name is the repository itself."""
    file = snapshot / MODULES
    return [path for _, path in read_modules(file)] if file.exists() else []


def _module_patterns(folders: list[str]) -> dict[str, list[str]]:
    """What `snapshot_download` takes from folders: all of the first, and what modules have of the others."""
    first, *others = folders
    allowed = [f"{first}/{pattern}" for pattern in ALLOW_PATTERNS] if first else []
    allowed += [f"{folder}/{name}" for folder in others if folder for name in (CONFIG, WEIGHTS)]
    return {"allow_patterns": allowed, "ignore_patterns": ["*/*/*"]}


def _explain(error: Exception, hub: ModuleType, model: str, revision: str | None) -> str:
    """The reason in the user's terms; the order matters, as some of these derive from others."""
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return f"the disk is full ({error}); free some space or point HF_HOME elsewhere"
    access = f"open https://huggingface.co/{model}, and log in with `hf auth login` if it is restricted or private"
    reasons = (
        (hub.utils.GatedRepoError, f"access to it is restricted; {access}"),
        (hub.utils.RepositoryNotFoundError, f"the hub shows no such model; {access}"),
        (hub.utils.RevisionNotFoundError, f"it has no revision {quoted(revision or 'main')}"),
        (hub.utils.HFValidationError, "the hub does not allow such an id"),
        ((hub.utils.LocalEntryNotFoundError, hub.utils.OfflineModeIsEnabled), _explain_unreachable(hub)),
    )
    for kind, reason in reasons:
        if isinstance(error, kind):
            return reason
    return f"{type(error).__name__}: {quoted(str(error))}"


def _explain_unreachable(hub: ModuleType) -> str:
    if hub.constants.HF_HUB_OFFLINE:
        return f"HF_HUB_OFFLINE is set, and the cache ({hub.constants.HF_HUB_CACHE}) has no whole copy of it"
    return f"{hub.constants.ENDPOINT} is out of reach, and the cache has no whole copy; check the network"


def _explain_no_weights(model: str, directory: Path, offline: bool) -> str:
    stale = f", or HF_HUB_OFFLINE hides a part that the cache ({directory}) lacks" if offline else ""
    return (
        f"{model} has no model.safetensors: the repository holds pickles alone, which can run code when they "
        f"are opened and are not fetched{stale}. If you trust it, convert it with "
        f"{conversion_line(model, './' + model.rsplit('/', 1)[-1])} and pass that directory as model; "
        f"of GGUF files that it may hold, name one, as in {model}:Q4_K_M"
    )
