"""What pruning measures, chooses and fits, against finite differences, brute force and least squares in NumPy.

Skipped without torch and transformers, unless KAOKEN_REQUIRE_TRANSFORMERS=1 makes their absence a failure.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

if os.environ.get("KAOKEN_REQUIRE_TRANSFORMERS") != "1":
    pytest.importorskip("torch")
    pytest.importorskip("transformers")

import torch

import make_references as live
import reference
from checkpoints import write_checkpoint
from conftest import Bake, Checkpoints
from kaoken.cli import main
from kaoken.compress import distillation, gpt2, load_model, pruning
from kaoken.errors import InputError

pytestmark = pytest.mark.ci

GENERATOR = np.random.default_rng(0)
BATCHES = [tuple(GENERATOR.integers(0, 61, (2, 4, 30))) for _ in range(4)]  # ids and targets [4, 30]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Toys gain nothing from threads, which wait long for each other on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def model(checkpoints: Checkpoints) -> Any:
    """Two layers of 2 heads of 16 and 128 neurons, n_embd 32."""
    return load_model(checkpoints("plain"))


def loss(model: Any, ids: Any, targets: Any) -> torch.Tensor:
    logits = model(torch.as_tensor(ids)).logits.flatten(0, 1)
    return torch.nn.functional.cross_entropy(logits, torch.as_tensor(targets).flatten(), reduction="sum")


def derivative(model: Any, ids: Any, targets: Any, scale: Callable[[Any, float], None]) -> float:
    """The central difference of the loss where a part's mask is 1, `scale` being what sets the mask."""
    losses = []
    for mask in (1 + 1e-5, 1 - 1e-5):
        scaled = copy.deepcopy(model)
        with torch.no_grad():
            scale(scaled, mask)
            losses.append(loss(scaled, ids, targets).item())
    return (losses[0] - losses[1]) / 2e-5


def scale_head(model: Any, mask: float) -> None:
    model.transformer.h[1].attn.c_proj.weight[16:] *= mask  # the second head's


def scale_neuron(model: Any, mask: float) -> None:
    model.transformer.h[0].mlp.c_proj.weight[5] *= mask


def scale_channel(model: Any, mask: float) -> None:
    factors = torch.ones(32, dtype=torch.float64)
    factors[7] = mask
    for norm in model.modules():
        if isinstance(norm, torch.nn.LayerNorm):
            norm.register_forward_pre_hook(lambda _, inputs: (inputs[0] * factors,))


@pytest.mark.parametrize(
    ("scale", "part"),
    [
        (scale_head, lambda found: found.heads[1][1]),
        (scale_neuron, lambda found: found.neurons[0][5]),
        (scale_channel, lambda found: found.channels[7]),
    ],
)
def test_importance_is_the_derivative_by_a_mask(scale: Any, part: Any, model: Any) -> None:
    model.double()
    ids, targets = BATCHES[0]
    slopes = [derivative(model, ids[row : row + 1], targets[row : row + 1], scale) for row in range(len(ids))]
    found = pruning.importance(model, [(ids, targets)], "fisher")
    assert part(found) == pytest.approx(np.square(slopes).sum() / 2 / ids.size, rel=1e-4)
    token = ids[:1, :1], targets[:1, :1]
    found = pruning.importance(model, [token], "taylor")
    assert part(found) == pytest.approx(abs(derivative(model, *token, scale)), rel=1e-4)


def test_a_layers_turn_is_the_cosine_of_its_ends(model: Any) -> None:
    ids, targets = BATCHES[0]
    with torch.no_grad():
        states = model(torch.as_tensor(ids), output_hidden_states=True).hidden_states[:2]
    a, b = (state.double().numpy() for state in states)
    cosines = (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)
    assert pruning.importance(model, [(ids, targets)]).layers[0] == pytest.approx(1 - cosines.mean(), rel=1e-5)


