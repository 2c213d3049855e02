"""Text in and out: the tokenizer that travels inside a library, texts for encoders, and decoding token by token."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from kaoken.errors import InputError, KaokenError

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

# One text, or a pair of texts that a model reads together.
Text: TypeAlias = str | tuple[str, str]

# What decoders write for bytes that are no UTF-8; at the end of a text, perhaps a character still incomplete.
_REPLACEMENT = "\ufffd"


def load_tokenizer(data: bytes | None, model: str) -> Tokenizer:
    """The tokenizer of a tokenizer.json, truncation and padding off. Raises KaokenError without one."""
    if data is None:
        raise KaokenError(
            f"the model {model} was baked without a tokenizer: pass token ids, or add a tokenizer.json to "
            "the checkpoint and bake it again"
        )
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise KaokenError("text needs the package tokenizers: `pip install tokenizers`") from None
    try:
        tokenizer = Tokenizer.from_str(data.decode("utf-8"))
    except Exception as error:  # tokenizers raises bare Exception
        raise KaokenError(f"the tokenizer.json of the model {model} cannot be used: {error}") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def is_one_text(texts: Any) -> bool:
    """Whether these are one text or a pair (a tuple of two), rather than several texts."""
    return isinstance(texts, str) or (isinstance(texts, tuple) and _is_pair(texts))


def _is_pair(text: Any) -> bool:
    return isinstance(text, (tuple, list)) and len(text) == 2 and all(isinstance(part, str) for part in text)


class TextReader:
    """Makes token ids of texts and pairs, with the special tokens of the model.

    With a `limit` longer texts are cut at the right, or at the left with `side`; of a pair the longer one first.
    """

    def __init__(self, tokenizer: Tokenizer, limit: int | None, side: str = "right") -> None:
        self.tokenizer = tokenizer
        if limit is not None:
            tokenizer.enable_truncation(limit, strategy="longest_first", direction=side)

    def read(self, texts: Sequence[Text], offsets: bool = False, first: int = 0) -> list[Encoding]:
        """The encodings of texts; where characters stand is computed only with `offsets`.

        Raises InputError for what is no text, and for text with lone surrogates; it counts texts from `first` on.
        """
        encode = self.tokenizer.encode_batch if offsets else self.tokenizer.encode_batch_fast
        try:
            return list(encode(texts))
        except TypeError:
            for index, text in enumerate(texts, first):
                check_text(text, index)
            raise
        except Exception as error:  # tokenizers raises bare Exception
            raise KaokenError(f"the model's tokenizer cannot read these texts ({error}): bake a sound one") from error


def check_text(text: Any, index: int) -> None:
    """Raises InputError for what is neither a text nor a pair, and for what is no valid Unicode."""
    if not isinstance(text, str) and not _is_pair(text):
        raise InputError(f"text {index} must be a str, or a pair of them as a tuple or a list, not {_shown(text)}")
    for part in (text,) if isinstance(text, str) else text:
        try:
            part.encode("utf-8")
        except UnicodeEncodeError as error:
            raise InputError(
                f"text {index} has a lone surrogate at {error.start}, which is no valid Unicode: decode the text with "
                "errors='replace', or leave the character out"
            ) from None


def _shown(value: Any) -> str:
    shown = f"{type(value).__name__} {value!r}"
    return shown if len(shown) <= 80 else f"{shown[:77]}..."


def encode_prompt(tokenizer: Tokenizer, prompt: str, bos_token_id: int | None) -> list[int]:
    """Token ids of a prompt; an empty one starts from the bos token, as transformers does without inputs."""
    if not isinstance(prompt, str):
        raise InputError(f"the prompt must be a str, not {type(prompt).__name__}")
    try:
        prompt.encode("utf-8")
    except UnicodeEncodeError:
        raise InputError("the prompt is not valid Unicode text: pass UTF-8") from None
    ids: list[int] = tokenizer.encode(prompt).ids
    if not ids and bos_token_id is None:
        raise InputError("the prompt is empty, and the model has no bos token to start from: pass some text")
    return ids or [int(bos_token_id or 0)]


def decode_stream(tokenizer: Tokenizer, prompt: list[int], tokens: Iterable[int]) -> Generator[str, None, None]:
    """The text of `tokens`, which follow `prompt`, piece by piece and without special tokens.

    A piece ends where a character is complete. Each is the difference of two decodings that share the tokens
    before it, since a decoder may treat the first token apart. Joined, the pieces are the whole completion.
    """
    window, context = list(prompt), len(prompt)
    shown = tokenizer.decode(window)
    for token in tokens:
        window.append(token)
        text = tokenizer.decode(window)
        if text.endswith(_REPLACEMENT):
            continue
        if text != shown:
            yield text[len(shown) :]
        window = window[context:]
        context, shown = len(window), tokenizer.decode(window)
    rest = tokenizer.decode(window)[len(shown) :]
    if rest:
        yield rest
