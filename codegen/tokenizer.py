"""A tokenizer.json from the files that GPT-2's tokenizer had before it: vocab.json and merges.txt, byte-level BPE.

What transformers' GPT2Tokenizer makes of them, by the tokenizers library, which such a checkpoint alone needs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from .errors import CheckpointError

_AGAIN = "download the tokenizer again, or save it anew with save_pretrained"
_FLAGS = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
_ROLES = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")


def tokenizer_json(
    vocab: Mapping[str, Any],
    merges: bytes,
    config: Mapping[str, Any],
    special: Mapping[str, Any],
    added: Mapping[str, Any],
) -> bytes:
    """From vocab.json, merges.txt, tokenizer_config.json, special_tokens_map.json and added_tokens.json.

    Raises CheckpointError where they do not fit each other, or where the library is missing.
    """
    try:
        from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
    except ImportError:
        raise CheckpointError(
            "it has vocab.json and merges.txt but no tokenizer.json, which the package tokenizers would make of them: "
            "`pip install tokenizers`"
        ) from None
    added_tokens = _added_tokens(vocab, config, special, added)
    # The library would number those that the vocabulary lacks by itself, whatever their ids.
    vocab = {**vocab, **{content: index for content, (index, _) in added_tokens.items()}}
    _check_ids(vocab)
    try:
        model = models.BPE(dict(vocab), list(_merges(merges)))
    except Exception as error:  # tokenizers raises bare Exception
        raise CheckpointError(f"vocab.json and merges.txt do not fit each other ({error}): {_AGAIN}") from error
    prefix = config.get("add_prefix_space") is True
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.add_tokens([AddedToken(content, **flags) for content, (_, flags) in added_tokens.items()])
    return str(tokenizer.to_str()).encode()


def _merges(text: bytes) -> Iterator[tuple[str, str]]:
    try:
        lines = text.decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"merges.txt is not UTF-8 (byte {error.start}): {_AGAIN}") from error
    for number, line in enumerate(lines, 1):
        pair = line.rstrip("\r").split(" ")
        if pair == [""] or line.startswith("#version"):
            continue
        if len(pair) != 2:
            raise CheckpointError(f"merges.txt, line {number}: expected two tokens, not {line[:60]!a}: {_AGAIN}")
        yield pair[0], pair[1]


def _added_tokens(
    vocab: Mapping[str, Any], config: Mapping[str, Any], special: Mapping[str, Any], added: Mapping[str, Any]
) -> dict[str, tuple[int, dict[str, bool]]]:
    """The id and the flags of each token that is never split; what has no id is left out."""
    tokens = {content: (index, dict(_FLAGS)) for content, index in added.items() if type(index) is int}
    decoder = config.get("added_tokens_decoder")
    for index, entry in decoder.items() if isinstance(decoder, dict) else ():
        if index.isdecimal() and len(index) < 8 and isinstance(entry, dict) and isinstance(entry.get("content"), str):
            tokens[entry["content"]] = (int(index), {name: entry.get(name) is True for name in _FLAGS})
    for content in _special_tokens(config, special):
        index, flags = tokens.get(content, (vocab.get(content), _FLAGS))
        if index is not None:
            tokens[content] = (index, {**flags, "special": True})
    return dict(sorted(tokens.items(), key=lambda item: item[1][0]))


def _check_ids(vocab: Mapping[str, Any]) -> None:
    ids = set(vocab.values()) if all(type(token) is int for token in vocab.values()) else set()
    if not vocab or len(ids) != len(vocab) or not 0 <= min(ids) <= max(ids) < 1 << 24:
        raise CheckpointError(
            "vocab.json and the files of added tokens must give each token an id of its own, a whole number from 0 to "
            f"{(1 << 24) - 1}: {_AGAIN}"
        )


def _special_tokens(*sources: Mapping[str, Any]) -> Iterator[str]:
    """Texts of the special tokens; GPT-2's own is the default."""
    yield "<|endoftext|>"
    for source in sources:
        several = source.get("additional_special_tokens")
        for token in (*(source.get(role) for role in _ROLES), *(several if isinstance(several, list) else ())):
            content = token.get("content") if isinstance(token, dict) else token
            if isinstance(content, str):
                yield content
