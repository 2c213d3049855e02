"""Tiny checkpoints of families of decoders, and what transformers makes of them.

A family adds its configurations to CONFIGURATIONS. Values depend on the names of the tensors and their shapes alone, so
a checkpoint is the same everywhere, and `tests/references/decoders.npz` has logits of the first of each family. Run
`python tests/make_references.py` where one changes or is added.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from kaoken.codegen.families import check_config
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from checkpoints import uniform

REFERENCES = Path(__file__).parent / "references" / "decoders.npz"
POSITIONS = (0, 1, 15, 16, 63, 64, 139)  # of a reference
COUNT = 140  # positions of a test sequence: more than two pages
LIMITED = 240

# Of Llama's fields.
SMALL: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 48,
    "intermediate_size": 100,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "max_position_embeddings": LIMITED,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
ONE_KEY = {"hidden_size": 56, "num_attention_heads": 4, "num_key_value_heads": 1, "intermediate_size": 33}
ODD = {"hidden_size": 35, "num_attention_heads": 5, "num_key_value_heads": 5, "head_dim": 6, "vocab_size": 67}
WIDE = {"hidden_size": 72, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 40}
YARN = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 100.0, "original_max_position_embeddings": 40}
NEO: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 48,
    "intermediate_size": None,
    "num_layers": 2,
    "num_heads": 6,
    "max_position_embeddings": LIMITED,
    "attention_types": [[["global", "local"], 1]],
    "window_size": 30,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
OPT: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 48,
    "ffn_dim": 100,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "max_position_embeddings": LIMITED,
}
BLOOM: dict[str, Any] = {"vocab_size": 61, "hidden_size": 48, "n_layer": 2, "n_head": 6, "seq_length": LIMITED}
GEMMA: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 48,
    "intermediate_size": 100,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "max_position_embeddings": LIMITED,
    "bos_token_id": 2,
    "eos_token_id": 1,
}
NEOX: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 48,
    "intermediate_size": 100,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "max_position_embeddings": LIMITED,
    "rotary_pct": 0.25,
}
ALTERNATING = ["sliding_attention", "full_attention", "sliding_attention"]

# By family, configurations by name; the fields that are theirs and, in front, those that they share.
CONFIGURATIONS: dict[str, dict[str, dict[str, Any]]] = {
    "mistral": {
        "mistral": {**SMALL, "sliding_window": 21, "tie_word_embeddings": False},
        "mistral_without_window": {**SMALL, **ONE_KEY, "sliding_window": None, "rope_theta": 1000000.0},
        "mistral_wide_window": {**SMALL, **ODD, "sliding_window": 100, "tie_word_embeddings": True},
        "mistral_window_of_two": {**SMALL, **WIDE, "sliding_window": 2, "rope_scaling": YARN, "rms_norm_eps": 1e-5},
    },
    "qwen2": {
        "qwen2": {
            **SMALL,
            "use_sliding_window": False,
            "sliding_window": 4096,
            "max_window_layers": 1,
            "tie_word_embeddings": True,
            "rope_theta": 1000000.0,
        },
        "qwen2_windows": {**SMALL, **ONE_KEY, "use_sliding_window": True, "sliding_window": 40, "max_window_layers": 1},
        "qwen2_alternating": {
            **SMALL,
            **ODD,
            "num_hidden_layers": 3,
            "use_sliding_window": True,
            "sliding_window": 70,
            "layer_types": ALTERNATING,
        },
        "qwen2_yarn": {**SMALL, **WIDE, "rope_scaling": YARN, "hidden_act": "gelu_pytorch_tanh"},
    },
    "qwen3": {
        "qwen3": {
            **SMALL,
            "head_dim": 20,
            "use_sliding_window": False,
            "sliding_window": None,
            "max_window_layers": 1,
            "tie_word_embeddings": True,
            "rope_theta": 1000000.0,
        },
        "qwen3_windows": {
            **SMALL,
            **ONE_KEY,
            "head_dim": 32,
            "use_sliding_window": True,
            "sliding_window": 40,
            "max_window_layers": 1,
            "attention_bias": True,
        },
        "qwen3_alternating": {
            **SMALL,
            **ODD,
            "num_hidden_layers": 3,
            "use_sliding_window": True,
            "sliding_window": 70,
            "layer_types": ALTERNATING,
            "rms_norm_eps": 0.01,
        },
        "qwen3_yarn": {**SMALL, **WIDE, "rope_scaling": YARN, "hidden_act": "gelu_pytorch_tanh"},
        "qwen3_wide_heads": {**SMALL, "num_key_value_heads": 6},
        "qwen3_eleven_heads_on_a_key": {
            **SMALL,
            "num_hidden_layers": 3,
            "num_attention_heads": 22,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "use_sliding_window": True,
            "sliding_window": 70,
            "layer_types": ALTERNATING,
        },
    },
    "smollm3": {
        "smollm3": {**SMALL, "num_hidden_layers": 4, "tie_word_embeddings": True},
        "smollm3_one_with_positions": {**SMALL, **ONE_KEY, "no_rope_layers": [0, 1, 1], "attention_bias": True},
        "smollm3_windows": {
            **SMALL,
            **ODD,
            "no_rope_layer_interval": 2,
            "use_sliding_window": True,
            "sliding_window": 66,
            "tie_word_embeddings": False,
            "mlp_bias": True,
        },
        "smollm3_yarn": {**SMALL, **WIDE, "no_rope_layer_interval": 2, "rope_scaling": YARN},
    },
    "granite": {
        "granite": {
            **SMALL,
            "embedding_multiplier": 12.0,
            "attention_multiplier": 0.0078125,
            "residual_multiplier": 0.22,
            "logits_scaling": 8.0,
            "tie_word_embeddings": True,
        },
        "granite_untied": {
            **SMALL,
            **ONE_KEY,
            "embedding_multiplier": 6,
            "attention_multiplier": 0.3,
            "residual_multiplier": 1.7,
            "logits_scaling": 0.25,
            "attention_bias": True,
            "mlp_bias": True,
        },
        "granite_without_constants": {**SMALL, **ODD, "rope_theta": 500.0},
        "granite_yarn": {**SMALL, **WIDE, "rope_scaling": YARN, "attention_multiplier": 0.1},
    },
    "gpt_neo": {
        "gpt_neo": NEO,
        "gpt_neo_wide_windows": {
            **NEO,
            "hidden_size": 60,
            "num_heads": 5,
            "intermediate_size": 33,
            "num_layers": 3,
            "attention_types": [[["local"], 2], [["global"], 1]],
            "attention_layers": ["local", "local", "global"],
            "window_size": 70,
            "activation_function": "relu",
        },
        "gpt_neo_one_head": {**NEO, "hidden_size": 20, "num_heads": 1, "window_size": 1, "vocab_size": 67},
        "gpt_neo_untied": {**NEO, "window_size": 4096, "tie_word_embeddings": False, "layer_norm_epsilon": 1e-3},
    },
    "gpt_neox": {
        "gpt_neox": {**NEOX, "use_parallel_residual": True, "rotary_emb_base": 10000},
        "gpt_neox_in_sequence": {
            **NEOX,
            "use_parallel_residual": False,
            "hidden_size": 120,
            "num_attention_heads": 3,
            "rotary_pct": 0.4,
            "hidden_act": "gelu_new",
        },
        "gpt_neox_one_head": {
            **NEOX,
            "hidden_size": 20,
            "num_attention_heads": 1,
            "rotary_pct": 1.0,
            "vocab_size": 67,
            "intermediate_size": 33,
            "tie_word_embeddings": True,
        },
        "gpt_neox_without_biases": {
            **NEOX,
            "hidden_size": 160,
            "num_attention_heads": 4,
            "num_hidden_layers": 3,
            "attention_bias": False,
            "rope_scaling": {"rope_type": "linear", "factor": 2.0},
            "layer_norm_eps": 1e-3,
        },
    },
    "gemma3_text": {
        "gemma3_text": {
            **GEMMA,
            "num_attention_heads": 4,
            "num_key_value_heads": 1,
            "head_dim": 24,
            "num_hidden_layers": 3,
            "sliding_window_pattern": 2,
            "sliding_window": 21,
            "query_pre_attn_scalar": 24,
            "rope_theta": 1000000.0,
            "rope_local_base_freq": 10000.0,
            "rope_scaling": {"rope_type": "linear", "factor": 8.0},
            "attn_logit_softcapping": None,
            "final_logit_softcapping": None,
            "cache_implementation": "hybrid",
        },
        "gemma3_text_untied": {
            **GEMMA,
            "hidden_size": 36,
            "num_key_value_heads": 3,
            "head_dim": 10,
            "sliding_window": 70,
            "layer_types": ALTERNATING[:2],
            "query_pre_attn_scalar": 100,
            "tie_word_embeddings": False,
            "attention_bias": True,
            "hidden_activation": "silu",
        },
        "gemma3_text_by_kind": {
            **GEMMA,
            "num_key_value_heads": 6,
            "head_dim": 16,
            "sliding_window": 100,
            "layer_types": ALTERNATING[1:],
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 500.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
            },
            "rms_norm_eps": 1e-3,
        },
        "gemma3_text_without_fields": {
            **GEMMA,
            "hidden_size": 96,
            "num_attention_heads": 8,
            "num_hidden_layers": 6,
            "num_key_value_heads": 4,
            "head_dim": 12,
        },
    },
    "olmo2": {
        "olmo2": {
            **SMALL,
            "num_hidden_layers": 3,
            "rope_theta": 500000,
            "rope_scaling": None,
            "rms_norm_eps": 1e-6,
            "attention_bias": False,
        },
        "olmo2_biases": {**SMALL, **ONE_KEY, "attention_bias": True, "tie_word_embeddings": True},
        "olmo2_odd_heads": {**SMALL, **ODD, "rms_norm_eps": 0.01, "rope_theta": 500.0},
        "olmo2_yarn": {**SMALL, **WIDE, "rope_scaling": YARN, "hidden_act": "gelu_pytorch_tanh"},
        "olmo2_many_heads": {**SMALL, "num_attention_heads": 12, "num_key_value_heads": None, "head_dim": 4},
    },
    "opt": {
        "opt": {**OPT, "word_embed_proj_dim": 48, "_remove_final_layer_norm": False},
        "opt_projected": {**OPT, "hidden_size": 56, "num_attention_heads": 4, "word_embed_proj_dim": 20},
        "opt_post_norms": {
            **OPT,
            "do_layer_norm_before": False,
            "word_embed_proj_dim": 33,
            "vocab_size": 67,
            "num_attention_heads": 4,
        },
        "opt_plain_norms": {
            **OPT,
            "hidden_size": 35,
            "num_attention_heads": 5,
            "ffn_dim": 7,
            "layer_norm_elementwise_affine": False,
            "enable_bias": False,
            "tie_word_embeddings": False,
            "activation_function": "gelu",
        },
        "opt_plain_post_norms": {
            **OPT,
            "do_layer_norm_before": False,
            "layer_norm_elementwise_affine": False,
            "num_hidden_layers": 3,
            "num_attention_heads": 1,
        },
    },
    "bloom": {
        "bloom": {**BLOOM, "pretraining_tp": 2, "n_inner": None, "offset_alibi": 100, "skip_bias_add": True},
        "bloom_of_normed_streams": {**BLOOM, "apply_residual_connection_post_layernorm": True, "n_head": 4},
        "bloom_one_head": {**BLOOM, "hidden_size": 20, "n_head": 1, "vocab_size": 67, "tie_word_embeddings": False},
        "bloom_eleven_heads": {**BLOOM, "hidden_size": 77, "n_head": 11, "n_layer": 3, "layer_norm_epsilon": 1e-3},
    },
}
HEADS = ("embed_out.weight", "lm_head.weight")
TIED = ("bloom", "gemma3_text", "gpt_neo", "opt", "smollm3")  # families that are tied where the config does not say it
FAMILY_OF = {name: family for family, names in CONFIGURATIONS.items() for name in names}
FIRST = [next(iter(names)) for names in CONFIGURATIONS.values()]


def config_of(name: str) -> dict[str, Any]:
    """The whole config.json of a configuration."""
    family = FAMILY_OF[name]
    module = importlib.import_module(f"kaoken.codegen.families.{family}")
    about = {"model_type": family, "architectures": [module.ARCHITECTURES[0]]}
    return {**about, **CONFIGURATIONS[family][name]}


def write(directory: Path, config: Mapping[str, Any], *, prefixed: bool = True) -> Path:
    """A checkpoint whose values keep activations near 1 and leave nothing without effect; returns its directory.

    Tensors are named as in the language model or, without `prefixed`, as in the bare one.
    """
    directory.mkdir(parents=True, exist_ok=True)
    prefix = importlib.import_module(f"kaoken.codegen.families.{config['model_type']}").PREFIX if prefixed else ""
    tied = config.get("tie_word_embeddings", config["model_type"] in TIED)
    tensors = {
        name if name in HEADS else prefix + name: make_tensor(name, shape)
        for name, shape in check_config(config, directory / "config.json").items()
        if not (tied and name in HEADS)
    }
    save_file(tensors, directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return directory


def make_tensor(name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    values = uniform(name, shape, seed=0)
    if len(shape) == 1:
        values = 1.0 + 0.4 * values if name.endswith("weight") else 0.4 * values
    elif not any(part in name for part in ("embed", "wte", "wpe")):
        values = values * math.sqrt(3.0 / shape[1])
    return values.astype(np.float32)


def ids_of(config: Mapping[str, Any], batch: int = 1, count: int = COUNT) -> NDArray[np.int64]:
    """Token ids [batch, count]."""
    return np.random.Generator(np.random.PCG64(5)).integers(3, config["vocab_size"], (batch, count))


def digest(directory: Path) -> str:
    """SHA-256 of a checkpoint's config and tensors."""
    state = hashlib.sha256((directory / "config.json").read_bytes())
    for name, values in sorted(load_file(directory / "model.safetensors").items()):
        state.update(f"{name} {values.shape}".encode() + values.tobytes())
    return state.hexdigest()


