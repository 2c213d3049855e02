"""The tokenizer of a GGUF file as a tokenizer.json, by the tokenizers library.

Its metadata have a vocabulary with a type for each token, and the name of what cuts a text before it. Three kinds are
known: byte-level BPE ("gpt2"), the BPE of SentencePiece ("llama") and WordPiece ("bert"). How llama.cpp reads them:
https://github.com/ggml-org/llama.cpp/blob/master/src/llama-vocab.cpp. Where it differs from the model's own tokenizer,
the latter is made.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .checkpoint import quoted
from .errors import CheckpointError, UnsupportedModelError
from .tokenizer import finished, wordpiece

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_ROLES = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
    "sep_token": "seperator_token_id",  # as llama.cpp spells it
    "cls_token": "cls_token_id",
    "mask_token": "mask_token_id",
}

# llama.cpp's enum llama_token_type.
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = range(1, 7)

# A Gemma 3 has 262,144 tokens with 1.7 million characters, at most 48 in one; 6,400 of them are never cut.
_MAX_TOKENS = 1 << 20
_MAX_ADDED = 1 << 15
_MAX_CHARACTERS = 1 << 23
_MAX_TOKEN = 1 << 10
_SPACE = "\u2581"  # SentencePiece's
_AGAIN = "convert the model anew with a current llama.cpp"


@dataclass(frozen=True)
class _PreTokenizer:
    """What happens to a text before byte-level BPE."""

    split: str | None = None  # a regular expression of the pieces; None for GPT-2's own
    digits: bool = False  # each stands alone
    compose: bool = False  # NFC first
    whole: bool = False  # a piece that is a token is that, whatever the merges
    bos: bool = False  # in front, unless a key says otherwise


_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_GPT2 = _PreTokenizer()
_NEOX = _PreTokenizer(compose=True)
_SMOLLM = _PreTokenizer(digits=True)
_LLAMA3 = _PreTokenizer(_CONTRACTIONS + _WORDS + "{1,3}" + _REST, whole=True, bos=True)
_QWEN2 = _PreTokenizer(_CONTRACTIONS + _WORDS + _REST, compose=True)

# By tokenizer.ggml.pre; "olmo" and "mpt" are the tokenizer of GPT-NeoX.
_PRE_TOKENIZERS = {
    "gpt-2": _GPT2,
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3"), _LLAMA3),
    **dict.fromkeys(("mpt", "olmo"), _NEOX),
    "qwen2": _QWEN2,
    "smollm": _SMOLLM,
}
# Where a file does not say it, as old ones do not: the one tokenizer that models of the architecture have.
_USUAL = {"gpt2": _GPT2, "gptneox": _NEOX}


def read_tokenizer(path: Path, metadata: Mapping[str, Any]) -> tuple[bytes | None, dict[str, Any]]:
    """tokenizer.json, or None where the file has no vocabulary, and what tokenizer_config.json would say.

    The latter has the special tokens by role, and chat_template. Raises UnsupportedModelError for an unknown kind of
    tokenizer or of cutting texts, CheckpointError for a vocabulary that is none.
    """
    kind = metadata.get("tokenizer.ggml.model")
    if kind is None or (isinstance(kind, str) and kind in ("none", "no_vocab")):
        return None, {}
    makers: dict[str, Callable[[_Vocabulary], Tokenizer]] = {
        "gpt2": _byte_level,
        "llama": _sentencepiece,
        "bert": _bert,
    }
    if not isinstance(kind, str) or kind not in makers:
        raise UnsupportedModelError(
            f"{path}: tokenizer.ggml.model is {quoted(kind)}; expected one of {', '.join(makers)}: choose a model with "
            "such a tokenizer"
        )
    try:
        import tokenizers  # noqa: F401
    except ImportError:
        raise CheckpointError(
            f"{path} has a vocabulary, of which the package tokenizers makes a tokenizer: `pip install tokenizers`"
        ) from None
    vocabulary = _Vocabulary(path, metadata)
    try:
        made = finished(makers[kind](vocabulary), vocabulary.added())
    except (CheckpointError, UnsupportedModelError):
        raise
    except Exception as error:  # tokenizers raises bare Exception
        raise CheckpointError(f"{path}: its vocabulary cannot be used ({error}): {_AGAIN}") from error
    template = metadata.get("tokenizer.chat_template")
    config: dict[str, Any] = {role: vocabulary.tokens[index] for role, index in vocabulary.roles.items()}
    return made, config | ({"chat_template": template} if isinstance(template, str) else {})


class _Vocabulary:
    """The tokens of a file, their types, and the special ones."""

    def __init__(self, path: Path, metadata: Mapping[str, Any]) -> None:
        self.path = path
        self.metadata = metadata
        self.tokens = self._texts("tokens")
        self.types = self._numbers("token_type", _NORMAL)
        lengths = [len(token) for token in self.tokens]
        sizes = {
            "tokens": (len(lengths), _MAX_TOKENS),
            "characters": (sum(lengths), _MAX_CHARACTERS),
            "characters in one token": (max(lengths), _MAX_TOKEN),
            "tokens that are never cut": (sum(map(self.types.count, (_CONTROL, _USER_DEFINED))), _MAX_ADDED),
        }
        for what, (count, most) in sizes.items():
            if count > most:
                raise self.fail(f"its vocabulary has {count} {what}; expected at most {most}")
        self.roles: dict[str, int] = {}
        for role, key in _ROLES.items():
            index = metadata.get(f"tokenizer.ggml.{key}")
            if isinstance(index, int) and 0 <= index < len(self.tokens):
                self.roles[role] = index

    def fail(self, problem: str) -> CheckpointError:
        return CheckpointError(f"{self.path}: {problem}: {_AGAIN}")

    def _texts(self, name: str) -> list[str]:
        found = self.metadata.get(f"tokenizer.ggml.{name}")
        if not isinstance(found, list) or not found:
            raise self.fail(f"tokenizer.ggml.{name} is {quoted(found)}; expected a list of texts")
        return found

    def _numbers(self, name: str, default: float) -> list[Any]:
        found = self.metadata.get(f"tokenizer.ggml.{name}")
        if found is None:
            return [default] * len(self.tokens)
        if not isinstance(found, np.ndarray) or len(found) != len(self.tokens):
            raise self.fail(f"tokenizer.ggml.{name} is not a list of {len(self.tokens)} numbers, one a token")
        numbers: list[Any] = found.tolist()
        return numbers

    def flag(self, name: str, default: bool) -> bool:
        value = self.metadata.get(f"tokenizer.ggml.{name}", default)
        if not isinstance(value, bool):
            raise self.fail(f"tokenizer.ggml.{name} is {quoted(value)}; expected true or false")
        return value

    def scores(self) -> list[float]:
        return self._numbers("scores", 0.0)

    def merges(self) -> list[tuple[str, str]]:
        pairs = [tuple(merge.split(" ")) for merge in self._texts("merges")]
        wrong = next((pair for pair in pairs if len(pair) != 2), None)
        if wrong is not None:
            raise self.fail(f"tokenizer.ggml.merges has {quoted(' '.join(wrong))}; expected two tokens")
        return pairs  # type: ignore[return-value]

    def ids(self, respelled: Callable[[str], str] = lambda token: token) -> dict[str, int]:
        """Tokens to ids, without those that llama.cpp's conversion has put where the model has none."""
        plain = (_NORMAL, _USER_DEFINED, _UNKNOWN, _BYTE, _CONTROL)
        found = {}
        for index, (token, kind) in enumerate(zip(self.tokens, self.types, strict=True)):
            if kind in plain:
                found[token if kind in (_CONTROL, _UNKNOWN, _USER_DEFINED) else respelled(token)] = index
        return found

    def added(self) -> dict[str, tuple[int, dict[str, bool]]]:
        """Tokens that are never cut, with their flags."""
        special = set(self.roles.values())
        return {
            token: (index, {"special": kind != _USER_DEFINED, "normalized": False})
            for index, (token, kind) in enumerate(zip(self.tokens, self.types, strict=True))
            if kind in (_CONTROL, _USER_DEFINED) or index in special
        }

    def named(self, role: str, *names: str) -> tuple[str, int]:
        """The token of a role, or the first of the names that there is."""
        index = self.roles.get(role, next((self.tokens.index(name) for name in names if name in self.tokens), None))
        if index is None:
            raise self.fail(f"tokenizer.ggml.{_ROLES[role]} names no token, and texts need one")
        return self.tokens[index], index

    def template(self, tokenizer: Tokenizer, bos: bool) -> None:
        """Texts begin with bos and end with eos where the file says so."""
        from tokenizers import processors

        front = [self.named("bos_token")] if self.flag("add_bos_token", bos) else []
        back = [self.named("eos_token")] if self.flag("add_eos_token", False) else []
        if front or back:
            first, last = ([token for token, _ in side] for side in (front, back))
            tokenizer.post_processor = processors.TemplateProcessing(
                single=[*first, "$A", *last],
                pair=[
                    *first,
                    "$A",
                    *last,
                    *(f"{token}:1" for token in first),
                    "$B:1",
                    *(f"{token}:1" for token in last),
                ],
                special_tokens=[*front, *back],
            )


