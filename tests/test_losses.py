"""The losses of distillation against NumPy float64, their gradients against finite differences, and bad input.

Skipped without torch, unless KAOKEN_REQUIRE_TRANSFORMERS=1 makes its absence a failure.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

if os.environ.get("KAOKEN_REQUIRE_TRANSFORMERS") != "1":
    pytest.importorskip("torch")

import torch

from kaoken.compress.losses import (
    Objective,
    SoftLabels,
    attention_loss,
    distillation_loss,
    ensemble,
    hard_loss,
    hidden_loss,
    layer_map,
    soft_loss,
    top_k_labels,
    whole_labels,
)
from kaoken.errors import InputError

pytestmark = pytest.mark.ci

Array = NDArray[np.float64]

B, T, V, K = 2, 3, 11, 4
DIVERGENCES = ("kl", "reverse-kl")
TEMPERATURES = (1.0, 2.0, 4.0)


def random(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(0, 2, shape)


STUDENT, TEACHER = random(B, T, V, seed=1), random(B, T, V, seed=2)
TARGETS = np.random.default_rng(3).integers(0, V, (B, T))


def tensor(values: Any) -> torch.Tensor:
    return torch.from_numpy(np.asarray(values))


def probabilities(logits: Array, temperature: float = 1.0) -> Array:
    powers = np.exp(logits / temperature)
    return powers / powers.sum(-1, keepdims=True)


def divergence(p: Array, q: Array) -> float:
    """KL(p || q), the mean over rows."""
    return float((p * np.log(p / q)).sum(-1).mean())


def divergence_of(loss: str, temperature: float, teacher: Array, student: Array) -> float:
    pair = (teacher, student) if loss == "kl" else (student, teacher)
    return temperature**2 * divergence(*pair)


def bucketed(p: Array, ids: NDArray[np.int64]) -> Array:
    """The probabilities of ids [B, T, k], and behind them what the others have together, each token looked at alone."""
    result = np.zeros((*ids.shape[:2], ids.shape[2] + 1))
    for place in np.ndindex(*ids.shape[:2]):
        kept = list(ids[place])
        result[place][:-1] = p[place][kept]
        result[place][-1] = sum(p[place][token] for token in range(V) if token not in kept)
    return result


def likeliest(logits: Array, k: int) -> NDArray[np.int64]:
    return np.argsort(-logits, axis=-1)[..., :k]


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("loss", DIVERGENCES)
def test_divergence_of_whole_labels(loss: str, temperature: float) -> None:
    expected = divergence_of(loss, temperature, *(probabilities(x, temperature) for x in (TEACHER, STUDENT)))
    objective = Objective(loss, temperature)
    assert soft_loss(tensor(STUDENT), whole_labels(tensor(TEACHER)), objective).item() == pytest.approx(expected)
    assert soft_loss(tensor(STUDENT), SoftLabels(tensor(TEACHER)), objective).item() == pytest.approx(expected)


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("k", [1, K, V - 1, V])
@pytest.mark.parametrize("loss", DIVERGENCES)
def test_divergence_of_top_k_labels(loss: str, k: int, temperature: float) -> None:
    labels = top_k_labels(tensor(TEACHER), k, temperature)
    ids = likeliest(TEACHER, k)
    np.testing.assert_array_equal(labels.ids, ids)
    teacher, student = (bucketed(probabilities(x, temperature), ids) for x in (TEACHER, STUDENT))
    np.testing.assert_allclose(torch.cat([labels.values, labels.rest[..., None]], -1).exp(), teacher, atol=1e-12)
    if k == V:  # a remaining mass of exactly 0
        assert torch.isneginf(labels.rest).all()
        teacher, student = teacher[..., :-1], student[..., :-1]
    expected = divergence_of(loss, temperature, teacher, student)
    assert soft_loss(tensor(STUDENT), labels, Objective(loss, temperature)).item() == pytest.approx(expected)


@pytest.mark.parametrize("loss", DIVERGENCES)
@pytest.mark.parametrize("k", [V - 1, V])
def test_top_k_is_the_whole_where_the_rest_is_one_token_or_none(k: int, loss: str) -> None:
    whole, top = whole_labels(tensor(TEACHER)), top_k_labels(tensor(TEACHER), k, 2.0)
    values = [soft_loss(tensor(STUDENT), labels, Objective(loss, 2.0)).item() for labels in (whole, top)]
    assert values[0] == pytest.approx(values[1])


def centred(values: Array) -> Array:
    return values - values.mean(-1, keepdims=True)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_mean_squared_error_of_logits(temperature: float) -> None:
    objective = Objective("mse", temperature)
    whole = ((centred(STUDENT) - centred(TEACHER)) ** 2).mean()
    assert soft_loss(tensor(STUDENT + 7), whole_labels(tensor(TEACHER)), objective).item() == pytest.approx(whole)
    ids = likeliest(TEACHER, K)
    kept = [centred(np.take_along_axis(x, ids, -1)) for x in (STUDENT, TEACHER)]
    top_k = soft_loss(tensor(STUDENT + 7), top_k_labels(tensor(TEACHER), K, temperature), objective)
    assert top_k.item() == pytest.approx(((kept[0] - kept[1]) ** 2).mean())


def test_the_divergence_at_a_high_temperature_is_half_the_squared_error() -> None:
    kl, mse = (
        soft_loss(tensor(STUDENT), whole_labels(tensor(TEACHER)), Objective(loss, 1e4)).item() for loss in ("kl", "mse")
    )
    assert kl == pytest.approx(mse / 2, rel=1e-3)


def cross_entropy() -> float:
    chosen = np.take_along_axis(probabilities(STUDENT), TARGETS[..., None], -1)
    return float(-np.log(chosen).mean())


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_mixture_with_the_text(weight: float) -> None:
    soft = divergence_of("kl", 2.0, *(probabilities(x, 2.0) for x in (TEACHER, STUDENT)))
    targets, labels = tensor(TARGETS), whole_labels(tensor(TEACHER))
    objective = Objective("kl", 2.0, weight)
    given = (targets if weight > 0 else None, labels if weight < 1 else None)  # what has no weight is not asked for
    total = distillation_loss(tensor(STUDENT), *given, objective)
    assert total.item() == pytest.approx((1 - weight) * soft + weight * cross_entropy())


def test_ensemble_is_the_log_of_the_mean_probability() -> None:
    teachers = [random(B, T, V, seed=seed) for seed in (4, 5, 6)]
    expected = np.log(np.mean([probabilities(teacher) for teacher in teachers], 0))
    np.testing.assert_allclose(ensemble([tensor(teacher) for teacher in teachers]), expected, rtol=1e-12)
    np.testing.assert_allclose(ensemble([tensor(TEACHER)]), np.log(probabilities(TEACHER)), rtol=1e-12)


@pytest.mark.parametrize(
    ("student", "teacher", "expected"),
    [
        (1, 6, (5,)),
        (2, 6, (2, 5)),
        (3, 6, (1, 3, 5)),
        (4, 6, (1, 2, 4, 5)),
        (6, 6, (0, 1, 2, 3, 4, 5)),
        (4, 2, (0, 0, 1, 1)),
    ],
)
def test_layer_map(student: int, teacher: int, expected: tuple[int, ...]) -> None:
    assert layer_map(student, teacher) == expected


def test_hidden_states_of_other_widths_and_layers() -> None:
    student = [random(B, T, 5, seed=seed) for seed in (1, 2)]
    teacher = [random(B, T, 8, seed=seed) for seed in (3, 4, 5, 6)]
    projection = torch.nn.Linear(5, 8, dtype=torch.float64)
    weight, bias = (parameter.detach().numpy() for parameter in (projection.weight, projection.bias))
    expected = np.mean([(student[i] @ weight.T + bias - teacher[j]) ** 2 for i, j in ((0, 1), (1, 3))])
    loss = hidden_loss([tensor(x) for x in student], [tensor(x) for x in teacher], projection)
    assert loss.item() == pytest.approx(expected)
    loss.backward()
    assert projection.weight.grad is not None
    with pytest.raises(InputError, match="give a projection"):
        hidden_loss([tensor(x) for x in student], [tensor(x) for x in teacher])


def test_hidden_states_of_one_width_need_no_projection() -> None:
    student, teacher = random(B, T, 5), random(B, T, 5, seed=1)
    loss = hidden_loss([tensor(student)], [tensor(student), tensor(teacher)])
    assert loss.item() == pytest.approx(((student - teacher) ** 2).mean())


@pytest.mark.parametrize("heads", [2, 3])
def test_attention_of_other_heads_and_layers(heads: int) -> None:
    student = [probabilities(random(B, heads, T, T, seed=seed)) for seed in (1, 2)]
    teacher = [probabilities(random(B, 2, T, T, seed=seed)) for seed in (3, 4, 5)]
    pairs = [(student[0], teacher[1]), (student[1], teacher[2])]
    if heads != 2:
        pairs = [(ours.sum(1) / heads, theirs.sum(1) / 2) for ours, theirs in pairs]
    expected = np.mean([((ours - theirs) ** 2).mean() for ours, theirs in pairs])
    loss = attention_loss([tensor(x) for x in student], [tensor(x) for x in teacher])
    assert loss.item() == pytest.approx(expected)


def test_a_model_without_layers_is_refused() -> None:
    with pytest.raises(InputError, match="no layers"):
        hidden_loss([], [])


def labels_of(kind: str) -> SoftLabels:
    return whole_labels(tensor(TEACHER)) if kind == "whole" else top_k_labels(tensor(TEACHER), K, 2.0)


LOSSES: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], Array]] = {
    **{
        f"{loss}, {kind}": (
            lambda x, loss=loss, kind=kind: soft_loss(x, labels_of(kind), Objective(loss, 2.0)),
            STUDENT,
        )
        for loss in ("kl", "reverse-kl", "mse")
        for kind in ("whole", "top-k")
    },
    "hard": (lambda x: hard_loss(x, tensor(TARGETS)), STUDENT),
    "mixture": (lambda x: distillation_loss(x, tensor(TARGETS), labels_of("top-k"), Objective("kl", 2, 0.3)), STUDENT),
    "ensemble": (lambda x: ensemble([x, tensor(TEACHER)]).square().mean(), STUDENT),
    "hidden": (lambda x: hidden_loss(list(x), [tensor(random(T, V, seed=s)) for s in (4, 5, 6)]), STUDENT),
    "attention": (lambda x: attention_loss([x], [tensor(random(B, 2, 4, 4))]), random(B, 3, 4, 4, seed=8)),
}


@pytest.mark.parametrize("name", LOSSES)
def test_gradient_is_that_of_finite_differences(name: str) -> None:
    loss, at = LOSSES[name]
    point = tensor(at).clone().requires_grad_()
    loss(point).backward()
    assert point.grad is not None
    step = 1e-5
    expected = np.zeros_like(at)
    for place in np.ndindex(*at.shape):
        shift = np.zeros_like(at)
        shift[place] = step
        expected[place] = (loss(tensor(at + shift)) - loss(tensor(at - shift))).item() / (2 * step)
    np.testing.assert_allclose(point.grad, expected, atol=1e-8)
    assert np.abs(expected).max() > 1e-3


@pytest.mark.parametrize("loss", DIVERGENCES)
@pytest.mark.parametrize("case", ["nothing left", "all on kept", "contradiction"])
def test_gradients_are_finite_at_the_edges(case: str, loss: str) -> None:
    labels = top_k_labels(tensor(TEACHER), V if case == "nothing left" else K, 1.0)
    assert labels.ids is not None
    if case == "contradiction":  # the teacher gives the others nothing at all, the student something
        labels = SoftLabels(labels.values, labels.ids, torch.full_like(labels.values[..., 0], -torch.inf), 1.0)
    student = tensor(STUDENT).clone()
    if case == "all on kept":  # far beyond where 1 - sum is 0 in floating point
        student.scatter_add_(-1, labels.ids, torch.full_like(labels.values, 2000))
    student.requires_grad_()
    value = soft_loss(student, labels, Objective(loss))
    value.backward()
    assert student.grad is not None
    assert torch.isfinite(value)
    assert torch.isfinite(student.grad).all()
    assert student.grad.abs().max() > 0


def test_a_tiny_remaining_mass_keeps_its_digits() -> None:
    logits = np.array([[[60.0, 0.0, 1.0, 2.0]]])  # beside the likeliest, the rest is 1e-25 of it
    labels = top_k_labels(tensor(logits).float(), 1, 1.0)
    assert labels.rest is not None
    assert labels.rest.item() == pytest.approx(np.log(np.exp([0.0, 1.0, 2.0]).sum()) - 60, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("loss", ["kl", "reverse-kl", "mse"])
def test_half_precision_logits_are_computed_in_float32(loss: str, dtype: torch.dtype) -> None:
    student, teacher = tensor(STUDENT).to(dtype), tensor(TEACHER).to(dtype)
    objective = Objective(loss, 2.0, 0.5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = distillation_loss(student, tensor(TARGETS), whole_labels(teacher), objective)
    assert value.dtype == torch.float32
    exact = distillation_loss(student.double(), tensor(TARGETS), whole_labels(teacher.double()), objective)
    assert value.item() == pytest.approx(exact.item(), rel=1e-5)


@pytest.mark.parametrize("rounded", [whole_labels, lambda logits: top_k_labels(logits, K, 1.0)])
def test_labels_rounded_to_float16_remain_a_distribution(rounded: Callable[[torch.Tensor], SoftLabels]) -> None:
    labels = rounded(tensor(TEACHER))
    rest = None if labels.rest is None else labels.rest.half()
    stored = SoftLabels(labels.values.half(), labels.ids, rest, labels.temperature)
    exact, value = (soft_loss(tensor(STUDENT), each, Objective()).item() for each in (labels, stored))
    assert value == pytest.approx(exact, rel=1e-3)
    assert soft_loss(tensor(TEACHER), stored, Objective()).item() >= 0


def test_top_k_labels_hold_for_one_temperature() -> None:
    labels = top_k_labels(tensor(TEACHER), K, 2.0)
    with pytest.raises(InputError, match=r"of temperature 2\.0, but the objective's is 1\.0"):
        soft_loss(tensor(STUDENT), labels, Objective("kl", 1.0))


def test_labels_of_another_shape_are_refused() -> None:
    for labels in (whole_labels(tensor(TEACHER[..., 1:])), top_k_labels(tensor(TEACHER[:, 1:]), K, 1.0)):
        with pytest.raises(InputError, match="expected the same samples, positions and vocabulary"):
            soft_loss(tensor(STUDENT), labels, Objective())
    with pytest.raises(InputError, match="ensemble is empty"):
        ensemble([])


@pytest.mark.parametrize(
    "options",
    [
        {"loss": "kullback"},
        {"temperature": 0},
        {"temperature": float("nan")},
        {"temperature": True},
        {"temperature": "1"},
        {"hard_weight": 1.5},
        {"hard_weight": -0.1},
        {"hidden_weight": -1},
        {"attention_weight": float("inf")},
    ],
    ids=str,
)
def test_an_objective_outside_its_range_is_refused(options: dict[str, Any]) -> None:
    ((name, value),) = options.items()
    with pytest.raises(InputError, match=rf"{name} is {value!r}; expected"):
        Objective(**options)
