"""Recipes: factors that change no output, what calibration chooses, and files that are none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kaoken.codegen.calibration import choose_factors, in_memory, pass_block
from kaoken.codegen.checkpoint import open_checkpoint
from kaoken.codegen.dtypes import make_types
from kaoken.codegen.errors import CheckpointError
from kaoken.codegen.evaluate import embed, evaluate, norm, run_stack
from kaoken.codegen.families import read_graph
from kaoken.codegen.graph import Graph, Linear, Tensor
from kaoken.codegen.layout import round_inputs, round_weights
from kaoken.codegen.recipe import Origin, read_recipe, write_recipe
from kaoken.codegen.rewrites import run
from kaoken.codegen.smooth import named_stacks, named_sublayers, own_sublayers, sites_of, smooth
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers

import kaoken
from decoders import FIRST, config_of, ids_of, write
from kaoken.cli import main
from oracles import bert, llama
from reference import relative_error

ORIGIN = Origin("smooth", "int8", "a" * 64, "b" * 64, 2, 16)


def site_widths(graph: Graph) -> dict[str, int]:
    return {
        site.name: site.width
        for stack_name, stack in named_stacks(graph)
        for name, sublayer in named_sublayers(stack_name, stack)
        if id(sublayer) in own_sublayers(stack)
        for site in sites_of(sublayer, name)
    }


def random_factors(graph: Graph) -> dict[str, NDArray[np.float32]]:
    random = np.random.default_rng(0)
    return {name: np.exp(random.uniform(-3, 3, width)).astype(np.float32) for name, width in site_widths(graph).items()}


@pytest.mark.parametrize("name", [*FIRST, "gpt_neox_in_sequence", "opt_post_norms"])
def test_factors_change_nothing(name: str, tmp_path: Path) -> None:
    graph, ids = read_graph(open_checkpoint(write(tmp_path, config_of(name)))), ids_of(config_of(name))[0, :40]
    factors = random_factors(graph)
    assert factors
    smoothed = smooth(graph, factors)
    expected = evaluate(graph, ids)
    np.testing.assert_allclose(evaluate(smoothed, ids), expected, rtol=0, atol=1e-9)
    np.testing.assert_allclose(evaluate(run(smoothed, make_types("int8")), ids), expected, rtol=0, atol=1e-9)


def test_where_factors_are_taken_in(tmp_path: Path) -> None:
    def kinds(config: str) -> set[str]:
        graph = read_graph(open_checkpoint(write(tmp_path / config, config_of(config))))
        return {name.rpartition(".")[2] for name in site_widths(graph)}

    assert kinds("mistral") == {"norm", "inner"}  # gated
    assert kinds("opt") == {"norm", "inner"}  # relu
    assert kinds("gpt_neox") == {"norm"}
    assert kinds("olmo2") == {"inner"}  # whose norms stand behind
    post = read_graph(open_checkpoint(bert.write(tmp_path / "bert", bert.TINY)))
    assert site_widths(post) == {}


def linear(weight: NDArray[Any]) -> Linear:
    tensor = Tensor(weight.shape, ("w.weight",), lambda start, stop: weight[start:stop])
    return Linear(tensor, None)


@pytest.mark.parametrize("dtype", ["int8", "int8-g32", "int4", "int4-min"])
def test_outliers_are_moved_into_weights(dtype: str) -> None:
    random = np.random.default_rng(1)
    inputs = random.standard_normal((300, 96)).astype(np.float32)
    inputs[:, [5, 40]] *= 200
    weight = random.standard_normal((64, 96)).astype(np.float32)
    factors = choose_factors(inputs, [(linear(weight), dtype)])
    assert factors is not None
    assert (factors[5], factors[40]) == pytest.approx((factors[5], factors[5]), rel=0.5)
    assert factors[5] > 5 * np.median(factors)

    def error(by: Any) -> float:
        made = round_inputs(inputs / by, dtype) @ round_weights(weight * by, dtype).T
        return float(((made - inputs @ weight.T) ** 2).sum())

    assert error(factors) < 0.5 * error(np.ones(96, np.float32))


def test_channels_that_are_zero_have_no_factor_of_their_own() -> None:
    random = np.random.default_rng(1)
    inputs, weight = random.standard_normal((50, 64)).astype(np.float32), np.ones((16, 64), np.float32)
    inputs[:, 3], inputs[:, 7], weight[:, 9] = 0, 300, 0
    factors = choose_factors(inputs, [(linear(weight), "int8")])
    assert factors is not None
    assert factors[3] == factors[9] == 1
    assert np.isfinite(factors).all()
    assert choose_factors(np.zeros_like(inputs), [(linear(weight), "int8")]) is None


@pytest.mark.parametrize("dtype", ["int8", "int8-g32", "int4", "int4-min"])
def test_rounded_weights_are_near_and_stay(dtype: str) -> None:
    """Half a step away at most, or a whole one where int4 has -8 and no 8."""
    weight = np.random.default_rng(2).standard_normal((16, 50)).astype(np.float32)
    rounded = round_weights(weight, dtype)
    assert rounded.shape == weight.shape
    steps = {"int8": 1 / 127, "int8-g32": 1 / 127, "int4": 2 / 8, "int4-min": 2 / 15}
    assert np.abs(rounded - weight).max() <= np.abs(weight).max() * steps[dtype] * 0.51
    np.testing.assert_allclose(round_weights(rounded, dtype), rounded, atol=1e-3)


LETTERS = "abcdefghijklmnopqrstuvwxyz"


@pytest.fixture
def outlying(tmp_path: Path) -> Path:
    """A Llama some of whose inner channels are 100 times as large as the others, with a tokenizer."""
    config = {**llama.TINY, "vocab_size": 61}
    directory = llama.write(tmp_path / "outlying", config)
    tensors = load_file(directory / "model.safetensors")
    for name, values in tensors.items():
        if name.endswith("up_proj.weight"):
            values[::13] *= 100
        if name.endswith("down_proj.weight"):
            values[:, ::13] /= 50
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    tokenizer = Tokenizer(models.WordLevel({"?": 0, **{letter: 3 + i for i, letter in enumerate(LETTERS)}}, "?"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(directory / "tokenizer.json"))
    return directory


@pytest.fixture
def text(tmp_path: Path) -> Path:
    random = np.random.default_rng(3)
    path = tmp_path / "text.txt"
    path.write_text(" ".join(LETTERS[i] for i in random.integers(0, 26, 900)), encoding="utf-8")
    return path


def test_a_recipe_brings_int8_nearer(outlying: Path, text: Path, tmp_path: Path) -> None:
    recipe = kaoken.calibrate(outlying, text, tmp_path / "a.recipe", dtype="int8", windows=4, context=64)
    exact, plain, calibrated = (
        kaoken.load(kaoken.bake(outlying, dtype=dtype, recipe=used))
        for dtype, used in (("float32", None), ("int8", None), ("int8", recipe))
    )
    ids = np.random.default_rng(4).integers(3, 29, (3, 64))
    expected = exact.logits(ids)
    errors = [relative_error(expected, model.logits(ids)) for model in (plain, calibrated)]
    assert errors[1] < 0.6 * errors[0]
    same: Any = kaoken.load(kaoken.bake(outlying, recipe=recipe))
    assert relative_error(expected, same.logits(ids)) < 1e-5
    facts: Any = calibrated.info.calibration
    assert facts["sha256"] == read_recipe(recipe).sha256
    assert (facts["method"], facts["dtype"], facts["windows"], facts["context"]) == ("smooth", "int8", 4, 64)
    assert plain.info.calibration is None


@pytest.mark.ci
def test_baking_with_a_recipe_gives_the_same_bytes(outlying: Path, text: Path, tmp_path: Path) -> None:
    recipe = kaoken.calibrate(outlying, text, tmp_path / "a.recipe", dtype="int8", windows=2, context=64)
    settings: Any = {"dtype": "int8", "recipe": recipe, "isa": "scalar"}
    first, second = (kaoken.bake(outlying, out=tmp_path / name, **settings) for name in ("a.so", "b.so"))
    assert first.read_bytes() == second.read_bytes()


def test_the_command(
    outlying: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["calibrate", str(outlying), *f"--text {text} --dtype int8 --window 64 -o my.recipe".split()]) == 0
    assert capsys.readouterr().out == "my.recipe\n"
    assert main(["bake", str(outlying), "--dtype", "int8", "--recipe", "my.recipe", "-o", "my.so"]) == 0
    assert main(["info", "--model", "my.so"]) == 0
    assert "smooth for int8, on 14 windows of 64 tokens" in capsys.readouterr().out


def test_what_is_refused(outlying: Path, text: Path, tmp_path: Path) -> None:
    def calibrate(**changed: Any) -> Path:
        arguments = {"checkpoint": outlying, "text": text, "out": tmp_path / "a.recipe", "dtype": "int8", "context": 64}
        return kaoken.calibrate(**{**arguments, **changed})

    text.write_text("a b c", encoding="utf-8")
    with pytest.raises(kaoken.InputError, match="the text has 3 tokens, and a window of 64 takes 64"):
        calibrate()
    with pytest.raises(kaoken.InputError, match="cannot read"):
        calibrate(text=tmp_path / "none.txt")
    with pytest.raises(kaoken.InputError, match="its directory does not exist"):
        calibrate(out=tmp_path / "none" / "a.recipe")
    with pytest.raises(kaoken.InputError, match="windows"):
        calibrate(windows=0)
    text.write_text("a " * 99, encoding="utf-8")
    with pytest.raises(kaoken.InputError, match="no matrix"):
        calibrate(dtype="float32")
    (outlying / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match="has no tokenizer"):
        calibrate()
    assert not (tmp_path / "a.recipe").exists()


def test_recipes_of_other_models(outlying: Path, text: Path, tmp_path: Path) -> None:
    recipe = kaoken.calibrate(outlying, text, tmp_path / "a.recipe", dtype="int8", windows=1, context=64)
    with pytest.raises(CheckpointError, match=r"a\.recipe is of another model, which has channels at decoder\.0"):
        kaoken.bake(bert.write(tmp_path / "bert", bert.TINY), dtype="int8", recipe=recipe)
    wide = llama.write(tmp_path / "wide", {**llama.TINY, "hidden_size": 96, "intermediate_size": 132})
    with pytest.raises(CheckpointError, match=r"has 48 channels at .*, and this one 96: calibrate this"):
        kaoken.bake(wide, dtype="int8", recipe=recipe)
    other = llama.write(tmp_path / "other", {**llama.TINY, "vocab_size": 62})
    with pytest.raises(kaoken.KaokenError, match="was made of other weights"):
        kaoken.bake(other, dtype="int8", recipe=recipe)


def test_files_that_are_no_recipe(tmp_path: Path) -> None:
    path = tmp_path / "a.recipe"

    def refused(message: str) -> None:
        with pytest.raises(CheckpointError, match=rf"is no recipe \(.*{message}.*\): make one with `kaoken calibrate`"):
            read_recipe(path)

    refused("No such file")
    path.write_bytes(b"")
    refused("")
    path.write_bytes(b"\xff" * 100)
    refused("")
    save_file({"x": np.ones(3, np.float32)}, path)
    refused("its metadata lack kaoken_recipe")
    for said in ("[", json.dumps({"version": 2}), json.dumps({"version": 1}), json.dumps([1])):
        save_file({"x": np.ones(3, np.float32)}, path, metadata={"kaoken_recipe": said})
        refused("")
    for broken in (np.array([1.0, 0.0]), np.array([1.0, -1.0]), np.array([np.nan]), np.ones((2, 2)), np.array([1e20])):
        write_recipe(path, ORIGIN, {"decoder.0.0.norm": broken.astype(np.float32)})
        refused("decoder.0.0.norm is no vector of positive float32 factors")
    write_recipe(path, ORIGIN, {"decoder.0.0.norm": np.ones(3, np.float32)})
    assert read_recipe(path).origin == ORIGIN
    path.write_bytes(path.read_bytes()[:-1])
    refused("")


@pytest.mark.parametrize("name", ["gpt_neox", "opt_post_norms", "gemma3_text", "olmo2", "bloom"])
def test_calibration_reads_what_the_graph_computes(name: str, tmp_path: Path) -> None:
    """The streams behind the last block, in all forms of blocks."""
    checkpoint, ids = open_checkpoint(write(tmp_path, config_of(name))), ids_of(config_of(name))[0, :40]
    stack = read_graph(checkpoint).stack
    streams = [embed(in_memory(stack.embeddings), ids)]
    for block in stack.blocks:
        streams = pass_block(stack, block, streams, {}, make_types("int8"), {})
    assert streams[0].dtype == np.float32
    assert relative_error(run_stack(stack, ids, None, None), norm(stack.norm, streams[0].astype(np.float64))) < 1e-5
