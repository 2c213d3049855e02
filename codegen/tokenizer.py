"""A tokenizer.json from the files that tokenizers had before it, by the tokenizers library, which such models need.

vocab.json and merges.txt are byte-level BPE, as transformers' GPT2Tokenizer and RobertaTokenizer read them; vocab.txt
is WordPiece, as its BertTokenizer and MPNetTokenizer do.
"""

from __future__ import annotations

import io
import json
import shlex
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from .errors import CheckpointError, UnsupportedModelError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_AGAIN = "download the tokenizer again, or save it anew with save_pretrained"
_FLAGS = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
_ROLES = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")


def tokenizer_json(
    vocab: Mapping[str, Any],
    merges: bytes,
    config: Mapping[str, Any],
    special: Mapping[str, Any],
    added: Mapping[str, Any],
    model_type: object = None,
) -> bytes:
    """From vocab.json, merges.txt, tokenizer_config.json, special_tokens_map.json and added_tokens.json.

    What config.json has as model_type decides where tokenizer_config.json names no class. Raises CheckpointError where
    the files do not fit each other, or where the library is missing.
    """
    _require_tokenizers("vocab.json and merges.txt")
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    roberta = _is_roberta(config, model_type)
    roles = _roles(config, special, _ROBERTA if roberta else {})
    added_tokens = _added_tokens(vocab, config, special, added, roles)
    # The library would number those that the vocabulary lacks by itself, whatever their ids.
    vocab = {**vocab, **{content: index for content, (index, _) in added_tokens.items()}}
    _check_ids(vocab, "vocab.json")
    try:
        model = models.BPE(dict(vocab), list(_merges(merges)))
    except Exception as error:  # tokenizers raises bare Exception
        raise CheckpointError(f"vocab.json and merges.txt do not fit each other ({error}): {_AGAIN}") from error
    prefix = config.get("add_prefix_space") is True
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    if roberta:
        separator, first = (_known(roles, role, vocab, "vocab.json") for role in ("sep_token", "cls_token"))
        tokenizer.post_processor = processors.RobertaProcessing(separator, first, True, prefix)
    return finished(tokenizer, added_tokens)


def wordpiece_json(
    vocab: bytes, config: Mapping[str, Any], special: Mapping[str, Any], added: Mapping[str, Any], model_type: object
) -> bytes:
    """From vocab.txt and the files of `tokenizer_json`; raises as that does.

    UnsupportedModelError where vocab.txt belongs to a tokenizer that is not WordPiece.
    """
    _check_wordpiece(config, model_type)
    _require_tokenizers("vocab.txt")
    words = _words(vocab)
    roles = _roles(config, special, _MPNET if "<s>" in words and "[CLS]" not in words else _BERT)
    added_tokens = _added_tokens(words, config, special, added, roles)
    words |= {content: index for content, (index, _) in added_tokens.items()}
    _check_ids(words, "vocab.txt")
    separator, first = (_known(roles, role, words, "vocab.txt") for role in ("sep_token", "cls_token"))
    unknown = _known(roles, "unk_token", words, "vocab.txt")[0]
    try:
        tokenizer = wordpiece(words, unknown, first, separator, {"lowercase": True, **_bert_normalizer(config)})
    except Exception as error:  # tokenizers raises bare Exception, and TypeError for lone surrogates
        raise CheckpointError(f"vocab.txt and the added tokens cannot be used ({error}): {_AGAIN}") from error
    return finished(tokenizer, added_tokens)


