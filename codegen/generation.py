"""What a checkpoint's generation_config.json says about how to generate: defaults that Kaoken's generate follows, and
options that it does not have, which a bake and `kaoken info` name.

As in transformers, config.json speaks for a checkpoint without that file, as old ones are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from .checkpoint import GENERATION_CONFIG, Checkpoint


def _is_integer(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value < 1 << 31


def _is_positive(value: object, most: float) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 1e-37 < value <= most


# What Kaoken has, and which values it takes.
APPLIED: dict[str, Callable[[Any], bool]] = {
    "max_new_tokens": lambda value: _is_integer(value, 1),
    "do_sample": lambda value: isinstance(value, bool),
    "temperature": lambda value: _is_positive(value, 1e38),
    "top_k": lambda value: _is_integer(value, 0),
    "top_p": lambda value: _is_positive(value, 1.0),
}

# What it lacks, with the value that changes nothing. Null, false, [] and {} change nothing either, whatever the option;
# 0 may well: as forced_eos_token_id it is a token.
NEUTRAL: dict[str, Any] = {
    **dict.fromkeys(("repetition_penalty", "encoder_repetition_penalty", "length_penalty", "typical_p"), 1.0),
    **dict.fromkeys(("diversity_penalty", "epsilon_cutoff", "eta_cutoff", "min_length", "min_p"), 0),
    **dict.fromkeys(("no_repeat_ngram_size", "encoder_no_repeat_ngram_size"), 0),
    **dict.fromkeys(("num_beams", "num_beam_groups", "num_return_sequences", "guidance_scale"), 1),
    **dict.fromkeys(("bad_words_ids", "force_words_ids", "constraints", "sequence_bias", "stop_strings")),
    **dict.fromkeys(("suppress_tokens", "begin_suppress_tokens", "forced_bos_token_id", "forced_eos_token_id")),
    **dict.fromkeys(("early_stopping", "remove_invalid_values", "renormalize_logits", "token_healing"), False),
    **dict.fromkeys(("exponential_decay_length_penalty", "penalty_alpha", "dola_layers", "watermarking_config")),
    **dict.fromkeys(("min_new_tokens", "max_time", "top_h")),
    "max_length": 20,
}

# How tokens are computed or returned, not which.
HARMLESS = frozenset(
    [
        "_commit_hash",
        "_from_model_config",
        "assistant_confidence_threshold",
        "assistant_early_exit",
        "assistant_lookbehind",
        "bos_token_id",
        "cache_config",
        "cache_implementation",
        "compile_config",
        "decoder_start_token_id",
        "disable_compile",
        "eos_token_id",
        "is_assistant",
        "low_memory",
        "max_matching_ngram_size",
        "num_assistant_tokens",
        "num_assistant_tokens_schedule",
        "output_attentions",
        "output_hidden_states",
        "output_logits",
        "output_scores",
        "pad_token_id",
        "prefill_chunk_size",
        "prompt_lookup_num_tokens",
        "return_dict_in_generate",
        "return_legacy_cache",
        "target_lookbehind",
        "transformers_version",
        "trust_remote_code",
        "use_cache",
    ]
)


@dataclass(frozen=True)
class Generation:
    """The defaults of a model's generate."""

    defaults: Mapping[str, Any]  # of options in APPLIED
    ignored: tuple[str, ...]  # options that would change the tokens in transformers and that Kaoken does not follow

    def warning(self) -> str | None:
        """A sentence about what is ignored."""
        if not self.ignored:
            return None
        return (
            f"Kaoken does not follow {', '.join(self.ignored)} of {GENERATION_CONFIG}, so that its tokens may differ "
            "from those of transformers: pass what it has to generate, or remove these options if they do not matter"
        )


def read_generation(checkpoint: Checkpoint) -> Generation:
    """The options of generation_config.json, or of config.json where there is none."""
    if checkpoint.generation_config is not None:
        fields = {name: value for name, value in checkpoint.generation_config.items() if name not in HARMLESS}
    else:
        known = APPLIED.keys() | NEUTRAL.keys()
        fields = {name: value for name, value in checkpoint.config.items() if name in known}
    defaults = {name: value for name, value in fields.items() if name in APPLIED and APPLIED[name](value)}
    ignored = (name for name, value in fields.items() if name not in defaults and not _is_neutral(name, value))
    return Generation(defaults, tuple(sorted(_shown(name) for name in ignored)))


def _is_neutral(name: str, value: Any) -> bool:
    if isinstance(value, bool):  # of which Python says that it equals 0 or 1
        return not value
    return value is None or value in ([], {}) or (name in NEUTRAL and value == NEUTRAL[name])


def _shown(name: str) -> str:
    return name if name.isidentifier() and len(name) <= 80 else ascii(name)[:80]
