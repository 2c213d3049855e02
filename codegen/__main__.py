"""What CMake calls: `plan` at configure, `generate` at build.

python -m codegen plan --checkpoint DIR --out DIR ...    writes OUT/options.json and OUT/plan.cmake
python -m codegen generate --out OUT                     writes the files that the plan names
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path

from .emit.environment import TEMPLATES
from .errors import KaokenError
from .files import write_if_changed
from .hub import resolve_model
from .isa import TABLE, canonical_machine, resolve
from .memory import MemoryBudget, check_reach, make_budget
from .pipeline import Baked, Options, bake, generate
from .plan import plan_text
from .spec import identifier
from .version import kaoken_version

DTYPES = ("float32",)


def main(arguments: list[str] | None = None) -> int:
    """Runs one command; a KaokenError becomes one line on stderr and exit status 1."""
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except KaokenError as error:
        print(f"kaoken: error: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m codegen", description="Kaoken's codegen stage, run by CMake.")
    commands = parser.add_subparsers(required=True)
    plan = commands.add_parser("plan", help="say which files a checkpoint becomes, from its headers alone")
    plan.set_defaults(run=_plan)
    plan.add_argument("--checkpoint", required=True, help="a directory or a hub id")
    plan.add_argument("--root", type=Path, default=Path.cwd(), help="where relative directories start")
    plan.add_argument("--revision", default=None)
    plan.add_argument("--name", default=None, help="a C identifier; made from the checkpoint's name without it")
    plan.add_argument("--source", default=None, help="the checkpoint's name for people")
    plan.add_argument("--dtype", choices=DTYPES, default="float32")
    plan.add_argument("--isa", default="portable")
    plan.add_argument("--machine", default=None, help="the architecture to compile for")
    plan.add_argument("--jobs", type=int, default=None)
    plan.add_argument("--compile-memory", default=None)
    plan.add_argument("--out", type=Path, required=True)
    files = commands.add_parser("generate", help="write the files of a plan")
    files.set_defaults(run=_generate)
    files.add_argument("--out", type=Path, required=True)
    return parser


def _plan(arguments: argparse.Namespace) -> None:
    source = resolve_model(arguments.checkpoint, revision=arguments.revision or None, root=arguments.root)
    options = Options(
        name=arguments.name or identifier(source.name),
        source=arguments.source or source.name,
        revision=source.revision or arguments.revision or None,
        dtype=arguments.dtype,
        isas=resolve(arguments.isa, arguments.machine),
        version=kaoken_version(),
        budget=make_budget(arguments.compile_memory or None, arguments.jobs),
    )
    baked = bake(source.directory, options)
    check_reach(baked.packed.nbytes, canonical_machine(arguments.machine))
    arguments.out.mkdir(parents=True, exist_ok=True)
    saved = {"checkpoint": os.path.abspath(source.directory), **asdict(options)}
    write_if_changed(arguments.out / "options.json", [json.dumps(saved, indent=1).encode()])
    write_if_changed(arguments.out / "plan.cmake", [plan_text(baked, _inputs(baked)).encode()])


def _generate(arguments: argparse.Namespace) -> None:
    saved = json.loads((arguments.out / "options.json").read_text(encoding="utf-8"))
    directory = Path(saved.pop("checkpoint"))
    options = Options(**{**saved, "isas": tuple(saved["isas"]), "budget": MemoryBudget(**saved["budget"])})
    baked = bake(directory, options)
    generate(baked, arguments.out)
    write_if_changed(arguments.out / "codegen.d", [_depfile(arguments.out, baked).encode()])


def _inputs(baked: Baked) -> list[str]:
    """Absolute paths of everything that decides the generated files: this program and the checkpoint's files."""
    program = Path(__file__).resolve().parent
    sources = [*program.rglob("*.py"), *(path for path in TEMPLATES.iterdir() if path.is_file()), TABLE]
    return sorted(map(str, sources)) + [os.path.abspath(path) for path in baked.checkpoint.files]


def _depfile(out: Path, baked: Baked) -> str:
    """A Make rule for the first file of the plan."""
    target = os.path.abspath(out / "description.json")
    return f"{_escape(target)}: " + " \\\n  ".join(map(_escape, _inputs(baked))) + "\n"


def _escape(path: str) -> str:
    return path.replace("$", "$$").replace("#", "\\#").replace(" ", "\\ ")


if __name__ == "__main__":
    sys.exit(main())