def read_reference(directory: Path, name: str) -> NDArray[np.float32]:
    """transformers' logits [len(POSITIONS), vocab_size] of `ids_of(config)`. Fails where the checkpoint is another."""
    with np.load(REFERENCES) as arrays:
        assert name in arrays, (
            f"there is no reference of {name}: run tests/make_references.py and commit what it writes"
        )
        made_from, logits = str(arrays[f"{name}.digest"]), arrays[name]
    assert digest(directory) == made_from, (
        f"the checkpoint of {name!r} is not the one its stored reference was made from: run tests/make_references.py "
        "(it needs torch and transformers) and commit what it writes"
    )
    return logits


def load_live(directory: Path) -> Any:
    """transformers' own model of a checkpoint, in float32, with every tensor found and none left over."""
    import torch
    import transformers

    model, loading = transformers.AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager", output_loading_info=True, local_files_only=True
    )
    assert not loading["unexpected_keys"], loading
    assert not set(loading["missing_keys"]) - {"lm_head.weight"}, loading
    return model.eval()


def live_logits(model: Any, ids: NDArray[np.int64]) -> NDArray[np.float32]:
    """[batch, count] -> [batch, count, vocab_size]."""
    import torch

    with torch.inference_mode():
        logits: NDArray[np.float32] = model(torch.from_numpy(ids)).logits.numpy()
    return logits


def make_references(root: Path) -> dict[str, NDArray[Any]]:
    """What `read_reference` reads, of checkpoints that are written to `root`."""
    arrays: dict[str, NDArray[Any]] = {}
    for name in FIRST:
        config = config_of(name)
        directory = write(root / name, config)
        arrays[name] = live_logits(load_live(directory), ids_of(config))[0, list(POSITIONS)]
        arrays[f"{name}.digest"] = np.array(digest(directory))
    return arrays


if __name__ == "__main__":
    write(Path(sys.argv[2]), config_of(sys.argv[1]))
