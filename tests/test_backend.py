"""The build backend: settings on their way to CMake, mistakes refused by name, models and awkward paths found."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import pytest

from configurations import CONFIGURATIONS
from conftest import Checkpoints

ROOT = Path(__file__).parent.parent
AWKWARD = "we ird;dir'\"$(x)"
WITHOUT_CMAKE = (
    "get_requires_for_build_wheel",
    "get_requires_for_build_editable",
    "prepare_metadata_for_build_wheel",
    "prepare_metadata_for_build_editable",
)
WITH_CMAKE = ("build_wheel", "build_editable")
FOR_SDIST = ("get_requires_for_build_sdist", "build_sdist")


@pytest.fixture(scope="module")
def loaded() -> Any:
    """backend/kaoken_backend.py, loaded as a frontend does: with the source root on the path."""
    spec = importlib.util.spec_from_file_location("kaoken_backend", ROOT / "backend" / "kaoken_backend.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT))
        spec.loader.exec_module(module)
    return module


class Hooks:
    """The backend with scikit-build-core taken away: a call returns the settings that it would have got."""

    def __init__(self, backend: Any, patch: pytest.MonkeyPatch) -> None:
        self.backend = backend
        self.requires: list[str] = []
        self.received: dict[str, Any] = {}
        for name in (*WITHOUT_CMAKE, *WITH_CMAKE, *FOR_SDIST):
            patch.setattr(backend.skbuild, name, self._take(requires=name.startswith("get_requires")))

    def _take(self, requires: bool) -> Any:
        def take(*arguments: Any) -> Any:
            self.received = next(each for each in arguments if isinstance(each, dict))
            return ["cmake"] if requires else "a name"

        return take

    def __call__(self, hook: str, **settings: Any) -> dict[str, Any]:
        settings = {name.replace("_", "-"): value for name, value in settings.items()}
        return self.call(hook, settings)

    def call(self, hook: str, settings: dict[str, Any]) -> dict[str, Any]:
        arguments = [settings] if hook.startswith("get_requires") else ["a directory", settings]
        answer = getattr(self.backend, hook)(*arguments)
        self.requires = answer if isinstance(answer, list) else []
        return self.received


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The source root, which is the working directory of every hook."""
    directory = tmp_path / "source"
    directory.mkdir()
    monkeypatch.chdir(directory)
    return directory


@pytest.fixture
def hooks(loaded: Any, source: Path, monkeypatch: pytest.MonkeyPatch) -> Hooks:
    monkeypatch.setattr(tempfile, "tempdir", str(source.parent))
    monkeypatch.setenv("CMAKE_BUILD_PARALLEL_LEVEL", "")
    monkeypatch.setattr(sys, "executable", "/usr/bin/python3")
    return Hooks(loaded, monkeypatch)


# ---- Settings


def test_settings_become_cmake_cache_entries(hooks: Hooks) -> None:
    received = hooks(
        "build_wheel",
        model="openai-community/gpt2",
        revision="v1.0",
        adapter=".",
        dtype="float32",
        context="700",
        kernels="exploded",
        isa="native",
        jobs="3",
        compile_memory="512M",
    )
    assert received == {
        "cmake.define.KAOKEN_MODEL": "openai-community/gpt2",
        "cmake.define.KAOKEN_REVISION": "v1.0",
        "cmake.define.KAOKEN_ADAPTER": os.getcwd(),
        "cmake.define.KAOKEN_DTYPE": "float32",
        "cmake.define.KAOKEN_CONTEXT": "700",
        "cmake.define.KAOKEN_KERNELS": "exploded",
        "cmake.define.KAOKEN_ISA": "native",
        "cmake.define.KAOKEN_JOBS": "3",
        "cmake.define.KAOKEN_COMPILE_MEMORY": "512M",
    }
    assert os.environ["CMAKE_BUILD_PARALLEL_LEVEL"] == "3"


