"""What a checkpoint's config.json means: the sizes and options that decide a model's arithmetic.

Every field of config.json must be known here. A field that takes part in the arithmetic is read and checked;
one that could change it in a way Kaoken does not know may only say "off"; one that cannot change a logit is
listed in `HARMLESS_FIELDS`; any other name is an error. Tensors likewise: none may be left over. Defaults are
those of transformers' GPT2Config.
"""

from __future__ import annotations

import difflib
import hashlib
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from .checkpoint import CONFIG, GENERATION_CONFIG, Checkpoint, quoted
from .errors import CheckpointError, UnsupportedModelError

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

# A double-heads model is the language model with one more head; a GPT2Model lacks only the head, which is
# tied unless the config says otherwise.
ARCHITECTURES = ("GPT2LMHeadModel", "GPT2Model", "GPT2DoubleHeadsModel")

# transformers' family-neutral names of four fields (GPT2Config.attribute_map).
ALIASES = {
    "hidden_size": "n_embd",
    "max_position_embeddings": "n_positions",
    "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
}

# The largest values that make sense: far above any GPT-2, far below what would overflow an index.
MAX_VOCAB_SIZE = 1 << 24
MAX_N_POSITIONS = 1 << 20
MAX_N_EMBD = 1 << 16
MAX_N_LAYER = 1 << 10
MAX_N_HEAD = 1 << 16
MAX_N_INNER = 1 << 20
MIN_EPSILON = float(np.finfo(np.float32).tiny)


def _names(*groups: str) -> frozenset[str]:
    return frozenset(" ".join(groups).split())


MATHS_FIELDS = _names(
    "activation_function architectures bos_token_id eos_token_id kaoken_blocks layer_norm_epsilon model_type",
    "n_embd n_head n_inner n_layer n_positions pad_token_id reorder_and_upcast_attn",
    "scale_attn_by_inverse_layer_idx scale_attn_weights tie_word_embeddings vocab_size",
)

# Each would change the model; null, false and empty say that it does not.
OFF_FIELDS = _names(
    "add_cross_attention auto_map cross_attention_hidden_size is_encoder_decoder per_layer_config",
    "pruned_heads quantization_config tie_encoder_decoder transformers_weights",
)

HARMLESS_FIELDS = _names(
    # Training, storage and bookkeeping.
    "_attn_implementation _attn_implementation_autoset _commit_hash _name_or_path attn_implementation",
    "attn_pdrop author created_date dropout dtype embd_pdrop finetuning_task gradient_checkpointing",
    "initializer_range license name_or_path prefix resid_pdrop tf_legacy_loss tokenizer_class torch_dtype",
    "torchscript transformers_version use_bfloat16",
    # The form of the outputs, and a chunking of the MLP that transformers' GPT-2 does not have.
    "chunk_size_feed_forward is_decoder output_attentions output_hidden_states output_past output_scores",
    "return_dict return_dict_in_generate tie_last_hidden_states use_cache use_return_dict",
    # The heads of other tasks, and tokens that no layer knows.
    "_num_labels cls_token_id decoder_start_token_id id2label label2id mask_token_id num_labels problem_type",
    "sep_token_id summary_activation summary_first_dropout summary_last_dropout summary_proj_to_labels",
    "summary_type summary_use_proj task_specific_params unk_token_id",
    # The first GPT-2 code: n_ctx sized the causal mask; the special tokens are counted in vocab_size.
    "n_ctx n_special predict_special_tokens",
    # Defaults of generate(), which old configs carried; Kaoken's are arguments of its own.
    "assistant_confidence_threshold assistant_lookbehind bad_words_ids begin_suppress_tokens",
    "diversity_penalty do_sample early_stopping encoder_no_repeat_ngram_size encoder_repetition_penalty",
    "epsilon_cutoff eta_cutoff exponential_decay_length_penalty forced_bos_token_id forced_eos_token_id",
    "length_penalty max_length min_length no_repeat_ngram_size num_assistant_tokens",
    "num_assistant_tokens_schedule num_beam_groups num_beams num_return_sequences remove_invalid_values",
    "repetition_penalty suppress_tokens target_lookbehind temperature top_k top_p typical_p",
)

