"""Checkpoints of any family as torch models: GPT-2 by `kaoken.compress.gpt2`, all others by transformers alone."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES as ENCODERS
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES as ENCODER_DECODERS

from kaoken.codegen import checkpoint
from kaoken.codegen.checkpoint import CONFIG, TOKENIZER, TOKENIZER_PARTS, quoted
from kaoken.compress import gpt2
from kaoken.errors import CheckpointError, InputError, UnsupportedModelError


def load(directory: str | Path) -> PreTrainedModel:
    """The causal language model of a checkpoint directory, in float32 and evaluation mode; no code of it is run.

    Raises CheckpointError where it is none, and where weights are NaN or infinite, and UnsupportedModelError for an
    encoder and an encoder-decoder.
    """
    directory = Path(directory)
    if is_gpt2(directory):
        return gpt2.load(directory)
    _require_decoder(directory)
    try:
        model = AutoModelForCausalLM.from_pretrained(
            directory, local_files_only=True, trust_remote_code=False, use_safetensors=True, dtype="float32"
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise CheckpointError(f"{directory} is no causal language model that transformers loads: {error}") from error
    for name, tensor in model.named_parameters():
        if not torch.isfinite(tensor).all():
            raise CheckpointError(f"{name} of {directory} has values that are NaN or infinite: choose a sound model")
    return model.eval()


def load_or_new(directory: str | Path, seed: int) -> PreTrainedModel:
    """The model of a checkpoint directory, or a new one where it has a config.json without weights."""
    directory = Path(directory)
    if any(directory.glob("*.safetensors")):
        return load(directory)
    if is_gpt2(directory):
        return gpt2.new(read_gpt2_config(directory), seed)
    _require_decoder(directory)
    transformers.set_seed(seed)
    try:
        config = AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
        return AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{directory} has no config.json of a model that transformers makes: {error}") from error


def save(model: PreTrainedModel, directory: Path, tokenizer_from: Path | None) -> None:
    """A checkpoint directory; GPT-2's can be baked."""
    if isinstance(model, transformers.GPT2LMHeadModel):
        gpt2.save(model, directory, tokenizer_from)
        return
    try:
        model.save_pretrained(directory)
        if tokenizer_from is not None:
            gpt2.copy_tokenizer(tokenizer_from, directory)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{directory} cannot be written ({error}): free some space") from error


def read_config(path: str | Path) -> dict[str, Any]:
    """The JSON object of a config.json, which may be named by its directory. Raises CheckpointError."""
    path = Path(path)
    path = path / CONFIG if path.is_dir() else path
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON ({error}): name a model's config.json") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{path} is no JSON object: name a model's config.json")
    return config


def read_gpt2_config(path: str | Path) -> dict[str, Any]:
    """The fields of a GPT-2 to train from nothing. Raises KaokenError for what could not be baked."""
    config = read_config(path)
    gpt2.check_new(config, Path(path))
    return config


def is_gpt2(directory: Path) -> bool:
    return bool(read_config(directory).get("model_type", "gpt2") == "gpt2")


def _require_decoder(directory: Path) -> None:
    """transformers makes a causal language model of many an encoder, whose positions then see what they predict."""
    config = read_config(directory)
    model_type, other = str(config.get("model_type")), {*ENCODERS, *ENCODER_DECODERS}
    is_decoder = bool(config.get("is_decoder")) if model_type in other else not config.get("is_encoder_decoder")
    if not is_decoder:
        raise UnsupportedModelError(
            f"{directory / CONFIG}: model_type is {quoted(model_type)}, whose models continue no texts; expected a "
            "decoder, such as a GPT-2 or a Llama: choose another model"
        )


def read_tokenizer(directory: str | Path) -> Tokenizer:
    """Of a checkpoint directory. Raises CheckpointError where it has none."""
    given, _ = checkpoint.read_tokenizer(Path(directory))
    if given is None:
        raise CheckpointError(
            f"{directory} has neither {TOKENIZER} nor {TOKENIZER_PARTS[0]} and {TOKENIZER_PARTS[1]}; expected the "
            "model's tokenizer: copy it there"
        )
    try:
        return Tokenizer.from_buffer(given)
    except Exception as error:  # tokenizers raises bare Exception
        raise CheckpointError(f"the tokenizer of {directory} cannot be used ({error}): copy it there again") from error


def digest(model: PreTrainedModel) -> str:
    """SHA-256 of a model's configuration and weights, on whatever device it is."""
    state = hashlib.sha256(model.config.to_json_string().encode())
    for name, tensor in sorted(model.state_dict().items()):
        state.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        state.update(tensor.contiguous().cpu().view(torch.uint8).numpy())
    return state.hexdigest()


def parameters(model: PreTrainedModel) -> int:
    """How many parameters there are; a tied head is its embedding."""
    return sum(parameter.numel() for parameter in model.parameters())


def context(model: PreTrainedModel) -> int:
    """How many positions a model has."""
    return int(model.config.max_position_embeddings)


def check_vocabulary(student: PreTrainedModel, teacher: PreTrainedModel) -> None:
    """Raises InputError unless both have as many tokens."""
    ours, theirs = student.config.vocab_size, teacher.config.vocab_size
    if ours != theirs:
        raise InputError(
            f"the student has a vocabulary of {ours} tokens and the teacher one of {theirs}; expected the same, as a "
            "student learns the probability of each: give the student the teacher's tokenizer and vocab_size"
        )
