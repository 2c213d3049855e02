"""What CMake does with a plan: complete dependencies, a cap on memory, ISAs kept apart, reproducible libraries."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from kaoken.codegen.__main__ import main as codegen_main
from kaoken.codegen.isa import resolve

import kaoken
from checkpoints import GOLDEN_TOY, make_tensors, write_checkpoint
from configurations import CONFIGURATIONS
from kaoken import codegen
from native_build import SOURCE, call, configure, configure_native_tests, ninja
from oracle import open_oracle

ROOT = Path(str(codegen.__file__)).parent.parent
TOY = CONFIGURATIONS["plain"].config
IDS = [[3, 1, 4, 1, 5, 9, 2, 6]]

Build = Callable[[], set[str]]


class Project:
    """A copy of Kaoken's build files, which a test may change, with a checkpoint and a build of it."""

    def __init__(self, directory: Path, **values: object) -> None:
        self.root = directory / "kaoken"
        for name in ("codegen", "cmake", "runtime"):
            ignore = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, self.root / name, ignore=ignore)
        self.checkpoint = CONFIGURATIONS["plain"].write(directory / "checkpoint")
        self.out = directory / "build"
        self.library = self.out / "model.so"
        self.steps: set[str] = set()
        values = {"KAOKEN_MODEL": self.checkpoint, "KAOKEN_ISA": "scalar", **values}
        configure(self.root / "cmake" / "bake", self.out, **values)

    def build(self) -> set[str]:
        """The object files and the library that a build made anew."""
        before = self.times()
        printed = ninja(self.out)
        self.steps = {step for step in ("Re-running CMake", "generating model") if step in printed}
        after = self.times()
        return {name for name, time in after.items() if before.get(name) != time}

    def times(self) -> dict[str, int]:
        made = [*self.out.rglob("*.o"), *self.out.glob("model.so")]
        return {path.name.removesuffix(".o"): path.stat().st_mtime_ns for path in made}

    def logits(self, copy: Path) -> np.ndarray:
        """Of the library as it is now; loaded from a copy, for a loader keeps what it has loaded."""
        shutil.copy(self.library, copy)
        return kaoken.load(copy).logits(IDS)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    project = Project(tmp_path_factory.mktemp("rebuild"))
    project.build()
    return project


def touch(path: Path) -> None:
    os.utime(path, None)


def test_the_toy_runs(project: Project, tmp_path: Path) -> None:
    exact = open_oracle(project.checkpoint).logits(np.array(IDS))
    assert np.abs(project.logits(tmp_path / "toy.so") - exact).max() < 1e-4


@pytest.mark.ci
def test_the_golden_text_runs(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "toy", GOLDEN_TOY)
    library = kaoken.bake(checkpoint, isa="portable", out=tmp_path / "toy.so")
    ids = np.array([[20, 0, 3, 17, 16, 15, 1, 2]])
    assert np.abs(kaoken.load(library).logits(ids) - open_oracle(checkpoint).logits(ids)).max() < 1e-4


def test_an_unchanged_build_does_nothing(project: Project) -> None:
    project.build()
    assert project.build() == set()
    assert "no work to do" in ninja(project.out)


@pytest.mark.parametrize(
    "file",
    ["kaoken/codegen/templates/block.cpp", "kaoken/codegen/rewrites/pad_heads.py", "checkpoint/model.safetensors"],
)
def test_touching_an_input_runs_codegen_and_compiles_nothing(project: Project, file: str) -> None:
    project.build()
    touch(project.root.parent / file)
    assert project.build() == set()
    assert project.steps >= {"Re-running CMake", "generating model"}
    assert "no work to do" in ninja(project.out)


def test_a_changed_weight_rebuilds_its_blob_and_changes_the_logits(project: Project, tmp_path: Path) -> None:
    before = project.logits(tmp_path / "before.so")
    weight = make_tensors(TOY)["h.1.mlp.c_fc.weight"].copy()
    weight[0, 0] += 0.5
    CONFIGURATIONS["plain"].write(project.checkpoint, {"h.1.mlp.c_fc.weight": weight})
    assert project.build() == {"block_01_weights.cpp", "library.cpp", "model.so"}
    after = project.logits(tmp_path / "after.so")
    assert np.abs(after - before).max() > 1e-3
    exact = open_oracle(project.checkpoint).logits(np.array(IDS))
    assert np.abs(after - exact).max() < 1e-4


