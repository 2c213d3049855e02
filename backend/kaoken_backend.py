"""The build backend (PEP 517 and 660): Kaoken's own settings in front of scikit-build-core.

`pip install . -C model=gpt2` and its like: a setting of codegen/settings.py is checked and becomes a CMake cache entry;
any other goes on to scikit-build-core, which refuses what it does not know. A user's mistake ends the build
with one line (SystemExit). Frontends call every hook in the source root.

CMake, Ninja and the shell between them break on some characters of a path. A path that has one is handed to
them as a symbolic link to it.
"""

from __future__ import annotations

import difflib
import hashlib
import os
import re
import stat
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from itertools import takewhile
from pathlib import Path
from typing import TypeAlias

from scikit_build_core import build as skbuild

from codegen.errors import InputError
from codegen.model_names import is_gguf, split_file
from codegen.settings import SETTINGS

Settings: TypeAlias = "dict[str, str | list[str]]"

# scikit-build-core's settings without a dot in their name; one with a dot is always its to judge.
PASSED_ON = ("build-dir", "experimental", "fail", "minimum-version", "strict-config")

# ---- Settings


def split_settings(settings: Settings | None) -> tuple[dict[str, str], Settings]:
    """Kaoken's own settings as they were given, and those to pass on. Exits on a name that is neither's."""
    own: dict[str, str] = {}
    passed: Settings = {}
    for name, value in (settings or {}).items():
        if name in SETTINGS:
            own[name] = _single(name, value)
        else:
            passed[_known(name)] = value
    return own, passed


def _single(name: str, value: str | list[str]) -> str:
    if not isinstance(value, str):
        raise _mistake(f"{name} is given more than once: {value}; expected one value, like {name}={value[-1]}")
    if not value.strip() or not value.isprintable():
        raise _mistake(f"{name}={value!r} is empty or unprintable; leave {name} out to use its default")
    return value.strip()


def _known(name: str) -> str:
    """The name of a setting that scikit-build-core may know; exits with the nearest valid one otherwise."""
    for setting in SETTINGS.values():
        if name.endswith(f"cmake.define.{setting.cmake}"):
            raise _mistake(f"{name} would go unchecked; use {setting.name}=... instead")
    if "." in name or name in PASSED_ON:
        return name
    near = difflib.get_close_matches(name.lower().replace("_", "-"), [*SETTINGS, *PASSED_ON], n=1, cutoff=0.0)
    raise _mistake(
        f"unknown build setting {name!r}; did you mean {near[0]!r}? Kaoken's settings are "
        f"{', '.join(SETTINGS)}; those of scikit-build-core, like cmake.build-type, pass through"
    )


def check_settings(own: Mapping[str, str]) -> dict[str, str]:
    """Kaoken's settings with their values as CMake gets them; exits on the first bad one."""
    if "revision" in own and "model" not in own:
        raise _mistake("revision is of a model on the hub; give model=OWNER/NAME beside it")
    if "adapter" in own and "model" not in own:
        raise _mistake("adapter changes a model; give model=... beside it, the one that it was trained with")
    if "recipe" in own and "model" not in own:
        raise _mistake("recipe is of a model; give model=... beside it, the one that was calibrated")
    try:
        return {name: SETTINGS[name].checked(value) for name, value in own.items()}
    except InputError as error:
        raise _mistake(str(error)) from error


def _mistake(message: str) -> SystemExit:
    return SystemExit(f"kaoken: error: {message}")


# ---- Paths as CMake can take them

_SAFE_PATH = re.compile(r"[\w /.+=@~-]*")


def safe_path(path: str) -> str:
    """An absolute path itself, or a symbolic link to it whose own path CMake, Ninja and a shell can take.

    The link depends on the path alone, so a build directory that is used again sees the same one.
    """
    if _SAFE_PATH.fullmatch(path):
        return path
    digest = hashlib.sha256(os.fsencode(path)).hexdigest()[:16]
    link = _links() / digest / re.sub(r"[^\w.+-]", "_", os.path.basename(path))
    link.parent.mkdir(exist_ok=True)
    with suppress(FileExistsError):  # of an earlier or a simultaneous build; it leads to the same path
        link.symlink_to(path)
    print(f"kaoken: CMake sees {path} as {link}")
    return str(link)


def _links() -> Path:
    """This user's directory of links. Its name can be guessed, so it must not be anyone else's."""
    links = Path(_temporary_directory(), f"kaoken-{os.getuid()}")
    with suppress(FileExistsError):
        links.mkdir(mode=0o700)
    status = links.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise _mistake(f"{links} is not a directory that only this user can write; remove it, or set TMPDIR elsewhere")
    return links


def _temporary_directory() -> str:
    usable = (
        directory
        for directory in (tempfile.gettempdir(), "/tmp", "/var/tmp")
        if _SAFE_PATH.fullmatch(directory) and os.access(directory, os.W_OK | os.X_OK)
    )
    directory = next(usable, None)
    if directory is None:
        raise _mistake(f"CMake cannot take the path of {tempfile.gettempdir()}; set TMPDIR to another directory")
    return directory


