"""What a student learns from: the teacher's distributions, the text, hidden states and attention.

Shapes: B samples, T positions, V tokens of the vocabulary, k kept ones. Losses are computed in float32 (in float64
where the logits are), so logits may be float16 or bfloat16, inside autocast too.

Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network" (2015), for the temperature and its square.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce
from numbers import Real

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from kaoken.errors import InputError

LOSSES = ("kl", "reverse-kl", "mse")

# A probability of 0 counts as e^-10000, which is 0 too but has a logarithm: so divergences and gradients stay finite.
_LEAST = -1e4


@dataclass(frozen=True)
class Objective:
    """What is minimised; the weights are of means over samples and positions.

    loss: "kl", the divergence of the student from the teacher (teacher || student); "reverse-kl", (student || teacher);
        or "mse", the mean squared error of logits, each row less its mean, as softmax ignores a constant.
    temperature: Divides teacher's and student's logits, and its square multiplies the divergence, so that gradients
        keep their size. "mse" does not depend on it, and is twice what "kl" tends to as the temperature grows.
    hard_weight: Of the cross-entropy with the text; the soft loss has the rest, 1 - hard_weight.
    hidden_weight, attention_weight: Of what is added for hidden states and for attention probabilities.
    """

    loss: str = "kl"
    temperature: float = 1.0
    hard_weight: float = 0.0
    hidden_weight: float = 0.0
    attention_weight: float = 0.0

    def __post_init__(self) -> None:
        """Raises InputError for what is outside its range."""
        if self.loss not in LOSSES:
            raise InputError(f"loss is {self.loss!r}; expected one of {', '.join(LOSSES)}: choose one of these")
        check_temperature(self.temperature)
        if not _is_number(self.hard_weight) or not 0 <= self.hard_weight <= 1:
            raise InputError(
                f"hard_weight is {self.hard_weight!r}; expected a number from 0 to 1: give the text's share of the loss"
            )
        for name in ("hidden_weight", "attention_weight"):
            weight = getattr(self, name)
            if not _is_number(weight) or weight < 0:
                raise InputError(f"{name} is {weight!r}; expected a number of at least 0: 0 leaves that loss out")


def check_temperature(temperature: float) -> None:
    """Raises InputError unless it is a finite number above 0."""
    if not _is_number(temperature) or temperature <= 0:
        raise InputError(f"temperature is {temperature!r}; expected a number above 0: 1 leaves the logits as they are")


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


@dataclass(frozen=True)
class SoftLabels:
    """The teacher's distribution at each position: whole, or its k likeliest tokens and what is left for all others.

    values: [B, T, V], log-probabilities at temperature 1 or logits; of top-k [B, T, k], log-probabilities.
    ids: int64 [B, T, k], whose log-probabilities these are; None for whole labels.
    rest: [B, T], the log of the remaining mass, which may be -inf; None for whole labels.
    temperature: At which values and rest of top-k labels were taken; None for whole labels.
    """

    values: Tensor
    ids: Tensor | None = None
    rest: Tensor | None = None
    temperature: float | None = None

    def to(self, device: torch.device | str) -> SoftLabels:
        """The same on another device."""
        ids = None if self.ids is None else self.ids.to(device)
        rest = None if self.rest is None else self.rest.to(device)
        return replace(self, values=self.values.to(device), ids=ids, rest=rest)


def whole_labels(logits: Tensor) -> SoftLabels:
    """Of a teacher's logits [B, T, V]; they hold for every temperature."""
    return SoftLabels(_wide(logits).log_softmax(-1))


def top_k_labels(logits: Tensor, k: int, temperature: float) -> SoftLabels:
    """The k likeliest tokens, the likeliest first, and the remaining mass. They hold for this temperature alone."""
    log_p = _divided(_wide(logits), temperature).log_softmax(-1)
    values, ids = log_p.topk(k)
    return SoftLabels(values, ids, _outside(log_p, ids), temperature)


def ensemble(logits: Sequence[Tensor]) -> Tensor:
    """The log of the mean of several teachers' probabilities at temperature 1: as many [B, T, V] to one."""
    if not logits:
        raise InputError("the ensemble is empty; expected the logits of at least one teacher: name one")
    log_p = (_wide(teacher).log_softmax(-1) for teacher in logits)
    return reduce(torch.logaddexp, log_p) - math.log(len(logits))


def distillation_loss(
    logits: Tensor, targets: Tensor | None, labels: SoftLabels | None, objective: Objective
) -> Tensor:
    """hard_weight of `hard_loss` and the rest of `soft_loss`; what has no weight is not computed and may be None."""
    total = logits.new_zeros((), dtype=_wide(logits[:0]).dtype)
    if objective.hard_weight < 1:
        assert labels is not None
        total = total + (1 - objective.hard_weight) * soft_loss(logits, labels, objective)
    if objective.hard_weight > 0:
        assert targets is not None
        total = total + objective.hard_weight * hard_loss(logits, targets)
    return total


