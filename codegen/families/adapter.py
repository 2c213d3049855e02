"""LoRA adapters (Hu et al., arXiv:2106.09685) as peft saves them: what they add to the tensors of a checkpoint.

A matrix W becomes W + scale B A, in float64, before anything is folded or quantized. `codegen/checkpoint.py` reads the
two files of an adapter; this says what they mean. For all families.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..checkpoint import ADAPTER_CONFIG, Adapter, Checkpoint, quoted
from ..errors import CheckpointError, UnsupportedModelError
from ..graph import Array, Tensor, product, transpose
from .fields import MAX_WIDTH, Fields, names

PREFIX = "base_model.model."

# What an adapter's file has of a module: the two parts of a matrix or those of an embedding, which are transposed, and
# where the module is an embedding or a head maybe a copy of its own weight.
_MATRIX, _EMBEDDING = ("lora_A.weight", "lora_B.weight"), ("lora_embedding_A", "lora_embedding_B")
_COPY = "base_layer.weight"
_NAMES = re.compile(
    rf"{re.escape(PREFIX)}(.+)\.({'|'.join(map(re.escape, (*_MATRIX, *_EMBEDDING, _COPY)))})", re.DOTALL
)

# Variants of LoRA, and other parts of an adapter.
OFF = names(
    "alora_invocation_tokens arrow_config kasa_config layer_replication lora_bias megatron_config monteclora_config",
    "target_parameters trainable_token_indices use_bdlora use_qalora velora_config",
)

# Where adapters were put and how they were trained. What has one is in the file of weights.
HARMLESS = names(
    "auto_mapping base_model_name_or_path ensure_weight_tying eva_config exclude_modules fan_in_fan_out inference_mode",
    "layers_pattern layers_to_transform lora_dropout megatron_core peft_version qalora_group_size revision",
    "runtime_config target_modules task_type",
    # Of ways to begin that `init_lora_weights` says.
    "corda_config loftq_config lora_ga_config",
)

# Values of init_lora_weights that leave the model's own weights as they are.
BEGINNINGS = (None, True, False, "gaussian", "eva", "orthogonal")

# A pattern of rank_pattern is a regular expression in peft; those that peft's users write are names.
_NAME = re.compile(r"\^?(?:\w|\\?\.)+", re.ASCII)

MAX_ALPHA = 1e6


@dataclass(frozen=True)
class Added:
    """What is added to a tensor, scale * left @ right, as torch's Linear or Embedding stores it."""

    left: Tensor  # [rows, rank]
    right: Tensor  # [rank, columns]
    scale: float
    base: Tensor | None = None  # what it is added to, where that is not the checkpoint's own

    @property
    def shape(self) -> tuple[int, ...]:
        return self.left.shape[0], self.right.shape[1]

    def transpose(self) -> Added:
        """The same for a tensor that is stored transposed, as the first GPT's Conv1D is."""
        return replace(self, left=transpose(self.right), right=transpose(self.left))

    def rows(self, start: int, stop: int) -> Array:
        """Rows [start, stop)."""
        found: Array = self.scale * product(self.left, self.right).rows(start, stop)
        return found


def read_adapter(checkpoint: Checkpoint, prefix: str) -> dict[str, Added]:
    """By the family's names, which in the file follow peft's PREFIX and, where there is one, the family's `prefix`.

    Nothing is read but the headers. Raises UnsupportedModelError for other adapters than LoRA's, and CheckpointError
    for an adapter whose parts do not fit each other.
    """
    adapter = checkpoint.adapter
    if adapter is None:
        return {}
    scales = _Scales(adapter)
    added: dict[str, Added] = {}
    for module, parts in _modules(adapter).items():
        embedding = _EMBEDDING[0] in parts
        first, second = (_stored(checkpoint, adapter, parts[part]) for part in (_EMBEDDING if embedding else _MATRIX))
        rank = scales.rank(module)
        if first.shape[:1] != (rank,) or second.shape[1:] != (rank,) or len(first.shape) != 2:
            raise CheckpointError(
                f"{adapter.weights}: the parts of {quoted(module)} have shapes {list(first.shape)} and "
                f"{list(second.shape)}; expected [{rank}, inputs] and [outputs, {rank}], as {ADAPTER_CONFIG} says: "
                "make the two agree"
            )
        name, found = f"{module.removeprefix(prefix)}.weight", Added(second, first, scales.of(module))
        if name in added:
            raise CheckpointError(
                f"{adapter.weights} has {quoted(module)} with and without {prefix!r}: keep the one that is right"
            )
        found = found.transpose() if embedding else found
        added[name] = replace(found, base=_stored(checkpoint, adapter, parts[_COPY])) if _COPY in parts else found
    return added


