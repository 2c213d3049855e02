"""The `kaoken` command. A subcommand imports the heavy modules that it needs, so --help is instant."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import signal
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from itertools import chain, takewhile
from typing import TYPE_CHECKING, Any, NoReturn

from kaoken import chat_command
from kaoken.chat_command import load_for_chat
from kaoken.codegen.settings import OPTIONS, SETTINGS, Setting
from kaoken.compress.commands import add_commands as add_compress_commands
from kaoken.errors import InputError, KaokenError
from kaoken.generation_arguments import add_generation, generation_of
from kaoken.output import discard_output, print_at_once, print_what_does_not_encode
from kaoken.text_commands import add_commands as add_text_commands
from kaoken.text_commands import instead

if TYPE_CHECKING:
    from kaoken.library import BlockConfig, ModelConfig, ModelInfo
    from kaoken.model import BakedModel

_DESCRIPTION = """\
Run small transformers that were baked into native code, and bake new ones.

  kaoken generate "ROMEO:"                  continue a text with the model in this wheel
  kaoken chat --model my.so                 talk with a model that has a chat template
  kaoken info                               what that model is and how it was built
  kaoken bake ./my-checkpoint -o my.so      bake another checkpoint (a directory, a GGUF file or a hub id)
  kaoken generate "Hello" --model my.so     and run it
  kaoken encode --model my.so < lines.txt   an encoder: vectors; rank, classify, tag and fill-mask are for others
  kaoken bench                              how fast it is on this machine
  kaoken eval my.so --text file.txt         its perplexity, and with --against ./my-checkpoint what its types cost
  kaoken verify my.so                       whether a library is damaged
  kaoken graph ./my-checkpoint -o graph.svg what Kaoken makes of a checkpoint, as a picture
"""

_GENERATE = """\
Continue PROMPT: print it and its completion, piece by piece as tokens are made. An encoder-decoder reads PROMPT, such
as a text to translate, and what it makes of that is printed alone. With --chat PROMPT is a message to a model that has
a chat template, and its answer is printed alone; `kaoken chat` is for more than one. An encoder makes no text: see
`kaoken encode`, `classify`, `rank`, `tag` and `fill-mask`.

Without sampling options the model's own are used, where its generation_config.json has some; else the likeliest token
is taken each time, so the text is always the same. Any of
--do-sample, --temperature, --top-k, --top-p and --seed turns sampling on. Generation ends at the model's
end token, after --max-new-tokens, or where the model's context is full.

  kaoken generate "ROMEO:"
  kaoken generate "ROMEO:" --max-new-tokens 100 --temperature 0.8 --seed 1
  cat story.txt | kaoken generate - --model my.so
  kaoken generate --model smol.so --chat "Why is the sky blue?"
  kaoken generate "translate English to German: How old are you?" --model t5.so
"""

_INFO = """\
Show a baked model's kind, name, source, weights digest, build settings, shapes and compile statistics.

  kaoken info
  kaoken info --model my.so --json
"""

_BAKE = """\
Compile a checkpoint into one model library. CHECKPOINT is a directory with config.json and model.safetensors, a GGUF
file, or the id of a model on the Hugging Face hub, as OWNER/NAME:Q4_K_M for a GGUF; what exists wins. Prints the
library's path.

Needs a C++17 compiler (CXX names one) and `pip install "kaoken[bake]"`. Compile statistics are written
beside the library, to OUT.json. Without -o a cache serves, in which an unchanged bake is instant:
$KAOKEN_CACHE, else $XDG_CACHE_HOME/kaoken, else ~/.cache/kaoken.

  kaoken bake ./my-checkpoint -o my.so
  kaoken bake openai-community/gpt2 -o gpt2.so --isa portable
  kaoken bake ./my-checkpoint -o my.so --jobs 2 --compile-memory 600M
"""

_VERIFY = """\
Check every byte of a baked library against the digest that its build left in it. This finds damage, not malice.

  kaoken verify
  kaoken verify my.so
"""

_BENCH = """\
Measure a baked model on this machine, which takes some seconds: tokens per second when decoding and when reading a
prompt, and how many bytes of weights decoding reads per second, beside what the machine reads from memory at most.
A model that fits into the processor's cache can pass that limit. An encoder-decoder decodes behind a text that it has
read; of an encoder it is the tokens per second of one text, and of a batch. A checkpoint directory is baked in float32
into the cache of `kaoken bake` first.

  kaoken bench
  kaoken bench ./my-checkpoint
  kaoken bench --model my.so --threads 2 --json
