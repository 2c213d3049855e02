"""Text in and out: the tokenizer that travels inside a library, and decoding token by token."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from kaoken.errors import InputError, KaokenError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

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


def decode_stream(tokenizer: Tokenizer, prompt: list[int], tokens: Iterable[int]) -> Iterator[str]:
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