@pytest.mark.ci
def test_a_changed_template_rebuilds_the_code_and_no_weights(project: Project) -> None:
    project.build()
    template = project.root / "codegen" / "templates" / "block.cpp"
    template.write_text(template.read_text() + "\n// a comment at the end\n")
    rebuilt = project.build()
    assert "model.so" in rebuilt
    assert any(name.startswith("unity_group") for name in rebuilt)
    assert not any("weights" in name for name in rebuilt)


@pytest.mark.ci
def test_a_changed_kernel_rebuilds_the_code(project: Project) -> None:
    project.build()
    kernel = project.root / "runtime" / "kernels" / "tile.h"
    kernel.write_text(kernel.read_text() + "\n// a comment at the end\n")
    rebuilt = project.build()
    assert any(name.startswith("unity_group") for name in rebuilt)
    assert not any("weights" in name for name in rebuilt)


@pytest.mark.ci
def test_a_changed_config_is_planned_again(tmp_path: Path) -> None:
    project = Project(tmp_path)
    project.build()
    write_checkpoint(project.checkpoint, {**TOY, "n_layer": 3})
    assert "block_02_weights.cpp" in project.build()
    assert kaoken.load(project.library).config.n_layer == 3


@pytest.mark.ci
@pytest.mark.parametrize("layers", [2, 3])
def test_a_checkpoint_replaced_by_an_older_one_is_baked_anew(layers: int, tmp_path: Path) -> None:
    """As mv, rsync -a or tar x leave it: the same names, times before the build. With equal and with other shapes."""
    project = Project(tmp_path)
    project.build()
    before = project.times()
    shutil.rmtree(project.checkpoint)
    other = write_checkpoint(tmp_path / "other", {**TOY, "n_layer": layers}, seed=1)
    other.rename(project.checkpoint)
    for file in project.checkpoint.iterdir():
        os.utime(file, (1577836800, 1577836800))
    assert "model.so" in project.build()
    assert before.keys() <= project.times().keys()
    model = kaoken.load(project.library)
    weights = (project.checkpoint / "model.safetensors").read_bytes()
    assert model.info.weights_sha256 == hashlib.sha256(weights).hexdigest()
    exact = open_oracle(project.checkpoint).logits(np.array(IDS))
    assert np.abs(model.logits(IDS) - exact).max() < 1e-4
    assert "no work to do" in ninja(project.out)


def test_weights_changed_behind_their_time_and_size_are_baked_anew(project: Project, tmp_path: Path) -> None:
    project.build()
    file = project.checkpoint / "model.safetensors"
    before, status = project.logits(tmp_path / "before.so"), file.stat()
    content = bytearray(file.read_bytes())
    content[-4:] = np.float32(1.5).tobytes()
    file.write_bytes(content)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert "model.so" in project.build()
    assert np.abs(project.logits(tmp_path / "after.so") - before).max() > 0


@pytest.mark.ci
def test_a_file_that_appears_in_a_checkpoint_is_planned(tmp_path: Path) -> None:
    project = Project(tmp_path)
    project.build()
    (project.checkpoint / "generation_config.json").write_text('{"eos_token_id": 7}')
    assert project.build() == {"library.cpp", "model.so"}
    assert kaoken.load(project.library).config.eos_token_ids == (7,)


def statistics(project: Project) -> dict[str, object]:
    content: dict[str, object] = json.loads((project.out / "model.so.json").read_text())
    return content