"""

_EVAL = """\
Measure what a baked model makes of a text: a decoder's perplexity and bits per byte over windows of it, of which the
first eighth is context alone. With --against also what that is for another model, how far the probabilities are from
its own (the mean KL divergence of all tokens) and how often both find the same token likeliest. An encoder is compared
line by line: the cosines of its vectors with the other's, and the rank correlation of the similarities of all pairs.
A checkpoint behind --against is baked in float32 into the cache of `kaoken bake` first.

  kaoken eval my.so --text file.txt
  kaoken eval my.so --text file.txt --against ./my-checkpoint
  kaoken eval minilm-int8.so --text sentences.txt --against minilm-float32.so --json
"""

_CALIBRATE = """\
Let a checkpoint read a text in float32, and write a recipe: how its matrices are quantized with less loss. Bake with
it, any number of times and to the same bytes; `kaoken eval` tells what it gains. The text should be like those that
the model is for, and not the one that it is evaluated on.

  kaoken calibrate ./my-checkpoint --text file.txt --dtype int8 -o my.recipe
  kaoken bake ./my-checkpoint --dtype int8 --recipe my.recipe -o my.so
"""

_GRAPH = """\
Draw the graph that a checkpoint is baked as: each op with its shapes, the checkpoint's tensors that its weights come
from, and what Kaoken's rewrites have folded into it. No weights are read, so it is instant for a model of any size.
Blocks that are alike are drawn once. Without -o the DOT text is printed; SVG needs `pip install "kaoken[graph]"`.

--onnx exports a GPT-2 with torch's TorchScript and dynamo exporters, checks both files with onnxruntime, and
draws them too: OUT.svg gets OUT.torchscript.onnx, OUT.torchscript.svg, OUT.dynamo.onnx and OUT.dynamo.svg beside it.
It needs `pip install "kaoken[onnx]"`.

  kaoken graph ./my-checkpoint -o graph.svg
  kaoken graph ./my-checkpoint -o graph.svg --onnx
  kaoken graph ./my-checkpoint --before --all-blocks > before.dot
"""

_EXIT_CODES = "exit codes: 0 success, 1 error, 2 wrong usage, 130 interrupted, 141 output closed early"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command line (default: sys.argv); returns the exit code. argparse itself exits, with 0 or 2."""
    if arguments is None:  # this process is the command: a bake ends its compilers on the way out
        for ending in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(ending) is signal.SIG_DFL:  # nohup has one ignored
                signal.signal(ending, _end)
        _reopen_closed_streams()
    try:
        options = _parser().parse_args(_separated(sys.argv[1:] if arguments is None else arguments))
        options.run(options)
        return 0
    except KaokenError as error:
        return _fail(error)
    except BrokenPipeError:
        discard_output()
        return 128 + signal.SIGPIPE
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except MemoryError as error:
        return _fail(f"not enough memory {error}".strip())
    except OSError as error:
        return _fail(error)


def _separated(arguments: Sequence[str]) -> list[str]:
    """Without a `--` that separates nothing, which argparse takes for an argument: the first, or the one at the end."""
    rest = list(arguments)
    if rest[:1] == ["--"]:
        del rest[0]
    return rest[:-1] if rest[-1:] == ["--"] and rest.index("--") == len(rest) - 1 else rest


def _print_path(text: object) -> None:
    print_what_does_not_encode("surrogateescape")  # the path's own bytes, as the file system has them
    print_at_once(text)


def _reopen_closed_streams() -> None:
    """Python leaves None for a stream that the shell closed (`>&-`); give it nothing to read, or nowhere to write."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 (for the process's life)


def _end(number: int, _frame: object) -> None:
    raise SystemExit(128 + number)


def _fail(error: object) -> int:
    print(f"kaoken: error: {error}", file=sys.stderr)
    return 1


class _Version(argparse.Action):
    """Looks the version up only when it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any, **__: Any) -> None:
        import kaoken

        print_at_once(f"kaoken {kaoken.__version__}")
        parser.exit()


class _Parser(argparse.ArgumentParser):
    """Names an unknown option first: argparse complains of a missing argument in its place."""

    _given: Sequence[str] = ()

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        self._given = args or ()
        return super().parse_known_args(args, namespace)

    def _print_message(self, message: str, file: Any = None) -> None:
        """argparse's own does not care whether its help can be written."""
        if file is sys.stdout:
            print_at_once(message, end="")
        else:
            super()._print_message(message, file)

    def error(self, message: str) -> NoReturn:
        options = takewhile(lambda given: given != "--", self._given)
        unknown = [
            given
            for given in options
            if re.match("--?[A-Za-z]", given)
            and not {given.split("=")[0], given[:2]} & self._option_string_actions.keys()
        ]
        if unknown and message.startswith("the following arguments are required"):
            message = f"unrecognized arguments: {' '.join(unknown)} (a text that starts with - goes behind --)"
        super().error(message)


