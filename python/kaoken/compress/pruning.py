"""Structured pruning: what a model can do without, measured on text, and the model that is left.

Three criteria rank heads and neurons. At 0.9, 0.75 and half of the bundled model's parameters, before any training,
each leaves this loss on 12,288 tokens of the last tenth of tinyshakespeare, in nats, where the model has 1.41:

- `taylor`, 1.42, 1.60 and 2.61: the mean magnitude of activation times gradient, which is what masking a part would
  change of the loss to first order (Michel et al. 2019, arXiv:1905.10650; Molchanov et al. 2019, arXiv:1906.10771).
- `fisher`, 1.41, 1.44 and 1.67: half the mean square, over sequences, of that product summed over a sequence, which is
  the change to second order.
- `surgeon`, 1.41, 1.43 and 1.61, the default: the second order, once the inputs that are left have made good what they
  can; parts go one after another, each by what is left then (optimal brain surgeon, Hassibi and Stork 1993, with the
  Kronecker-factored Fisher of van der Ouderaa et al. 2024, "The LLM Surgeon", arXiv:2312.17244).

What is cut off is made good in the same way: the last matrix of each branch is fitted anew, by least squares, so that
the kept inputs give what all gave on the text. Without that, half the parameters leave 2.2 nats and more.

Layers are ranked by how little they turn the residual stream (Men et al. 2024, ShortGPT, arXiv:2403.03853), which finds
the two that the bundled model misses least, where gates by `fisher` find one. Channels are ranked by masks of all that
reads them. Depth and width are cut together as in Muralidharan et al. 2024 (Minitron, arXiv:2407.14679).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from kaoken.codegen.layout import PANEL
from kaoken.compress import gpt2
from kaoken.errors import InputError

Array = NDArray[np.float64]
Batch = tuple[Any, Any]  # token ids and the tokens that follow them, both [B, T]

RIDGE = 1e-4  # of the mean square of the inputs, as they may depend on one another
CRITERIA = ("surgeon", "fisher", "taylor")
SHARE = "expected above 0 and at most 1, the share to keep: choose one in between"
UNKEPT = "expected at least 0 and below 1"


@dataclass(frozen=True)
class Importance:
    """What the loss would lose with each part, by one criterion, and the moments of what branches read."""

    whole: gpt2.Cut  # of the model
    heads: tuple[Array, ...]  # [n_head] of each layer
    neurons: tuple[Array, ...]  # [n_inner] of each layer
    channels: Array  # [n_embd]
    layers: Array  # [n_layer], by any criterion 1 - cosine similarity of a block's input and output
    moments: tuple[tuple[Array, Array], ...]  # of attention and MLP: mean of [inputs, 1]^T [inputs, 1] over tokens


def importance(model: Any, batches: Iterable[Batch], criterion: str = "surgeon") -> Importance:
    """Measures a model on batches of token ids and targets; the same batches give the same importance."""
    if criterion not in CRITERIA:
        raise InputError(f"criterion is {criterion!r}; expected one of {', '.join(CRITERIA)}: choose one")
    total = _Sums(model, criterion)
    was_training = model.training
    model.eval()
    for ids, targets in batches:
        total.add(*(torch.as_tensor(np.asarray(each), device=model.device).long() for each in (ids, targets)))
    model.train(was_training)
    if not total.sequences:
        raise InputError("importance is measured on no text: pass at least one batch of token ids and targets")
    return total.result()


class _Sums:
    """Sums over tokens and sequences of what Importance has the means of, by (branch, layer)."""

    def __init__(self, model: Any, criterion: str) -> None:
        self.model, self.sizes, self.criterion = model, gpt2.blocks(model), criterion
        self.sequences = self.tokens = 0
        self.sums: dict[Any, Any] = {}

    def add(self, ids: torch.Tensor, targets: torch.Tensor) -> None:
        """One batch: the loss is summed over tokens, so that each token's gradient is its own."""
        self.sequences, self.tokens = self.sequences + len(ids), self.tokens + ids.numel()
        with _recorded(self.model) as (written, read), torch.enable_grad():
            logits = self.model(ids).logits
            torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum").backward()
        self.model.zero_grad()
        with torch.no_grad():
            for layer, pair in enumerate(gpt2.branches(self.model)):
                for branch, matrix in enumerate(pair):
                    self._add_branch((branch, layer), matrix, *written[matrix])
                turned = 1 - torch.cosine_similarity(read[2 * layer], read[2 * layer + 2], dim=-1)
                self._sum(("layer", layer), turned.sum())
            self._score("channels", sum(x * x.grad for x in read))

    def _add_branch(self, key: tuple[int, int], matrix: Any, x: torch.Tensor, y: torch.Tensor) -> None:
        """A branch's inputs x [B, T, K] and outputs y [B, T, n_embd]."""
        products = x * (y.grad @ matrix.weight.T)  # of a mask of each input
        self._score(key, products if key[0] else products.unflatten(-1, (self.sizes[key[1]][0], -1)).sum(-1))
        inputs = torch.nn.functional.pad(x.flatten(0, 1), (0, 1), value=1.0)
        self._sum(("moments", *key), inputs.T @ inputs)
        gradients = y.grad.flatten(0, 1)
        self._sum(("gradients", *key), gradients.T @ gradients)

    def _score(self, key: Any, products: Any) -> None:
        """Adds the loss's derivatives [B, T, parts] by masks of the parts."""
        first = self.criterion == "taylor"
        self._sum(key, products.abs().sum((0, 1)) if first else products.sum(1).square().sum(0) / 2)

    def _sum(self, key: Any, value: torch.Tensor) -> None:
        self.sums[key] = self.sums.get(key, 0) + value.double()

    def result(self) -> Importance:
        """The means over tokens."""
        layers = range(len(self.sizes))
        means = {key: (value / self.tokens).cpu().numpy() for key, value in self.sums.items()}
        if self.criterion == "surgeon":
            for layer, pair in enumerate(gpt2.branches(self.model)):
                for branch, matrix in enumerate(pair):
                    weight, size = _stacked(matrix), 1 if branch else self.sizes[layer][1]
                    moments, gradients = (means[name, branch, layer] for name in ("moments", "gradients"))
                    means[branch, layer] = surgeon(moments, gradients, weight, size)
        return Importance(
            gpt2.whole(self.model),
            tuple(means[0, layer] for layer in layers),
            tuple(means[1, layer] for layer in layers),
            means["channels"],
            np.array([means["layer", layer] for layer in layers]),
            tuple((means["moments", 0, layer], means["moments", 1, layer]) for layer in layers),
        )


