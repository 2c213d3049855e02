"""GPT-2 in plain torch, and its ONNX files by torch's two exporters: for `kaoken graph --onnx` and benchmarks/.

Written out here because exporters follow transformers' versions closely. It takes what Kaoken bakes, blocks of
differing sizes included. Needs `pip install "kaoken[onnx]"`.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from kaoken.codegen.checkpoint import open_checkpoint
from kaoken.codegen.families import read_graph
from kaoken.codegen.graph import Block, Graph, Linear, Norm
from kaoken.codegen.graph import Tensor as Weight
from kaoken.errors import InputError, KaokenError

_ACTIVATIONS = {"gelu_erf": nn.GELU, "relu": nn.ReLU, "silu": nn.SiLU, "tanh": nn.Tanh}
_OPSET = {False: 17, True: 18}  # by `dynamo`; 18 is the least that its exporter writes without a conversion
_LARGEST = 2**31  # bytes of a protobuf file
_TOLERANCE = 1e-2  # between logits in float32; a wrong graph is off by far more


class CachedDecoder(nn.Module):
    """A decoder with its KV cache as inputs and outputs, whose head reads the last position alone.

    ids [B, T], positions [1, T], mask [1, 1, T, P + T] and 2 L tensors [B, H, P, D] of the past, in that order, to the
    last position's logits [B, V] and 2 L tensors [B, H, P + T, D].
    """

    def __init__(self, cache_shapes: list[tuple[int, int]]) -> None:
        super().__init__()
        self.cache_shapes = cache_shapes  # H and D of each block

    def past_names(self) -> list[str]:
        """Of the inputs behind ids, positions and mask."""
        return [f"past.{layer}.{kind}" for layer in range(len(self.cache_shapes)) for kind in ("key", "value")]

    def example(self, batch: int = 2, past: int = 3, count: int = 4) -> tuple[Tensor, ...]:
        """Inputs to trace it with."""
        caches = [torch.zeros(batch, heads, past, size) for heads, size in self.cache_shapes for _ in range(2)]
        mask = torch.full((1, 1, count, past + count), -math.inf).triu(past + 1)
        return torch.ones(batch, count, dtype=torch.int64), torch.arange(past, past + count)[None], mask, *caches

    def names(self) -> Names:
        """Of inputs and outputs, and what of them is dynamic."""
        names = self.past_names()
        axes = {"ids": {0: "batch", 1: "count"}, "positions": {1: "count"}, "mask": {2: "count", 3: "total"}}
        axes |= {"logits": {0: "batch"}}
        axes |= {name: {0: "batch", 2: "past"} for name in names}
        axes |= {f"present.{name}": {0: "batch", 2: "total"} for name in names}
        outputs = ["logits", *[f"present.{name}" for name in names]]
        return Names(["ids", "positions", "mask", *names], outputs, axes)


class ExportedGPT2(CachedDecoder):
    """A GPT-2 checkpoint as a CachedDecoder."""

    def __init__(self, directory: Path, dropout: float = 0.0) -> None:
        graph = _read_gpt2(directory)
        super().__init__([(block.attention.heads, block.attention.head_dim) for block in graph.blocks])
        self.graph = graph
        decoder, head = self.graph.decoder, self.graph.head
        assert decoder is not None
        assert decoder.embeddings.positions is not None
        assert head is not None
        assert head.output is not None
        self.token_table = nn.Embedding.from_pretrained(_load(decoder.embeddings.tokens))
        self.position_table = nn.Embedding.from_pretrained(_load(decoder.embeddings.positions))
        self.dropout = _dropout(dropout)
        self.blocks = nn.ModuleList(ExportedBlock(block, dropout) for block in self.graph.blocks)
        self.norm = _norm(decoder.norm)
        self.head = _linear(head.output)
        self.requires_grad_(False)

    def forward(self, ids: Tensor, positions: Tensor, mask: Tensor, *past: Tensor) -> tuple[Tensor, ...]:
        hidden = self.dropout(self.token_table(ids) + self.position_table(positions))
        present: list[Tensor] = []
        for layer, block in enumerate(self.blocks):
            hidden, keys, values = block(hidden, mask, past[2 * layer], past[2 * layer + 1])
            present += [keys, values]
        return self.head(self.norm(hidden[:, -1])), *present


class CausalGPT2(nn.Module):
    """A checkpoint without a cache, its head tied where it is there: ids [B, T] to the logits [B, T, V]."""

    def __init__(self, directory: Path, dropout: float = 0.0) -> None:
        super().__init__()
        gpt2 = ExportedGPT2(directory, dropout)
        self.token_table, self.position_table, self.dropout = gpt2.token_table, gpt2.position_table, gpt2.dropout
        self.blocks, self.norm, self.head = gpt2.blocks, gpt2.norm, gpt2.head
        if gpt2.graph.tied:
            self.head.weight = self.token_table.weight

    def forward(self, ids: Tensor) -> Tensor:
        positions = torch.arange(ids.shape[1])
        hidden = self.dropout(self.token_table(ids) + self.position_table(positions))
        for block in self.blocks:
            hidden = block(hidden)[0]
        logits: Tensor = self.head(self.norm(hidden))
        return logits

    def example(self) -> tuple[Tensor, ...]:
        """Inputs to trace it with: ids that every vocabulary has, in sequences that every context holds."""
        count = min(4, self.position_table.num_embeddings)
        return (torch.arange(2 * count).reshape(2, count) % self.token_table.num_embeddings,)

    def names(self) -> Names:
        """Of the input and the output, and what of them is dynamic."""
        axes = {0: "batch", 1: "count"}
        return Names(["ids"], ["logits"], {"ids": axes, "logits": axes})


class ExportedBlock(nn.Module):
    """One block: hidden [B, T, E], and a mask and a past where there are, to hidden, keys and values.

    Without a mask it is causal.
    """

    def __init__(self, block: Block, dropout: float) -> None:
        super().__init__()
        (first, second), attention, mlp = block.sublayers, block.attention, block.mlp
        self.heads = attention.heads
        self.head_dim = attention.head_dim
        default = math.isclose(attention.scale, attention.head_dim**-0.5)
        self.scale: float | None = None if default else attention.scale  # None is what most exports in the world have
        self.attention_dropout = dropout
        self.dropout = _dropout(dropout)
        self.norm_1 = _norm(first.before)
        self.norm_2 = _norm(second.before)
        self.qkv = _linear(attention.query, attention.key, attention.value)
        self.projection = _linear(attention.out)
        self.inner = _linear(mlp.up)
        self.activation = _ACTIVATIONS.get(mlp.activation, lambda: nn.GELU(approximate="tanh"))()
        self.outer = _linear(mlp.down)

    def forward(
        self, hidden: Tensor, mask: Tensor | None = None, keys: Tensor | None = None, values: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        batch, count, _ = hidden.shape
        split = self.qkv(self.norm_1(hidden)).reshape(batch, count, 3, self.heads, self.head_dim)
        query, new_keys, new_values = split.permute(2, 0, 3, 1, 4).unbind(0)
        keys = new_keys if keys is None else torch.cat([keys, new_keys], 2)
        values = new_values if values is None else torch.cat([values, new_values], 2)
        rate = self.attention_dropout if self.training else 0.0
        attended = functional.scaled_dot_product_attention(
            query, keys, values, attn_mask=mask, dropout_p=rate, is_causal=mask is None, scale=self.scale
        )
        attended = attended.transpose(1, 2).reshape(batch, count, self.heads * self.head_dim)
        hidden = hidden + self.dropout(self.projection(attended))
        inner = self.activation(self.inner(self.norm_2(hidden)))
        return hidden + self.dropout(self.outer(inner)), keys, values


@dataclass(frozen=True)
class Names:
    """What an export calls its inputs and outputs, and the name of each dynamic axis."""

    inputs: list[str]
    outputs: list[str]
    axes: dict[str, dict[int, str]] = field(default_factory=dict)


def export(
    module: nn.Module, example: tuple[Tensor, ...], names: Names, path: Path, *, dynamo: bool, training: bool = False
) -> None:
    """Writes an ONNX file by the TorchScript exporter, or by the dynamo exporter; raises KaokenError beyond 2 GiB."""
    size = sum(tensor.numel() * tensor.element_size() for tensor in module.state_dict().values())
    if size >= _LARGEST:
        raise KaokenError(
            f"an ONNX file holds less than 2 GiB, and these weights take {size / 2**30:.1f}: leave --onnx out"
        )
    module.train(training)
    options: dict[str, Any] = {"external_data": False, "verbose": False}
    if not dynamo:
        mode = torch.onnx.TrainingMode
        options = {"training": mode.TRAINING if training else mode.EVAL}
    with _quiet():
        torch.onnx.export(
            module,
            example,
            str(path),
            dynamo=dynamo,
            opset_version=_OPSET[dynamo],
            input_names=names.inputs,
            output_names=names.outputs,
            dynamic_axes=names.axes,
            **options,
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporters warn of what is so by design: deprecations, shapes that tracing fixes, absent packages."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)


def checked_export(module: nn.Module, example: tuple[Tensor, ...], names: Names, path: Path, *, dynamo: bool) -> None:
    """Exports in eval mode; raises KaokenError where that fails, or where onnxruntime and torch compute differently."""
    try:
        export(module, example, names, path, dynamo=dynamo)
        found = difference(module, example, names, path)
    except (KaokenError, MemoryError):
        raise
    except Exception as error:  # those of torch and of onnxruntime have no other base in common
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise KaokenError(f"{path.name} could not be made ({reason}): try other versions of torch and onnx") from error
    if not found <= _TOLERANCE:
        raise KaokenError(f"onnxruntime differs from torch by {found:.2g} on {path.name}: try other versions of them")


def difference(
    module: nn.Module, example: tuple[Tensor, ...], names: Names, path: Path, *, rewrites: bool = True
) -> float:
    """The largest absolute difference between the first outputs of an ONNX file in onnxruntime and of the module.

    `rewrites` lets onnxruntime optimize the graph first, as it does by default.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    if not rewrites:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    inputs = dict(zip(names.inputs, (tensor.numpy() for tensor in example), strict=True))
    computed = torch.from_numpy(session.run(names.outputs[:1], inputs)[0])
    with torch.no_grad():
        expected = module(*example)
    return float((computed - (expected if isinstance(expected, Tensor) else expected[0])).abs().max())