def _safe_build_directory(directory: str) -> str:
    """scikit-build-core's build-dir, made, behind a safe path; its {placeholders} stay as they are."""
    path = Path(os.path.abspath(directory))
    base = Path(*takewhile(lambda part: "{" not in part, path.parts))
    base.mkdir(parents=True, exist_ok=True)
    return str(safe_path(str(base)) / path.relative_to(base))


def _check_environment() -> None:
    """Where pybind11, and often CMake itself, are in such a path, no link helps."""
    environment = os.path.dirname(skbuild.__file__)
    if re.search(r'[;"\\]', environment):
        raise _mistake(
            f"CMake cannot take the path of the build's packages, {environment}; set TMPDIR to a directory "
            'without ; and " in its path, or without build isolation use an environment elsewhere'
        )


def _safe_python() -> str:
    """This interpreter; behind a link to all of its environment, as it looks for that beside itself."""
    directory, name = os.path.split(sys.executable)
    prefix, directory = os.path.split(directory)
    return os.path.join(safe_path(prefix), directory, name)


# ---- The hooks


def _settings_for_cmake(config_settings: Settings | None) -> Settings:
    """Everything as scikit-build-core's settings, and this process ready to run CMake with them."""
    _check_environment()
    own, settings = split_settings(config_settings)
    values = check_settings(own)
    if os.path.isabs(values.get("model", "")):
        print(f"kaoken: the model is {values['model']}")
        values["model"] = safe_path(values["model"])
    for name in ("adapter", "recipe"):
        if name in values:
            values[name] = safe_path(values[name])
    settings |= {f"cmake.define.{SETTINGS[name].cmake}": value for name, value in values.items()}
    if (source := safe_path(os.getcwd())) != os.getcwd():
        settings.setdefault("cmake.source-dir", source)
    if (python := _safe_python()) != sys.executable:
        settings.setdefault("cmake.define.KAOKEN_PYTHON", python)
    if isinstance(directory := settings.get("build-dir"), str):
        settings["build-dir"] = _safe_build_directory(directory)
    if "jobs" in values:
        os.environ["CMAKE_BUILD_PARALLEL_LEVEL"] = values["jobs"]
    tempfile.tempdir = _temporary_directory()  # where scikit-build-core builds without a build-dir
    return settings


def _checked_settings(
    config_settings: Settings | None,
) -> tuple[dict[str, str], Settings]:
    own, passed = split_settings(config_settings)
    return check_settings(own), passed


def _model_requirements(values: Mapping[str, str]) -> list[str]:
    """The packages that only some models need: those of the hub, those without a tokenizer.json, and GGUF files."""
    model = values.get("model", "/")
    gguf = ["gguf>=0.17", "tokenizers"] if is_gguf(model) or split_file(model)[1] else []
    if not os.path.isabs(model):
        return ["huggingface_hub", *(gguf or ["tokenizers"])]
    if is_gguf(model) and not os.path.isdir(model):
        return gguf
    files = [os.path.lexists(os.path.join(model, name)) for name in ("vocab.json", "tokenizer.json")]
    return ["tokenizers"] if files == [True, False] else []


def get_requires_for_build_wheel(config_settings: Settings | None = None) -> list[str]:
    values, passed = _checked_settings(config_settings)
    return [*skbuild.get_requires_for_build_wheel(passed), *_model_requirements(values)]


def get_requires_for_build_editable(config_settings: Settings | None = None) -> list[str]:
    values, passed = _checked_settings(config_settings)
    return [*skbuild.get_requires_for_build_editable(passed), *_model_requirements(values)]


def get_requires_for_build_sdist(config_settings: Settings | None = None) -> list[str]:
    return skbuild.get_requires_for_build_sdist(split_settings(config_settings)[1])


def prepare_metadata_for_build_wheel(metadata_directory: str, config_settings: Settings | None = None) -> str:
    _, passed = _checked_settings(config_settings)
    return skbuild.prepare_metadata_for_build_wheel(metadata_directory, passed)


def prepare_metadata_for_build_editable(metadata_directory: str, config_settings: Settings | None = None) -> str:
    _, passed = _checked_settings(config_settings)
    return skbuild.prepare_metadata_for_build_editable(metadata_directory, passed)


def build_wheel(
    wheel_directory: str, config_settings: Settings | None = None, metadata_directory: str | None = None
) -> str:
    return skbuild.build_wheel(wheel_directory, _settings_for_cmake(config_settings), metadata_directory)


def build_editable(
    wheel_directory: str, config_settings: Settings | None = None, metadata_directory: str | None = None
) -> str:
    return skbuild.build_editable(wheel_directory, _settings_for_cmake(config_settings), metadata_directory)


def build_sdist(sdist_directory: str, config_settings: Settings | None = None) -> str:
    """The same sources for every model: the settings' names are checked, and no model is looked for."""
    return skbuild.build_sdist(sdist_directory, split_settings(config_settings)[1])
