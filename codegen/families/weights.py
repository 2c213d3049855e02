"""The tensors of a checkpoint as a family asks for them, each by its name and with its shape.

Nothing is read, as tensors are lazy. `finish` compares what a family asked for with what is stored, so that each name
stands in one place alone. Without a checkpoint the requests of a family tell which tensors one would have.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..checkpoint import Checkpoint, TensorInfo, quoted
from ..errors import CheckpointError, UnsupportedModelError
from ..graph import Array, Linear, Norm, Tensor, gather, part, pieces
from .adapter import Added

Shape = tuple[int, ...]


class Weights:
    """Tensors by a family's names. In the files `prefix` may stand before a name; `ignored` ones may be left over.

    `added` is what an adapter adds to some of them.
    """

    def __init__(
        self,
        checkpoint: Checkpoint | None,
        prefix: str,
        ignored: re.Pattern[str],
        added: Mapping[str, Added] | None = None,
    ) -> None:
        self.expected: dict[str, Shape] = {}  # in the order of the requests
        self._checkpoint = checkpoint
        self._ignored = ignored
        self._added = added or {}
        self._stored = {} if checkpoint is None else _canonical(checkpoint, prefix, ignored)
        self._optional: set[str] = set()
        self._renamed: dict[str, str] = {}

    def tensor(self, name: str, shape: Shape, old: str | None = None, *, transposed: bool = False) -> Tensor:
        """An array as it is stored, under its name or, where that is missing, under its `old` name.

        What an adapter adds to one that is stored `transposed` is transposed, too.
        """
        self.expected[name] = shape
        added = self._added.get(name)
        if added is not None:
            added = added.transpose() if transposed else added
            for each in (added, added.base):
                self._check_added(name, shape if each is None else each.shape)
        if old is not None and old in self._stored and name not in self._stored:
            self._renamed[name] = old

        def rows(start: int, stop: int) -> Array:
            if added is None:
                return self.read(name, slice(start, stop)).astype(np.float64)
            stored = self.read(name, slice(start, stop)) if added.base is None else added.base.rows(start, stop)
            return stored + added.rows(start, stop)

        return Tensor(shape, (name,), rows)

    def layer_norm(self, name: str, width: int, epsilon: float, bias: bool = True) -> Norm:
        """torch's LayerNorm, whose tensors BERT's first checkpoints named gamma and beta."""
        weight = self.tensor(f"{name}.weight", (width,), f"{name}.gamma")
        return Norm("layer", epsilon, weight, self.tensor(f"{name}.bias", (width,), f"{name}.beta") if bias else None)

    def rms_norm(self, name: str, width: int, epsilon: float, gain: float = 1.0, offset: float = 0.0) -> Norm:
        """A norm whose weight is `gain` times what is stored and `offset` more than that."""
        weight = self.tensor(f"{name}.weight", (width,))
        if (gain, offset) != (1.0, 0.0):
            weight = weight.map(lambda rows: (rows + offset) * gain)
        return Norm("rms", epsilon, weight, None)

    def linear(self, name: str, outputs: int, inputs: int, bias: bool = True) -> Linear:
        """torch's Linear: weight [outputs, inputs]."""
        weight = self.tensor(f"{name}.weight", (outputs, inputs))
        return Linear(weight, self.tensor(f"{name}.bias", (outputs,)) if bias else None)

    def fused(self, name: str, parts: int, outputs: int, inputs: int, bias: bool = True) -> list[Linear]:
        """A Linear of weight [parts * outputs, inputs] as `parts` linears of weight [outputs, inputs]."""
        whole = self.linear(name, parts * outputs, inputs, bias)

        def linear(begin: int) -> Linear:
            return whole.map(lambda tensor: part(tensor, begin, begin + outputs))

        return [linear(begin) for begin in range(0, parts * outputs, outputs)]

    def by_heads(
        self, name: str, parts: int, heads: int, head_dim: int, inputs: int, bias: bool = True
    ) -> list[Linear]:
        """A Linear that has its parts head by head, as `parts` linears of weight [heads * head_dim, inputs]."""
        whole = self.linear(name, heads * parts * head_dim, inputs, bias)
        rows = np.arange(heads * parts * head_dim).reshape(heads, parts, head_dim)

        def linear(index: int) -> Linear:
            return whole.map(lambda tensor: gather(tensor, rows[:, index].ravel()))

        return [linear(index) for index in range(parts)]

    def conv1d(self, name: str, outputs: int, inputs: int, parts: int = 1) -> list[Linear]:
        """The first GPT's Conv1D, weight [inputs, parts * outputs], as `parts` linears of weight [outputs, inputs]."""
        stored = self.tensor(f"{name}.weight", (inputs, parts * outputs), transposed=True)
        biases = self.tensor(f"{name}.bias", (parts * outputs,))

        def linear(index: int) -> Linear:
            begin = index * outputs

            def weight(start: int, stop: int) -> Array:
                return _columns(stored, begin + start, begin + stop).T

            def bias(start: int, stop: int) -> Array:
                return biases.rows(begin + start, begin + stop)

            return Linear(Tensor((outputs, inputs), stored.sources, weight), Tensor((outputs,), biases.sources, bias))

        return [linear(index) for index in range(parts)]

    def head(self, name: str, tokens: Tensor, tied: bool, old: str | None = None) -> Tensor:
        """The head's matrix: the table of tokens where the model is tied, otherwise a matrix of its own."""
        return self.copy(name, tokens) if tied else self.tensor(name, tokens.shape, old)

    def copy(self, name: str, table: Tensor) -> Tensor:
        """A tensor that is the same as `table`, which a checkpoint may also store under `name`.

        Where a checkpoint stores both and they differ, the copy is used, as in transformers 5. Where it stores the copy
        alone, as safetensors' save_model does, the copy is the table.
        """
        changed = next((each for each in (name, *table.sources) if each in self._added), None)
        if changed is not None:
            raise UnsupportedModelError(
                f"{self._adapter()}: the adapter changes {quoted(changed)}, a table that the model uses twice; "
                "expected none of such: merge it with peft's merge_and_unload() and bake what save_pretrained writes"
            )
        (original,) = (self._renamed.get(source, source) for source in table.sources)
        if original not in self._stored and name in self._stored:
            self._renamed[original] = name
            return table
        self._optional.add(name)
        copied = self.tensor(name, table.shape)
        return copied if self._differ(name, original) else table

    def _differ(self, name: str, other: str) -> bool:
        if name not in self._stored or other not in self._stored:
            return False
        first, second, shape = self._info(name), self._info(other), self.expected[name]
        if first == second or not first.shape == second.shape == shape:  # `finish` refuses other shapes
            return False
        step = max(1, (1 << 20) // math.prod(shape[1:]))
        parts = (slice(start, start + step) for start in range(0, shape[0], step))
        return any(not np.array_equal(self.read(name, rows), self.read(other, rows)) for rows in parts)

    def read(self, name: str, rows: slice | None = None) -> NDArray[np.float32]:
        """A tensor, or a range of its rows. Raises CheckpointError (see Checkpoint.read)."""
        assert self._checkpoint is not None, "there are no weights yet"
        name = self._renamed.get(name, name)
        return self._checkpoint.read(self._stored.get(name, name), rows)

    def type_of(self, name: str) -> str:
        """What the checkpoint calls the type in which it has a tensor."""
        return self._info(self._renamed.get(name, name)).dtype

    def _info(self, name: str) -> TensorInfo:
        assert self._checkpoint is not None
        return self._checkpoint.tensors[self._stored[name]]

    def _adapter(self) -> Path:
        assert self._checkpoint is not None
        assert self._checkpoint.adapter is not None
        return self._checkpoint.adapter.weights

    def _check_added(self, name: str, shape: Shape) -> None:
        if shape != self.expected[name]:
            raise CheckpointError(
                f"{self._adapter()}: what is added to {quoted(name)} has shape {list(shape)}; expected "
                f"{list(self.expected[name])}: pass the model that the adapter was trained with"
            )

    def finish(self, what: str) -> None:
        """Raises where a tensor is missing, has another shape, or is left over: one more would be a part left out."""
        assert self._checkpoint is not None
        for name, stored in self._stored.items():
            used = name in self.expected or name in self._renamed.values()
            if used or not self._ignored.fullmatch(name):
                self._checkpoint.check_type(stored)
            if not used and not self._ignored.fullmatch(name):
                raise UnsupportedModelError(
                    f"{self._info(name).file}: {quoted(name)} is no tensor of {what}; expected no others, as one might "
                    "change the model: merge adapters into the weights, correct the number of layers, or remove it"
                )
        for name in self._added:
            if name not in self.expected:
                raise CheckpointError(
                    f"{self._adapter()}: the adapter changes {quoted(name)}, which is no matrix of {what}; expected "
                    "modules of this model: pass the model that the adapter was trained with"
                )
        required = [name for name in self.expected if name not in self._optional]
        missing = [name for name in required if self._renamed.get(name, name) not in self._stored]
        if missing:
            raise CheckpointError(
                f"{self._checkpoint.place} lacks the tensor {missing[0]!r} that its config calls for "
                f"({len(missing)} of {len(required)} are missing): pass a whole checkpoint"
            )
        for name, shape in self.expected.items():
            stored = self._renamed.get(name, name)
            if stored in self._stored and self._info(stored).shape != shape:
                info = self._info(stored)
                raise CheckpointError(
                    f"{info.file}: {stored!r} has shape {quoted(list(info.shape))}; expected {list(shape)}, "
                    f"as {self._checkpoint.config_file.name} says: make the two agree"
                )


def _canonical(checkpoint: Checkpoint, prefix: str, ignored: re.Pattern[str]) -> Mapping[str, str]:
    """The stored name of each tensor by the family's."""
    stored: dict[str, str] = {}
    for name, info in checkpoint.tensors.items():
        canonical = name.removeprefix(prefix)
        if canonical in stored and not ignored.fullmatch(canonical):
            raise CheckpointError(
                f"{info.file} has {quoted(name)}, but {checkpoint.tensors[stored[canonical]].file.name} already has "
                f"{quoted(stored[canonical])}, with and without {prefix!r}: keep the one that is right"
            )
        stored[canonical] = name
    return stored


def _columns(tensor: Tensor, start: int, stop: int) -> Array:
    """Columns [start, stop) of a matrix, some of its rows at a time."""
    rows, columns = tensor.shape
    read = np.empty((rows, stop - start))
    for first, last in pieces(0, rows, columns):
        read[first:last] = tensor.rows(first, last)[:, start:stop]
    return read
