"""What users pass in, checked: token ids and generation options. Every refusal is an InputError."""

from __future__ import annotations

import operator
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import wraps
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, ParamSpec, TypeAlias, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kaoken.errors import InputError

if TYPE_CHECKING:
    from kaoken.library import ModelConfig

# Lists and tuples of integers, NumPy arrays, and whatever has `__array__`, such as torch tensors; and a mapping that
# holds one of these as "input_ids", such as the BatchEncoding of transformers' tokenizers.
TokenIds: TypeAlias = "ArrayLike | Mapping[str, Any]"

P = ParamSpec("P")
R = TypeVar("R")

_SHAPES = "pass one sequence, [1, 2, 3], or several, [[1, 2], [3, 4, 5]]"


@dataclass(frozen=True)
class Sequences:
    """Token ids of several sequences, int64, one behind another."""

    ids: NDArray[np.int64]  # [sum of lengths]
    lengths: NDArray[np.int64]  # [sequences]
    ragged: bool  # whether they differ, or had padding: results are then a list

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def longest(self) -> int:
        return int(self.lengths.max())

    def split(self, values: NDArray[Any]) -> list[NDArray[Any]]:
        """The rows of each sequence, of values [sum of lengths, ...]."""
        return np.split(values, np.cumsum(self.lengths)[:-1])

    @property
    def array(self) -> NDArray[np.int64]:
        """[sequences, length], where they are equally long."""
        return self.ids.reshape(len(self), -1)


def token_ids(ids: TokenIds, vocab_size: int, attention_mask: Any = None) -> Sequences:
    """The sequences of a batch; one flat sequence is a batch of one. What the mask hides at either end is left out.

    Raises InputError for anything but integers in [0, vocab_size), in one or two dimensions and at least one in each
    sequence, and for a mask that is of another shape or hides what lies between others.
    """
    if isinstance(ids, Mapping):
        if "input_ids" not in ids:
            raise InputError(f"ids are a mapping without 'input_ids' (it has {list(ids)}): pass the ids themselves")
        attention_mask = ids.get("attention_mask") if attention_mask is None else attention_mask
        ids = ids["input_ids"]
    return _sequences(
        ids,
        attention_mask,
        vocab_size,
        lambda token, place: (
            f"token id {token} (ids{place}) is outside the vocabulary, 0 to {vocab_size - 1}: use the tokenizer of "
            "this model"
        ),
    )


def _sequences(ids: Any, mask: Any, count: int, explain: Callable[[Any, list[int]], str]) -> Sequences:
    """Of integers from 0 to count - 1; `explain` says of another one what is wrong, and where it stands."""
    array = _array(ids) if hasattr(ids, "__array__") else None
    rows = _rows(ids) if array is None else list(np.atleast_2d(array))
    given = sum(map(len, rows))
    if mask is not None:
        rows = _unpadded(rows, mask)
    for index, row in enumerate(rows):
        outside = (row < 0) | (row >= count)
        if outside.any():
            at = int(np.argmax(outside))
            raise InputError(explain(row[at], [at] if array is not None and array.ndim == 1 else [index, at]))
    lengths = np.array([len(row) for row in rows], np.int64)
    ragged = bool((lengths != lengths[0]).any()) or int(lengths.sum()) < given
    return Sequences(np.concatenate(rows).astype(np.int64), lengths, ragged)


def _unpadded(rows: Any, mask: Any) -> list[NDArray[Any]]:
    """What a mask shows of each row."""
    try:
        shown = [np.asarray(row) for row in (np.atleast_2d(mask) if hasattr(mask, "__array__") else _nested(mask))]
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"attention_mask cannot be read as an array: {error}") from error
    if [row.shape for row in shown] != [(len(row),) for row in rows]:
        raise InputError("attention_mask must have the shape of ids: a 1 for each token, a 0 for each padding")
    kept = []
    for index, (row, visible) in enumerate(zip(rows, shown, strict=True)):
        positions = np.flatnonzero(visible)
        if not positions.size or not np.isin(visible, (0, 1)).all():
            raise InputError(f"attention_mask[{index}] must be of zeros and ones, of which a one at least")
        if positions[-1] - positions[0] + 1 != positions.size:
            raise InputError(
                f"attention_mask[{index}] hides tokens between others: only padding in front or behind can be left out"
            )
        kept.append(np.asarray(row)[positions])
    return kept


