"""The command line of the benchmarks."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.engines import DTYPES
from benchmarks.models import MODELS, task_of
from benchmarks.rows import ROW_NAMES

ENCODERS = ("minilm-l6", "bert-base")  # the shapes of `encoders`

_DESCRIPTION = """\
Measures Kaoken against its peers and against the machine. Run it from the root of the source tree, on a machine that
does nothing else.

  python -m benchmarks peers --model gpt2         decode, prefill, cold start and build beside every peer
  python -m benchmarks peers --model bert-base    vectors of texts, alone, in batches and of many lengths
  python -m benchmarks encoders                   the same of MiniLM-L6 and of BERT base, one behind the other
  python -m benchmarks peers --model t5-small     sources read and tokens written
  python -m benchmarks layers                     single layers beside PyTorch
  python -m benchmarks kernels                    every kernel beside the machine's limits
  python -m benchmarks service                    what choosing tokens costs, and many callers
  python -m benchmarks service --model minilm-l6  16 callers of an encoder, in threads and over HTTP
  python -m benchmarks exploded                   straight-line code beside the packed kernels, dense and pruned
  python -m benchmarks graphs                     what the ONNX exporters make of GPT-2, beside Kaoken's graph
  python -m benchmarks distill --text FILE         smaller models by distillation and pruning, trained and baked
  python -m benchmarks report                     what these left in --out as Markdown and plots
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs a command line (default: sys.argv)."""
    options = _parser().parse_args(arguments)
    options.run(options, without_paths(sys.argv[2:] if arguments is None else list(arguments)[1:]))


def without_paths(arguments: Sequence[str]) -> list[str]:
    """A command line as results record it: what it measures, not where it lay."""
    kept: list[str] = []
    skip = False
    for argument in arguments:
        path = argument.split("=")[0] in ("--out", "--cache", "--text", "--work")
        if not path and not skip:
            kept.append(argument)
        skip = path and "=" not in argument
    return kept


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_peers(_command(commands, "peers", "Kaoken beside other engines: the rows of the bars"))
    _add_encoders(_command(commands, "encoders", f"peers of {' and of '.join(ENCODERS)}, one behind the other"))
    _add_layers(_command(commands, "layers", "single layers beside PyTorch eager"))
    _add_kernels(_command(commands, "kernels", "GB/s and TOP/s of every kernel beside the machine's limits"))
    _add_exploded(_command(commands, "exploded", "packed kernels beside kernels=exploded, dense and pruned"))
    _add_service(_command(commands, "service", "what choosing tokens costs, and what many callers reach together"))
    _add_graphs(_command(commands, "graphs", "counts and pictures of ONNX exports, beside Kaoken's graph"))
    _add_distill(_command(commands, "distill", "smaller models: by steps, at once, without a teacher, by pruning"))
    _add_report(_command(commands, "report", "the JSON files of runs as Markdown and plots"))
    return parser


def _command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], name: str, text: str
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=text, description=text)
    parser.add_argument("--out", type=Path, default=Path("build/benchmarks"), help="directory of the results")
    return parser


def _add_peers(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", choices=MODELS, default="gpt2", help="random weights, or the bundled model")
    _add_plan(parser)
    parser.set_defaults(run=_peers)


def _add_encoders(parser: argparse.ArgumentParser) -> None:
    _add_plan(parser)
    parser.set_defaults(run=_encoders)


def _add_plan(parser: argparse.ArgumentParser) -> None:
    """What `peers.make_plan` reads, but for the model."""
    _add_common(parser)
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, help="ours (default: all)")
    parser.add_argument("--rows", nargs="+", choices=ROW_NAMES, help="kinds of work (default: all)")
    parser.add_argument("--peers", nargs="*", metavar="PART", help="only peers whose name has one of these in it")
    parser.add_argument("--rounds", type=int, help="turns of each engine (default: 7)")
    parser.add_argument("--quick", action="store_true", help="two rounds of two types and the short rows")
    parser.add_argument("--prepare", action="store_true", help="only convert and bake, which may be done while busy")


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cache", type=Path, help="of converted models (default: ~/.cache/kaoken-benchmarks)")


def _peers(options: argparse.Namespace, arguments: list[str]) -> None:
    from benchmarks import peers

    peers.run(peers.make_plan(options), arguments, say, options.prepare)


def _encoders(options: argparse.Namespace, arguments: list[str]) -> None:
    for model in ENCODERS:
        say(f"{model}:")
        _peers(argparse.Namespace(**vars(options), model=model), ["--model", model, *arguments])


def _add_layers(parser: argparse.ArgumentParser) -> None:
    _add_common(parser)
    parser.add_argument("--rounds", type=int, default=7, help="turns of each (default: 7)")
    parser.set_defaults(run=_layers)


def _layers(options: argparse.Namespace, arguments: list[str]) -> None:
    from benchmarks import layers

    layers.run(_with_build(options), arguments, say)


def _add_kernels(parser: argparse.ArgumentParser) -> None:
    _add_common(parser)
    parser.add_argument("--isas", nargs="+", metavar="ISA", help="instruction sets (default: all of this machine)")
    parser.add_argument("--dtypes", nargs="+", metavar="DTYPE", help="types of matrix and cache (default: all)")
    parser.add_argument("--passes", type=int, default=7, help="of each, over more weights than caches hold")
    parser.set_defaults(run=_kernels)


def _kernels(options: argparse.Namespace, arguments: list[str]) -> None:
    from benchmarks import kernels

    kernels.run(_with_build(options), arguments, say)


def _with_build(options: argparse.Namespace) -> argparse.Namespace:
    """Adds where benchmarks/native is built."""
    from benchmarks.preparing import cache_root

    return argparse.Namespace(**vars(options), build=cache_root(options.cache) / "native")


def _add_exploded(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--isa", default="native", help="one instruction set that this machine has")
    parser.add_argument("--work", type=Path, help="where compiled matrices are kept for the next run")
    parser.add_argument("--sizes", nargs="*", metavar="NxK", help="some of the sizes")
    parser.add_argument("--compile-only", action="store_true", help="fill --work and measure nothing")
    parser.set_defaults(run=_exploded)


def _exploded(options: argparse.Namespace, arguments: list[str]) -> None:
    from benchmarks import exploded

    exploded.run(options)


def _add_service(parser: argparse.ArgumentParser) -> None:
    _add_common(parser)
    models = [name for name in MODELS if task_of(name) in ("decode", "encode")]
    parser.add_argument("--model", choices=models, default="gpt2", help="random weights, or the bundled model")
    parser.add_argument("--dtype", choices=DTYPES, default="int8")
    parser.add_argument("--rounds", type=int, default=7, help="turns of each (default: 7)")
    parser.set_defaults(run=_service)


def _service(options: argparse.Namespace, arguments: list[str]) -> None:
    from benchmarks import encoder_service, service

    measure = encoder_service if task_of(options.model) == "encode" else service
    measure.run(options, arguments, say)


def _add_graphs(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=_graphs)


def _graphs(options: argparse.Namespace, arguments: list[str]) -> None:
    from benchmarks import graphs

    graphs.run(options.out, say)


def _add_distill(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--text", type=Path, required=True, help="such as tiny Shakespeare; its last tenth evaluates")
    parser.add_argument("--full", action="store_const", const="full", dest="study", help="the published study's size")
    parser.add_argument("--tiny", action="store_const", const="tiny", dest="study", help="seconds, as a test")
    parser.add_argument("--seeds", type=int, nargs="+", help="train some of the study's seeds (default: all)")
    parser.add_argument("--train-only", action="store_true", help="measure no speed, as while the machine is busy")
    parser.add_argument(
        "--work", type=Path, default=Path("build/distill"), help="of models, which a next run goes on with"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.set_defaults(run=_distill, study="preset")


def _distill(options: argparse.Namespace, arguments: list[str]) -> None:
    from benchmarks import distill

    distill.run(options, arguments, say)


def _add_report(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--no-plots", action="store_true", help="Markdown alone, which needs no matplotlib")
    parser.set_defaults(run=_report)


def _report(options: argparse.Namespace, arguments: list[str]) -> None:
    from benchmarks.report import write_report

    print("\n".join(map(str, write_report(options.out, plots=not options.no_plots))))


def say(text: str) -> None:
    """Progress, on standard error."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
