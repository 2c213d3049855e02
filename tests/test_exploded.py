"""The exploded form: bit for bit what packed kernels compute, and no instruction for a weight that is zero."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
from kaoken.codegen.__main__ import main as codegen_main
from kaoken.codegen.exploded import EXPLODED_LIMIT, Strip, explode
from kaoken.codegen.isa import resolve, table
from numpy.typing import NDArray

import kaoken
from checkpoints import make_tensors
from configurations import CONFIGURATIONS, Configuration
from kaoken import bench
from native_build import call
from native_kernels import processor_features

GOLDEN = Path(__file__).parent / "golden_exploded"
ISAS = [isa for isa in resolve("portable", dtypes={"float32"}) if set(table()[isa].cpu) <= processor_features()]
PRUNED = "mlp.c_fc"
MULTIPLY_ADD = {"avx512": r"vfn?m(add|sub)\w+[sp]s", "avx2": r"vfn?m(add|sub)\w+[sp]s", "scalar": r"mul[sp]s"}


def prune(configuration: Configuration, checkpoint: Path) -> Path:
    """The configuration with scattered zeros, an input that no output reads and an output that reads nothing."""
    tensors = make_tensors(configuration.config)
    changes = {name: tensor.copy() for name, tensor in tensors.items() if name.endswith(f"{PRUNED}.weight")}
    for name, weight in changes.items():  # [inputs, outputs]
        weight[np.random.default_rng(len(name)).random(weight.shape) < 0.5] = 0
        weight[3] = 0
        weight[:, 2] = 0
    return configuration.write(checkpoint, changes)


def bits(library: Path, ids: NDArray[np.int64]) -> NDArray[np.uint32]:
    """The logits of a batch, and of each token after those before it, as they are in memory."""
    model = kaoken.load(library)
    session = model.session(ids.shape[0])
    steps = [session.append(ids[:, step : step + 1]) for step in range(4)]
    return np.concatenate([model.logits(ids).ravel(), *(step.ravel() for step in steps)]).view(np.uint32)


@pytest.mark.parametrize("isa", [*(pytest.param(isa, marks=pytest.mark.ci) for isa in ISAS[:-1]), ISAS[-1]])
@pytest.mark.parametrize(
    "name", ["plain", *(pytest.param(name, marks=pytest.mark.ci) for name in ("odd_width", "irregular", "heads_of_64"))]
)
def test_exploded_is_packed_bit_for_bit(name: str, isa: str, tmp_path: Path) -> None:
    configuration = CONFIGURATIONS[name]
    checkpoint = prune(configuration, tmp_path / "model")
    packed = kaoken.bake(checkpoint, isa=isa, out=tmp_path / "packed.so")
    exploded = kaoken.bake(checkpoint, isa=isa, kernels="exploded", out=tmp_path / "exploded.so")
    assert kaoken.load(packed).info.kernels == "packed"
    assert kaoken.load(exploded).info.kernels == "exploded"
    np.testing.assert_array_equal(bits(packed, configuration.ids()), bits(exploded, configuration.ids()))


@pytest.mark.ci
@pytest.mark.parametrize("isa", [isa for isa in ISAS if isa in MULTIPLY_ADD])
def test_zero_weights_leave_no_instruction(isa: str, tmp_path: Path) -> None:
    """Each function has a multiplication and a constant for each weight that is not zero, and no other."""
    configuration = CONFIGURATIONS["plain"]
    checkpoint = prune(configuration, tmp_path / "model")
    library = kaoken.bake(checkpoint, isa=isa, kernels="exploded", out=tmp_path / "exploded.so")
    tensors = kaoken_tensors(checkpoint)
    text = call("objdump", "-d", "-C", "--no-show-raw-insn", library)
    for layer in range(configuration.config["n_layer"]):
        # What the code should hold: LayerNorm's weight folded in, and no weight becomes zero by that.
        weights = tensors[f"h.{layer}.{PRUNED}.weight"].T
        for first in range(0, len(weights), 16):
            body = function(text, f"block_{layer:02}_up_strip_{first // 16}")
            expected = np.count_nonzero(weights[first : first + 16])
            assert 0 < expected < weights[first : first + 16].size
            assert count(body, rf"\t{MULTIPLY_ADD[isa]}\b") == expected
            assert count(body, r"\(%rip\)") == expected
            assert count(body, r"\tv?(fn?m|mul|add|sub)\w*") == expected * (2 if isa == "scalar" else 1)


@pytest.mark.ci
@pytest.mark.parametrize("isa", [isa for isa in ISAS if isa == "avx2"])
def test_shards_compile_under_a_low_cap(isa: str, tmp_path: Path) -> None:
    """A matrix of 16384 weights in lines, and a pruned one in single weights."""
    checkpoint = prune(CONFIGURATIONS["heads_of_64"], tmp_path / "model")
    out = tmp_path / "model.so"
    kaoken.bake(checkpoint, isa=isa, kernels="exploded", compile_memory="224M", out=out)
    statistics = json.loads((tmp_path / "model.so.json").read_text(encoding="utf-8"))
    assert statistics["peak_bytes"] < statistics["compile_memory_bytes"]


def kaoken_tensors(checkpoint: Path) -> dict[str, NDArray[np.floating]]:
    from kaoken.codegen.checkpoint import open_checkpoint
    from kaoken.codegen.families import read_weights

    _, weights = read_weights(open_checkpoint(checkpoint))
    return {name: weights.read(name) for name in weights.expected if name != "lm_head.weight"}


def function(text: str, name: str) -> str:
    """The instructions of one function in objdump's text."""
    match = re.search(rf"<[^\n]*::{name}\(.*?\n(?=\n|\Z)", text, re.DOTALL)
    assert match, name
    return match[0]