def wordpiece(
    words: dict[str, int],
    unknown: str,
    first: tuple[str, int],
    separator: tuple[str, int],
    normalizer: Mapping[str, Any],
) -> Tokenizer:
    """BERT's, without added tokens; texts begin with `first` and end with `separator`. Raises what tokenizers does."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    tokenizer = Tokenizer(models.WordPiece(words, unk_token=unknown))
    tokenizer.normalizer = normalizers.BertNormalizer(clean_text=True, **normalizer)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    if first[0] == _MPNET["cls_token"]:
        tokenizer.post_processor = processors.RobertaProcessing(separator, first, True, False)
    else:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=[first[0], "$A", separator[0]],
            pair=[first[0], "$A:0", separator[0], "$B:1", f"{separator[0]}:1"],
            special_tokens=[first, separator],
        )
    return tokenizer


def configured(tokenizer: bytes, config: Mapping[str, Any], lower: bool) -> bytes:
    """A tokenizer.json as transformers uses it beside a tokenizer_config.json, whose options of BERT's normalizer win.

    With `lower` texts are lowercased first, as by sentence-transformers' do_lower_case.
    """
    content = json.loads(tokenizer)
    normalizer = content.get("normalizer")
    if isinstance(normalizer, dict) and normalizer.get("type") == "BertNormalizer":
        normalizer = normalizer | _bert_normalizer(config)
    if lower:
        normalizer = _lowercasing(normalizer)
    if normalizer == content.get("normalizer"):
        return tokenizer
    return json.dumps({**content, "normalizer": normalizer}).encode()


def _lowercasing(normalizer: Any) -> Any:
    """What texts go through, with Lowercase in front unless it is there already."""
    steps: Any = [] if normalizer is None else [normalizer]
    if isinstance(normalizer, dict) and normalizer.get("type") == "Sequence":
        steps = normalizer.get("normalizers")
    lower = {"type": "Lowercase"}
    if not isinstance(steps, list) or lower in steps:
        return normalizer
    return {"type": "Sequence", "normalizers": [lower, *steps]}


# What names no longer text than any model reads; files have 1e30 where there is no limit.
_MAX_LENGTH = 1 << 20


def describe(tokenizer: bytes | None, config: Mapping[str, Any]) -> dict[str, Any] | None:
    """What tokenizer_config.json says of texts beside tokenizer.json, for the model's description.

    Its keys are max_length and truncation_side, and mask_token and unk_token where the tokenizer has such tokens.
    Raises CheckpointError for a model_max_length below 1.
    """
    if tokenizer is None:
        return None
    entries = json.loads(tokenizer).get("added_tokens")
    added = [entry.get("content") for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []
    found: dict[str, Any] = {}
    for role in ("mask_token", "unk_token"):
        known = (_BERT[role], _ROBERTA[role])
        found[role] = special_roles(config).get(role) or next((token for token in known if token in added), None)
    limit: Any = config.get("model_max_length")
    number = isinstance(limit, int | float) and not isinstance(limit, bool)
    if number and limit < 1:
        raise CheckpointError(
            f"tokenizer_config.json has model_max_length = {limit}, which leaves no text: write how many tokens the "
            "model takes, or remove the field"
        )
    side = "left" if config.get("truncation_side") == "left" else "right"
    return {"max_length": int(limit) if number and limit <= _MAX_LENGTH else None, "truncation_side": side, **found}


def special_roles(config: Mapping[str, Any]) -> dict[str, str]:
    """The special tokens that a tokenizer_config.json names, by their roles: {"eos_token": "</s>", ...}."""
    return _roles(config, {}, {})


def refuse_sentencepiece(name: str, directory: str) -> CheckpointError:
    """The error for a checkpoint whose tokenizer is a SentencePiece model alone."""
    code = f"import transformers as t; d = {directory!r}; t.AutoTokenizer.from_pretrained(d).save_pretrained(d)"
    return CheckpointError(
        f"{directory} has {name} and no tokenizer.json, which Kaoken reads: make one with "
        f"python -c {shlex.quote(code)}, or remove the file to bake the model without a tokenizer"
    )


def _require_tokenizers(files: str) -> None:
    try:
        import tokenizers  # noqa: F401
    except ImportError:
        raise CheckpointError(
            f"it has {files} but no tokenizer.json, which the package tokenizers would make of them: "
            "`pip install tokenizers`"
        ) from None


def finished(tokenizer: Tokenizer, added: Mapping[str, tuple[int, dict[str, bool]]]) -> bytes:
    """With the tokens that are never split."""
    from tokenizers import AddedToken

    tokenizer.add_tokens([AddedToken(content, **flags) for content, (_, flags) in added.items()])
    return str(tokenizer.to_str()).encode()


# The special tokens of transformers' classes, where no file names others.
_ROBERTA = dict(zip(_ROLES, ("<s>", "</s>", "<unk>", "<pad>", "</s>", "<s>", "<mask>"), strict=True))
_MPNET = {**_ROBERTA, "unk_token": "[UNK]"}
_BERT = {
    "unk_token": "[UNK]",
    "pad_token": "[PAD]",
    "sep_token": "[SEP]",
    "cls_token": "[CLS]",
    "mask_token": "[MASK]",
}

# Those of transformers' classes whose vocab.txt is WordPiece, and model types whose tokenizer is one of them.
_WORDPIECE_CLASSES = ("Bert", "DistilBert", "Electra", "MPNet", "MobileBert", "SqueezeBert", "ConvBert", "LayoutLM")
_WORDPIECE_TYPES = ("bert", "distilbert", "electra", "mpnet", "mobilebert", "squeezebert", "convbert", "layoutlm")


def _class_of(config: Mapping[str, Any]) -> str | None:
    """That tokenizer_config.json names, without what does not change a token."""
    name = config.get("tokenizer_class")
    return name.removesuffix("Fast").removesuffix("Tokenizer") if isinstance(name, str) else None


def _is_roberta(config: Mapping[str, Any], model_type: object) -> bool:
    named = _class_of(config)
    return named == "Roberta" if named is not None else model_type == "roberta"


def _check_wordpiece(config: Mapping[str, Any], model_type: object) -> None:
    named = _class_of(config)
    if named not in _WORDPIECE_CLASSES if named is not None else model_type not in _WORDPIECE_TYPES:
        raise UnsupportedModelError(
            f"it has vocab.txt and no tokenizer.json, and its tokenizer is {named or model_type!r}; expected one of "
            f"{', '.join(_WORDPIECE_CLASSES)}: add a tokenizer.json, or remove vocab.txt to bake it without a tokenizer"
        )


def _bert_normalizer(config: Mapping[str, Any]) -> dict[str, Any]:
    """The options of BERT's normalizer that a tokenizer_config.json states."""
    names = {"do_lower_case": "lowercase", "tokenize_chinese_chars": "handle_chinese_chars"}
    options = {ours: config[theirs] for theirs, ours in names.items() if isinstance(config.get(theirs), bool)}
    if "strip_accents" in config and (config["strip_accents"] is None or isinstance(config["strip_accents"], bool)):
        options["strip_accents"] = config["strip_accents"]
    return options