@pytest.mark.ci
def test_a_low_cap_makes_more_groups_and_every_process_stays_under_it(tmp_path: Path) -> None:
    layers = {"KAOKEN_MODEL": write_checkpoint(tmp_path / "deep", {**TOY, "n_layer": 10})}
    roomy = Project(tmp_path / "roomy", **layers, KAOKEN_COMPILE_MEMORY="1G")
    tight = Project(tmp_path / "tight", **layers, KAOKEN_COMPILE_MEMORY="192M")
    for project in (roomy, tight):
        project.build()
        assert statistics(project)["peak_bytes"] < statistics(project)["compile_memory_bytes"]
    assert statistics(tight)["unity_groups"] > statistics(roomy)["unity_groups"]
    kinds = {process["what"] for process in statistics(tight)["processes"]}
    assert kinds == {"codegen", "compile", "link"}
    np.testing.assert_array_equal(roomy.logits(tmp_path / "a.so"), tight.logits(tmp_path / "b.so"))


@pytest.mark.ci
def test_large_matrices_stay_under_a_low_cap(tmp_path: Path) -> None:
    """One block of 50 million parameters, the largest matrix near the limit of a blob, in AVX2, the largest code."""
    config = {"n_embd": 2048, "n_inner": 8192, "n_head": 16, "n_layer": 1}
    checkpoint = write_sparse_checkpoint(tmp_path / "wide", config)
    project = Project(tmp_path, KAOKEN_MODEL=checkpoint, KAOKEN_ISA="portable", KAOKEN_COMPILE_MEMORY="192M")
    project.build()
    over = [each for each in statistics(project)["processes"] if each["peak_bytes"] > 192 << 20]
    assert over == []


@pytest.mark.ci
def test_libraries_are_reproducible(tmp_path: Path) -> None:
    """From two directories and with different numbers of jobs, the same bytes."""
    digests = set()
    for name, jobs in (("a", "1"), ("another place", "2")):
        project = Project(tmp_path / name, KAOKEN_JOBS=jobs, KAOKEN_MODEL_NAME="toy", KAOKEN_SOURCE="toy")
        project.build()
        digests.add(hashlib.sha256(project.library.read_bytes()).hexdigest())
    assert len(digests) == 1