def soft_loss(logits: Tensor, labels: SoftLabels, objective: Objective) -> Tensor:
    """The student's logits [B, T, V] against the teacher's labels; the mean over B and T, of a divergence in nats.

    Raises InputError for labels of another shape, and for top-k labels of another temperature.
    """
    _check_labels(logits, labels, objective)
    if objective.loss == "mse":
        return _mse(_wide(logits), labels)
    teacher, student = _log_probabilities(_divided(_wide(logits), objective.temperature), labels, objective.temperature)
    first, second = (teacher, student) if objective.loss == "kl" else (student, teacher)
    return _divergence(first, second).mean() * objective.temperature**2


def _check_labels(logits: Tensor, labels: SoftLabels, objective: Objective) -> None:
    width = logits.shape[-1] if labels.ids is None else labels.ids.shape[-1]
    if labels.values.shape != (*logits.shape[:-1], width):
        raise InputError(
            f"the soft labels have the shape {list(labels.values.shape)} and the student's logits "
            f"{list(logits.shape)}; expected the same samples, positions and vocabulary: make labels for this student"
        )
    # How the remaining mass divides among its tokens, and so what it would be at another temperature, is not known.
    if labels.temperature not in (None, objective.temperature) and objective.loss != "mse":
        raise InputError(
            f"the soft labels are of temperature {labels.temperature}, but the objective's is {objective.temperature}, "
            "and top-k labels hold for their own alone: make labels for this temperature, or whole ones (top_k=0)"
        )


def _log_probabilities(scaled: Tensor, labels: SoftLabels, temperature: float) -> tuple[Tensor, Tensor]:
    """Teacher's and student's, of the same outcomes: every token, or the kept ones and then all others together.

    The teacher's are normalised anew, as they may have been rounded to float16.
    """
    values = _wide(labels.values)
    if labels.ids is None:
        return _divided(values, temperature).log_softmax(-1), scaled.log_softmax(-1)
    assert labels.rest is not None
    teacher = torch.cat([values, _wide(labels.rest)[..., None]], -1)
    student = torch.cat([scaled.gather(-1, labels.ids), _outside(scaled, labels.ids)[..., None]], -1)
    return teacher.log_softmax(-1), student.log_softmax(-1)


def _outside(logits: Tensor, ids: Tensor) -> Tensor:
    """The log of what all tokens but `ids` weigh, [B, T]: summed, as 1 less what `ids` have would lose its digits."""
    return logits.scatter(-1, ids, -math.inf).logsumexp(-1)


def _divided(logits: Tensor, temperature: float) -> Tensor:
    return logits if temperature == 1 else logits / temperature


def _divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q) of each row."""
    log_p, log_q = log_p.clamp(min=_LEAST), log_q.clamp(min=_LEAST)
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def _mse(logits: Tensor, labels: SoftLabels) -> Tensor:
    """Of all tokens, or of the kept ones alone."""
    teacher = _wide(labels.values) * (labels.temperature or 1)
    student = logits if labels.ids is None else logits.gather(-1, labels.ids)
    return F.mse_loss(_centred(student), _centred(teacher))


def _centred(values: Tensor) -> Tensor:
    return values - values.mean(-1, keepdim=True)


def hard_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of logits [B, T, V] with the tokens that follow, int64 [B, T]; the mean, in nats."""
    return F.cross_entropy(_wide(logits).flatten(0, -2), targets.flatten())


def layer_map(student_layers: int, teacher_layers: int) -> tuple[int, ...]:
    """For each of the student's layers, which of the teacher's it learns from: evenly, and the last from the last.

    The student's layer i of n (from 1) learns from the teacher's layer i m / n of m, rounded up: 2 layers from the
    third and the last of 6; counted from 0 in the result, (2, 5).
    """
    return tuple(-(-(i + 1) * teacher_layers // student_layers) - 1 for i in range(student_layers))


def hidden_loss(student: Sequence[Tensor], teacher: Sequence[Tensor], projection: nn.Module | None = None) -> Tensor:
    """The mean squared error of the layers' outputs, [B, T, width] each, mapped by `layer_map`.

    projection: From the student's width to the teacher's, learned with the student; needed where these differ.
    """
    losses = []
    for ours, index in zip(student, _mapped(student, teacher), strict=True):
        projected = ours if projection is None else projection(ours)
        theirs = teacher[index]
        if projected.shape != theirs.shape:
            raise InputError(
                f"hidden states of the shape {list(projected.shape)} learn from {list(theirs.shape)}; expected the "
                "same shape: give a projection from the student's width to the teacher's"
            )
        losses.append(F.mse_loss(_wide(projected), _wide(theirs)))
    return torch.stack(losses).mean()


def attention_loss(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """The mean squared error of the layers' attention probabilities, [B, heads, T, T] each, mapped by `layer_map`.

    Head by head; where their numbers differ, of the means over heads. The mean is over the masked positions too.
    """
    losses = []
    for ours, index in zip(student, _mapped(student, teacher), strict=True):
        pair = [_wide(ours), _wide(teacher[index])]
        if pair[0].shape[1] != pair[1].shape[1]:
            pair = [heads.mean(1) for heads in pair]
        losses.append(F.mse_loss(*pair))
    return torch.stack(losses).mean()


def _mapped(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> tuple[int, ...]:
    if not student or not teacher:
        raise InputError(
            "a model gave no layers to learn from; expected at least one: ask it for all its layers' outputs"
        )
    return layer_map(len(student), len(teacher))


def _wide(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()