def _read_gpt2(directory: Path) -> Graph:
    """The graph of a checkpoint, a GPT-2's; InputError for another family's."""
    graph = read_graph(open_checkpoint(directory))
    if graph.family != "gpt2":
        raise InputError(
            f"{directory} is of the family {graph.family}, and ONNX exports are of GPT-2 alone: leave out --onnx"
        )
    return graph


def _load(weight: Weight) -> Tensor:
    return torch.from_numpy(weight.load().astype(np.float32))


def _dropout(rate: float) -> nn.Module:
    return nn.Dropout(rate) if rate else nn.Identity()


def _norm(norm: Norm | None) -> nn.LayerNorm:
    """Every norm of a GPT-2 is there, with both vectors."""
    assert norm is not None
    assert norm.weight is not None
    assert norm.bias is not None
    layer = nn.LayerNorm(norm.weight.shape[0], eps=norm.epsilon)
    layer.weight, layer.bias = nn.Parameter(_load(norm.weight)), nn.Parameter(_load(norm.bias))
    return layer


def _linear(*linears: Linear) -> nn.Linear:
    """The outputs of all, side by side."""
    weight = torch.cat([_load(linear.weight) for linear in linears])
    biases = [_load(linear.bias) for linear in linears if linear.bias is not None]
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bool(biases))
    layer.weight = nn.Parameter(weight)
    if biases:
        layer.bias = nn.Parameter(torch.cat(biases))
    return layer
