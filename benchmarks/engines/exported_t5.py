"""T5s in torch that onnxruntime is given: an encoder and a decoder of one step."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import T5ForConditionalGeneration

from benchmarks.models import Checkpoint
from kaoken.onnx_export import Names


class ExportedT5Encoder(nn.Module):
    """ids [B, S] to the 2 L keys and values [B, H, S, D] that the decoder's blocks see of them."""

    def __init__(self, t5: T5ForConditionalGeneration, longest: int) -> None:
        super().__init__()
        self.stack, self.decoder, self.longest = t5.encoder, t5.decoder, longest
        distances = torch.arange(1 - longest, longest)  # key less query
        self.register_buffer("biases", _biases(t5.encoder, distances))
        self.requires_grad_(False)

    def forward(self, ids: Tensor) -> tuple[Tensor, ...]:
        hidden = self.stack.embed_tokens(ids)
        positions = torch.arange(ids.shape[1])
        bias = self.biases[:, positions[None] - positions[:, None] + self.longest - 1][None]
        for block in self.stack.block:
            attention, normed = block.layer[0].SelfAttention, block.layer[0].layer_norm(hidden)
            query, keys, values = (_heads(attention, each, normed) for each in "qkv")
            hidden = hidden + attention.o(_attend(query, keys, values, bias))
            hidden = block.layer[1](hidden)
        encoded = self.stack.final_layer_norm(hidden)
        crosses = [block.layer[1].EncDecAttention for block in self.decoder.block]
        return tuple(_heads(attention, each, encoded) for attention in crosses for each in "kv")

    def example(self) -> tuple[Tensor, ...]:
        """Inputs to trace it with."""
        return (torch.ones(2, 5, dtype=torch.int64),)

    def names(self) -> Names:
        """Of the input and the outputs, and what of them is dynamic."""
        outputs = _cache_names("cross", len(self.decoder.block))
        axes = {"ids": {0: "batch", 1: "length"}} | {name: {0: "batch", 2: "length"} for name in outputs}
        return Names(["ids"], outputs, axes)


class ExportedT5Decoder(nn.Module):
    """One token [B, 1], 2 L tensors [B, H, P, D] of the past and those of the encoder to logits [B, V] and 2 L tensors
    [B, H, P + 1, D]."""

    def __init__(self, t5: T5ForConditionalGeneration, longest: int) -> None:
        super().__init__()
        self.stack, self.head = t5.decoder, t5.lm_head
        self.gain = t5.config.d_model**-0.5 if t5.config.tie_word_embeddings else 1.0
        self.register_buffer("biases", _biases(t5.decoder, torch.arange(1 - longest, 1)))  # the furthest key first
        self.requires_grad_(False)

    def forward(self, ids: Tensor, *caches: Tensor) -> tuple[Tensor, ...]:
        hidden = self.stack.embed_tokens(ids)
        present: list[Tensor] = []
        for layer, block in enumerate(self.stack.block):
            past, cross = caches[2 * layer :], caches[2 * (len(self.stack.block) + layer) :]
            attention, normed = block.layer[0].SelfAttention, block.layer[0].layer_norm(hidden)
            query, keys, values = (_heads(attention, each, normed) for each in "qkv")
            keys, values = torch.cat([past[0], keys], 2), torch.cat([past[1], values], 2)
            present += [keys, values]
            bias = self.biases[None, :, None, -keys.shape[2] :]
            hidden = hidden + attention.o(_attend(query, keys, values, bias))
            attention, normed = block.layer[1].EncDecAttention, block.layer[1].layer_norm(hidden)
            hidden = hidden + attention.o(_attend(_heads(attention, "q", normed), cross[0], cross[1], None))
            hidden = block.layer[2](hidden)
        return self.head(self.stack.final_layer_norm(hidden[:, -1]) * self.gain), *present

    def example(self) -> tuple[Tensor, ...]:
        """Inputs to trace it with."""
        attention = self.stack.block[0].layer[0].SelfAttention
        shape = (attention.n_heads, 3, attention.key_value_proj_dim)
        return torch.ones(2, 1, dtype=torch.int64), *torch.zeros(4 * len(self.stack.block), 2, *shape)

    def names(self) -> Names:
        """Of inputs and outputs, and what of them is dynamic."""
        past, cross = (_cache_names(kind, len(self.stack.block)) for kind in ("past", "cross"))
        present = [f"present.{name}" for name in past]
        axes = {"ids": {0: "batch"}, "logits": {0: "batch"}}
        axes |= {name: {0: "batch", 2: "past"} for name in past} | {name: {0: "batch", 2: "length"} for name in cross}
        axes |= {name: {0: "batch", 2: "total"} for name in present}
        return Names(["ids", *past, *cross], ["logits", *present], axes)


def exported_t5(checkpoint: Checkpoint) -> tuple[ExportedT5Encoder, ExportedT5Decoder]:
    """Both halves, with transformers' modules."""
    t5 = T5ForConditionalGeneration.from_pretrained(checkpoint.directory, dtype=torch.float32).eval()
    return ExportedT5Encoder(t5, checkpoint.n_positions()), ExportedT5Decoder(t5, checkpoint.n_positions())


def _biases(stack: nn.Module, distances: Tensor) -> Tensor:
    """Those of a stack for distances [N], key less query: [H, N]."""
    attention = stack.block[0].layer[0].SelfAttention
    buckets = attention._relative_position_bucket(
        distances,
        bidirectional=not attention.is_decoder,
        num_buckets=attention.relative_attention_num_buckets,
        max_distance=attention.relative_attention_max_distance,
    )
    biases: Tensor = attention.relative_attention_bias(buckets).T.contiguous()
    return biases


def _heads(attention: nn.Module, name: str, hidden: Tensor) -> Tensor:
    """The queries, keys or values of all heads: [B, T, E] to [B, H, T, D]."""
    projected: Tensor = getattr(attention, name)(hidden)
    return projected.unflatten(-1, (attention.n_heads, attention.key_value_proj_dim)).transpose(1, 2)


def _attend(query: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
    attended = functional.scaled_dot_product_attention(query, keys, values, attn_mask=bias, scale=1.0)
    return attended.transpose(1, 2).flatten(2)


def _cache_names(kind: str, layers: int) -> list[str]:
    return [f"{kind}.{layer}.{part}" for layer in range(layers) for part in ("key", "value")]
