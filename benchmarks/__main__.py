"""The command line of the benchmarks."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.engines import PEERS
from benchmarks.models import MODELS
from benchmarks.rows import ROW_NAMES

_DESCRIPTION = """\
Measures Kaoken against its peers and against the machine. Run it from the root of the source tree, on a machine that
does nothing else.

  python -m benchmarks peers --model gpt2         decode, prefill, cold start and build beside every peer
  python -m benchmarks report                     the JSON of a run as Markdown and plots
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs a command line (default: sys.argv)."""
    options = _parser().parse_args(arguments)
    options.run(options, sys.argv[2:] if arguments is None else list(arguments)[1:])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_peers(_command(commands, "peers", "beside other engines"))
    return parser


def _command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], name: str, text: str
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=text, description=text)
    parser.add_argument("--out", type=Path, default=Path("build/benchmarks"), help="directory of the results")
    return parser


def _add_peers(parser: argparse.ArgumentParser) -> None:
    _add_common(parser)
    parser.add_argument("--model", choices=MODELS, default="gpt2", help="random weights, or the bundled model")
    parser.add_argument("--dtypes", nargs="+", choices=PEERS, help="ours (default: all)")
    parser.add_argument("--rows", nargs="+", choices=ROW_NAMES, help="kinds of work (default: all)")
    parser.add_argument("--peers", nargs="*", metavar="PART", help="only peers whose name has one of these in it")
    parser.add_argument("--rounds", type=int, help="turns of each engine (default: 7)")
    parser.add_argument("--quick", action="store_true", help="two rounds of two types and the short rows")
    parser.add_argument("--prepare", action="store_true", help="only convert and bake, which may be done while busy")
    parser.set_defaults(run=_peers)


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cache", type=Path, help="of converted models (default: ~/.cache/kaoken-benchmarks)")


def _peers(options: argparse.Namespace, arguments: list[str]) -> None:
    from benchmarks.peers import make_plan, run, say_to_stderr

    run(make_plan(options), arguments, say_to_stderr, options.prepare)


if __name__ == "__main__":
    main()