@pytest.mark.parametrize("hook", WITH_CMAKE)
def test_no_settings_are_no_settings(hooks: Hooks, hook: str) -> None:
    assert hooks(hook) == {}
    assert getattr(hooks.backend, hook)("a directory") == "a name"
    assert os.environ["CMAKE_BUILD_PARALLEL_LEVEL"] == ""


@pytest.mark.parametrize("hook", [*WITHOUT_CMAKE, *FOR_SDIST])
def test_hooks_without_cmake_get_none_of_them(hooks: Hooks, hook: str) -> None:
    assert hooks(hook, model="gpt2", jobs="2", build_dir="build") == {"build-dir": "build"}


@pytest.mark.parametrize("hook", [*WITHOUT_CMAKE, *WITH_CMAKE, *FOR_SDIST])
def test_settings_of_scikit_build_core_pass_through(hooks: Hooks, hook: str) -> None:
    settings = {
        "cmake.define.KAOKEN_WERROR": "ON",
        "skbuild.logging.level": "INFO",
        "wheel.exclude": ["a", "b"],
        "strict-config": "true",
    }
    assert hooks.call(hook, dict(settings)) == settings


def test_isa_lists_come_with_commas(hooks: Hooks) -> None:
    assert hooks("build_wheel", isa="scalar ; scalar") == {"cmake.define.KAOKEN_ISA": "scalar,scalar"}


@pytest.mark.parametrize(
    ("setting", "near"),
    [
        ("modle", "model"),
        ("models", "model"),
        ("compile_memory", "compile-memory"),
        ("MODEL", "model"),
        ("job", "jobs"),
        ("dtypes", "dtype"),
        ("build_dir", "build-dir"),
    ],
)
@pytest.mark.parametrize("hook", [*WITHOUT_CMAKE, *WITH_CMAKE, *FOR_SDIST])
def test_unknown_settings_are_refused_with_the_nearest(hooks: Hooks, hook: str, setting: str, near: str) -> None:
    with pytest.raises(SystemExit, match=f"unknown build setting '{setting}'; did you mean '{near}'"):
        hooks.call(hook, {setting: "x"})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": ""}, "model='' is empty"),
        ({"model": "  "}, "model='  ' is empty"),
        ({"model": "a\nb"}, "unprintable"),
        ({"model": ["gpt2", "distilgpt2"]}, "model is given more than once"),
        ({"model": "a;b"}, "neither a directory .* nor a hub id"),
        ({"model": "a/b/c"}, "neither a directory .* nor a hub id"),
        ({"model": "gpt2", "revision": "a b"}, "revision=a b is not a revision"),
        ({"model": "gpt2", "revision": "-x"}, "revision=-x is not a revision"),
        ({"revision": "main"}, "revision is of a model on the hub"),
        ({"adapter": "."}, "adapter changes a model; give model="),
        ({"recipe": "my.recipe"}, "recipe is of a model; give model="),
        ({"model": "gpt2", "recipe": "."}, "recipe=. is no file: .*`kaoken calibrate`"),
        ({"model": "gpt2", "adapter": "no/where"}, "adapter=no/where is not a directory: .*adapter_config.json"),
        (
            {"dtype": "float16"},
            "dtype=float16: .* expected one of float32, bfloat16, int8, int8-g32, int4, int4-all, int4-min",
        ),
        ({"tensor-dtypes": "lm_head"}, "tensor-dtypes=lm_head: .*write PATTERN=TYPE"),
        ({"context": "4k"}, "context=4k is not a number of positions; expected a whole number from 1"),
        ({"cache-dtype": "int4"}, "cache-dtype=int4: .* expected one of float32, bfloat16, int8"),
        ({"kernels": "fast"}, "kernels=fast: .* expected one of packed, exploded"),
        ({"kernels": "fastest"}, "kernels=fastest: .* expected one of packed, exploded"),
        ({"isa": "avx3"}, "isa=avx3: unknown isa 'avx3'"),
        ({"isa": ","}, "isa=,: isa is empty"),
        ({"jobs": "0"}, "jobs=0 is not a number of processes"),
        ({"jobs": "-1"}, "jobs=-1 is not"),
        ({"jobs": "2.5"}, "jobs=2.5 is not"),
        ({"jobs": "many"}, "jobs=many is not"),
        ({"jobs": "\N{SUPERSCRIPT TWO}"}, "is not a number of processes"),
        ({"compile-memory": "lots"}, "compile-memory=lots: .*is not a size"),
        ({"compile-memory": "1K"}, "compile-memory=1K: .* is less than a compiler needs"),
        ({"cmake.define.KAOKEN_ISA": "x"}, "cmake.define.KAOKEN_ISA would go unchecked; use isa="),
    ],
)
@pytest.mark.parametrize("hook", ["get_requires_for_build_wheel", "build_editable"])
def test_bad_values_are_refused(hooks: Hooks, hook: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SystemExit, match=message) as caught:
        hooks.call(hook, settings)
    assert str(caught.value).startswith("kaoken: error: ")