@pytest.fixture(scope="module")
def portable(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """With every kind of matrix, so that it has code for every ISA."""
    project = Project(
        tmp_path_factory.mktemp("portable"),
        KAOKEN_ISA="portable",
        KAOKEN_MODEL_NAME="toy",
        KAOKEN_DTYPE="int4",
        KAOKEN_TENSOR_DTYPES="h.0.mlp.c_fc=bfloat16;h.0.mlp.c_proj=float32",
    )
    project.build()
    return project


@pytest.mark.ci
@pytest.mark.parametrize("isa", resolve("portable"))
def test_an_isa_leaves_no_weak_symbol_that_another_could_pick(portable: Project, isa: str) -> None:
    """The linker keeps one copy of a weak symbol; one compiled for AVX-512 must not serve older machines."""
    objects = list((portable.out / "CMakeFiles" / f"model_{isa}.dir").rglob("*.o"))
    assert objects
    for line in call("nm", *objects).splitlines():
        match = re.match(r"[0-9a-f ]{16} ([VWu]) (\S+)", line)
        assert not match or match[2].startswith(f"_ZN6kaoken{len(isa)}{isa}"), line


@pytest.mark.ci
def test_a_library_exports_its_entry_points_alone(portable: Project) -> None:
    symbols = {line.split()[-1] for line in call("nm", "-D", "--defined-only", portable.library).splitlines()}
    assert symbols == {"kaoken_model", "kaoken_model_toy"}


@pytest.mark.ci
def test_a_library_needs_no_python(portable: Project) -> None:
    needed = re.findall(r"NEEDED.*\[(.+)\]", call("readelf", "-d", portable.library))
    assert needed
    assert all(re.match(r"lib(stdc\+\+|m|gcc_s|c|pthread)\.so|ld-linux", name) for name in needed)


@pytest.mark.ci
@pytest.mark.skipif(resolve("portable")[-1] == "neon", reason="large sections are x86-64's")
def test_weights_may_pass_2_gb(portable: Project) -> None:
    """They lie in a large section and are reached through 64-bit pointers, so 32-bit displacements never span them."""
    (weights,) = portable.out.rglob("block_00_weights.cpp.o")
    assert re.search(r"\.lrodata\s.*\bWAl\b|\.lrodata\s.*\bAl\b", call("readelf", "-SW", weights))
    relocations = call("readelf", "-rW", weights)
    assert "R_X86_64_64" in relocations
    assert not re.search(r"R_X86_64_(PC32|32S?)\b.*lrodata", relocations)


@pytest.mark.ci
@pytest.mark.parametrize("name", ["a b;c'd", '"$HOME"#Ünï'])
def test_checkpoints_and_outputs_in_awkward_places(name: str, tmp_path: Path) -> None:
    checkpoint = CONFIGURATIONS["one_layer"].write(tmp_path / name / name)
    library = kaoken.bake(checkpoint, isa="scalar", out=tmp_path / name / f"{name}.so")
    ids = CONFIGURATIONS["one_layer"].ids()
    exact = open_oracle(checkpoint).logits(ids)
    assert np.abs(kaoken.load(library).logits(ids) - exact).max() < 1e-4


THEIR_MODELS = """
cmake_minimum_required(VERSION 3.24)
project(theirs LANGUAGES C)
find_package(Kaoken REQUIRED)
kaoken_add_model(plain STATIC CHECKPOINT plain ISA scalar)
kaoken_add_model(untied STATIC CHECKPOINT ./untied NAME other ISA scalar)
kaoken_add_model(shared CHECKPOINT plain NAME alone ISA scalar)
add_executable(two two.c)
target_link_libraries(two PRIVATE plain untied)
install(TARGETS plain untied shared EXPORT theirs INCLUDES DESTINATION include)
install(FILES "${KAOKEN_ROOT}/runtime/include/kaoken/kaoken.h" DESTINATION include/kaoken)
install(EXPORT theirs FILE theirs-config.cmake DESTINATION lib/cmake/theirs)
"""

THEIR_USERS = """
cmake_minimum_required(VERSION 3.24)
project(users LANGUAGES C)
find_package(theirs REQUIRED)
add_executable(two two.c)
target_link_libraries(two PRIVATE plain untied)
add_executable(one one.c)
target_link_libraries(one PRIVATE shared)
"""

ONE = """
#include <stdio.h>
#include "kaoken/kaoken.h"
int main(void) { return printf("%s", kaoken_model()->info->name) < 0; }
"""

TWO = """
#include <stdio.h>
#include "kaoken/kaoken.h"
KAOKEN_DECLARE_MODEL(plain);
KAOKEN_DECLARE_MODEL(other);
int main(void) {
  const kaoken_model_api *const apis[] = {kaoken_model_plain(), kaoken_model_other()};
  for (int i = 0; i < 2; ++i) printf("%s %d ", apis[i]->info->name, (int)apis[i]->info->vocab_size);
  return 0;
}
"""


@pytest.mark.ci
def test_another_project_links_and_installs_models(tmp_path: Path) -> None:
    """A project in C has two models in its program, and another project in C links what it has installed."""
    theirs, users, installed = tmp_path / "theirs", tmp_path / "users", tmp_path / "installed"
    for directory, lists in ((theirs, THEIR_MODELS), (users, THEIR_USERS)):
        directory.mkdir()
        for name, text in (("CMakeLists.txt", lists), ("one.c", ONE), ("two.c", TWO)):
            (directory / name).write_text(text, encoding="utf-8")
    for name in ("plain", "untied"):
        CONFIGURATIONS[name].write(theirs / name)
    configure(theirs, theirs / "build", Kaoken_DIR=ROOT / "cmake", CMAKE_INSTALL_PREFIX=installed)
    ninja(theirs / "build", "install")
    assert call(theirs / "build" / "two") == "plain 61 other 67 "
    configure(users, users / "build", theirs_DIR=installed / "lib" / "cmake" / "theirs")
    ninja(users / "build")
    assert call(users / "build" / "two") == "plain 61 other 67 "
    assert call(users / "build" / "one") == "alone"


def test_a_project_in_c_that_cmake_gives_no_cxx_is_told_what_to_write(tmp_path: Path) -> None:
    CONFIGURATIONS["one_layer"].write(tmp_path / "model")
    (tmp_path / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.24)\nproject(p LANGUAGES C)\n"
        "function(bake)\nfind_package(Kaoken REQUIRED)\nkaoken_add_model(m CHECKPOINT model)\nendfunction()\nbake()\n"
    )
    with pytest.raises(AssertionError, match=r"a model is C\+\+; write project\(\.\.\.\s+LANGUAGES\s+C\s+CXX\)"):
        configure(tmp_path, tmp_path / "build", Kaoken_DIR=ROOT / "cmake")