def _nested(mask: Any) -> list[Any]:
    return list(mask) if any(_is_row(item) for item in mask) else [mask]


def _array(ids: Any) -> NDArray[Any]:
    """An integer array of one or two dimensions; torch tensors come through their `__array__`."""
    try:
        array = np.asarray(ids)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"ids cannot be read as a NumPy array: {error}") from error
    if array.dtype.kind not in "iu":
        raise InputError(f"ids must be integers, not {array.dtype}: convert them to int64")
    if array.ndim not in (1, 2):
        raise InputError(f"ids have {array.ndim} dimensions: {_SHAPES}")
    if array.size == 0:
        raise InputError(f"ids of shape {list(array.shape)} are empty: pass at least one token")
    return array


def _rows(ids: Any) -> list[NDArray[Any]]:
    """Of lists; Python integers beyond int64 give an object array, which compares exactly."""
    _check_sequence(ids)
    if are_ints(ids):
        return [_integers(ids)]
    nested = [_is_row(item) for item in ids]
    if any(nested) and not all(nested):
        raise InputError(f"ids mix single ids with sequences: {_SHAPES}")
    rows = [_row(row) for row in ids] if any(nested) else [_row(ids)]
    return [_integers(row) for row in rows]


def are_ints(row: Iterable[Any]) -> bool:
    """Whether all are Python's own integers, which need no further look."""
    return set(map(type, row)) == {int}


def _integers(row: Sequence[int]) -> NDArray[Any]:
    try:
        return np.array(row, dtype=np.int64)
    except OverflowError:
        return np.array(row, dtype=object)


def _is_row(item: Any) -> bool:
    return isinstance(item, Sequence) or getattr(item, "ndim", 0) > 0


def _check_sequence(ids: Any) -> None:
    if isinstance(ids, (str, bytes)):
        raise InputError("ids are text: pass token ids, or the text itself to generate_text or model.tokenizer")
    if not isinstance(ids, Sequence):
        raise InputError(f"ids must be a list, a NumPy array or a tensor, not {type(ids).__name__}: {_SHAPES}")
    if len(ids) == 0:
        raise InputError("ids are empty: pass at least one token")


def _row(row: Any) -> list[int]:
    if not hasattr(row, "__array__"):
        _check_sequence(row)
        if are_ints(row):
            return list(row)
        return [_token(item) for item in row]
    array = _array(row)
    if array.ndim != 1:
        raise InputError(f"ids have 3 dimensions: {_SHAPES}")
    return [int(item) for item in array]


def _token(item: Any) -> int:
    if _is_row(item):
        raise InputError(f"ids have 3 dimensions or more: {_SHAPES}")
    return integer("a token id", item)


def integer(name: str, value: Any, minimum: int | None = None) -> int:
    """An int from anything that is one, NumPy's and torch's included; a bool is none."""
    wanted = "an integer" if minimum is None else f"an integer of at least {minimum}"
    try:
        number = operator.index(value)
    except TypeError:
        raise InputError(f"{name} must be {wanted}, not {value!r}") from None
    is_bool = isinstance(value, bool) or str(getattr(value, "dtype", "")).endswith("bool")
    if is_bool or (minimum is not None and number < minimum):
        raise InputError(f"{name} must be {wanted}, not {value!r}")
    return number


def file_path(name: str, value: Any) -> Path:
    """A path from a str or what has __fspath__."""
    try:
        return Path(value)
    except TypeError:
        raise InputError(f"{name} must be a path, a str or an os.PathLike, not {value!r}") from None


def token_types(
    ids: TokenIds, given: Any, attention_mask: Any, texts: Sequences, count: int
) -> NDArray[np.int64] | None:
    """The token types of texts, as `token_ids` takes ids; None where nothing gives them.

    Raises InputError for another shape than that of ids and for types that a model of `count` does not have.
    """
    if isinstance(ids, Mapping):
        given = ids.get("token_type_ids") if given is None else given
        attention_mask = ids.get("attention_mask") if attention_mask is None else attention_mask
    if given is None:
        return None
    if count == 0:
        raise InputError("the model has no token types: leave token_type_ids out")
    types = _sequences(
        given, attention_mask, count, lambda each, _: f"token_type_ids must be from 0 to {count - 1}, not {each}"
    )
    if types.lengths.tolist() != texts.lengths.tolist():
        raise InputError("token_type_ids must have the shape of ids: a type for each token")
    return types.ids


