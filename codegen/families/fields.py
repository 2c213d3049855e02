"""config.json read field by field: every value checked, every complaint naming the field and where it stands.

A family reads the fields that its arithmetic depends on. It names the fields that may only say "off" and those that
change no logit. `finish` refuses all other fields, as they might change the model.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from ..checkpoint import quoted
from ..errors import CheckpointError, UnsupportedModelError
from ..graph import SpecialTokens

Meaning = TypeVar("Meaning")

# transformers' name of an activation -> the function it stands for.
ACTIVATIONS = {
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu": "gelu_erf",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
    "tanh": "tanh",
}

# The largest values that make sense: far above any small model, far below what would overflow an index.
MAX_VOCABULARY = 1 << 24
MAX_POSITIONS = 1 << 20
MAX_WIDTH = 1 << 16
MAX_LAYERS = 1 << 10
MAX_HEADS = 1 << 16
MAX_TYPES = 1 << 10
MAX_INNER = 1 << 20
MIN_EPSILON = float(np.finfo(np.float32).tiny)


def names(*groups: str) -> frozenset[str]:
    """The words in all the groups."""
    return frozenset(" ".join(groups).split())


# Fields of any family that would change the model; null, false and empty say that they do not.
OFF = names(
    "add_cross_attention auto_map cross_attention_hidden_size is_encoder_decoder per_layer_config",
    "pruned_heads quantization_config tie_encoder_decoder transformers_weights",
)

# Fields of any family that change no logit.
HARMLESS = names(
    # Training, storage and bookkeeping.
    "_attn_implementation _attn_implementation_autoset _commit_hash _model_name_or_path _name_or_path architectures",
    "attn_implementation",
    "author created_date dropout dtype finetuning_task gradient_checkpointing initializer_range license model_type",
    "name_or_path prefix tf_legacy_loss tokenizer_class torch_dtype torchscript transformers_version use_bfloat16",
    # The form of the outputs, and a chunking of the MLP that changes no result.
    "chunk_size_feed_forward is_decoder output_attentions output_hidden_states output_past output_scores",
    "return_dict return_dict_in_generate tie_last_hidden_states use_cache use_return_dict",
    # The heads of other tasks, and tokens that no layer knows.
    "_num_labels bos_token_id cls_token_id decoder_start_token_id eos_token_id id2label label2id mask_token_id",
    "num_labels pad_token_id problem_type sbert_ce_default_activation_function sentence_transformers sep_token_id",
    "task_specific_params unk_token_id",
    # Defaults of generate(), which old configs carried; Kaoken's are arguments of its own.
    "assistant_confidence_threshold assistant_lookbehind bad_words_ids begin_suppress_tokens",
    "diversity_penalty do_sample early_stopping encoder_no_repeat_ngram_size encoder_repetition_penalty",
    "epsilon_cutoff eta_cutoff exponential_decay_length_penalty forced_bos_token_id forced_eos_token_id",
    "length_penalty max_length min_length no_repeat_ngram_size num_assistant_tokens",
    "num_assistant_tokens_schedule num_beam_groups num_beams num_return_sequences remove_invalid_values",
    "repetition_penalty suppress_tokens target_lookbehind temperature top_k top_p typical_p",
)


class Fields:
    """A JSON object. Reading a field marks it as known."""

    def __init__(self, values: Mapping[str, Any], where: str, aliases: Mapping[str, str] | None = None) -> None:
        self.where = where
        self.aliases = aliases or {}
        self.values = _resolve_aliases(values, where, self.aliases)
        self.read: set[str] = set()

    def get(self, name: str, default: Any = None) -> Any:
        """The value, whatever it is."""
        self.read.add(name)
        return self.values.get(name, default)

    def ignore(self, *names: str) -> None:
        """Marks fields as known where another field gives their values."""
        self.read.update(names)

    def fail(self, name: str, expected: str) -> CheckpointError:
        """The error for a value that is not what was expected."""
        value = quoted(self.values.get(name))
        return CheckpointError(f"{self.where}: {name} is {value}; expected {expected}: correct it to match the weights")

    def integer(self, name: str, default: int | None, maximum: int, null: bool = False) -> int:
        """A whole number from 1 to `maximum`; with `null`, null stands for the default too."""
        value = self.get(name, default)
        if null and value is None:
            value = default
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= maximum:
            raise self.fail(name, f"a whole number from 1 to {maximum}")
        return value

    def boolean(self, name: str, default: bool) -> bool:
        value = self.get(name, default)
        if not isinstance(value, bool):
            raise self.fail(name, "true or false")
        return value

    def epsilon(self, name: str, default: float) -> float:
        """A number that float32 can add to a variance, below 1."""
        value = self.get(name, default)
        if not isinstance(value, float) or not MIN_EPSILON <= value < 1.0:
            raise self.fail(name, f"a number from {MIN_EPSILON:.3g} to below 1")
        return value

    def number(self, name: str, default: float | None, least: float, most: float) -> float:
        """A number in a range."""
        value = self.get(name, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value <= most:
            raise self.fail(name, f"a number from {least:g} to {most:g}")
        return float(value)

    def choice(self, name: str, default: str, meanings: Mapping[str, Meaning]) -> Meaning:
        """The meaning of a field that holds one of some words."""
        value = self.get(name, default)
        if not isinstance(value, str) or value not in meanings:
            raise UnsupportedModelError(
                f"{self.where}: {name} is {quoted(value)}; expected one of "
                f"{', '.join(meanings)}: choose a checkpoint with one of these"
            )
        return meanings[value]

    def activation(self, name: str, default: str) -> str:
        """Our name of an activation that the field names as transformers does."""
        return self.choice(name, default, ACTIVATIONS)

    def objects(self, name: str, count: int, keys: Sequence[str], each: str) -> list[Fields]:
        """A list of `count` objects with just these keys, one for each layer or whatever `each` names."""
        values = self.get(name)
        if not isinstance(values, list) or len(values) != count:
            raise self.fail(name, f"a list of {count} objects, one a {each}")
        if not all(isinstance(value, dict) and value.keys() == set(keys) for value in values):
            raise self.fail(name, f"objects with just {', '.join(keys)}")
        return [Fields(value, f"{self.where}: {name}[{index}]") for index, value in enumerate(values)]

    def special_tokens(
        self, vocabulary: int, eos: int | None, bos: int | None, pad: int | None = None
    ) -> SpecialTokens:
        """The tokens that begin, end and pad a text, by default these."""
        return SpecialTokens(
            eos=self._token_ids("eos_token_id", eos, vocabulary),
            bos=self.token("bos_token_id", bos, vocabulary),
            pad=self.token("pad_token_id", pad, vocabulary),
        )

    def token(self, name: str, default: int | None, vocabulary: int) -> int | None:
        """A token of the vocabulary, the first where there is a list of them."""
        return next(iter(self._token_ids(name, default, vocabulary)), None)

    def _token_ids(self, name: str, default: int | None, vocabulary: int) -> tuple[int, ...]:
        """The ids of a field that holds one, a list, or null. Ids outside the vocabulary are left out."""
        value = self.get(name, default)
        ids = [] if value is None else value if isinstance(value, list) else [value]
        if not all(_is_integer(each) for each in ids):
            raise self.fail(name, "a token id, a list of them, or null")
        return tuple(dict.fromkeys(each for each in ids if 0 <= each < vocabulary))

    def finish(self, what: str, off: frozenset[str], harmless: frozenset[str]) -> None:
        """Refuses a field that is unknown, and one that switches on what Kaoken does not compute."""
        off, harmless = off | OFF, harmless | HARMLESS
        known = self.read | off | harmless | self.aliases.keys()
        for name, value in self.values.items():
            if name not in known:
                near = difflib.get_close_matches(name[:80], sorted(known), 1)
                raise UnsupportedModelError(
                    f"{self.where}: Kaoken does not know the field {quoted(name)}"
                    f"{f' (did you mean {near[0]!r}?)' if near else ''}; expected only the fields that transformers "
                    f"has for {what}, as any other might change the model's arithmetic: remove it if it does not"
                )
            if name == "quantization_config" and value:
                raise self._quantized(value)
            if name in off - self.read and value not in (None, False, {}, []):
                raise UnsupportedModelError(
                    f"{self.where}: {name} is {quoted(value)}, which changes the model in a way that Kaoken does not "
                    f"support; expected it to be absent, null or false: choose or save a plain model"
                )

    def _quantized(self, value: object) -> UnsupportedModelError:
        method = value.get("quant_method") if isinstance(value, dict) else None
        return UnsupportedModelError(
            f"{self.where}: quantization_config says that the weights are quantized"
            f"{'' if method is None else f' by {quoted(method)}'}, packed in a way that Kaoken does not read; expected "
            "floats, which it quantizes itself (dtype=int8 or int4): take the checkpoint that this one was made from, "
            "or dequantize it with the tool that made it"
        )


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _resolve_aliases(values: Mapping[str, Any], where: str, aliases: Mapping[str, str]) -> dict[str, Any]:
    """The object with the family's own name in place of each alias."""
    resolved = {name: value for name, value in values.items() if name not in aliases}
    for alias in aliases.keys() & values.keys():
        name, value = aliases[alias], values[alias]
        if resolved.setdefault(name, value) != value:
            raise CheckpointError(
                f"{where}: {alias} is {quoted(value)}, but {name}, another name for it, is "
                f"{quoted(resolved[name])}; expected them to agree: remove the wrong one"
            )
    return resolved
