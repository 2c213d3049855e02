"""Decoders in torch that onnxruntime and OpenVINO are given: GPT-2s of Kaoken's own, Llamas of transformers."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional
from transformers import LlamaForCausalLM
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb, repeat_kv

from benchmarks.models import Checkpoint
from kaoken.onnx_export import CachedDecoder, ExportedGPT2


class ExportedLlama(CachedDecoder):
    """transformers' modules without its forward, whose caches and masks no tracer follows."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        llama = LlamaForCausalLM.from_pretrained(checkpoint.directory, dtype=torch.float32)
        config = llama.config
        super().__init__([(config.num_key_value_heads, config.head_dim)] * config.num_hidden_layers)
        self.model, self.head = llama.model, llama.lm_head
        self.groups = config.num_attention_heads // config.num_key_value_heads
        positions = torch.arange(checkpoint.n_positions())[None]
        cosines, sines = self.model.rotary_emb(self.model.embed_tokens.weight, positions)  # [1, positions, D]
        self.register_buffer("cosines", cosines[0])
        self.register_buffer("sines", sines[0])
        self.requires_grad_(False)

    def forward(self, ids: Tensor, positions: Tensor, mask: Tensor, *past: Tensor) -> tuple[Tensor, ...]:
        hidden = self.model.embed_tokens(ids)
        rotary = self.cosines[positions], self.sines[positions]
        present: list[Tensor] = []
        for layer, block in enumerate(self.model.layers):
            query, keys, values = (
                linear(normed).unflatten(-1, (-1, block.self_attn.head_dim)).transpose(1, 2)
                for normed in [block.input_layernorm(hidden)]
                for linear in (block.self_attn.q_proj, block.self_attn.k_proj, block.self_attn.v_proj)
            )
            query, keys = apply_rotary_pos_emb(query, keys, *rotary)
            keys, values = torch.cat([past[2 * layer], keys], 2), torch.cat([past[2 * layer + 1], values], 2)
            present += [keys, values]
            attended = functional.scaled_dot_product_attention(
                query, repeat_kv(keys, self.groups), repeat_kv(values, self.groups), attn_mask=mask
            )
            hidden = hidden + block.self_attn.o_proj(attended.transpose(1, 2).flatten(2))
            hidden = hidden + block.mlp(block.post_attention_layernorm(hidden))
        return self.head(self.model.norm(hidden[:, -1])), *present


def cached_decoder(checkpoint: Checkpoint) -> CachedDecoder:
    """The checkpoint as a module to trace."""
    family = checkpoint.config()["model_type"]
    return ExportedLlama(checkpoint) if family == "llama" else ExportedGPT2(checkpoint.directory)
