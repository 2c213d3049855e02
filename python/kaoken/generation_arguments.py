"""What `kaoken generate` and `kaoken chat` share: the model, and how its tokens are chosen."""

from __future__ import annotations

import argparse
from typing import Any


def add_generation(parser: argparse.ArgumentParser, default_tokens: str) -> None:
    """`default_tokens` says how many --max-new-tokens is where it is not given, which None stands for."""
    parser.add_argument("--model", metavar="PATH", help="a baked library (default: the model in this wheel)")
    parser.add_argument("--max-new-tokens", type=int, metavar="N", help=f"at most N (default: {default_tokens})")
    parser.add_argument("--threads", type=int, metavar="N", help="default: KAOKEN_THREADS, else one a core")
    sampling = parser.add_argument_group("sampling (any of these turns it on)")
    sampling.add_argument(
        "--do-sample",
        action=argparse.BooleanOptionalAction,
        help="draw tokens, or take the likeliest (default: as the model's generation_config.json, else the likeliest)",
    )
    sampling.add_argument("--temperature", type=float, metavar="T", help="above 0; less is safer (default: 1.0)")
    sampling.add_argument("--top-k", type=int, metavar="K", help="from the K likeliest; 0: all (default: 50)")
    sampling.add_argument("--top-p", type=float, metavar="P", help="from the likeliest that reach P (default: 1.0)")
    sampling.add_argument("--seed", type=int, metavar="N", help="the same seed gives the same text (default: random)")


def generation_of(options: argparse.Namespace, default_tokens: int) -> dict[str, Any]:
    """The options of `generate` that were given."""
    names = ("temperature", "top_k", "top_p", "seed")
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    sample = True if given and options.do_sample is None else options.do_sample
    tokens = default_tokens if options.max_new_tokens is None else options.max_new_tokens
    return {"max_new_tokens": tokens, **({} if sample is None else {"do_sample": sample}), **given}
