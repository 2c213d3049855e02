"""A GPT-2 checkpoint as a float32 GGUF file, named as llama.cpp's converter names it."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
from safetensors.numpy import load_file

from benchmarks.models import Checkpoint

_PLAIN = {
    "wte.weight": "token_embd.weight",
    "wpe.weight": "position_embd.weight",
    "ln_f.weight": "output_norm.weight",
    "ln_f.bias": "output_norm.bias",
}
_BLOCK = {
    "ln_1": "attn_norm",
    "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output",
    "ln_2": "ffn_norm",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
}


def write_gguf(checkpoint: Checkpoint, path: Path) -> None:
    """Writes the file; it has no vocabulary, as only ids are fed."""
    config = checkpoint.config()
    writer = gguf.GGUFWriter(path, "gpt2")
    writer.add_name(checkpoint.name)
    writer.add_context_length(config["n_positions"])
    writer.add_embedding_length(config["n_embd"])
    writer.add_feed_forward_length(4 * config["n_embd"])
    writer.add_block_count(config["n_layer"])
    writer.add_head_count(config["n_head"])
    writer.add_layer_norm_eps(config["layer_norm_epsilon"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_file_type(0)
    writer.add_tokenizer_model("no_vocab")
    for name, tensor in load_file(checkpoint.directory / "model.safetensors").items():
        canonical = name.removeprefix("transformer.")
        if canonical == "lm_head.weight":
            continue
        matrix = canonical.startswith("h.") and tensor.ndim == 2
        values = tensor.T if matrix else tensor  # Conv1D's matrices are [inputs, outputs]
        writer.add_tensor(gguf_name(canonical), np.ascontiguousarray(values, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def gguf_name(name: str) -> str:
    """llama.cpp's name of a canonical GPT-2 tensor."""
    if name in _PLAIN:
        return _PLAIN[name]
    _, layer, rest = name.split(".", 2)
    module, kind = rest.rsplit(".", 1)
    return f"blk.{layer}.{_BLOCK[module]}.{kind}"