def _byte_level(vocabulary: _Vocabulary) -> Tokenizer:
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    before = _pre_tokenizer(vocabulary)
    tokenizer = Tokenizer(models.BPE(vocabulary.ids(), vocabulary.merges(), ignore_merges=before.whole))
    if before.compose:
        tokenizer.normalizer = normalizers.NFC()
    steps: list[Any] = [pre_tokenizers.Digits(individual_digits=True)] if before.digits else []
    steps += [pre_tokenizers.Split(Regex(before.split), "isolated")] if before.split else []
    prefix = vocabulary.flag("add_space_prefix", False)
    steps += [pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=before.split is None)]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    vocabulary.template(tokenizer, before.bos)
    return tokenizer


def _pre_tokenizer(vocabulary: _Vocabulary) -> _PreTokenizer:
    name = vocabulary.metadata.get("tokenizer.ggml.pre", "default")
    usual = _USUAL.get(vocabulary.metadata["general.architecture"])
    if name == "default" and usual:
        return usual
    if not isinstance(name, str) or name not in _PRE_TOKENIZERS:
        raise UnsupportedModelError(
            f"{vocabulary.path}: tokenizer.ggml.pre, which says how texts are cut, is {quoted(name)}; expected one of "
            f"{', '.join(_PRE_TOKENIZERS)}: choose a model with such a tokenizer, or {_AGAIN}"
        )
    return _PRE_TOKENIZERS[name]