# ---- Models


@pytest.mark.parametrize("model", ["./my-checkpoint", "my-checkpoint", "../source/my-checkpoint/"])
def test_relative_models_start_at_the_source_root(
    hooks: Hooks, source: Path, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (source / "my-checkpoint").mkdir()
    received = hooks("build_wheel", model=model)
    assert received == {"cmake.define.KAOKEN_MODEL": str(source / "my-checkpoint")}
    assert f"the model is {source / 'my-checkpoint'}\n" in capsys.readouterr().out


def test_a_model_in_the_home_directory(hooks: Hooks, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(source))
    (source / "mine").mkdir()
    assert hooks("build_wheel", model="~/mine") == {"cmake.define.KAOKEN_MODEL": str(source / "mine")}


@pytest.mark.parametrize("model", ["./missing", "../missing", "/missing", "~missing/x", "~/missing"])
@pytest.mark.parametrize("hook", [*WITHOUT_CMAKE, *WITH_CMAKE])
def test_missing_directories_are_named_in_full(
    hooks: Hooks, source: Path, hook: str, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(source / "home"))
    path = os.path.normpath(source / os.path.expanduser(model))
    with pytest.raises(SystemExit, match="is not a directory") as caught:
        hooks(hook, model=model)
    assert f": {path};" in str(caught.value)
    assert f"the source root, which is {source} " in str(caught.value)


def test_a_gguf_file_is_a_model(hooks: Hooks, source: Path) -> None:
    (source / "smol.gguf").touch()
    for model in ("smol.gguf", "./smol.gguf"):
        assert hooks("build_wheel", model=model) == {"cmake.define.KAOKEN_MODEL": str(source / "smol.gguf")}
    assert hooks("build_wheel", model="org/name:Q4_K_M") == {"cmake.define.KAOKEN_MODEL": "org/name:Q4_K_M"}
    with pytest.raises(SystemExit, match=r"model=other\.gguf is not a directory: .*, or a \.gguf file"):
        hooks("build_wheel", model="other.gguf")


def test_a_file_is_no_model(hooks: Hooks, source: Path) -> None:
    (source / "model.safetensors").touch()
    with pytest.raises(SystemExit, match=r"model=model\.safetensors is not a directory"):
        hooks("build_wheel", model="model.safetensors")


@pytest.mark.parametrize("hook", FOR_SDIST)
def test_an_sdist_needs_no_model(hooks: Hooks, hook: str) -> None:
    """`python -m build -C model=...` passes the settings to both; only the wheel has a model in it."""
    assert hooks(hook, model="./missing") == {}


@pytest.mark.parametrize("hook", ["get_requires_for_build_wheel", "get_requires_for_build_editable"])
def test_packages_are_required_for_the_models_that_need_them(hooks: Hooks, source: Path, hook: str) -> None:
    hooks(hook)
    assert hooks.requires == ["cmake"]
    hooks(hook, model="gpt2")
    assert hooks.requires == ["cmake", "huggingface_hub", "tokenizers"]
    hooks(hook, model="org/name:Q4_K_M")
    assert hooks.requires == ["cmake", "huggingface_hub", "gguf>=0.17", "tokenizers"]
    (source / "smol.gguf").touch()
    hooks(hook, model="smol.gguf")
    assert hooks.requires == ["cmake", "gguf>=0.17", "tokenizers"]
    (source / "gpt2").mkdir()
    hooks(hook, model="gpt2")
    assert hooks.requires == ["cmake"]
    (source / "gpt2" / "vocab.json").touch()
    hooks(hook, model="gpt2")
    assert hooks.requires == ["cmake", "tokenizers"]
    (source / "gpt2" / "tokenizer.json").touch()
    hooks(hook, model="gpt2")
    assert hooks.requires == ["cmake"]


# ---- Paths that CMake cannot take


def test_awkward_paths_become_links(
    hooks: Hooks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source, model, environment = (tmp_path / AWKWARD / name for name in ("the;source", "model", "venv"))
    for directory in (source, model, environment):
        directory.mkdir(parents=True)
    monkeypatch.chdir(source)
    monkeypatch.setattr(sys, "executable", str(environment / "bin" / "python"))
    received = hooks("build_wheel", model="../model", build_dir="bu;ild/{wheel_tag}")
    assert received == hooks("build_wheel", model="../model", build_dir="bu;ild/{wheel_tag}")
    leads_to = {
        "cmake.define.KAOKEN_MODEL": model,
        "cmake.define.KAOKEN_PYTHON": environment / "bin" / "python",
        "cmake.source-dir": source,
        "build-dir": source / "bu;ild" / "{wheel_tag}",
    }
    assert {name: Path(value).resolve() for name, value in received.items()} == leads_to
    assert not set(";'\"$()") & set("".join(received.values()))
    assert Path(received["cmake.define.KAOKEN_MODEL"]).name == "model"
    assert f"CMake sees {source} as {received['cmake.source-dir']}\n" in capsys.readouterr().out


def test_spaces_need_no_links(hooks: Hooks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "my sources"
    source.mkdir()
    monkeypatch.chdir(source)
    assert hooks("build_wheel", build_dir="a build") == {"build-dir": str(source / "a build")}


def test_links_of_others_are_not_followed(hooks: Hooks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / f"kaoken-{os.getuid()}").symlink_to(tmp_path / "theirs")
    (tmp_path / "a;b").mkdir()
    monkeypatch.chdir(tmp_path / "a;b")
    with pytest.raises(SystemExit, match="is not a directory that only this user can write"):
        hooks("build_wheel")


def test_an_awkward_temporary_directory_is_not_built_in(
    hooks: Hooks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a;b").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "a;b"))
    hooks("build_wheel")
    assert tempfile.gettempdir() in ("/tmp", "/var/tmp")


def test_packages_in_an_awkward_path_are_refused(hooks: Hooks, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hooks.backend.skbuild, "__file__", "/a;b/site-packages/scikit_build_core/build.py")
    with pytest.raises(SystemExit, match="the path of the build's packages, /a;b/"):
        hooks("build_wheel")


# ---- The real thing


@pytest.mark.ci
def test_a_wheel_from_an_awkward_path(tmp_path: Path, checkpoints: Checkpoints) -> None:
    """Source root, model and build directory with spaces, quotes and semicolons, from the hook to logits."""
    import kaoken

    source = tmp_path / AWKWARD / "the source;s"
    source.mkdir(parents=True)
    for name in ("backend", "bindings", "cmake", "codegen", "python", "runtime"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("CMakeLists.txt", "LICENSE", "README.md", "pyproject.toml"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(checkpoints("plain"), source.parent / "my 'model;")
    settings = {
        "model": "../my 'model;",
        "isa": "scalar",
        "jobs": "2",
        "compile-memory": "512M",
        "build-dir": "bu;ild",
    }
    build = "import sys; sys.path[:0] = ['backend', '.']; import kaoken_backend as backend; "
    build += f"backend.build_wheel({str(tmp_path)!r}, {settings!r})"
    environment = {**os.environ, "TMPDIR": str(tmp_path)}  # and the links in it
    built = subprocess.run([sys.executable, "-c", build], cwd=source, env=environment, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    zipfile.ZipFile(next(tmp_path.glob("kaoken-*.whl"))).extractall(tmp_path / "wheel")
    package = tmp_path / "wheel" / "kaoken"
    assert (package / "codegen" / "templates" / "block.cpp").exists()
    assert (package / "runtime" / "include" / "kaoken" / "kaoken.h").exists()
    assert (package / "cmake" / "Kaoken.cmake").exists()
    # Not the statistics of this one build, with which no two wheels would be the same.
    assert [path.name for path in (package / "models").iterdir()] == ["default.so"]
    model = kaoken.load(package / "models" / "default.so")
    assert model.logits([[1, 2]]).shape == (1, 2, CONFIGURATIONS["plain"].config["vocab_size"])


def test_the_sdist_has_what_is_needed_and_no_more(tmp_path: Path) -> None:
    build = f"import kaoken_backend; kaoken_backend.build_sdist({str(tmp_path)!r})"
    environment = {**os.environ, "PYTHONPATH": f"backend{os.pathsep}."}
    subprocess.run([sys.executable, "-c", build], cwd=ROOT, env=environment, check=True)
    (sdist,) = tmp_path.glob("kaoken-*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert names >= {"README.md", "CMakeLists.txt", "examples/c/story.c", "benchmarks/bars.py", "tests/conftest.py"}
    assert [name for name in names if name.startswith((".ci", ".github", "benchmarks/results"))] == []


def test_an_editable_install_opens_the_python_directory_alone(tmp_path: Path) -> None:
    """Not the checkout's parent, from which a neighbour of the same name as some package would be imported."""
    for name in ("pyproject.toml", "LICENSE", "README.md"):
        shutil.copy(ROOT / name, tmp_path)
    for name in ("backend", "cmake", "codegen", "python", "runtime"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "CMakeLists.txt").write_text("cmake_minimum_required(VERSION 3.24)\nproject(p LANGUAGES NONE)\n")
    build = "import kaoken_backend; kaoken_backend.build_editable('out')"
    environment = {**os.environ, "PYTHONPATH": f"backend{os.pathsep}."}
    subprocess.run([sys.executable, "-c", build], cwd=tmp_path, env=environment, check=True)
    (wheel,) = (tmp_path / "out").glob("kaoken-*.whl")
    paths = zipfile.ZipFile(wheel).read("_editable_skbc_kaoken.pth").decode().splitlines()
    assert {path for path in paths if not path.startswith("import ")} == {str((tmp_path / "python").resolve())}


@pytest.mark.ci
def test_a_project_with_kaoken_in_its_build_requirements(tmp_path: Path, checkpoints: Checkpoints) -> None:
    import kaoken

    source = tmp_path / "theirs"
    shutil.copytree(checkpoints("one_layer"), source / "model")
    (source / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["scikit-build-core", "kaoken[bake]"]\nbuild-backend = "scikit_build_core.build"\n'
        '[project]\nname = "theirs"\nversion = "1"\n'
    )
    (source / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.24)\nproject(theirs LANGUAGES CXX)\nfind_package(Kaoken REQUIRED)\n"
        "kaoken_add_model(story CHECKPOINT model ISA scalar)\ninstall(TARGETS story LIBRARY DESTINATION theirs)\n"
    )
    options = ["--no-deps", "--no-index", "--no-build-isolation", "--check-build-dependencies"]
    command = [sys.executable, "-m", "pip", "wheel", *options, "-w", str(tmp_path), str(source)]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    zipfile.ZipFile(next(tmp_path.glob("theirs-*.whl"))).extractall(tmp_path / "wheel")
    assert kaoken.load(tmp_path / "wheel" / "theirs" / "libstory.so").info.name == "story"