def check_length(length: int, limit: int, what: str = "prompt", name: str = "n_positions") -> None:
    if length > limit:
        raise InputError(f"the {what} has {length} tokens, but the model has {name} = {limit}: shorten it")


def thread_count(threads: int | None) -> int:
    """As the C ABI counts: 0 is "decide for me"."""
    return 0 if threads is None else min(integer("threads", threads, minimum=1), 2**31 - 1)


def context_length(context: int, kind: str, limit: int) -> int:
    """Positions of a session; `limit` are those of the model."""
    if kind != "decoder":
        raise InputError(f"context={context!r} is for decoders, and this model is an {kind}: leave it out")
    if integer("context", context, minimum=1) > limit:
        raise InputError(
            f"context={context} is more than the {limit} positions that the model was baked with: give at most {limit}"
        )
    return integer("context", context)


def batch_size(batch: int) -> int:
    return min(integer("batch", batch, minimum=1), 2**63 - 1)


def rewind_length(length: int, current: int) -> int:
    value = integer("length", length, minimum=0)
    if value > current:
        raise InputError(f"cannot rewind to {value}: the session holds only {current} positions")
    return value


class _ModelDefault:
    """The type of MODEL_DEFAULT: the model's own end tokens, where None means no end token."""

    def __repr__(self) -> str:
        return "MODEL_DEFAULT"


MODEL_DEFAULT: Final = _ModelDefault()
EosTokenId: TypeAlias = int | Sequence[int] | _ModelDefault | None


@dataclass(frozen=True)
class GenerationOptions:
    """What `_core.Session.generate` takes, every field in its range."""

    max_new_tokens: int
    do_sample: bool
    temperature: float
    top_k: int
    top_p: float
    seed: int
    eos_token_ids: tuple[int, ...]
    pad_token_id: int


_GREEDY = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "seed": 0}


def generation_options(
    config: ModelConfig,
    max_new_tokens: int | None = 20,
    do_sample: bool = False,
    temperature: float | None = 1.0,
    top_k: int | None = 50,
    top_p: float | None = 1.0,
    eos_token_id: EosTokenId = MODEL_DEFAULT,
    pad_token_id: int | None = None,
    seed: int | None = None,
) -> GenerationOptions:
    """`BakedGPT2.generate` documents them. Sampling options are looked at only when do_sample is true."""
    if not isinstance(do_sample, (bool, np.bool_)):
        raise InputError(f"do_sample must be True or False, not {do_sample!r}")
    eos = _eos_token_ids(config, eos_token_id)
    new_tokens = 20 if max_new_tokens is None else integer("max_new_tokens", max_new_tokens, minimum=1)
    return GenerationOptions(
        max_new_tokens=min(new_tokens, config.n_positions),
        do_sample=bool(do_sample),
        eos_token_ids=eos,
        pad_token_id=_pad_token_id(config, pad_token_id, eos),
        **(_sampling(config, temperature, top_k, top_p, seed) if do_sample else _GREEDY),
    )


OPTION_NAMES = tuple(signature(generation_options).parameters)[1:]

# What transformers' generate takes and this one does not, and what to do instead.
_LACKING = """
    assistant_model bad_words_ids begin_suppress_tokens diversity_penalty early_stopping encoder_repetition_penalty
    epsilon_cutoff eta_cutoff exponential_decay_length_penalty force_words_ids forced_bos_token_id forced_eos_token_id
    guidance_scale length_penalty logits_processor max_time min_length min_new_tokens min_p no_repeat_ngram_size
    num_beam_groups num_beams output_attentions output_hidden_states output_logits output_scores penalty_alpha
    prefix_allowed_tokens_fn repetition_penalty return_dict_in_generate sequence_bias stop_strings stopping_criteria
    suppress_tokens token_type_ids typical_p
"""
_INSTEAD = {
    **dict.fromkeys(_LACKING.split(), "leave it out, or choose tokens yourself from the logits of session().append"),
    **dict.fromkeys(("input_ids", "inputs"), "pass the ids as the first argument"),
    "attention_mask": "pass the sequence without its padding, or use generate",
    "position_ids": "leave it out: positions count from 0 in each sequence, without its padding",
    **dict.fromkeys(("past_key_values", "use_cache"), "leave it out; a session() is a cache that you extend"),
    "generation_config": "pass its options themselves",
    "max_length": "max_new_tokens counts the new tokens alone",
    "num_return_sequences": "pass the prompt that many times, as a batch",
    "streamer": "stream and stream_text yield tokens and text as they are made",
}