class _CMakeDirectory(argparse.Action):
    """For `cmake -DKaoken_DIR=$(kaoken --cmake-dir)`."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any, **__: Any) -> None:
        from kaoken import codegen

        _print_path(os.path.abspath(os.path.join(str(codegen.__file__), "..", "..", "cmake")))
        parser.exit()


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="kaoken",
        description=_DESCRIPTION,
        epilog=_EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show Kaoken's version and exit")
    parser.add_argument(
        "--cmake-dir", action=_CMakeDirectory, nargs=0, help="show where KaokenConfig.cmake is and exit"
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_generate(_command(commands, "generate", _generate, _GENERATE, "continue a text"))
    chat_command.add_command(commands, _command)
    _add_info(_command(commands, "info", _info, _INFO, "describe a baked model"))
    _add_bake(_command(commands, "bake", _bake, _BAKE, "compile a checkpoint into a model library"))
    _add_calibrate(_command(commands, "calibrate", _calibrate, _CALIBRATE, "find out how to quantize a checkpoint"))
    _add_bench(_command(commands, "bench", _bench, _BENCH, "measure a baked model"))
    _add_eval(_command(commands, "eval", _eval, _EVAL, "measure what a type costs on a text"))
    add_text_commands(commands, _command)
    add_compress_commands(commands, _command)
    _add_verify(_command(commands, "verify", _verify, _VERIFY, "check a baked library for damage"))
    _add_graph(_command(commands, "graph", _graph, _GRAPH, "draw a checkpoint's graph"))
    return parser


def _command(
    commands: Any, name: str, run: Callable[[argparse.Namespace], None], description: str, summary: str
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=description,
        epilog=_EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.set_defaults(run=run)
    return parser


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", metavar="PATH", help="a baked library (default: the model in this wheel)")


def _add_generate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompt", metavar="PROMPT", help="a text to continue or to read; - is standard input as it is")
    add_generation(parser, "100, with --chat 512")
    parser.add_argument("--chat", action="store_true", help="PROMPT is a message, and its answer is printed alone")
    parser.add_argument("--system", metavar="TEXT", help="a system message in front of it, with --chat")


def _add_bench(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", metavar="CHECKPOINT", nargs="?", help="a directory, in place of --model")
    _add_model(parser)
    parser.add_argument("--threads", type=int, metavar="N", help="default: KAOKEN_THREADS, else one a core")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def _add_eval(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", nargs="?", help="a baked library (default: the model in this wheel)")
    parser.add_argument("--text", metavar="FILE", required=True, help="UTF-8, such as the model has not been made from")
    parser.add_argument("--against", metavar="CKPT", help="a checkpoint, in float32, or a baked library")
    parser.add_argument("--context", type=int, metavar="N", help="tokens of a window (default: 512, or the model's)")
    parser.add_argument("--threads", type=int, metavar="N", help="default: KAOKEN_THREADS, else one a core")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def _add_calibrate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="a directory, a GGUF file, or a hub id such as gpt2")
    parser.add_argument("--text", metavar="FILE", required=True, help="UTF-8, such as the model is for")
    parser.add_argument("-o", "--out", metavar="RECIPE", required=True, help="the file to write")
    parser.add_argument("--windows", type=int, default=32, metavar="N", help="of the text, at most (default: 32)")
    parser.add_argument("--window", type=int, default=512, metavar="N", help="tokens of each (default: 512)")
    for name in ("dtype", "tensor-dtypes", "revision", "adapter"):
        _add_setting(parser, SETTINGS[name])


def _add_verify(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", nargs="?", help="a baked library (default: the model in this wheel)")


def _add_graph(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="a directory, a GGUF file, or a hub id such as gpt2")
    parser.add_argument("-o", "--out", metavar="OUT", help="the file to write (default: DOT to standard output)")
    parser.add_argument("--format", help="dot or svg (default: as OUT ends)")
    parser.add_argument(
        "--before", action="store_true", help="the graph as the checkpoint states it, before the rewrites"
    )
    parser.add_argument("--all-blocks", action="store_true", help="draw blocks that are alike one by one")
    parser.add_argument("--onnx", action="store_true", help="put the ONNX exports and their pictures beside OUT")
    parser.add_argument("--revision", help="of a hub id: a branch, tag or commit")


def _add_info(parser: argparse.ArgumentParser) -> None:
    _add_model(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def _add_bake(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="a directory, a GGUF file, or a hub id such as gpt2")
    parser.add_argument("-o", "--out", metavar="OUT", help="the one file to write (default: into the cache)")
    for setting in OPTIONS:
        _add_setting(parser, setting)


def _add_setting(parser: argparse.ArgumentParser, setting: Setting) -> None:
    takes: dict[str, Any] = {"type": setting.type, "default": setting.bake_value}
    if setting.singular:
        takes = {"action": "append", "default": [], "dest": setting.parameter}
    flag = f"--{setting.singular or setting.name}"
    parser.add_argument(flag, metavar=setting.metavar, help=setting.help, **takes)


def _generate(options: argparse.Namespace) -> None:
    prompt = _prompt(options.prompt)
    if options.chat:
        _answer(prompt, options)
        return
    if options.system is not None:
        raise InputError("--system is for chats: add --chat, or put the text into the prompt")
    model = _load(options.model, options.threads)
    if model.kind == "encoder":
        raise InputError(f"{model.info.name} is for {model.config.task} and makes no text: {instead(model)}")
    pieces = model.stream_text(prompt, **generation_of(options, 100))
    _print_pieces([prompt] if model.kind == "decoder" else [], pieces)  # what continues a prompt, a translation not


def _answer(prompt: str, options: argparse.Namespace) -> None:
    model = load_for_chat(options.model, options.threads)
    system = [] if options.system is None else [{"role": "system", "content": options.system}]
    messages = [*system, {"role": "user", "content": prompt}]
    _print_pieces(model.stream_chat(messages, **generation_of(options, chat_command.MAX_NEW_TOKENS)))


def _print_pieces(*parts: Iterable[str]) -> None:
    """Each as soon as it is made."""
    print_what_does_not_encode("replace")  # a terminal that cannot show a character must not end the text
    for piece in chain(*parts):
        print_at_once(piece, end="")
    print_at_once("")


def _prompt(argument: str) -> str:
    if argument != "-":
        return argument
    try:
        return sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"standard input is not UTF-8 (byte {error.start}): convert it first") from None


def _load(model: str | os.PathLike[str] | None, threads: int | None = None) -> Any:
    from kaoken.model import load

    return load(model, threads=threads)


def _info(options: argparse.Namespace) -> None:
    from dataclasses import asdict

    model = _load(options.model)
    facts = {**asdict(model.info), "config": asdict(model.config)}
    if options.json:
        print_at_once(json.dumps(facts, indent=2))
    else:
        print_at_once("\n".join(_describe(model)))


def _describe(model: BakedModel) -> list[str]:
    info, config = model.info, model.config
    lines = {
        "model": info.name,
        "kind": f"{config.kind}, {config.family}, for {config.task}",
        "source": info.source + (f" at {info.revision}" if info.revision else ""),
        "weights": f"sha256 {info.weights_sha256}",
        "dtype": _dtypes(info, config),
        "kernels": info.kernels,
        "isa": f"{info.isa} (of {', '.join(info.isas)})",
        "choice": info.isa_reason,
        "kaoken": info.kaoken_version,
        "settings": ", ".join(f"{name} {_setting(value)}" for name, value in info.settings.items()),
        "shape": f"{_layers(config)}, n_embd {config.n_embd}, {_blocks(config.blocks)}",
        "tokens": f"vocabulary {config.vocab_size}, {_limits(config)}",
        "build": _build(info.statistics),
    }
    if info.calibration is not None:
        lines["recipe"] = _recipe(info.calibration)
    if info.chat_template is not None:
        lines["chat"] = f"with a template of {len(info.chat_template)} characters"
    if info.generation_defaults:
        lines["defaults"] = ", ".join(f"{name} {value}" for name, value in info.generation_defaults.items())
    if info.ignored_generation_options:
        lines["ignored"] = f"{', '.join(info.ignored_generation_options)} of generation_config.json"
    return [f"{name:10}{text}" for name, text in lines.items()]


def _recipe(facts: dict[str, Any]) -> str:
    text = f"{facts['windows']} windows of {facts['context']} tokens"
    return f"{facts['method']} for {facts['dtype']}, on {text}; sha256 {facts['sha256']}"


def _dtypes(info: ModelInfo, config: ModelConfig) -> str:
    overrides = "".join(f", {pattern} in {dtype}" for pattern, dtype in info.tensor_dtypes.items())
    cache = "" if config.kind == "encoder" else f", KV cache in {info.cache_dtype}"
    return f"{info.dtype}{overrides}{cache}"


def _layers(config: ModelConfig) -> str:
    """Of each stack."""
    layers = f"{config.n_layer} layers"
    return f"encoder of {config.source_layers} layers, decoder of {layers}" if config.source_layers else layers


def _limits(config: ModelConfig) -> str:
    """How much text fits, and its token types."""
    source = f"source {config.source_positions}, " if config.source_positions else ""
    types = f", {config.type_vocab_size} token types" if config.type_vocab_size else ""
    return f"{source}context {config.n_positions}{types}"


def _setting(value: Any) -> str:
    return "+".join(map(str, value)) if isinstance(value, list) else str(value)


def _heads(block: BlockConfig) -> str:
    shared = "" if block.n_kv_head == block.n_head else f" on {block.n_kv_head} of keys and values"
    return f"{block.n_head} heads{shared}"


def _blocks(blocks: Sequence[BlockConfig]) -> str:
    """Heads and MLP widths, once if all blocks are alike."""
    shapes = [f"{_heads(block)} of {block.head_dim}, n_inner {block.n_inner}" for block in blocks]
    return shapes[0] if len(set(shapes)) == 1 else "blocks: " + "; ".join(shapes)


def _build(statistics: dict[str, Any] | None) -> str:
    if statistics is None:
        return "no statistics beside the library"
    try:
        seconds, peak = float(statistics["wall_seconds"]), statistics["peak_bytes"] / 2**20
    except (LookupError, TypeError, ValueError):
        return "statistics beside the library are of another Kaoken"
    return f"{seconds:.1f} s, at most {peak:.0f} MiB a process"


def _bench(options: argparse.Namespace) -> None:
    from dataclasses import asdict

    from kaoken.baking import bake
    from kaoken.bench import lines, measure

    if options.checkpoint is not None and options.model is not None:
        raise InputError("a checkpoint and --model both name what to measure: leave one out")
    library = options.model if options.checkpoint is None else str(bake(options.checkpoint))
    result = measure(_load(library, options.threads))
    print_at_once(json.dumps(asdict(result), indent=2) if options.json else "\n".join(lines(result)))


def _eval(options: argparse.Namespace) -> None:
    from dataclasses import asdict

    from kaoken.evaluation import evaluate, lines
    from kaoken.windows import read_text

    text = read_text(options.text)
    result = evaluate(
        _load(options.model, options.threads),
        text,
        against=options.against,
        context=options.context,
        show_progress_bar=sys.stderr.isatty(),
    )
    print_at_once(json.dumps(asdict(result), indent=2) if options.json else "\n".join(lines(result)))


def _calibrate(options: argparse.Namespace) -> None:
    from kaoken.calibrating import calibrate

    path = calibrate(
        options.checkpoint,
        options.text,
        options.out,
        dtype=options.dtype,
        tensor_dtypes=",".join(options.tensor_dtypes),
        revision=options.revision,
        adapter=options.adapter,
        windows=options.windows,
        context=options.window,
        show_progress_bar=sys.stderr.isatty(),
    )
    _print_path(path)


def _verify(options: argparse.Namespace) -> None:
    from kaoken.library import default_library, verify

    path = options.file or default_library()
    verify(path)
    _print_path(f"{path} is whole: it fits the digest that its build recorded in it")


def _graph(options: argparse.Namespace) -> None:
    from kaoken.tools import check_packages

    check_packages()
    from kaoken.graphs import write_graph

    names = ("format", "before", "all_blocks", "onnx", "revision")
    drawn = write_graph(options.checkpoint, options.out, **{name: getattr(options, name) for name in names})
    if isinstance(drawn, str):
        print_what_does_not_encode("replace")
        print_at_once(drawn, end="")
    else:
        for path in drawn:
            _print_path(path)


def _bake(options: argparse.Namespace) -> None:
    from kaoken.baking import bake

    settings = {setting.parameter: getattr(options, setting.parameter) for setting in OPTIONS}
    settings["tensor_dtypes"] = ",".join(settings["tensor_dtypes"])
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_: print(f"kaoken: warning: {message}", file=sys.stderr)
        path = bake(options.checkpoint, out=options.out, **settings)
    if options.dtype == "own":
        with contextlib.suppress(KaokenError):  # as of a library for another processor
            model = _load(path)
            if {model.info.dtype, *model.info.tensor_dtypes.values()} != {"float32"}:
                print(f"kaoken: baked in {_dtypes(model.info, model.config)}", file=sys.stderr)
    _print_path(path)
