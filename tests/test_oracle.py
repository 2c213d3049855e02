"""The oracle itself: each layer against values worked out by hand, the whole against transformers."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import reference
from configurations import CONFIGURATIONS
from conftest import Checkpoints, RecordError
from oracle import (
    ACTIVATIONS,
    KVCache,
    Oracle,
    attention,
    distribution,
    layer_norm,
    linear,
    make_block,
    open_oracle,
    softmax,
)

Array = NDArray[np.float64]


def close(actual: Array, expected: object) -> None:
    np.testing.assert_allclose(actual, np.asarray(expected, dtype=np.float64), rtol=1e-12, atol=1e-12)


def test_layer_norm_uses_the_biased_variance() -> None:
    # mean 2, variance 1: (-1, 1) before weight and bias
    close(layer_norm(np.array([1.0, 3.0]), np.array([2.0, 3.0]), np.array([10.0, 20.0]), 0.0), [8.0, 23.0])


def test_layer_norm_adds_epsilon_to_the_variance() -> None:
    # variance 1 + epsilon 3 = 4, whose root is 2
    close(layer_norm(np.array([[1.0, 3.0]]), np.ones(2), np.zeros(2), 3.0), [[-0.5, 0.5]])


def test_linear_takes_inputs_by_outputs() -> None:
    weight = np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    close(linear(np.array([[1.0, 10.0]]), weight, np.array([0.5, 0.0, -0.5])), [[41.5, 52.0, 62.5]])


# Phi(1) = 0.8413447460685429 and Phi(-2) = 0.022750131948179207 are the normal distribution's table; the tanh
# form at 1 is (1 + tanh(sqrt(2 / pi) * 1.044715)) / 2.
@pytest.mark.parametrize(
    ("name", "x", "expected"),
    [
        ("gelu", 1.0, 0.8413447460685429),
        ("gelu", -2.0, -2 * 0.022750131948179207),
        ("gelu_new", 1.0, 0.8411919906082768),
        ("gelu_new", -1.0, 0.8411919906082768 - 1.0),
        ("gelu_pytorch_tanh", 1.0, 0.8411919906082768),
        ("relu", 2.5, 2.5),
        ("relu", -2.5, 0.0),
        ("silu", 1.0, 0.7310585786300049),
        ("silu", -1.0, -0.2689414213699951),
        ("swish", 1.0, 0.7310585786300049),
        ("tanh", 1.0, 0.7615941559557649),
    ],
)
def test_activation(name: str, x: float, expected: float) -> None:
    close(ACTIVATIONS[name](np.array([x])), [expected])


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation_stays_finite_far_out(name: str) -> None:
    low, zero, high = ACTIVATIONS[name](np.array([-1000.0, 0.0, 1000.0]))
    assert (low, zero, high) == ((-1.0, 0.0, 1.0) if name == "tanh" else (0.0, 0.0, 1000.0))


def test_softmax_of_logarithms_gives_the_shares() -> None:
    close(softmax(np.log([[1.0, 2.0, 5.0]]) + 1000.0), [[0.125, 0.25, 0.625]])


def test_attention_weighs_the_values_and_hides_the_future() -> None:
    query = np.array([[1.0], [1.0]])
    key = np.array([[0.0], [math.log(3.0)]])
    value = np.array([[4.0, 0.0], [8.0, 1.0]])
    close(attention(query, key, value, 1.0), [[4.0, 0.0], [7.0, 0.75]])  # position 1: weights 1/4, 3/4
    close(attention(query, key, value, 2.0), [[4.0, 0.0], [7.6, 0.9]])  # and 1/10, 9/10


def test_attention_of_a_later_position_sees_all_before_it() -> None:
    key = np.zeros((4, 3))
    close(attention(np.ones((1, 3)), key, np.array([[1.0], [2.0], [3.0], [6.0]]), 1.0), [[3.0]])


def zero_block(n_embd: int, n_inner: int) -> dict[str, Array]:
    """A block that adds nothing to its input."""
    shapes = {"attn.c_attn": (n_embd, 3 * n_embd), "attn.c_proj": (n_embd, n_embd)}
    shapes |= {"mlp.c_fc": (n_embd, n_inner), "mlp.c_proj": (n_inner, n_embd)}
    weights = {f"h.0.{name}.weight": np.zeros(shape) for name, shape in shapes.items()}
    biases = {f"h.0.{name}.bias": np.zeros(shape[1]) for name, shape in shapes.items()}
    norms = {f"h.0.{name}.weight": np.ones(n_embd) for name in ("ln_1", "ln_2")}
    return weights | biases | norms | {f"h.0.{name}.bias": np.zeros(n_embd) for name in ("ln_1", "ln_2")}


CONFIG = {
    "n_embd": 2,
    "n_head": 1,
    "n_layer": 1,
    "activation_function": "relu",
    "layer_norm_epsilon": 0.0,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
}


def test_block_of_zeros_is_the_identity() -> None:
    x = np.array([[[1.0, 3.0], [5.0, -2.0]]])
    close(make_block(CONFIG, zero_block(2, 3), 0).forward(x, KVCache()), x)


def test_mlp_projects_activates_and_projects() -> None:
    tensors = zero_block(2, 3)
    tensors["h.0.mlp.c_fc.weight"] = np.array([[1.0, -1.0, 0.0], [0.0, 0.0, 1.0]])
    tensors["h.0.mlp.c_fc.bias"] = np.array([0.0, 0.0, 1.0])
    tensors["h.0.mlp.c_proj.weight"] = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 10.0]])
    tensors["h.0.mlp.c_proj.bias"] = np.array([0.0, 0.5])
    # c_fc of (-4, 2): (-4, 4, 3); relu: (0, 4, 3); c_proj: (4, 30.5)
    close(make_block(CONFIG, tensors, 0).mlp(np.array([[[-4.0, 2.0]]])), [[[4.0, 30.5]]])


def test_block_adds_attention_then_mlp_each_on_a_normed_input() -> None:
    tensors = zero_block(2, 1)
    # Value is the normed input and the output projection doubles it: one position attends to itself alone.
    tensors["h.0.attn.c_attn.weight"] = np.hstack([np.zeros((2, 4)), np.eye(2)])
    tensors["h.0.attn.c_proj.weight"] = 2.0 * np.eye(2)
    tensors["h.0.mlp.c_fc.weight"] = np.array([[0.0], [1.0]])
    tensors["h.0.mlp.c_proj.weight"] = np.array([[100.0, 0.0]])
    # x = (1, 3), normed (-1, 1), so x becomes (-1, 5), normed (-1, 1), and the MLP adds (100, 0)
    close(make_block(CONFIG, tensors, 0).forward(np.array([[[1.0, 3.0]]]), KVCache()), [[[99.0, 5.0]]])


def test_heads_are_consecutive_columns() -> None:
    block = make_block(CONFIG | {"n_embd": 6, "n_head": 3}, zero_block(6, 1), 0)
    x = np.arange(12.0).reshape(1, 2, 6)
    close(block.heads(x)[0], [[[0, 1], [6, 7]], [[2, 3], [8, 9]], [[4, 5], [10, 11]]])


@pytest.mark.parametrize(
    ("changes", "layer", "scale"),
    [
        ({}, 2, 1.0 / math.sqrt(8.0)),
        ({"scale_attn_weights": False}, 2, 1.0),
        ({"scale_attn_by_inverse_layer_idx": True}, 2, 1.0 / math.sqrt(8.0) / 3.0),
        ({"scale_attn_weights": False, "scale_attn_by_inverse_layer_idx": True}, 1, 0.5),
        ({"kaoken_blocks": 3 * [{"n_head": 5, "head_dim": 4, "n_inner": 7}]}, 1, 0.5),
    ],
)
def test_attention_scale(changes: dict[str, object], layer: int, scale: float) -> None:
    config = CONFIG | {"n_embd": 16, "n_head": 2, "n_layer": 3} | changes
    assert make_block(config, {}, layer).scale == pytest.approx(scale, rel=1e-15)


def model_of_zeros(**changes: Array) -> Oracle:
    tensors = zero_block(2, 1) | {"ln_f.weight": np.ones(2), "ln_f.bias": np.zeros(2)}
    tensors |= {"wte.weight": np.array([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]])}
    tensors |= {"wpe.weight": np.array([[0.0, 1.0], [4.0, 0.0]])} | changes
    return Oracle(CONFIG, tensors, (make_block(CONFIG, tensors, 0),))


def test_model_adds_positions_and_ties_the_head() -> None:
    # ids 1, 0: (0, 2) + (0, 1) normed is (-1, 1); (1, 0) + (4, 0) normed is (1, -1); then the rows of wte
    close(model_of_zeros().logits([[1, 0]]), [[[-1.0, 2.0, 0.0], [1.0, -2.0, 0.0]]])


def test_model_applies_the_last_norm_and_an_untied_head() -> None:
    model = model_of_zeros(**{"ln_f.weight": np.array([3.0, 5.0]), "lm_head.weight": np.array([[1.0, 10.0]])})
    close(model.logits([[1]]), [[[47.0]]])  # (-1, 1) times (3, 5), and then -3 + 50


def test_greedy_takes_the_best_and_measures_the_margin() -> None:
    result = model_of_zeros().greedy([1], 1)
    assert result.tokens == [1]
    assert result.margins == pytest.approx([2.0])


def test_cached_steps_equal_one_pass(checkpoints: Checkpoints) -> None:
    model = open_oracle(checkpoints("plain"))
    ids = CONFIGURATIONS["plain"].ids()
    state = model.start()
    parts = [model.append(part, state) for part in np.split(ids, [1, 2, 7, 20], axis=1)]
    close(np.concatenate(parts, axis=1), model.logits(ids))


def test_distribution_of_a_temperature() -> None:
    close(distribution(np.log([1.0, 2.0, 3.0]), temperature=0.5), np.array([1.0, 4.0, 9.0]) / 14.0)


def test_top_k_keeps_what_equals_the_kth() -> None:
    logits = np.log([4.0, 2.0, 2.0, 1.0])
    close(distribution(logits, top_k=1), [1.0, 0.0, 0.0, 0.0])
    close(distribution(logits, top_k=2), [0.5, 0.25, 0.25, 0.0])
    close(distribution(logits, top_k=9), np.array([4.0, 2.0, 2.0, 1.0]) / 9.0)


def test_top_p_keeps_the_smallest_set_that_reaches_it() -> None:
    logits = np.log([0.1, 0.5, 0.25, 0.15])
    close(distribution(logits, top_p=0.7), [0.0, 2 / 3, 1 / 3, 0.0])
    close(distribution(logits, top_p=0.8), [0.0, 5 / 9, 2.5 / 9, 1.5 / 9])
    close(distribution(logits, top_p=1e-6), [0.0, 1.0, 0.0, 0.0])


def test_top_p_follows_top_k_and_temperature() -> None:
    # squared: 1, 4, 9, 16; the two best: 9, 16 of 25, and 16 / 25 alone reaches 0.6
    close(distribution(np.log([1.0, 2.0, 3.0, 4.0]), temperature=0.5, top_k=2, top_p=0.6), [0, 0, 0, 1])


@pytest.mark.parametrize(
    ("name", "field", "other"),
    [
        ("inverse_layer_scale", "scale_attn_by_inverse_layer_idx", False),
        ("unscaled", "scale_attn_weights", True),
        ("large_epsilon", "layer_norm_epsilon", 1e-5),
        ("float16", "layer_norm_epsilon", 1e-5),
        ("odd_vocab_and_inner", "activation_function", "gelu_new"),
        ("heads_of_12", "activation_function", "gelu"),
        ("three_heads", "activation_function", "gelu"),
        ("odd_width", "n_head", 7),
    ],
)
def test_the_configurations_tell_options_apart(name: str, field: str, other: object, checkpoints: Checkpoints) -> None:
    """Ignoring the option would be seen: it moves the logits by more than is forgiven."""
    model, ids = open_oracle(checkpoints(name)), CONFIGURATIONS[name].ids()
    config = {**model.config, field: other}
    blocks = tuple(make_block(config, model.tensors, layer) for layer in range(len(model.blocks)))
    moved = Oracle(config, model.tensors, blocks).logits(ids)
    assert reference.relative_error(model.logits(ids), moved) > 2 * reference.LIMIT


def padded(tensor: Array, axis: int, count: int) -> Array:
    """Zeros appended along one axis up to `count`."""
    widths = [(0, count - size if each == axis else 0) for each, size in enumerate(tensor.shape)]
    return np.pad(tensor, widths)


def widened(model: Oracle, n_head: int, n_inner: int) -> Oracle:
    """The same function with blocks of one size: the missing heads and MLP columns are zeros."""
    config = {key: value for key, value in model.config.items() if key != "kaoken_blocks"}
    config |= {"n_head": n_head, "n_inner": n_inner}
    width = n_head * model.blocks[0].head_dim
    tensors = dict(model.tensors)
    for layer in range(len(model.blocks)):
        for kind, axis in (("weight", 1), ("bias", 0)):
            attn, mlp = f"h.{layer}.attn.c_attn.{kind}", f"h.{layer}.mlp.c_fc.{kind}"
            parts = [padded(part, axis, width) for part in np.split(tensors[attn], 3, axis=axis)]
            tensors |= {attn: np.concatenate(parts, axis=axis), mlp: padded(tensors[mlp], axis, n_inner)}
        for name, count in (
            (f"h.{layer}.attn.c_proj.weight", width),
            (f"h.{layer}.mlp.c_proj.weight", n_inner),
        ):
            tensors[name] = padded(tensors[name], 0, count)
    blocks = tuple(make_block(config, tensors, layer) for layer in range(len(model.blocks)))
    return Oracle(config, tensors, blocks)


def test_pruned_heads_and_columns_equal_zeros_in_their_place(checkpoints: Checkpoints) -> None:
    model, ids = open_oracle(checkpoints("pruned")), CONFIGURATIONS["pruned"].ids()
    assert {(block.n_head, block.tensors["mlp.c_fc.bias"].size) for block in model.blocks} > {(1, 5), (2, 80)}
    close(model.logits(ids), widened(model, 2, 80).logits(ids))


# float32 rounding alone separates transformers from the oracle: anything larger is a difference in meaning.
ROUNDING = 2e-5


@pytest.mark.parametrize("name", reference.comparable())
def test_oracle_equals_transformers(name: str, checkpoints: Checkpoints, record_error: RecordError) -> None:
    stored = reference.read(name)
    stored.require_checkpoint(checkpoints(name))
    logits = open_oracle(checkpoints(name)).logits(stored.ids)[:, stored.positions]
    error = reference.relative_error(stored.logits, logits)
    record_error("oracle against transformers' stored float32", error)
    assert error < ROUNDING


def test_oracle_equals_transformers_on_the_bundled_model(bundled_directory: Path, record_error: RecordError) -> None:
    stored = reference.read(reference.BUNDLED)
    stored.require_checkpoint(bundled_directory)
    logits = open_oracle(bundled_directory).logits(stored.ids)[:, stored.positions]
    error = reference.relative_error(stored.logits, logits)
    record_error("oracle against transformers' stored float32", error)
    assert error < ROUNDING


@pytest.mark.parametrize("prompt", reference.greedy())
def test_greedy_tokens_equal_transformers_on_the_bundled_model(prompt: str, bundled_directory: Path) -> None:
    tokens = reference.greedy()[prompt]
    assert len(tokens) == 200
    result = open_oracle(bundled_directory).greedy(list(prompt.encode()), len(tokens))
    reference.require_same_greedy(result.tokens, tokens, result.margins)
    assert min(result.margins) > 1e-3, "no step of these prompts is so close that it needs an excuse"