def count(text: str, pattern: str) -> int:
    return len(re.findall(pattern, text))


def strips_of(weights: NDArray[np.floating], strip_file_limit: int = 1 << 30) -> list[Strip]:
    files = explode("m", (), weights.astype(np.float32), strip_file_limit)
    return [strip for file in files for strip in file.strips]


def test_strips() -> None:
    """Panels whose lines are whole stand together, up to four; any other is written by itself, in single weights."""
    weights = np.ones((16 * 8, 5))
    weights[16 * 5, 2] = 0  # a single zero
    weights[16 * 6 : 16 * 7, 1] = 0  # a whole line
    strips = strips_of(weights)
    assert [(strip.first, strip.panels, strip.vector) for strip in strips] == [
        (0, 4, True),
        (4, 1, True),
        (5, 1, False),
        (6, 2, True),
    ]
    assert sum(strip.nonzeros for strip in strips) == np.count_nonzero(weights)
    assert [k for k, panel, _ in strips[3].lines() if panel == 0] == [0, 2, 3, 4]


def test_strips_hold_every_weight_in_ascending_k() -> None:
    rng = np.random.default_rng(1)
    weights = rng.normal(size=(48, 7)).astype(np.float32) * (rng.random((48, 7)) < 0.4)
    rebuilt = np.zeros_like(weights)
    for strip in strips_of(weights):
        for outputs, products in strip.chains():
            assert [k for k, _, _ in products] == sorted(k for k, _, _ in products)
            for k, output, weight in products:
                assert output in outputs
                rebuilt[strip.first * 16 + output, k] = weight
    np.testing.assert_array_equal(rebuilt, weights)


def test_shards_stay_under_their_limit() -> None:
    weights = np.ones((16 * 40, 64), np.float32)
    weights[::16, 0] = 0
    whole = explode("m", (), weights, 1 << 40)
    limit = 2 * max(strip.memory for strip in whole[0].strips)
    files = explode("m", (), weights, limit)
    assert len(whole) == 1
    assert len(files) == 20
    assert all(file.memory <= limit for file in files)


def test_the_golden_exploded_text() -> None:
    """The text of one strip of each kind."""
    weights = np.zeros((32, 2), np.float32)
    weights[:16] = np.arange(1, 33, dtype=np.float32).reshape(16, 2) / 8
    weights[17, 1], weights[30, 0] = -0.5, 3
    from kaoken.codegen.emit.units import strip_file_text

    (file,) = explode("block_00_up", ("h.0.mlp.c_fc.weight",), weights, 1 << 30)
    assert strip_file_text("toy", file) == (GOLDEN / "block_00_up_0.cpp.txt").read_text(encoding="utf-8")


@pytest.mark.ci
def test_the_fastest_form_in_earnest(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it is and what was said agree, and a second call neither builds nor measures."""
    checkpoint = CONFIGURATIONS["one_layer"].write(tmp_path / "model")
    monkeypatch.setenv("KAOKEN_CACHE", str(tmp_path / "cache"))
    path = kaoken.bake(checkpoint, kernels="fastest")
    kernels = kaoken.load(path).info.kernels
    pattern = rf"kaoken: exploded (\d+\.\d) us a token, packed (\d+\.\d): {kernels}\n"
    times = re.fullmatch(pattern, capfd.readouterr().err)
    assert times
    exploded, packed = float(times[1]), float(times[2])
    assert exploded <= packed if kernels == "exploded" else exploded >= packed > 0
    monkeypatch.setattr(subprocess, "Popen", None)
    monkeypatch.setattr(bench, "decode_seconds", None)
    assert kaoken.bake(checkpoint, kernels="fastest") == path
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("arguments", [("--dtype", "int8"), ("--kernels", "fast"), ("--kernels", "fastest")])
def test_what_cannot_be_exploded_is_refused(
    arguments: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = CONFIGURATIONS["plain"].write(tmp_path / "model")
    command = ["plan", "--checkpoint", str(checkpoint), "--kernels", "exploded", "--out", str(tmp_path / "out")]
    assert codegen_main([*command, *arguments]) == 1
    message = capsys.readouterr().err
    assert "InputError" in message
    assert f"at most {EXPLODED_LIMIT} weights" in message or "expected one of packed, exploded" in message


def test_matrices_over_the_limit_and_of_other_types_stay_packed(tmp_path: Path) -> None:
    """Of two matrices of [512, 128] and [128, 512] in each block, the second is pruned below the limit."""
    configuration = CONFIGURATIONS["heads_of_64"]
    pruned = {
        name: np.where(np.arange(tensor.size).reshape(tensor.shape) % 8 == 0, tensor, 0)
        for name, tensor in make_tensors(configuration.config).items()
        if name.endswith("mlp.c_proj.weight")
    }
    checkpoint = configuration.write(tmp_path / "model", pruned)
    out = tmp_path / "out"
    command = ["plan", "--checkpoint", str(checkpoint), "--kernels", "exploded", "--isa", "scalar", "--out", str(out)]
    assert codegen_main([*command, "--tensor-dtypes", "h.1.*=bfloat16"]) == 0
    planned = set(re.findall(r"block_\w+?_0\.cpp", (out / "plan.cmake").read_text()))
    assert planned == {"block_00_out_0.cpp", "block_00_down_0.cpp"}
    assert json.loads((out / "options.json").read_text())["kernels"] == "exploded"
