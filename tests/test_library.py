"""Model libraries that cannot be loaded, and ones that change while they are."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest
from kaoken.codegen.seal import seal

import kaoken
from kaoken.library import default_library, describe

if TYPE_CHECKING:
    from kaoken import BakedGPT2

INCLUDE = Path(__file__).parent.parent / "runtime" / "include"

Compile = Callable[[str], Path]


@pytest.fixture
def compile_library(tmp_path: Path) -> Compile:
    """`compile_library(code)` is a shared library of C++ code; kaoken.h is included."""

    def compile_library(code: str) -> Path:
        source, library = tmp_path / "fake.cpp", tmp_path / "fake.so"
        includes = "#include <dlfcn.h>\n#include <string.h>\n"
        source.write_text(f'{includes}#include "kaoken/kaoken.h"\nextern "C" {{\n{code}\n}}\n')
        compiler = os.environ.get("CXX", "c++")
        subprocess.run(
            [*compiler.split(), "-shared", "-fPIC", f"-I{INCLUDE}", str(source), "-o", str(library)],
            check=True,
        )
        return library

    return compile_library


def refuse(path: Path, message: str) -> None:
    with pytest.raises(kaoken.LibraryError, match=message) as caught:
        kaoken.load(path)
    assert str(path) in str(caught.value)


def test_a_missing_file(tmp_path: Path) -> None:
    refuse(tmp_path / "no.so", "does not exist.*kaoken bake")


@pytest.mark.parametrize("path", ["gpt2", "openai-community/gpt2", Path("gpt2-xl")])
def test_a_hub_id_is_to_be_baked_first(path: str | Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(kaoken.LibraryError, match=rf"hub id, bake it first, as in kaoken.load\(kaoken.bake\('{path}'"):
        kaoken.load(path)
    with pytest.raises(kaoken.LibraryError, match=r"from it: make one with `kaoken bake"):
        kaoken.verify(path)


def test_a_directory(tmp_path: Path) -> None:
    refuse(tmp_path, "is a directory.*kaoken bake")


@pytest.mark.parametrize("content", [b"", b"text", b"\x7fELF\x02\x01" + b"\xff" * 100, bytes(100)])
def test_a_file_that_is_no_library(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "no.so").write_bytes(content)
    refuse(tmp_path / "no.so", "not a Kaoken model library|truncated")


@pytest.mark.parametrize("part", [0.1, 0.9, 0.999])
def test_a_truncated_library(part: float, tmp_path: Path) -> None:
    """Loading one unchecked would end the process with SIGBUS."""
    whole = default_library().read_bytes()
    (tmp_path / "part.so").write_bytes(whole[: int(len(whole) * part)])
    refuse(tmp_path / "part.so", "truncated")


def test_a_library_of_another_architecture(compile_library: Compile) -> None:
    path = compile_library("int answer(void) { return 42; }")
    library = bytearray(path.read_bytes())
    other = 62 if library[18] == 183 else 183
    library[18] = other
    path.write_bytes(library)
    refuse(path, f"is for {'x86_64' if other == 62 else 'aarch64'} and this machine is .*bake the checkpoint again")


def test_another_library(compile_library: Compile) -> None:
    refuse(compile_library("int answer(void) { return 42; }"), "no function kaoken_model.*kaoken bake")


def test_another_abi_version(compile_library: Compile) -> None:
    code = (
        "static kaoken_model_api api = {sizeof(kaoken_model_api), KAOKEN_ABI_VERSION + 1};\n"
        "const kaoken_model_api *kaoken_model(void) { return &api; }"
    )
    refuse(
        compile_library(code),
        "incompatible Kaoken .its ABI is 2, this one's is 1.: bake the checkpoint again",
    )


def test_an_older_smaller_table(compile_library: Compile) -> None:
    code = (
        "static kaoken_model_api api = {offsetof(kaoken_model_api, session_step) - 8, KAOKEN_ABI_VERSION};\n"
        "const kaoken_model_api *kaoken_model(void) { return &api; }"
    )
    refuse(compile_library(code), "incompatible Kaoken.*bake the checkpoint again")


def test_the_first_table_is_enough(compile_library: Compile, bundled: BakedGPT2) -> None:
    """That of a library which was baked before anything was appended to it."""
    code = f'''
        static kaoken_model_info info;
        static kaoken_model_api api;
        const kaoken_model_api *kaoken_model(void) {{
          void *library = dlopen("{default_library()}", RTLD_NOW | RTLD_LOCAL);
          const auto *whole = ((const kaoken_model_api *(*)(void))dlsym(library, "kaoken_model"))();
          info.size = offsetof(kaoken_model_info, n_layer) + sizeof info.n_layer;
          memcpy(&info.name, &whole->info->name, info.size - offsetof(kaoken_model_info, name));
          api.size = offsetof(kaoken_model_api, session_step);
          memcpy(&api.abi_version, &whole->abi_version, api.size - offsetof(kaoken_model_api, abi_version));
          api.info = &info;
          return &api;
        }}
    '''
    old = kaoken.load(compile_library(code))
    assert old.logits([[1, 2]]).tobytes() == bundled.logits([[1, 2]]).tobytes()
    assert old.generate([[1, 2]], max_new_tokens=4).tolist() == bundled.generate([[1, 2]], max_new_tokens=4).tolist()
    session = old.session(2)
    session.append([[1], [2]])
    assert session.lengths == (1, 1)
    for call in (
        lambda: old.generate([[1, 2], [3]]),
        lambda: old.logits([[1, 2], [3]]),
        lambda: session.append([[1], [2, 3]]),
        lambda: session.rewind(0, 1),
        lambda: session.fork(0, 1),
    ):
        with pytest.raises(kaoken.LibraryError, match="older Kaoken, which lacks sequences of different lengths: bake"):
            call()
    assert session.lengths == (1, 1)


def test_a_library_without_a_table(compile_library: Compile) -> None:
    refuse(compile_library("const kaoken_model_api *kaoken_model(void) { return 0; }"), "incompatible Kaoken")


def test_a_missing_default_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from kaoken import _core

    monkeypatch.setattr(_core, "__file__", str(tmp_path / "_core.so"))
    with pytest.raises(kaoken.LibraryError, match=r"no default model.*default\.so.*model=CHECKPOINT"):
        kaoken.BakedGPT2()


def change_a_byte(library: bytes) -> bytes:
    middle = len(library) // 2
    return library[:middle] + bytes([library[middle] ^ 1]) + library[middle + 1 :]


def sealed_text(_: bytes) -> bytes:
    with tempfile.NamedTemporaryFile() as file:
        seal(file.name)
        return file.read()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (change_a_byte, "was damaged or changed after its build: bake or copy it again"),
        (lambda library: library[:-1], "has no digest recorded"),
        (lambda library: library[:-1] + bytes([library[-1] ^ 1]), "was damaged"),
        (lambda library: library + b"x", "has no digest recorded"),
        (lambda library: b"text", "has no digest recorded"),
        (lambda library: library[:9999], "truncated"),
        (sealed_text, "fits the digest recorded in it, but is no model library"),
    ],
)
def test_verify_finds_damage(change: Callable[[bytes], bytes], message: str, tmp_path: Path) -> None:
    library = tmp_path / "model.so"
    shutil.copy(default_library(), library)
    kaoken.verify(library)
    library.write_bytes(change(library.read_bytes()))
    with pytest.raises(kaoken.LibraryError, match=message):
        kaoken.verify(library)


def test_what_was_installed_or_baked_can_be_verified(tiny_model: BakedGPT2) -> None:
    kaoken.verify()
    kaoken.verify(library_of(tiny_model))


def test_a_seal_takes_the_place_of_an_older_one(tmp_path: Path) -> None:
    library = tmp_path / "model.so"
    shutil.copy(default_library(), library)
    seal(library)
    assert library.read_bytes() == default_library().read_bytes()


@pytest.mark.parametrize("given", [3, b"x.so", ["x.so"]])
def test_a_library_is_named_by_a_path(given: Any) -> None:
    for call in (kaoken.load, kaoken.verify):
        with pytest.raises(kaoken.InputError, match=r"must be a path, a str or an os\.PathLike, not "):
            call(given)


@pytest.mark.parametrize("name", ["a\0b", "x" * 300])
def test_an_impossible_path(name: str, tmp_path: Path) -> None:
    with pytest.raises(kaoken.LibraryError, match=r"cannot be read .*(null byte|File name too long)") as caught:
        kaoken.load(tmp_path / name)
    assert str(caught.value).isprintable()


def test_bytes_that_are_no_utf8_are_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "\udcff.so").write_text("text")
    with pytest.raises(kaoken.LibraryError, match=r"\\xff.so is not a Kaoken model library"):
        kaoken.load(tmp_path / "\udcff.so")
    shutil.copy(default_library(), tmp_path / "\udcff.so")
    assert kaoken.load(tmp_path / "\udcff.so").config.vocab_size == 257
    monkeypatch.setenv("KAOKEN_ISA", "\udcff")
    with pytest.raises(kaoken.ISAError, match=r'KAOKEN_ISA is "\\xff"'):
        kaoken.BakedGPT2()
    monkeypatch.delenv("KAOKEN_ISA")
    monkeypatch.setenv("KAOKEN_THREADS", "\udcff")
    with pytest.raises(kaoken.InputError, match=r'KAOKEN_THREADS is "\\xff"'):
        kaoken.BakedGPT2()


def library_of(model: BakedGPT2) -> Path:
    return Path(str(model.__reduce__()[1][0]))


def test_a_library_renamed_over_another_is_seen(tiny_model: BakedGPT2, tmp_path: Path) -> None:
    path = tmp_path / "model.so"
    shutil.copy(default_library(), path)
    assert kaoken.load(path).config.vocab_size == 257
    shutil.copy(library_of(tiny_model), tmp_path / "new.so")
    os.replace(tmp_path / "new.so", path)
    assert kaoken.load(path).config.vocab_size == 61


def test_a_library_overwritten_in_place_is_refused(tiny_model: BakedGPT2, tmp_path: Path) -> None:
    path = tmp_path / "model.so"
    shutil.copy(library_of(tiny_model), path)
    kaoken.load(path)
    os.utime(path, ns=(1, 1))
    refuse(path, "was overwritten while this process has it loaded")


def test_paths_of_any_characters(tiny_model: BakedGPT2, tmp_path: Path) -> None:
    directory = tmp_path / "a b;c\"d'e$f é"
    directory.mkdir()
    shutil.copy(library_of(tiny_model), directory / "model.so")
    model = kaoken.load(directory / "model.so")
    assert model.generate([1, 2]).tolist() == tiny_model.generate([1, 2]).tolist()


def test_a_path_relative_to_the_working_directory(
    tiny_model: BakedGPT2, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(library_of(tiny_model), tmp_path / "model.so")
    monkeypatch.chdir(tmp_path)
    assert kaoken.load("model.so").config == tiny_model.config


def test_statistics_are_optional(tiny_model: BakedGPT2, tmp_path: Path) -> None:
    path = tmp_path / "model.so"
    shutil.copy(library_of(tiny_model), path)
    assert kaoken.load(path).info.statistics is None
    (tmp_path / "model.so.json").write_text("{")
    assert kaoken.load(path).info.statistics is None
    (tmp_path / "model.so.json").write_text("[" * 100_000)
    assert kaoken.load(path).info.statistics is None
    (tmp_path / "model.so.json").write_text('{"wall_seconds": 2.5}')
    assert kaoken.load(path).info.statistics == {"wall_seconds": 2.5}


def test_options_of_a_newer_kaoken_are_ignored(tiny_model: BakedGPT2) -> None:
    description = json.loads(tiny_model._library.description)
    description["generation_defaults"] = {"top_k": 3, "min_p": 0.1}
    description["ignored_generation_options"] = ["num_beams"]
    library = SimpleNamespace(description=json.dumps(description), isas="scalar", kaoken_version="9")
    session: Any = SimpleNamespace(isa="scalar", isa_reason="")
    _, info = describe(cast(Any, library), library_of(tiny_model), session)
    assert info.generation_defaults == {"top_k": 3}
    assert info.ignored_generation_options == ("num_beams", "min_p")