def test_kaoken_dir_works_where_a_toolchain_file_hides_packages(tmp_path: Path) -> None:
    checkpoint = CONFIGURATIONS["one_layer"].write(tmp_path / "model")
    toolchain = tmp_path / "toolchain.cmake"
    toolchain.write_text(
        f"set(CMAKE_SYSTEM_NAME Linux)\nset(CMAKE_FIND_ROOT_PATH {tmp_path})\n"
        "set(CMAKE_FIND_ROOT_PATH_MODE_PACKAGE ONLY)\n"
    )
    values = {"Kaoken_DIR": ROOT / "cmake", "CHECKPOINT": checkpoint}
    configure(SOURCE / "examples" / "c", tmp_path / "build", [f"--toolchain={toolchain}"], **values)
    assert (tmp_path / "build" / "story.kaoken" / "plan.cmake").is_file()


def test_cmake_shows_codegens_own_error(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "model")
    (checkpoint / "model.safetensors").unlink()
    with pytest.raises(AssertionError, match=r"model\.safetensors"):
        configure(ROOT / "cmake" / "bake", tmp_path / "build", KAOKEN_MODEL=checkpoint)


def test_gpt2_xl_is_planned_where_it_can_be_addressed_and_refused_elsewhere(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """1.5 billion parameters, 6.2 GB in float32: from headers over a sparse file, without a bake."""
    config = {"vocab_size": 50257, "n_positions": 1024, "n_embd": 1600, "n_layer": 48, "n_head": 25}
    checkpoint = write_sparse_checkpoint(tmp_path / "xl", config)
    command = ["plan", "--checkpoint", str(checkpoint), "--out", str(tmp_path / "out")]
    assert codegen_main([*command, "--machine", "x86_64"]) == 0
    plan = (tmp_path / "out" / "plan.cmake").read_text()
    assert plan.count("_weights.cpp") > 48
    assert codegen_main([*command, "--machine", "aarch64"]) == 1
    assert "smaller dtype" in capfd.readouterr().err


def write_sparse_checkpoint(directory: Path, config: dict[str, int]) -> Path:
    """A checkpoint of zeros that takes no room on the disk."""
    from checkpoints import raw_safetensors, tensor_shapes, write_json

    directory.mkdir()
    write_json(directory / "config.json", {**TOY, **config})
    header, end = {}, 0
    for name, shape in tensor_shapes({**TOY, **config}).items():
        begin, end = end, end + 4 * int(np.prod(shape))
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [begin, end]}
    start = raw_safetensors(header)
    with (directory / "model.safetensors").open("wb") as file:
        file.write(start)
        file.truncate(len(start) + end)
    return directory


def test_no_process_is_left_when_ninja_is_missing(tmp_path: Path) -> None:
    """Another generator has no job pools, so it is refused rather than left to fill the memory."""
    make = shutil.which("make")
    assert make, "this test needs make"
    checkpoint = CONFIGURATIONS["one_layer"].write(tmp_path / "model")
    from kaoken.tools import find_cmake

    command = [find_cmake((3, 24)), "-G", "Unix Makefiles", "-S", ROOT / "cmake" / "bake", "-B", tmp_path / "build"]
    ran = subprocess.run([*command, f"-DKAOKEN_MODEL={checkpoint}"], capture_output=True, text=True)
    assert ran.returncode != 0
    assert "-G Ninja" in ran.stderr


