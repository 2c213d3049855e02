"""Encoders in torch that onnxruntime and OpenVINO are given."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import BertModel

from benchmarks.models import Checkpoint
from kaoken.onnx_export import Names


class ExportedEncoder(nn.Module):
    """transformers' BERT behind a mask of our own: ids and mask [B, T], 0 for padding, to vectors [B, T, E]."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__()
        self.model = BertModel.from_pretrained(checkpoint.directory, dtype=torch.float32, add_pooling_layer=False)
        self.requires_grad_(False)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        hidden = self.model.embeddings(input_ids=ids)
        bias = (1.0 - mask[:, None, None].to(hidden.dtype)) * -1e9
        vectors: Tensor = self.model.encoder(hidden, attention_mask=bias).last_hidden_state
        return vectors

    def example(self) -> tuple[Tensor, ...]:
        """Inputs to trace it with."""
        mask = torch.ones(2, 5, dtype=torch.int64)
        mask[1, 3:] = 0
        return torch.ones(2, 5, dtype=torch.int64), mask

    def names(self) -> Names:
        """Of inputs and the output, and what of them is dynamic."""
        axes = {0: "batch", 1: "length"}
        return Names(["ids", "mask"], ["vectors"], dict.fromkeys(("ids", "mask", "vectors"), axes))
