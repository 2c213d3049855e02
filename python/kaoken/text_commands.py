"""`kaoken encode`, `rank`, `classify`, `tag` and `fill-mask`: what encoders make of lines of text."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from kaoken.errors import InputError
from kaoken.output import print_at_once, print_what_does_not_encode, write_bytes

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Command = Callable[[Any, str, Callable[[argparse.Namespace], None], str, str], argparse.ArgumentParser]

_ENCODE = """\
Make a vector of each line of standard input, with a sentence-transformers model. They are written as one NumPy file,
float32 [lines, d], or with --json as a line of JSON each, while they are made.

  kaoken encode --model minilm.so < lines.txt > vectors.npy
  kaoken encode --model minilm.so --json --prompt-name query < queries.txt
"""

_RANK = """\
Sort the passages of standard input, one a line, by how well they fit QUERY, with a reranker: score, a tab, passage.

  kaoken rank --model rerank.so "how do plants breathe" < passages.txt
  kaoken rank --model rerank.so "how do plants breathe" --top-k 3 --json < passages.txt
"""

_CLASSIFY = """\
Print the likeliest label of each line of standard input: label, a tab, score. With --pairs a line holds two texts with
a tab between them. With --json it is a list of {"label", "score"} for each line.

  kaoken classify --model sst2.so < lines.txt
  kaoken classify --model nli.so --pairs --top-k 3 --json < pairs.tsv
"""

_TAG = """\
Print the entities in each line of standard input, one a line: number of the input's line, start and end in it, label,
score and text, with tabs between them. With --json it is a list of entities for each line.

  echo "Ada lives in London" | kaoken tag --model ner.so
  kaoken tag --model ner.so --aggregation-strategy first --json < lines.txt
"""

_FILL_MASK = """\
Print what the mask in TEXT likely stands for: score, a tab, and the text with it. Of several masks each has its own
candidates, and an empty line stands between them.

  kaoken fill-mask --model bert.so "Paris is the [MASK] of France."
"""


# Those of each task but text-classification's.
_COMMANDS = {
    "sentence-similarity": ("encode",),
    "feature-extraction": ("encode",),
    "token-classification": ("tag",),
    "fill-mask": ("fill-mask",),
    "text-generation": ("generate",),
    "text2text-generation": ("generate",),
}


def add_commands(commands: Any, command: Command) -> None:
    """Adds the five to kaoken's subcommands."""
    encode = command(commands, "encode", _encode, _ENCODE, "make vectors of lines")
    _add_model(encode)
    encode.add_argument("--prompt-name", metavar="NAME", help="a prompt of the checkpoint, in front of each line")
    encode.add_argument("--prompt", metavar="TEXT", help="the prompt itself")
    encode.add_argument("--truncate-dim", type=int, metavar="N", help="keep the first N dimensions")
    encode.add_argument("--normalize", action="store_true", help="make each vector 1 long")
    rank = command(commands, "rank", _rank, _RANK, "sort passages by how well they fit a query")
    rank.add_argument("query", metavar="QUERY", help="what the passages are for")
    _add_model(rank)
    rank.add_argument("--top-k", type=int, metavar="K", help="the best K alone")
    classify = command(commands, "classify", _classify, _CLASSIFY, "label lines")
    _add_model(classify)
    classify.add_argument("--pairs", action="store_true", help="lines of two texts with a tab between them")
    classify.add_argument("--top-k", type=int, default=1, metavar="K", help="the likeliest K labels (default: 1)")
    tag = command(commands, "tag", _tag, _TAG, "find entities in lines")
    _add_model(tag)
    tag.add_argument(
        "--aggregation-strategy",
        default="simple",
        metavar="HOW",
        help="none, simple, first, average or max (default: simple)",
    )
    fill = command(commands, "fill-mask", _fill_mask, _FILL_MASK, "fill in a missing word")
    fill.add_argument("text", metavar="TEXT", help="with the mask token of the model, such as [MASK]")
    _add_model(fill)
    fill.add_argument("--top-k", type=int, default=5, metavar="K", help="the likeliest K (default: 5)")


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", metavar="PATH", help="a baked library (default: the model in this wheel)")
    parser.add_argument("--threads", type=int, metavar="N", help="default: KAOKEN_THREADS, else one a core")
    parser.add_argument("--json", action="store_true", help="print JSON, a line for each line of input")


def _encode(options: argparse.Namespace) -> None:
    model = _load(options, "encode")
    arguments = {
        "prompt_name": options.prompt_name,
        "prompt": options.prompt,
        "truncate_dim": options.truncate_dim,
        "normalize_embeddings": options.normalize,
    }
    if options.json:
        _encode_as_json(model, arguments)
        return
    if sys.stdout.isatty():
        raise InputError("vectors are no text: send them to a file, as in `> vectors.npy`, or pass --json")
    write_bytes(_npy(model.encode(read_lines(), show_progress_bar=_is_terminal(), **arguments)))