@pytest.mark.ci
def test_a_hub_model_is_baked_with_its_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything but the download, whose place a snapshot on the disk takes."""
    commit = "c0ffee" + "0" * 34
    snapshot = CONFIGURATIONS["one_layer"].write(tmp_path / "snapshots" / commit)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(snapshot))
    info = kaoken.load(kaoken.bake("someone/tiny", isa="scalar", out=tmp_path / "tiny.so")).info
    assert (info.source, info.revision) == ("someone/tiny", commit)


@pytest.mark.ci
def test_flags_of_the_user_change_no_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Link-time optimization would lose the blobs, fast maths the rounding that exp relies on.

    The C ABI needs exceptions, and a user's warnings are no errors in our code.
    """
    configuration = CONFIGURATIONS["one_layer"]
    checkpoint = configuration.write(tmp_path / "model")
    plain = kaoken.load(kaoken.bake(checkpoint, isa="scalar", out=tmp_path / "plain.so"))
    monkeypatch.setenv("CXXFLAGS", "-ffast-math -flto -fno-exceptions -fno-rtti -Werror -Wconversion")
    monkeypatch.setenv("LDFLAGS", "-flto")
    flagged = kaoken.bake(checkpoint, isa="scalar", out=tmp_path / "flagged.so")
    logits = kaoken.load(flagged).logits(configuration.ids())
    np.testing.assert_array_equal(plain.logits(configuration.ids()), logits)
    monkeypatch.setenv("KAOKEN_ISA", "avx3")
    with pytest.raises(kaoken.ISAError, match="avx3"):
        kaoken.load(flagged)


@pytest.mark.ci
def test_a_truncated_library_in_the_cache_is_baked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAOKEN_CACHE", str(tmp_path / "cache"))
    checkpoint = CONFIGURATIONS["one_layer"].write(tmp_path / "model")
    library = kaoken.bake(checkpoint, isa="scalar")
    size = library.stat().st_size
    os.truncate(library, 1000)
    assert kaoken.bake(checkpoint, isa="scalar") == library
    assert library.stat().st_size == size


def test_two_models_of_one_name_are_refused(tmp_path: Path) -> None:
    CONFIGURATIONS["one_layer"].write(tmp_path / "model")
    models = "".join(f"kaoken_add_model(m{i} STATIC NAME same CHECKPOINT model)\n" for i in range(2))
    (tmp_path / "CMakeLists.txt").write_text(
        f"cmake_minimum_required(VERSION 3.24)\nproject(p LANGUAGES CXX)\nfind_package(Kaoken REQUIRED)\n{models}"
    )
    with pytest.raises(AssertionError, match="another model is named same"):
        configure(tmp_path, tmp_path / "build", Kaoken_DIR=ROOT / "cmake")


def test_a_python_without_the_packages_is_named(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\nexec {sys.executable} -S -I -c 'import numpy'\n")
    python.chmod(0o755)
    checkpoint = CONFIGURATIONS["one_layer"].write(tmp_path / "model")
    with pytest.raises(
        AssertionError, match=r'lacks a package(?s:.)*requires = \["scikit-build-core", "kaoken\[bake\]"\]'
    ):
        configure(ROOT / "cmake" / "bake", tmp_path / "build", KAOKEN_MODEL=checkpoint, KAOKEN_PYTHON=python)


def test_a_bake_that_is_terminated_leaves_nothing(tmp_path: Path) -> None:
    checkpoint = CONFIGURATIONS["plain"].write(tmp_path / "model")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    command = [sys.executable, "-m", "kaoken", "bake", str(checkpoint), "-o", str(tmp_path / "x.so")]
    with subprocess.Popen(command, env={**os.environ, "TMPDIR": str(scratch)}) as baking:
        try:
            while not list(scratch.glob("*/build/model.kaoken/block_00.cpp")):
                assert baking.poll() is None
                time.sleep(0.01)
            baking.terminate()
            assert baking.wait(30) == 128 + signal.SIGTERM
        finally:
            baking.kill()
    assert list(scratch.iterdir()) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "scratch"]