def test_importance_is_deterministic_and_leaves_the_model_alone(model: Any) -> None:
    model.train()
    before = copy.deepcopy(model.state_dict())
    first, second = (pruning.importance(model, BATCHES) for _ in range(2))
    for name in ("heads", "neurons", "channels", "layers"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def cheapest_removal(moments: Any, gradients: Any, weight: Any, rows: list[int]) -> float:
    """The least tr(moments D gradients D^T) / 2 of changes D that zero rows of the weight, by a linear solver."""
    inputs, outputs = weight.shape
    quadratic = np.kron(moments, gradients)  # of D flattened row by row
    zeroed = np.kron(np.eye(inputs)[rows], np.eye(outputs))
    corner = np.zeros((len(zeroed), len(zeroed)))
    system = np.block([[quadratic, zeroed.T], [zeroed, corner]])
    change = np.linalg.solve(system, np.concatenate([np.zeros(weight.size), -weight[rows].ravel()]))[: weight.size]
    return float(change @ quadratic @ change / 2)


def small_problem() -> tuple[Any, Any, Any]:
    """Moments [7, 7] of 6 inputs and a 1, gradients' moments [3, 3], weights [7, 3]."""
    x = np.column_stack([GENERATOR.normal(size=(40, 6)) @ GENERATOR.normal(size=(6, 6)), np.ones(40)])
    g = GENERATOR.normal(size=(40, 3))
    return x.T @ x / 40, g.T @ g / 40, GENERATOR.normal(size=(7, 3))


def test_a_neurons_cost_is_that_of_its_cheapest_removal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pruning, "RIDGE", 0.0)
    problem = small_problem()  # all 6 are one step, so each is judged beside all others
    expected = [cheapest_removal(*problem, [row]) for row in range(6)]
    np.testing.assert_allclose(pruning.surgeon(*problem), expected, rtol=1e-8)


def test_heads_go_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pruning, "RIDGE", 0.0)
    problem = small_problem()
    rows = {head: [2 * head, 2 * head + 1] for head in range(3)}
    expected, gone, least, total = np.zeros(3), [], 0.0, 0.0
    while rows:
        costs = {head: cheapest_removal(*problem, gone + own) - total for head, own in rows.items()}
        head = min(costs, key=lambda head: max(costs[head], least))
        expected[head] = least = max(costs[head], least)
        gone, total = gone + rows.pop(head), total + costs[head]
    np.testing.assert_allclose(pruning.surgeon(*problem, 2), expected, rtol=1e-8)


def test_what_is_left_is_fitted_to_what_all_gave(model: Any) -> None:
    measured = pruning.importance(model, BATCHES)
    kept = tuple(range(0, 128, 2))
    whole = gpt2.whole(model)
    cut = replace(whole, blocks=(whole.blocks[0], replace(whole.blocks[1], neurons=kept)))
    inputs: list[Any] = []
    last = model.transformer.h[1].mlp.c_proj
    hook = last.register_forward_pre_hook(lambda _, given: inputs.append(given[0].flatten(0, 1).double().numpy()))
    with torch.no_grad():
        for ids, _ in BATCHES:
            model(torch.as_tensor(ids))
    hook.remove()
    x = np.concatenate(inputs)
    weight, bias = (each.detach().double().numpy() for each in (last.weight, last.bias))
    ridge = np.sqrt(pruning.RIDGE * np.square(x).mean() * len(x)) * np.eye(len(kept))
    left = np.block([[x[:, kept], np.ones((len(x), 1))], [ridge, np.zeros((len(kept), 1))]])
    expected = np.linalg.lstsq(left, np.concatenate([x @ weight + bias, ridge @ weight[list(kept)]]), rcond=None)[0]
    fitted = pruning.carve(model, cut, measured)
    new = fitted.transformer.h[1].mlp.c_proj
    np.testing.assert_allclose(new.weight.detach(), expected[:-1], atol=1e-3)
    np.testing.assert_allclose(new.bias.detach(), expected[-1], atol=1e-3)
    torch.testing.assert_close(fitted.transformer.h[0].state_dict(), model.transformer.h[0].state_dict())


# Choosing


def made_up(model: Any) -> pruning.Importance:
    """Importances that make the choice plain: the later the part, the more important, and layer 1 ten times layer 0."""
    rising = np.arange(1.0, 129.0)
    whole = gpt2.whole(model)
    heads = (np.array([1.0, 2.0]), np.array([10.0, 20.0]))
    return pruning.Importance(whole, heads, (rising, 10 * rising), rising[:32], np.array([1.0, 2.0]), ())