def _encode_as_json(model: Any, arguments: dict[str, Any]) -> None:
    from kaoken.encoder import BATCH_SIZE, batches
    from kaoken.progress import Bar

    with Bar(None, "text", _is_terminal()) as bar:
        for lines in batches(read_lines(), BATCH_SIZE):
            vectors = model.encode(lines, **arguments)
            print_at_once("\n".join(json.dumps(vector.tolist()) for vector in vectors))
            bar.advance(len(lines))


def _npy(vectors: NDArray[np.float32]) -> Iterator[Any]:
    """A .npy file; np.save itself takes no pipe."""
    import io

    from numpy.lib import format as npy

    header = io.BytesIO()
    npy.write_array_header_1_0(header, npy.header_data_from_array_1_0(vectors))
    yield header.getvalue()
    yield vectors.data.cast("B") if vectors.size else b""


def _rank(options: argparse.Namespace) -> None:
    model = _load(options, "rank")
    ranked = model.rank(
        options.query,
        list(read_lines()),
        options.top_k,
        return_documents=True,
        show_progress_bar=_is_terminal(),
    )
    _print_rows(options.json, ranked, lambda each: f"{each['score']:.6f}\t{each['text']}")


def _classify(options: argparse.Namespace) -> None:
    model = _load(options, "classify")
    texts: Iterable[Any] = map(_pair, _numbered()) if options.pairs else read_lines()
    several = model.classify(texts, options.top_k, show_progress_bar=_is_terminal())
    rows = [[row] for row in several] if options.top_k == 1 else several
    _print_rows(options.json, rows, lambda row: "\t".join(f"{each['label']}\t{each['score']:.6f}" for each in row))


def _tag(options: argparse.Namespace) -> None:
    model = _load(options, "tag")
    lines = list(read_lines())
    found = model.tag(lines, options.aggregation_strategy, show_progress_bar=_is_terminal())
    if options.json:
        _print_rows(True, found, str)
        return
    rows = (
        (number, line, each) for number, (line, row) in enumerate(zip(lines, found, strict=True), 1) for each in row
    )
    _print_rows(False, rows, _entity)


def _entity(row: tuple[int, str, dict[str, Any]]) -> str:
    number, line, each = row
    label = each.get("entity_group", each.get("entity"))
    start, end = each["start"], each["end"]
    return f"{number}\t{start}\t{end}\t{label}\t{each['score']:.6f}\t{line[start:end]}"


def _fill_mask(options: argparse.Namespace) -> None:
    model = _load(options, "fill-mask")
    found = model.fill_mask(options.text, options.top_k)
    masks = found if isinstance(found[0], list) else [found]
    if options.json:
        _print_rows(True, masks, str)
        return
    rows = ("\n".join(f"{each['score']:.6f}\t{each['sequence']}" for each in mask) for mask in masks)
    print_what_does_not_encode("replace")
    print_at_once("\n\n".join(rows))


def _load(options: argparse.Namespace, command: str) -> Any:
    """The model, which must be one of a command's."""
    from kaoken.model import load

    model = load(options.model, threads=options.threads)
    if command not in _commands_of(model):
        raise InputError(f"{model.info.name} is for {model.config.task}, not for `kaoken {command}`: {instead(model)}")
    return model


def instead(model: Any) -> str:
    """What to use a model with."""
    commands = _commands_of(model)
    if not commands or model.config.task == "feature-extraction":
        return f"call {model.calls} of what kaoken.load(path) returns, in Python"
    return f"use {' or '.join(f'`kaoken {command}`' for command in commands)}"


def _commands_of(model: Any) -> tuple[str, ...]:
    """The commands that a model is for; `encode` says itself what an encoder without modules.json lacks."""
    task = model.config.task
    if task == "text-classification":
        return ("rank", "classify") if model.config.output_width == 1 else ("classify",)
    return _COMMANDS.get(task, ())


def _numbered() -> Iterator[tuple[int, str]]:
    """The lines of standard input, counted from 1."""
    for number, line in enumerate(sys.stdin.buffer, 1):
        try:
            yield number, line.removesuffix(b"\n").removesuffix(b"\r").decode("utf-8")
        except UnicodeDecodeError as error:
            raise InputError(
                f"line {number} of standard input is not UTF-8 (byte {error.start} of it): convert it first"
            ) from None


def read_lines() -> Iterator[str]:
    """The lines of standard input, without their ends; InputError for one that is not UTF-8."""
    return (line for _, line in _numbered())


def _pair(numbered: tuple[int, str]) -> tuple[str, str]:
    number, line = numbered
    texts = line.split("\t")
    if len(texts) != 2:
        raise InputError(f"line {number} of standard input has {len(texts) - 1} tabs: put one between the two texts")
    return texts[0], texts[1]


def _print_rows(as_json: bool, rows: Iterable[Any], shown: Callable[[Any], str]) -> None:
    print_what_does_not_encode("replace")
    for row in rows:
        print_at_once(json.dumps(row, ensure_ascii=False) if as_json else shown(row))


def _is_terminal() -> bool:
    """Whether someone looks on, whom a progress bar tells how far it is."""
    return sys.stderr.isatty()