KNOWN_FIELDS = MATHS_FIELDS | OFF_FIELDS | HARMLESS_FIELDS | ALIASES.keys()


@dataclass(frozen=True)
class BlockSpec:
    """One transformer block; blocks of a model may differ."""

    n_head: int
    head_dim: int
    n_inner: int
    attn_scale: float  # multiplies query . key


@dataclass(frozen=True)
class ModelSpec:
    """A GPT-2: everything that decides its logits but the weights, and the tokens that end a text."""

    vocab_size: int
    n_positions: int
    n_embd: int
    blocks: tuple[BlockSpec, ...]
    activation: str  # gelu_tanh, gelu_erf, relu, silu or tanh
    activation_function: str  # its name in config.json, one of ACTIVATIONS
    layer_norm_epsilon: float
    tie_word_embeddings: bool  # the head is wte.weight; otherwise lm_head.weight
    eos_token_ids: tuple[int, ...]  # each within the vocabulary, as are the next two
    bos_token_id: int | None
    pad_token_id: int | None

    def to_config(self) -> dict[str, Any]:
        """The JSON object that a model library carries as its config."""
        return {
            "vocab_size": self.vocab_size,
            "n_positions": self.n_positions,
            "n_embd": self.n_embd,
            "n_layer": len(self.blocks),
            "blocks": [
                {"n_head": block.n_head, "head_dim": block.head_dim, "n_inner": block.n_inner} for block in self.blocks
            ],
            "activation_function": self.activation_function,
            "layer_norm_epsilon": self.layer_norm_epsilon,
            "tie_word_embeddings": self.tie_word_embeddings,
            "eos_token_ids": list(self.eos_token_ids),
            "bos_token_id": self.bos_token_id,
            "pad_token_id": self.pad_token_id,
        }


def read_spec(checkpoint: Checkpoint) -> ModelSpec:
    """The spec of a checkpoint, every tensor of which is there in the shape that the spec asks for.

    Raises UnsupportedModelError for a family, option or tensor that Kaoken does not know, and
    CheckpointError for values out of range and for a config that contradicts the tensors.

    Weights are read only where a tied checkpoint also stores a head: as in transformers 5, a head that
    differs from `wte.weight` is used, and the spec says `tie_word_embeddings=False`.
    """
    fields = _config_fields(checkpoint.config, checkpoint.directory / CONFIG)
    spec = _read_model(fields, _special_tokens(checkpoint, fields))
    _check_tensors(checkpoint, spec)
    if spec.tie_word_embeddings and _has_own_head(checkpoint):
        return replace(spec, tie_word_embeddings=False)
    return spec


def check_config(config: Mapping[str, Any], path: Path) -> None:
    """Raises what `read_spec` raises for the config of a model that has no weights yet."""
    fields = _config_fields(config, path)
    _read_model(fields, fields)


def _config_fields(config: Mapping[str, Any], path: Path) -> _Fields:
    _check_family(config, path)
    _check_fields(config, path)
    return _Fields(_resolve_aliases(config, path), str(path))