def test_choose_removes_the_least_important(model: Any) -> None:
    cut = pruning.choose(made_up(model), heads=0.5, mlp=0.4, layers=0, width=0.5)
    assert [block.heads for block in cut.blocks] == [(1,), (1,)], "the least of all, but one is left in each block"
    assert [block.neurons for block in cut.blocks] == [tuple(range(80, 128)), tuple(range(16, 128))]
    assert cut.channels == tuple(range(16, 32))
    cut = pruning.choose(made_up(model), heads=0.25, mlp=0.0, layers=1)
    assert [block.layer for block in cut.blocks] == [1]
    assert [len(block.heads) for block in cut.blocks] == [2], "a quarter of two heads is none"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": 1.0}, "heads is 1.0; expected at least 0 and below 1"),
        ({"mlp": -0.1}, "mlp is -0.1"),
        ({"width": float("nan")}, "width is nan"),
        ({"layers": 2}, "layers is 2; expected a number below 2"),
        ({"layers": -1}, "layers is -1"),
    ],
)
def test_shares_that_leave_nothing(options: dict[str, Any], message: str, model: Any) -> None:
    with pytest.raises(InputError, match=message):
        pruning.choose(made_up(model), **options)


@pytest.mark.parametrize("share", [0.9, 0.6, 0.4])
def test_target_keeps_the_share_and_what_matters(share: float, model: Any) -> None:
    measured = pruning.importance(model, BATCHES)
    cut = pruning.target(model, measured, share)
    total, kept = gpt2.parameters(model), gpt2.parameters(gpt2.carve(model, cut))
    assert share * total - 16 * (4 * 32 + 3) < kept <= share * total
    assert all(len(block.neurons) % 16 == 0 and block.heads for block in cut.blocks)
    for block in cut.blocks:
        scores = measured.neurons[block.layer]
        gone = np.delete(scores, list(block.neurons))
        assert gone.max(initial=0.0) <= scores[list(block.neurons)].min()


def test_what_cannot_be_reached(model: Any) -> None:
    measured = made_up(model)
    with pytest.raises(InputError, match=r"parameters is 0\.1, but .* are left"):
        pruning.target(model, measured, 0.1)
    with pytest.raises(InputError, match=r"parameters is 0; expected above 0"):
        pruning.target(model, measured, 0)
    with pytest.raises(InputError, match=r"rounds is 0"):
        pruning.prune(model, BATCHES, rounds=0)
    with pytest.raises(InputError, match=r"no text"):
        pruning.importance(model, [])
    with pytest.raises(InputError, match=r"criterion is 'size'; expected one of surgeon"):
        pruning.importance(model, BATCHES, "size")


@pytest.mark.parametrize("rounds", [1, 2])
def test_prune_beats_cutting_at_random(rounds: int, model: Any) -> None:
    pruned = pruning.prune(model, iter(BATCHES), 0.6, rounds)
    assert gpt2.parameters(pruned) <= 0.6 * gpt2.parameters(model)
    blocks = gpt2.blocks(pruned)
    sizes = {layer: (heads, neurons) for layer, (heads, _, neurons) in enumerate(blocks)}
    ids = torch.as_tensor(BATCHES[0][0])
    with torch.no_grad():
        wanted, error = model(ids).logits, []
        for seed in range(5):
            pick = np.random.default_rng(seed).permutation
            kept = tuple(
                replace(
                    block,
                    heads=tuple(sorted(pick(2)[: sizes[block.layer][0]].tolist())),
                    dims=block.dims[: sizes[block.layer][0]],
                    neurons=tuple(sorted(pick(128)[: sizes[block.layer][1]].tolist())),
                )
                for block in gpt2.whole(model).blocks
            )
            cut = replace(gpt2.whole(model), blocks=kept)
            error.append(float((gpt2.carve(model, cut)(ids).logits - wanted).square().mean()))
        assert float((pruned(ids).logits - wanted).square().mean()) < 0.8 * min(error)


# Masks