def surgeon(moments: Array, gradients: Array, weight: Array, size: int = 1) -> Array:
    """What each group of `size` inputs of y = [x, 1] W costs when it is removed, [inputs / size].

    The cost of a change D of W [inputs + 1, outputs] is tr(moments D gradients D^T) / 2. Of all D that zero the rows r
    of a group, the best costs tr(inverse(P[r, r]) W[r] gradients W[r]^T) / 2, where P is the inverse of the moments.
    The cheapest groups go first, a few at a time; W and P are then those of what is left. A group costs no less than
    those that went before it.
    """
    inverse = np.linalg.inv(moments + np.diag(_ridge(moments)))
    left = np.arange((len(weight) - 1) // size)
    costs, least = np.zeros(len(left)), 0.0
    step = 1 if size > 1 else PANEL * -(-len(left) // (64 * PANEL))
    while len(left):
        own = np.arange(len(left) * size).reshape(-1, size)
        curvature = np.linalg.inv(inverse[own[:, :, None], own[:, None, :]])
        rows = weight[own]
        now = np.maximum(np.einsum("gij,gio,gjo->g", curvature, rows @ gradients, rows, optimize=True) / 2, least)
        cheapest = np.argsort(now, kind="stable")[:step]
        least = now[cheapest].max()
        costs[left[cheapest]] = now[cheapest]
        gone = own[cheapest].ravel()
        kept = np.delete(np.arange(len(weight)), gone)
        back = np.linalg.solve(inverse[np.ix_(gone, gone)], np.hstack([inverse[np.ix_(gone, kept)], weight[gone]]))
        column = inverse[np.ix_(kept, gone)]
        inverse = inverse[np.ix_(kept, kept)] - column @ back[:, : len(kept)]
        weight = weight[kept] - column @ back[:, len(kept) :]
        left = np.delete(left, cheapest)
    return costs


def _stacked(matrix: Any) -> Array:
    """Weight and bias, [inputs + 1, outputs], in float64."""
    stacked: Array = torch.cat([matrix.weight, matrix.bias[None]]).detach().double().cpu().numpy()
    return stacked


def _ridge(moments: Array) -> Array:
    """What is added to the diagonal, as inputs may depend on one another; the bias is free."""
    ridge = np.full(len(moments), RIDGE * np.diag(moments)[:-1].mean())
    ridge[-1] = 0.0
    return ridge


@contextmanager
def _recorded(model: Any) -> Iterator[tuple[dict[Any, tuple[torch.Tensor, torch.Tensor]], list[torch.Tensor]]]:
    """Keeps the inputs and outputs of the branches' last matrices, and what each LayerNorm reads, with gradients."""
    written: dict[Any, tuple[torch.Tensor, torch.Tensor]] = {}
    read: list[torch.Tensor] = []

    def write(matrix: Any, inputs: Any, output: torch.Tensor) -> None:
        output.retain_grad()
        written[matrix] = (inputs[0], output)

    def copy(_: Any, inputs: Any) -> Any:
        read.append(inputs[0].clone())  # a node of its own, whose gradient is of this place alone
        read[-1].retain_grad()
        return (read[-1],)

    hooks = [matrix.register_forward_hook(write) for pair in gpt2.branches(model) for matrix in pair]
    hooks += [norm.register_forward_pre_hook(copy) for norm in gpt2.norms(model)]
    try:
        yield written, read
    finally:
        for hook in hooks:
            hook.remove()


# Choosing


@dataclass(frozen=True)
class _Unit:
    """What is removed at once: a head, or neurons that fill a panel of the packed kernels."""

    layer: int
    branch: int  # 0 for heads, 1 for neurons
    indices: tuple[int, ...]
    score: float
    parameters: int


def choose(
    importance: Importance, heads: float = 0.25, mlp: float = 0.5, layers: int = 1, width: float = 0.0
) -> gpt2.Cut:
    """The cut without so many layers, and without these shares of the heads and neurons of the others, and of channels.

    The least important go, wherever they are, so that each block keeps widths of its own: at least one head, and a
    multiple of 16 neurons where it has so many. Never more than the shares are removed, except that the kept channels
    are the nearest multiple of 16.
    """
    for name, value in {"heads": heads, "mlp": mlp, "width": width}.items():
        if not 0 <= value < 1:
            raise InputError(f"{name} is {value}; {UNKEPT}, the share to remove: choose one in between")
    count = len(importance.layers)
    if isinstance(layers, bool) or not isinstance(layers, int) or not 0 <= layers < count:
        raise InputError(f"layers is {layers}; expected a number below {count}, as many as there are: remove fewer")
    cut = _without_layers(importance, layers)
    for branch, share in enumerate((heads, mlp)):
        units = [unit for unit in _units(importance, cut) if unit.branch == branch]
        budget = share * sum(len(block.neurons if branch else block.heads) for block in cut.blocks) + 1e-9
        cut = _remove(cut, _affordable(sorted(units, key=lambda unit: unit.score / len(unit.indices)), budget))
    return replace(cut, channels=_kept_channels(importance.channels, width))


def target(model: Any, importance: Importance, parameters: float = 0.5) -> gpt2.Cut:
    """The cut of heads and neurons that leaves at most this share of the parameters.

    They go in the order of importance per parameter, by one threshold over all blocks.
    """
    if not 0 < parameters <= 1:
        raise InputError(f"parameters is {parameters}; {SHARE}")
    cut, gone = importance.whole, []
    total = left = gpt2.parameters(model)
    for unit in sorted(_units(importance, cut), key=lambda unit: unit.score / unit.parameters):
        if left <= parameters * total:
            break
        gone.append(unit)
        left -= unit.parameters
    if left > parameters * total:
        raise InputError(
            f"parameters is {parameters}, but with one head and {PANEL} neurons in each block {left / total:.3f} of "
            "them are left: keep more, or remove layers or channels first"
        )
    return _remove(cut, gone)


def _units(importance: Importance, cut: gpt2.Cut) -> list[_Unit]:
    """All that may go from the blocks of a cut; within a block and branch, in ascending order of importance."""
    width = len(cut.channels)
    found = []
    for block in cut.blocks:
        heads, neurons = importance.heads[block.layer], importance.neurons[block.layer]
        order = np.argsort(heads, kind="stable")[:-1]
        size = len(block.dims[0]) * (4 * width + 3)
        found += [_Unit(block.layer, 0, (int(head),), float(heads[head]), size) for head in order]
        order = np.argsort(neurons, kind="stable")
        first = len(order) % PANEL or PANEL
        for end in range(first, len(order), PANEL):
            group = order[max(0, end - PANEL) : end]
            score = float(neurons[group].sum())
            found.append(_Unit(block.layer, 1, tuple(group.tolist()), score, len(group) * (2 * width + 1)))
    return found


def _affordable(units: Sequence[_Unit], budget: float) -> list[_Unit]:
    """The first units that the budget of heads or neurons allows."""
    ends = np.cumsum([len(unit.indices) for unit in units])
    return list(units[: int(np.searchsorted(ends, budget, side="right"))])


def _remove(cut: gpt2.Cut, units: Iterable[_Unit]) -> gpt2.Cut:
    gone = {(unit.layer, unit.branch, index) for unit in units for index in unit.indices}
    blocks = []
    for block in cut.blocks:
        kept = [at for at, head in enumerate(block.heads) if (block.layer, 0, head) not in gone]
        neurons = tuple(neuron for neuron in block.neurons if (block.layer, 1, neuron) not in gone)
        heads, dims = tuple(block.heads[at] for at in kept), tuple(block.dims[at] for at in kept)
        blocks.append(replace(block, heads=heads, dims=dims, neurons=neurons))
    return replace(cut, blocks=tuple(blocks))


def _without_layers(importance: Importance, count: int) -> gpt2.Cut:
    cut, gone = importance.whole, set(np.argsort(importance.layers, kind="stable")[:count].tolist())
    return replace(cut, blocks=tuple(block for block in cut.blocks if block.layer not in gone))


def _kept_channels(scores: Array, share: float) -> tuple[int, ...]:
    count = len(scores)
    kept = (1 - share) * count
    if share and count >= PANEL:
        kept = min(count, max(PANEL, PANEL * round(kept / PANEL)))
    best = np.argsort(-scores, kind="stable")[: max(1, round(kept))]
    return tuple(sorted(best.tolist()))


# Cutting


def carve(model: Any, cut: gpt2.Cut, importance: Importance) -> gpt2.GPT2LMHeadModel:
    """`gpt2.carve`, with the last matrix of each branch fitted so that it gives what the whole branch gave on the text.

    Of inputs x = [kept, 1] and the old weight W: argmin |x V - [all, 1] W|^2 + ridge |V - W[kept]|^2, over the text
    that importance was measured on.
    """
    carved = gpt2.carve(model, cut)
    channels = list(cut.channels)
    for block, new in zip(cut.blocks, gpt2.branches(carved), strict=True):
        columns = gpt2.attended(block, gpt2.blocks(model)[block.layer][1])
        old = gpt2.branches(model)[block.layer]
        for branch, kept in enumerate((columns, list(block.neurons))):
            fitted = torch.from_numpy(
                _fit(importance.moments[block.layer][branch], _stacked(old[branch])[:, channels], kept)
            )
            with torch.no_grad():
                new[branch].weight.copy_(fitted[:-1])
                new[branch].bias.copy_(fitted[-1])
    return carved


def _fit(moments: Array, weight: Array, kept: list[int]) -> Array:
    """The new [kept + 1, outputs] of [inputs + 1, outputs]; the last rows are biases."""
    if len(kept) == len(weight) - 1:
        return weight
    rows = [*kept, len(weight) - 1]
    ridge = np.diag(_ridge(moments)[rows])
    solution = np.linalg.solve(moments[np.ix_(rows, rows)] + ridge, moments[rows] @ weight + ridge @ weight[rows])
    return np.asarray(solution, np.float64)


def prune(
    model: gpt2.GPT2LMHeadModel, batches: Iterable[Batch], parameters: float = 0.5, rounds: int = 2
) -> gpt2.GPT2LMHeadModel:
    """A model of at most this share of the parameters, without heads and neurons, before any training.

    In several rounds, each removes the same share of what the one before has left, by importance measured anew. Half of
    the bundled model has a loss of 1.58 nats after two, and of 1.61 after one.
    """
    if isinstance(rounds, bool) or not isinstance(rounds, int) or rounds < 1:
        raise InputError(f"rounds is {rounds}; expected a whole number from 1: choose one")
    if not 0 < parameters <= 1:
        raise InputError(f"parameters is {parameters}; {SHARE}")
    batches, pruned, total = list(batches), model, gpt2.parameters(model)
    for each in range(1, rounds + 1):
        measured = importance(pruned, batches)
        share = total * parameters ** (each / rounds) / gpt2.parameters(pruned)
        pruned = carve(pruned, target(pruned, measured, min(1.0, share)), measured)
    return pruned


# Masks


def mask(
    model: Any, sparsity: float | None = None, pattern: str | None = None, batches: Iterable[Batch] | None = None
) -> dict[str, torch.Tensor]:
    """Zeroes weights of the blocks' matrices, in place, and returns where weights are left: bool [inputs, outputs].

    Either the share `sparsity` of each output's weights, or, with `pattern="2:4"`, two of each four neighbouring inputs
    of an output. Those of the least magnitude go; with batches of text, the least magnitude times the norm of the input
    (Wanda: Sun et al. 2023, arXiv:2306.11695).
    """
    if (sparsity is None) == (pattern is None) or pattern not in (None, "2:4"):
        raise InputError(
            f"sparsity is {sparsity} and pattern {pattern!r}; expected a sparsity or the pattern '2:4': pass one"
        )
    if sparsity is not None and not 0 <= sparsity < 1:
        raise InputError(f"sparsity is {sparsity}; {UNKEPT}, the share to zero: choose one in between")
    norms = None if batches is None else _input_norms(model, batches)
    masks = {}
    for name, matrix in gpt2.matrices(model).items():
        scores = matrix.weight.detach().abs()
        scores = scores if norms is None else scores * norms[name][:, None]
        group = scores.shape[0] if pattern is None else 4
        if scores.shape[0] % group:
            raise InputError(
                f"{name} has {scores.shape[0]} inputs; the pattern 2:4 needs a multiple of 4: use sparsity"
            )
        zeros = round(sparsity * group) if sparsity is not None else 2
        ranks = scores.reshape(-1, group, scores.shape[1]).argsort(dim=1, stable=True).argsort(dim=1)
        masks[name] = (ranks >= zeros).reshape(scores.shape)
    keep_zero(model, masks)
    return masks


def keep_zero(model: Any, masks: dict[str, torch.Tensor]) -> None:
    """Zeroes again what a step of an optimizer has moved away from zero: call it after each."""
    with torch.no_grad():
        for name, matrix in gpt2.matrices(model).items():
            if name in masks:
                matrix.weight *= masks[name].to(matrix.weight.device)


def _input_norms(model: Any, batches: Iterable[Batch]) -> dict[str, torch.Tensor]:
    """The norm [inputs] of what each matrix reads, over all tokens."""
    squares: dict[str, Any] = {}

    def add(name: str) -> Any:
        def hook(_: Any, inputs: Any) -> None:
            squares[name] = squares.get(name, 0) + inputs[0].flatten(0, 1).square().sum(0)

        return hook

    hooks = [matrix.register_forward_pre_hook(add(name)) for name, matrix in gpt2.matrices(model).items()]
    with torch.no_grad():
        for ids, _ in batches:
            model(torch.as_tensor(np.asarray(ids), device=model.device).long())
    for each in hooks:
        each.remove()
    return {name: value.sqrt() for name, value in squares.items()}