@pytest.mark.parametrize("thread", [False, True])
def test_a_program_that_bakes_and_is_terminated_leaves_nothing(thread: bool, tmp_path: Path) -> None:
    checkpoint = CONFIGURATIONS["plain"].write(tmp_path / "model")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    program = (
        "import kaoken, sys, threading\n"
        "baking = threading.Thread(target=lambda: kaoken.bake(sys.argv[1], out=sys.argv[2]))\n"
        f"(baking.start if {thread} else baking.run)()"
    )
    command = [sys.executable, "-c", program, str(checkpoint), str(tmp_path / "x.so")]
    with subprocess.Popen(command, env={**os.environ, "TMPDIR": str(scratch)}) as baking:
        try:
            while not list(scratch.glob("*/build/model.kaoken/block_00.cpp")):
                assert baking.poll() is None
                time.sleep(0.01)
            baking.terminate()
            assert baking.wait(30) == -signal.SIGTERM
        finally:
            baking.kill()
    if thread:  # another process cleans up, as after SIGKILL
        wait_for_cleaning(scratch)
    assert_nothing_left(tmp_path)


def test_a_bake_of_both_forms_that_is_killed_leaves_nothing(tmp_path: Path) -> None:
    checkpoint = CONFIGURATIONS["one_layer"].write(tmp_path / "model")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    command = [sys.executable, "-m", "kaoken", "bake", str(checkpoint), "--kernels", "fastest", "-o"]
    with subprocess.Popen([*command, str(tmp_path / "x.so")], env={**os.environ, "TMPDIR": str(scratch)}) as baking:
        try:
            while not list(scratch.glob("*/exploded/build/model.kaoken/block_00.cpp")):
                assert baking.poll() is None
                time.sleep(0.01)
        finally:
            baking.kill()
    wait_for_cleaning(scratch)
    assert_nothing_left(tmp_path)


@pytest.mark.parametrize("left", ["pass", "raise OSError", "sys.exit(3)"])
def test_a_signal_whose_exception_is_lost_ends_the_program(left: str) -> None:
    program = (
        "import signal, sys\n"
        "from kaoken.building import unwound\n"
        "class Swallows:\n"
        "    def __del__(self):\n"
        "        signal.raise_signal(signal.SIGTERM)\n"
        "with unwound():\n"
        "    Swallows()\n"
        "    print('went on', flush=True)\n"
        f"    {left}\n"
        "print('was not ended')"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=60, check=False)
    assert (run.returncode, run.stdout) == (-signal.SIGTERM, b"went on\n")


def wait_for_cleaning(scratch: Path) -> None:
    """Until the process that cleans up behind a killed one is done, at most half a minute."""
    end = time.monotonic() + 30
    while (list(scratch.iterdir()) or processes_of(scratch)) and time.monotonic() < end:
        time.sleep(0.01)


def assert_nothing_left(directory: Path) -> None:
    """Of a bake of `model` that worked in `scratch`."""
    assert list((directory / "scratch").iterdir()) == []
    assert processes_of(directory / "scratch") == []
    assert sorted(path.name for path in directory.iterdir()) == ["model", "scratch"]


def processes_of(directory: Path) -> list[str]:
    """The command lines that name a directory, of processes that run."""
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # gone meanwhile
            lines.append(path.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
    return [line for line in lines if str(directory) in line]


def test_a_daemon_thread_may_generate_while_the_interpreter_ends() -> None:
    program = (
        "import kaoken, threading, time; model = kaoken.BakedGPT2()\n"
        "work = lambda: [model.generate([1], max_new_tokens=200) for _ in range(1000)]\n"
        "threading.Thread(target=work, daemon=True).start(); time.sleep(0.3)"
    )
    for _ in range(3):
        ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
        assert (ran.returncode, ran.stderr) == (0, "")


def test_every_file_of_ours_is_compiled_with_warnings(tmp_path: Path) -> None:
    """And, where KAOKEN_WERROR is on, as in continuous integration, with warnings as errors."""
    configure_native_tests(tmp_path, KAOKEN_WERROR="ON", KAOKEN_TEST_ISAS="scalar", CMAKE_EXPORT_COMPILE_COMMANDS="ON")
    commands = json.loads((tmp_path / "compile_commands.json").read_text(encoding="utf-8"))
    assert {"kernels.cpp", "runtime_test.cpp", "head_weights.cpp"} <= {Path(each["file"]).name for each in commands}
    for each in commands:
        assert {"-Wall", "-Wextra", "-Werror"} <= set(each["command"].split()), each["file"]
