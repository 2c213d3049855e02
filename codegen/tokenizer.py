"""A tokenizer.json from the files that GPT-2's tokenizer had before it: vocab.json and merges.txt, byte-level BPE.

What transformers' GPT2Tokenizer makes of them, in the format of the tokenizers library, which is not needed for that.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from .errors import CheckpointError

_AGAIN = "download the tokenizer again, or save it anew with save_pretrained"
_FLAGS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
_ROLES = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")


def tokenizer_json(
    vocab: Mapping[str, Any],
    merges: bytes,
    config: Mapping[str, Any],
    special: Mapping[str, Any],
    added: Mapping[str, Any],
) -> bytes:
    """From vocab.json, merges.txt, tokenizer_config.json, special_tokens_map.json and added_tokens.json.

    Raises CheckpointError where the first two do not fit each other; of the others, what has no id is left out.
    """
    _check_ids(vocab)
    added_tokens = _added_tokens(vocab, config, special, added)
    # The library numbers those that the vocabulary lacks by itself, whatever their ids.
    vocab = {**vocab, **{token["content"]: token["id"] for token in added_tokens}}
    _check_ids(vocab)
    byte_level = {"type": "ByteLevel", "add_prefix_space": config.get("add_prefix_space") is True}
    byte_level |= {"trim_offsets": True, "use_regex": True}
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added_tokens,
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": {**byte_level, "trim_offsets": False},
        "decoder": byte_level,
        "model": {"type": "BPE", "vocab": vocab, "merges": list(_merges(merges, vocab))},
    }
    return json.dumps(tokenizer, ensure_ascii=False).encode("utf-8", "surrogatepass")


def _check_ids(vocab: Mapping[str, Any]) -> None:
    ids = set(vocab.values()) if all(type(token) is int for token in vocab.values()) else set()
    if not vocab or len(ids) != len(vocab) or not 0 <= min(ids) <= max(ids) < 1 << 24:
        raise CheckpointError(
            "vocab.json and the files of added tokens must give each token an id of its own, a whole number from 0 to "
            f"{(1 << 24) - 1}: {_AGAIN}"
        )


def _merges(text: bytes, vocab: Mapping[str, Any]) -> Iterator[list[str]]:
    try:
        lines = text.decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"merges.txt is not UTF-8 (byte {error.start}): {_AGAIN}") from error
    for number, line in enumerate(lines, 1):
        pair = line.rstrip("\r").split(" ")
        if pair == [""] or line.startswith("#version"):
            continue
        if len(pair) != 2 or not {*pair, "".join(pair)} <= vocab.keys():
            raise CheckpointError(
                f"merges.txt, line {number}: expected two tokens of vocab.json that make a third, not "
                f"{line[:60]!a}: {_AGAIN}"
            )
        yield pair


def _added_tokens(
    vocab: Mapping[str, Any], config: Mapping[str, Any], special: Mapping[str, Any], added: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """In the order of their ids."""
    ids = {**vocab, **{token: index for token, index in added.items() if type(index) is int}}
    tokens: dict[int, dict[str, Any]] = {
        index: {"id": index, "content": token, **_FLAGS, "special": False}
        for token, index in ids.items()
        if token in added and 0 <= index < 1 << 24
    }
    decoder = config.get("added_tokens_decoder")
    for index, entry in decoder.items() if isinstance(decoder, dict) else ():
        if index.isdecimal() and len(index) < 8 and isinstance(entry, dict) and isinstance(entry.get("content"), str):
            flags = {name: entry.get(name, default) is True for name, default in _FLAGS.items()}
            tokens[int(index)] = {"id": int(index), "content": entry["content"], **flags}
    ids |= {token["content"]: index for index, token in tokens.items()}
    for content in _special_tokens(config, special):
        index = ids.get(content)
        if index is not None:
            tokens[index] = {"id": index, "content": content, **_FLAGS, **tokens.get(index, {}), "special": True}
    return [tokens[index] for index in sorted(tokens)]


def _special_tokens(*sources: Mapping[str, Any]) -> Iterator[str]:
    """Texts of the special tokens; GPT-2's own is the default."""
    yield "<|endoftext|>"
    for source in sources:
        several = source.get("additional_special_tokens")
        for token in (*(source.get(role) for role in _ROLES), *(several if isinstance(several, list) else ())):
            content = token.get("content") if isinstance(token, dict) else token
            if isinstance(content, str):
                yield content