def explains_options(method: Callable[P, R]) -> Callable[P, R]:
    """A method that takes generation options; a keyword that it lacks becomes an InputError that says what to write."""
    own = {each.name for each in signature(method).parameters.values() if each.kind is each.POSITIONAL_OR_KEYWORD}

    @wraps(method)
    def checked(*args: P.args, **options: P.kwargs) -> R:
        for name in options:
            if name not in own and name not in OPTION_NAMES:
                raise InputError(f"{method.__name__} has no option {_explain_option(name)}")
        return method(*args, **options)

    return checked


def _explain_option(name: str) -> str:
    if name in _INSTEAD:
        return f"{name}, which transformers has: {_INSTEAD[name]}"
    nearest = get_close_matches(name, OPTION_NAMES, 1)
    return f"{name!r}: " + (f"did you mean {nearest[0]}?" if nearest else f"it takes {', '.join(OPTION_NAMES)}")


def _sampling(
    config: ModelConfig, temperature: float | None, top_k: int | None, top_p: float | None, seed: int | None
) -> dict[str, Any]:
    """None turns an option off, as in transformers."""
    return {
        "temperature": 1.0 if temperature is None else _temperature(temperature),
        "top_k": 0 if top_k is None else min(integer("top_k", top_k, minimum=0), config.vocab_size),
        "top_p": 1.0 if top_p is None else _positive("top_p", top_p, maximum=1.0),
        "seed": secrets.randbits(64) if seed is None else _fold(integer("seed", seed, minimum=0)),
    }


def _temperature(value: float) -> float:
    try:
        return _positive("temperature", value)
    except InputError as error:
        if isinstance(value, (int, float, np.number)) and value == 0:
            raise InputError(
                f"{error}: for the likeliest token each time, leave sampling off (do_sample=False)"
            ) from None
        raise


def _positive(name: str, value: float, maximum: float = float(np.finfo(np.float32).max)) -> float:
    """A number in (0, maximum] that is still above 0 as the float32 that the library takes."""
    try:
        number = float("nan") if isinstance(value, (bool, str)) else float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):  # torch's, for a tensor of several
        number = float("nan")
    smallest = float(np.finfo(np.float32).tiny)
    if not smallest <= number <= maximum:
        bound = " and at most 1" if maximum == 1.0 else ""
        raise InputError(f"{name} must be a number greater than 0{bound}, not {value!r}")
    return number


def _fold(seed: int) -> int:
    """Any size of seed as 64 bits; one that fits stays as it is."""
    folded = 0
    while seed:
        folded ^= seed & (2**64 - 1)
        seed >>= 64
    return folded


def _eos_token_ids(config: ModelConfig, eos_token_id: EosTokenId) -> tuple[int, ...]:
    if isinstance(eos_token_id, _ModelDefault):
        return config.eos_token_ids
    if eos_token_id is None:
        return ()
    several = isinstance(eos_token_id, Iterable) and getattr(eos_token_id, "ndim", 1) > 0
    ids = tuple(eos_token_id) if several else (eos_token_id,)  # type: ignore[arg-type]
    return tuple(_in_vocabulary("eos_token_id", item, config.vocab_size) for item in ids)


def _pad_token_id(config: ModelConfig, pad_token_id: int | None, eos: tuple[int, ...]) -> int:
    """As transformers: the one given, else the model's, else the first end token."""
    if pad_token_id is not None:
        return _in_vocabulary("pad_token_id", pad_token_id, config.vocab_size)
    if config.pad_token_id is not None:
        return config.pad_token_id
    return eos[0] if eos else 0


def _in_vocabulary(name: str, value: Any, vocab_size: int) -> int:
    token = integer(name, value)
    if not 0 <= token < vocab_size:
        raise InputError(f"{name} {token} is outside the vocabulary, 0 to {vocab_size - 1}; None turns it off")
    return token