def _words(text: bytes) -> dict[str, int]:
    """The lines of vocab.txt, each at its number; of equal ones the last."""
    try:
        lines = io.TextIOWrapper(io.BytesIO(text), "utf-8").readlines()
    except UnicodeDecodeError as error:
        raise CheckpointError(f"vocab.txt is not UTF-8 (byte {error.start}): {_AGAIN}") from error
    if not lines:
        raise CheckpointError(f"vocab.txt is empty: {_AGAIN}")
    return {line.rstrip("\n"): index for index, line in enumerate(lines)}


def _roles(config: Mapping[str, Any], special: Mapping[str, Any], defaults: Mapping[str, str]) -> dict[str, str]:
    """The special token of each role, as tokenizer_config.json or special_tokens_map.json has it."""
    roles = dict(defaults)
    for role in _ROLES:
        for source in (special, config):
            token = source.get(role)
            content = token.get("content") if isinstance(token, dict) else token
            if isinstance(content, str):
                roles[role] = content
    return roles


def _known(roles: Mapping[str, str], role: str, vocab: Mapping[str, int], file: str) -> tuple[str, int]:
    """A special token and its id."""
    token = roles[role]
    if token not in vocab:
        raise CheckpointError(f"{file} lacks {token[:60]!a}, the {role} that texts need: {_AGAIN}")
    return token, vocab[token]


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
    vocab: Mapping[str, Any],
    config: Mapping[str, Any],
    special: Mapping[str, Any],
    added: Mapping[str, Any],
    roles: Mapping[str, str],
) -> dict[str, tuple[int, dict[str, bool]]]:
    """The id and the flags of each token that is never split; what has no id is left out."""
    tokens = {content: (index, dict(_FLAGS)) for content, index in added.items() if type(index) is int}
    decoder = config.get("added_tokens_decoder")
    for index, entry in decoder.items() if isinstance(decoder, dict) else ():
        if index.isdecimal() and len(index) < 8 and isinstance(entry, dict) and isinstance(entry.get("content"), str):
            tokens[entry["content"]] = (int(index), {name: entry.get(name) is True for name in _FLAGS})
    for content in (*_special_tokens(config, special), *roles.values()):
        lstrip = content == "<mask>"  # takes the space in front, as in the tokenizer.json of RoBERTa and of MPNet
        index, flags = tokens.get(content, (vocab.get(content), {**_FLAGS, "lstrip": lstrip}))
        if index is not None:
            tokens[content] = (index, {**flags, "special": True})
    return dict(sorted(tokens.items(), key=lambda item: item[1][0]))


def _check_ids(vocab: Mapping[str, Any], file: str) -> None:
    ids = set(vocab.values()) if all(type(token) is int for token in vocab.values()) else set()
    if not vocab or len(ids) != len(vocab) or not 0 <= min(ids) <= max(ids) < 1 << 24:
        raise CheckpointError(
            f"{file} and the files of added tokens must give each token an id of its own, a whole number from 0 to "
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