def _sentencepiece(vocabulary: _Vocabulary) -> Tokenizer:
    """BPE over the characters of a whole text, whose spaces are tokens too; what has no token is bytes."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    if vocabulary.flag("remove_extra_whitespaces", False):
        raise UnsupportedModelError(
            f"{vocabulary.path}: tokenizer.ggml.remove_extra_whitespaces is true; expected false: choose another model"
        )
    # Tokens that are never cut are looked for before spaces become tokens.
    pairs = zip(vocabulary.tokens, vocabulary.types, strict=True)
    vocabulary.tokens = [token.replace(_SPACE, " ") if kind == _USER_DEFINED else token for token, kind in pairs]
    ids = vocabulary.ids()
    unknown = vocabulary.roles.get(
        "unk_token", next((i for i, kind in enumerate(vocabulary.types) if kind == _UNKNOWN), None)
    )
    tokenizer = Tokenizer(
        models.BPE(
            ids,
            _merges_of(vocabulary, ids),
            unk_token=None if unknown is None else vocabulary.tokens[unknown],
            fuse_unk=True,
            byte_fallback=_BYTE in vocabulary.types,
        )
    )
    prefix = vocabulary.flag("add_space_prefix", True)
    spaces = normalizers.Replace(" ", _SPACE)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(_SPACE), spaces] if prefix else [spaces])
    steps: list[Any] = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefix else steps)
    vocabulary.template(tokenizer, bos=True)
    return tokenizer


def _merges_of(vocabulary: _Vocabulary, ids: Mapping[str, int]) -> list[tuple[str, str]]:
    """All pairs of tokens that make a token, the best-scored token first, as SentencePiece merges them."""
    scores = vocabulary.scores()
    plain = [index for index, kind in enumerate(vocabulary.types) if kind == _NORMAL]
    merges = []
    for index in sorted(plain, key=lambda index: (-scores[index], index)):
        token = vocabulary.tokens[index]
        pairs = ((token[:cut], token[cut:]) for cut in range(1, len(token)))
        merges += sorted(
            (pair for pair in pairs if pair[0] in ids and pair[1] in ids), key=lambda pair: (ids[pair[0]], ids[pair[1]])
        )
    return merges


def _bert(vocabulary: _Vocabulary) -> Tokenizer:
    """WordPiece, whose tokens inside a word llama.cpp writes bare and whose others begin with SentencePiece's space.

    No key says whether texts are lowercased: they are where no token has a capital letter.
    """

    def respelled(token: str) -> str:
        if token.startswith("[") and token.endswith("]"):  # as older files have special tokens
            return token
        return token.removeprefix(_SPACE) if token.startswith(_SPACE) else f"##{token}"

    ids = vocabulary.ids(respelled)
    first = vocabulary.named("bos_token" if "cls_token" not in vocabulary.roles else "cls_token", "[CLS]", "<s>")
    separator = vocabulary.named("sep_token", "[SEP]", "</s>")
    unknown = vocabulary.named("unk_token", "[UNK]")[0]
    plain = (token for token, kind in zip(vocabulary.tokens, vocabulary.types, strict=True) if kind == _NORMAL)
    cased = any(token != token.lower() for token in plain if not token.startswith("["))
    return wordpiece(ids, unknown, first, separator, {"lowercase": not cased})