def expected_shapes(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor that a model of this spec has, in the order of the computation."""
    shapes: dict[str, tuple[int, ...]] = {
        "wte.weight": (spec.vocab_size, spec.n_embd),
        "wpe.weight": (spec.n_positions, spec.n_embd),
    }
    for index, block in enumerate(spec.blocks):
        shapes.update(_block_shapes(f"h.{index}.", spec.n_embd, block))
    shapes |= {"ln_f.weight": (spec.n_embd,), "ln_f.bias": (spec.n_embd,)}
    if not spec.tie_word_embeddings:
        shapes["lm_head.weight"] = (spec.vocab_size, spec.n_embd)
    return shapes


def identifier(name: str) -> str:
    """A model's name as part of a C symbol: [a-z0-9_], a letter first, at most 48 characters.

    Of a hub id only the part after the slash counts. A name that is too long keeps its beginning and ends in
    a digest of the whole.
    """
    base = re.sub(r"[^a-z0-9]+", "_", name.rsplit("/", 1)[-1].lower()).strip("_")
    if not base[:1].isalpha():
        base = f"model_{base}".rstrip("_")
    if len(base) <= 48:
        return base
    return f"{base[:39].rstrip('_')}_{hashlib.sha256(name.encode('utf-8', 'surrogatepass')).hexdigest()[:8]}"


# config.json


@dataclass(frozen=True)
class _Fields:
    """A JSON object read field by field; every complaint names the field and where it stands."""

    values: Mapping[str, Any]
    where: str

    def fail(self, name: str, expected: str) -> CheckpointError:
        value = self.values.get(name)
        return CheckpointError(
            f"{self.where}: {name} is {quoted(value)}; expected {expected}: correct it to match the weights"
        )

    def integer(self, name: str, default: int | None, maximum: int) -> int:
        """A whole number from 1 to `maximum`."""
        value = self.values.get(name, default)
        if not _is_integer(value) or not 1 <= value <= maximum:
            raise self.fail(name, f"a whole number from 1 to {maximum}")
        return int(value)

    def boolean(self, name: str, default: bool) -> bool:
        value = self.values.get(name, default)
        if not isinstance(value, bool):
            raise self.fail(name, "true or false")
        return value

    def epsilon(self, name: str, default: float) -> float:
        """A number that float32 can add to a variance, below 1."""
        value = self.values.get(name, default)
        if not isinstance(value, float) or not MIN_EPSILON <= value < 1.0:
            raise self.fail(name, f"a number from {MIN_EPSILON:.3g} to below 1")
        return value

    def token_ids(self, name: str, default: int | None, vocab_size: int) -> tuple[int, ...]:
        """A token id, a list of them, or null, without those outside the vocabulary: no logit is theirs."""
        value = self.values.get(name, default)
        ids = [] if value is None else value if isinstance(value, list) else [value]
        if not all(_is_integer(each) for each in ids):
            raise self.fail(name, "a token id, a list of them, or null")
        return tuple(dict.fromkeys(each for each in ids if 0 <= each < vocab_size))


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _check_family(config: Mapping[str, Any], path: Path) -> None:
    """model_type gpt2, or none with an architecture of GPT-2; and no head but the language model's."""
    family, architectures = config.get("model_type"), config.get("architectures")
    names = [] if architectures is None else architectures if isinstance(architectures, list) else [architectures]
    if family != "gpt2" and (family is not None or not names):
        raise UnsupportedModelError(
            f"{path}: model_type is {quoted(family)}; expected 'gpt2', the family that Kaoken bakes: "
            "choose a GPT-2 checkpoint"
        )
    for name in names:
        if name not in ARCHITECTURES:
            raise UnsupportedModelError(
                f"{path}: architectures names {quoted(name)}; expected one of {', '.join(ARCHITECTURES)}: "
                "choose a checkpoint with a language model's head"
            )


def _check_fields(config: Mapping[str, Any], path: Path) -> None:
    """Refuses a field that is unknown, and one that switches on what Kaoken does not compute."""
    for name, value in config.items():
        if name not in KNOWN_FIELDS:
            near = difflib.get_close_matches(name[:80], sorted(KNOWN_FIELDS), 1)
            raise UnsupportedModelError(
                f"{path}: Kaoken does not know the field {quoted(name)}"
                f"{f' (did you mean {near[0]!r}?)' if near else ''}; expected only fields of transformers' "
                "GPT2Config, as any other might change the model's arithmetic: remove it if it does not"
            )
        if name in OFF_FIELDS and value not in (None, False, {}, []):
            raise UnsupportedModelError(
                f"{path}: {name} is {quoted(value)}, which changes the model in a way that Kaoken does not "
                "support; expected it to be absent, null or false: choose or save a plain GPT-2"
            )


def _resolve_aliases(config: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The config with GPT-2's own names alone."""
    fields = {name: value for name, value in config.items() if name not in ALIASES}
    for alias in ALIASES.keys() & config.keys():
        name, value = ALIASES[alias], config[alias]
        if fields.setdefault(name, value) != value:
            raise CheckpointError(
                f"{path}: {alias} is {quoted(value)}, but {name}, another name for it, is "
                f"{quoted(fields[name])}; expected them to agree: remove the wrong one"
            )
    return fields


def _special_tokens(checkpoint: Checkpoint, fields: _Fields) -> _Fields:
    """Where the special tokens stand: as in transformers, in generation_config.json alone if there is one."""
    if checkpoint.generation_config is None:
        return fields
    absent = {"eos_token_id": None, "bos_token_id": None, "pad_token_id": None}
    return _Fields(absent | checkpoint.generation_config, str(checkpoint.directory / GENERATION_CONFIG))


def _read_model(fields: _Fields, tokens: _Fields) -> ModelSpec:
    vocab_size = fields.integer("vocab_size", 50257, MAX_VOCAB_SIZE)
    n_embd = fields.integer("n_embd", 768, MAX_N_EMBD)
    fields.boolean("reorder_and_upcast_attn", False)  # decides where half precision is left; there is none here
    activation_function = _read_activation(fields)
    return ModelSpec(
        vocab_size=vocab_size,
        n_positions=fields.integer("n_positions", 1024, MAX_N_POSITIONS),
        n_embd=n_embd,
        blocks=tuple(_read_blocks(fields, n_embd)),
        activation=ACTIVATIONS[activation_function],
        activation_function=activation_function,
        layer_norm_epsilon=fields.epsilon("layer_norm_epsilon", 1e-5),
        tie_word_embeddings=fields.boolean("tie_word_embeddings", True),
        eos_token_ids=tokens.token_ids("eos_token_id", 50256, vocab_size),
        bos_token_id=next(iter(tokens.token_ids("bos_token_id", 50256, vocab_size)), None),
        pad_token_id=next(iter(tokens.token_ids("pad_token_id", None, vocab_size)), None),
    )


def _read_activation(fields: _Fields) -> str:
    name = fields.values.get("activation_function", "gelu_new")
    if not isinstance(name, str) or name not in ACTIVATIONS:
        raise UnsupportedModelError(
            f"{fields.where}: activation_function is {quoted(name)}; expected one of "
            f"{', '.join(ACTIVATIONS)}: choose a checkpoint with one of these"
        )
    return name


def _read_blocks(fields: _Fields, n_embd: int) -> Iterator[BlockSpec]:
    """One spec a layer: from kaoken_blocks where it is given, otherwise all alike."""
    n_layer = fields.integer("n_layer", 12, MAX_N_LAYER)
    scaled = fields.boolean("scale_attn_weights", True)
    by_layer = fields.boolean("scale_attn_by_inverse_layer_idx", False)
    irregular = "kaoken_blocks" in fields.values
    sizes = _irregular_sizes(fields, n_layer) if irregular else [_regular_size(fields, n_embd)] * n_layer
    for layer, (n_head, head_dim, n_inner) in enumerate(sizes):
        scale = (1.0 / math.sqrt(head_dim) if scaled else 1.0) / (layer + 1 if by_layer else 1)
        yield BlockSpec(n_head, head_dim, n_inner, scale)


def _regular_size(fields: _Fields, n_embd: int) -> tuple[int, int, int]:
    """(n_head, head_dim, n_inner) of every block."""
    n_head = fields.integer("n_head", 12, MAX_N_HEAD)
    if n_embd % n_head:
        raise fields.fail("n_head", f"a divisor of n_embd, which is {n_embd}")
    if fields.values.get("n_inner") is None:
        return n_head, n_embd // n_head, 4 * n_embd
    return n_head, n_embd // n_head, fields.integer("n_inner", None, MAX_N_INNER)


def _irregular_sizes(fields: _Fields, n_layer: int) -> list[tuple[int, int, int]]:
    """(n_head, head_dim, n_inner) of each block, as kaoken_blocks says."""
    blocks = fields.values["kaoken_blocks"]
    keys = ("n_head", "head_dim", "n_inner")
    if not isinstance(blocks, list) or len(blocks) != n_layer:
        raise fields.fail("kaoken_blocks", f"a list of {n_layer} objects, one a layer")
    if not all(isinstance(block, dict) and block.keys() == set(keys) for block in blocks):
        raise fields.fail("kaoken_blocks", f"objects with just {', '.join(keys)}")
    each = [_Fields(block, f"{fields.where}: kaoken_blocks[{layer}]") for layer, block in enumerate(blocks)]
    return [
        (
            block.integer("n_head", None, MAX_N_HEAD),
            block.integer("head_dim", None, MAX_N_EMBD),
            block.integer("n_inner", None, MAX_N_INNER),
        )
        for block in each
    ]


# Tensors


def _block_shapes(prefix: str, n_embd: int, block: BlockSpec) -> dict[str, tuple[int, ...]]:
    """Weights are Conv1D's: [inputs, outputs]."""
    attention = block.n_head * block.head_dim
    shapes: dict[str, tuple[int, ...]] = {
        "ln_1.weight": (n_embd,),
        "ln_1.bias": (n_embd,),
        "attn.c_attn.weight": (n_embd, 3 * attention),
        "attn.c_attn.bias": (3 * attention,),
        "attn.c_proj.weight": (attention, n_embd),
        "attn.c_proj.bias": (n_embd,),
        "ln_2.weight": (n_embd,),
        "ln_2.bias": (n_embd,),
        "mlp.c_fc.weight": (n_embd, block.n_inner),
        "mlp.c_fc.bias": (block.n_inner,),
        "mlp.c_proj.weight": (block.n_inner, n_embd),
        "mlp.c_proj.bias": (n_embd,),
    }
    return {prefix + name: shape for name, shape in shapes.items()}


def _check_tensors(checkpoint: Checkpoint, spec: ModelSpec) -> None:
    """Every tensor of the spec with its exact shape, and none besides: one more would be a part left out."""
    shapes = expected_shapes(spec)
    optional = {"lm_head.weight": shapes["wte.weight"]}
    for name in checkpoint.tensors:
        if name not in shapes and name not in optional:
            raise _unexpected(checkpoint, name, spec)
    missing = [name for name in shapes if name not in checkpoint.tensors]
    if missing:
        raise CheckpointError(
            f"{checkpoint.directory} lacks the tensor {missing[0]!r} that its {CONFIG} calls for "
            f"({len(missing)} of {len(shapes)} are missing): pass a whole checkpoint"
        )
    for name, shape in (optional | shapes).items():
        info = checkpoint.tensors.get(name)
        if info is not None and info.shape != shape:
            raise CheckpointError(
                f"{info.file}: {name!r} has shape {quoted(list(info.shape))}; expected {list(shape)}, "
                f"as {CONFIG} says: make the two agree"
            )


def _unexpected(checkpoint: Checkpoint, name: str, spec: ModelSpec) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"{checkpoint.tensors[name].file}: {quoted(name)} is no tensor of a GPT-2 of {len(spec.blocks)} "
        "layers; expected no others, as one might change the model: merge adapters into the weights, correct "
        "n_layer, or remove it"
    )


def _has_own_head(checkpoint: Checkpoint) -> bool:
    """Whether a tied checkpoint also stores a head, and one that is not the embedding over again."""
    head, tokens = checkpoint.tensors.get("lm_head.weight"), checkpoint.tensors["wte.weight"]
    if head is None or head == tokens:
        return False
    step = max(1, (1 << 20) // tokens.shape[1])
    parts = (slice(start, start + step) for start in range(0, tokens.shape[0], step))
    return any(
        not np.array_equal(checkpoint.read("lm_head.weight", rows), checkpoint.read("wte.weight", rows))
        for rows in parts
    )
