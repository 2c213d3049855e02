"""GPT-2 in plain torch with its KV cache as inputs and outputs: what ONNX Runtime and OpenVINO are given.

Written out here because exporters follow transformers' versions closely, and so that the head reads the last position
alone.
"""

from __future__ import annotations

from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.engines.steps import step_inputs
from benchmarks.models import Checkpoint


class ExportedGPT2(nn.Module):
    """ids [B, T], positions [1, T], mask [1, 1, T, P + T] and 2 L tensors [B, H, P, D] of the past, in that order,
    to the last position's logits [B, V] and 2 L tensors [B, H, P + T, D]."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__()
        config = checkpoint.config()
        tensors = {
            name.removeprefix("transformer."): tensor.float()
            for name, tensor in load_file(checkpoint.directory / "model.safetensors").items()
        }
        self.heads: int = config["n_head"]
        self.layers: int = config["n_layer"]
        self.width: int = config["n_embd"]
        self.token_table = _embedding(tensors["wte.weight"])
        self.position_table = _embedding(tensors["wpe.weight"])
        self.blocks = nn.ModuleList(
            _Block(tensors, f"h.{layer}.", config["n_head"], config["layer_norm_epsilon"])
            for layer in range(self.layers)
        )
        self.norm = _norm(tensors, "ln_f", config["layer_norm_epsilon"])
        self.head = nn.Linear(self.width, config["vocab_size"], bias=False)
        self.head.weight = nn.Parameter(tensors.get("lm_head.weight", tensors["wte.weight"]).clone())
        self.requires_grad_(False)

    def forward(self, ids: Tensor, positions: Tensor, mask: Tensor, *past: Tensor) -> tuple[Tensor, ...]:
        hidden = self.token_table(ids) + self.position_table(positions)
        present: list[Tensor] = []
        for layer, block in enumerate(self.blocks):
            hidden, keys, values = block(hidden, mask, past[2 * layer], past[2 * layer + 1])
            present += [keys, values]
        return self.head(self.norm(hidden[:, -1])), *present

    def past_names(self) -> list[str]:
        """Of the inputs behind ids, positions and mask."""
        return [f"past.{layer}.{kind}" for layer in range(self.layers) for kind in ("key", "value")]

    def example(self, batch: int = 2, past: int = 3, count: int = 4) -> tuple[Any, ...]:
        """Inputs to trace it with."""
        cache = torch.zeros(batch, self.heads, past, self.width // self.heads)
        positions, mask = (torch.from_numpy(array) for array in step_inputs(past, count))
        return torch.ones(batch, count, dtype=torch.int64), positions, mask, *[cache] * (2 * self.layers)


class _Block(nn.Module):
    def __init__(self, tensors: dict[str, Tensor], prefix: str, heads: int, epsilon: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm_1 = _norm(tensors, f"{prefix}ln_1", epsilon)
        self.norm_2 = _norm(tensors, f"{prefix}ln_2", epsilon)
        self.qkv = _linear(tensors, f"{prefix}attn.c_attn")
        self.projection = _linear(tensors, f"{prefix}attn.c_proj")
        self.inner = _linear(tensors, f"{prefix}mlp.c_fc")
        self.outer = _linear(tensors, f"{prefix}mlp.c_proj")

    def forward(self, hidden: Tensor, mask: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        batch, count, width = hidden.shape
        split = self.qkv(self.norm_1(hidden)).reshape(batch, count, 3, self.heads, width // self.heads)
        query, new_keys, new_values = split.permute(2, 0, 3, 1, 4).unbind(0)
        keys = torch.cat([keys, new_keys], 2)
        values = torch.cat([values, new_values], 2)
        attended = functional.scaled_dot_product_attention(query, keys, values, attn_mask=mask)
        hidden = hidden + self.projection(attended.transpose(1, 2).reshape(batch, count, width))
        inner = functional.gelu(self.inner(self.norm_2(hidden)), approximate="tanh")
        return hidden + self.outer(inner), keys, values


def _embedding(table: Tensor) -> nn.Embedding:
    return nn.Embedding.from_pretrained(table)


def _norm(tensors: dict[str, Tensor], name: str, epsilon: float) -> nn.LayerNorm:
    norm = nn.LayerNorm(len(tensors[f"{name}.weight"]), eps=epsilon)
    norm.weight = nn.Parameter(tensors[f"{name}.weight"])
    norm.bias = nn.Parameter(tensors[f"{name}.bias"])
    return norm


def _linear(tensors: dict[str, Tensor], name: str) -> nn.Linear:
    weight = tensors[f"{name}.weight"].T.contiguous()  # Conv1D's are [inputs, outputs]
    linear = nn.Linear(weight.shape[1], weight.shape[0])
    linear.weight = nn.Parameter(weight)
    linear.bias = nn.Parameter(tensors[f"{name}.bias"])
    return linear
