"""GPT-2's layers in PyTorch eager, float32; imported in a worker process alone."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import GPT2Config
from transformers.activations import NewGELUActivation
from transformers.models.gpt2.modeling_gpt2 import GPT2MLP, GPT2Attention

WIDTH = 768


def make_layer(name: str, threads: int) -> Callable[[Tensor], Any]:
    """The layer as PyTorch or transformers has it. Raises KeyError."""
    torch.set_num_threads(threads)
    config = GPT2Config()
    config._attn_implementation = "sdpa"
    makers: dict[str, Callable[[], Callable[[Tensor], Any]]] = {
        "layer_norm": lambda: nn.LayerNorm(WIDTH),
        "gelu": lambda: NewGELUActivation(),
        "gelu_fused": lambda: lambda x: functional.gelu(x, approximate="tanh"),
        "linear": lambda: nn.Linear(WIDTH, 50257),
        "attention": lambda: GPT2Attention(config, layer_idx=0).eval(),
        "mlp": lambda: GPT2MLP(4 * WIDTH, config).eval(),
    }
    return makers[name]()


def time_layer(layer: Callable[[Tensor], Any], rows: int, repeats: int) -> float:
    """Seconds of one call out of `repeats`, on [1, rows, 768]."""
    with torch.inference_mode():
        x = torch.randn(1, rows, WIDTH)
        layer(x)
        begin = time.perf_counter()
        for _ in range(repeats):
            layer(x)
        return (time.perf_counter() - begin) / repeats