def test_magnitude_masks(model: Any) -> None:
    before = model.transformer.h[0].mlp.c_fc.weight.detach().clone()
    masks = pruning.mask(model, sparsity=0.75)
    assert len(masks) == 8
    for name, matrix in gpt2.matrices(model).items():
        assert torch.equal(matrix.weight != 0, masks[name])
        assert (masks[name].sum(0) == matrix.weight.shape[0] // 4).all(), "of each output, a quarter is left"
    kept = model.transformer.h[0].mlp.c_fc.weight != 0
    for column in range(128):
        assert before[kept[:, column], column].abs().min() >= before[~kept[:, column], column].abs().max()


def test_two_of_four(model: Any) -> None:
    before = model.transformer.h[1].attn.c_attn.weight.detach().clone().numpy()
    pruning.mask(model, pattern="2:4")
    after = model.transformer.h[1].attn.c_attn.weight.detach().numpy()
    for row in range(0, 32, 4):
        for column in range(96):
            group = np.abs(before[row : row + 4, column])
            assert set(np.flatnonzero(after[row : row + 4, column])) == set(np.argsort(group)[2:])


def test_wanda_weighs_by_the_inputs(model: Any) -> None:
    ids, _ = BATCHES[0]
    seen: list[Any] = []
    matrix = model.transformer.h[0].attn.c_attn
    hook = matrix.register_forward_pre_hook(lambda _, given: seen.append(given[0].detach().double().numpy()))
    with torch.no_grad():
        model(torch.as_tensor(ids))
    hook.remove()
    scores = matrix.weight.detach().abs().double().numpy() * np.sqrt(np.square(seen[0]).sum((0, 1)))[:, None]
    kept = pruning.mask(model, sparsity=0.5, batches=[BATCHES[0]])["h.0.attn.c_attn"].numpy()
    expected = np.argsort(np.argsort(scores, axis=0), axis=0) >= 16
    np.testing.assert_array_equal(kept, expected)


def test_zeros_stay_through_training(model: Any) -> None:
    masks = pruning.mask(model, sparsity=0.5)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        losses.append(loss(model, *BATCHES[0]))
        losses[-1].backward()
        optimizer.step()
        assert (model.transformer.h[0].mlp.c_fc.weight[~masks["h.0.mlp.c_fc"]] != 0).any(), "the step moves them"
        pruning.keep_zero(model, masks)
        assert all(not matrix.weight[~masks[name]].any() for name, matrix in gpt2.matrices(model).items())
    assert losses[-1] < losses[0]


def test_masks_that_cannot_be(model: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"expected a sparsity or the pattern '2:4': pass one"):
        pruning.mask(model)
    with pytest.raises(InputError, match=r"pattern '1:4'"):
        pruning.mask(model, pattern="1:4")
    with pytest.raises(InputError, match=r"sparsity is 1; expected at least 0 and below 1"):
        pruning.mask(model, sparsity=1)
    odd = load_model(write_checkpoint(tmp_path / "odd", {"n_inner": 30}))
    with pytest.raises(InputError, match=r"mlp\.c_proj has 30 inputs; the pattern 2:4 needs a multiple of 4"):
        pruning.mask(odd, pattern="2:4")


@pytest.mark.parametrize(("sparsity", "sparse"), [("0.95", True), ("0.9", False), ("2:4", False), (None, False)])
def test_many_zeros_are_pointed_to_the_fastest_bake(
    sparsity: str | None, sparse: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(distillation, "prune", lambda *_, **__: {})
    arguments = ["prune", "teacher", "--text", "text", "-o", "there", "--max-steps", "1"]
    assert main(arguments if sparsity is None else [*arguments, "--sparsity", sparsity]) == 0
    said = "so many zeros may be faster as code: kaoken bake there --kernels fastest\n"
    assert capsys.readouterr().err == (said if sparse else "")


def test_a_pruned_model_bakes(model: Any, tmp_path: Path, bake_checkpoint: Bake) -> None:
    from kaoken import load

    pruned = pruning.prune(model, BATCHES, 0.6)
    assert len(set(gpt2.blocks(pruned))) == 2, "blocks of unlike sizes"
    ids = BATCHES[0][0]
    baked = load(bake_checkpoint(gpt2.save(pruned, tmp_path / "pruned")))
    assert reference.relative_error(live.logits(pruned, ids), baked.logits(ids)) < reference.LIMIT