def _modules(adapter: Adapter) -> dict[str, dict[str, str]]:
    """For each module its tensors' names, by part."""
    modules: dict[str, dict[str, str]] = {}
    for name in adapter.tensors:
        match = _NAMES.fullmatch(name)
        if match is None:
            raise UnsupportedModelError(
                f"{adapter.weights}: {quoted(name)} is no part of a LoRA; expected lora_A and lora_B of modules: "
                "merge the adapter with peft's merge_and_unload() and bake what save_pretrained writes"
            )
        modules.setdefault(match[1], {})[match[2]] = name
    for module, parts in modules.items():
        if parts.keys() - {_COPY} not in (set(_MATRIX), set(_EMBEDDING)):
            raise CheckpointError(
                f"{adapter.weights}: {quoted(module)} has {' and '.join(sorted(parts))} alone; expected lora_A and "
                "lora_B: save the adapter again"
            )
    return modules


def _stored(checkpoint: Checkpoint, adapter: Adapter, name: str) -> Tensor:
    own = replace(checkpoint, directory=adapter.directory, tensors=adapter.tensors)
    own.check_type(name)

    def rows(start: int, stop: int) -> Array:
        return own.read(name, slice(start, stop)).astype(np.float64)

    return Tensor(adapter.tensors[name].shape, (), rows)


class _Scales:
    """adapter_config.json: the rank and the scale of each module."""

    def __init__(self, adapter: Adapter) -> None:
        fields = Fields(adapter.config, str(adapter.directory / ADAPTER_CONFIG))
        _refuse_variants(fields)
        self._fields = fields
        self._rank = fields.integer("r", 8, MAX_WIDTH)
        self._alpha = fields.number("lora_alpha", 8, 0.0, MAX_ALPHA)
        self._root = fields.boolean("use_rslora", False)  # rsLoRA (Kalajdzievski, arXiv:2312.03732)
        self._ranks, self._alphas = self._pattern("rank_pattern"), self._pattern("alpha_pattern")
        fields.finish("a LoRA adapter", OFF, HARMLESS)

    def _pattern(self, name: str) -> Fields:
        """An object of names, of which the first that fits a module counts."""
        given = self._fields.get(name)
        given = {} if given is None else given
        if not isinstance(given, dict):
            raise self._fields.fail(name, "an object of modules' names")
        for pattern in given:
            if not _NAME.fullmatch(pattern):
                raise UnsupportedModelError(
                    f"{self._fields.where}: {name} has the pattern {quoted(pattern)}; expected names of modules, as "
                    "Kaoken runs no regular expressions of a checkpoint: write the names out"
                )
        return Fields(given, f"{self._fields.where}: {name}")

    def rank(self, module: str) -> int:
        pattern = _fitting(self._ranks.values, module)
        return self._rank if pattern is None else self._ranks.integer(pattern, None, MAX_WIDTH)

    def of(self, module: str) -> float:
        pattern, rank = _fitting(self._alphas.values, module), self.rank(module)
        alpha = self._alpha if pattern is None else self._alphas.number(pattern, None, 0.0, MAX_ALPHA)
        return alpha / (math.sqrt(rank) if self._root else rank)


def _fitting(patterns: Mapping[str, Any], module: str) -> str | None:
    """The first pattern that is the module's name or, without a ^ in front, the end of it behind a dot."""
    for pattern in patterns:
        name = pattern.replace("\\.", ".")
        if name.removeprefix("^") == module or (not name.startswith("^") and module.endswith(f".{name}")):
            return pattern
    return None


def _refuse_variants(fields: Fields) -> None:
    merge = "merge it with peft's merge_and_unload() and bake what save_pretrained writes"
    kind, bias, beginning = fields.get("peft_type"), fields.get("bias", "none"), fields.get("init_lora_weights")
    reasons = {
        f"is of peft_type {quoted(kind)}": kind != "LORA",
        "has use_dora, whose matrices are normed by columns (DoRA)": fields.get("use_dora"),
        f"replaces whole modules, {quoted(fields.get('modules_to_save'))} of modules_to_save": fields.get(
            "modules_to_save"
        ),
        f"has biases ({quoted(bias)})": bias != "none",
        f"began with other weights of the model (init_lora_weights is {quoted(beginning)})": beginning
        not in BEGINNINGS,
    }
    for reason, holds in reasons.items():
        if holds:
            raise UnsupportedModelError(f"{fields.where}: the adapter {reason}; expected a plain LoRA: {merge}")
