"""What CMake calls: `plan` at configure, `generate` at build.

python -m codegen plan --checkpoint DIR --out DIR ...    writes OUT/options.json, OUT/plan.cmake and OUT/checkpoint.json
python -m codegen generate --out OUT                     writes the files that the plan names
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from dataclasses import asdict
from pathlib import Path

from .checkpoint import open_checkpoint, watched_names
from .dtypes import Types, make_types
from .emit.environment import TEMPLATES
from .errors import CheckpointError, InputError, KaokenError
from .families import EXTRA
from .files import write_if_changed
from .generation import read_generation
from .hub import resolve_model
from .identifier import identifier
from .identity import STATE, same, state
from .isa import TABLE, canonical_machine, resolve
from .memory import MemoryBudget, check_reach, make_budget
from .own_types import resolve as resolve_own
from .pipeline import Options, bake, generate
from .plan import plan_text
from .settings import OPTIONS, check_kernels
from .version import kaoken_version


def main(arguments: list[str] | None = None) -> int:
    """Runs one command; a KaokenError becomes one line on stderr and exit status 1."""
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except KaokenError as error:
        print(f"kaoken: {type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m codegen", description="Kaoken's codegen stage, run by CMake.")
    commands = parser.add_subparsers(required=True)
    plan = commands.add_parser("plan", help="say which files a checkpoint becomes, from its headers alone")
    plan.set_defaults(run=_plan)
    plan.add_argument("--checkpoint", required=True, help="a directory, a GGUF file or a hub id")
    plan.add_argument("--root", type=Path, default=Path.cwd(), help="where relative directories start")
    plan.add_argument("--commit", default=None, help="where a directory came from, to be recorded")
    plan.add_argument("--name", default=None, help="a C identifier; made from the checkpoint's name without it")
    plan.add_argument("--source", default=None, help="the checkpoint's name for people")
    plan.add_argument("--machine", default=None, help="the architecture to compile for")
    for setting in OPTIONS:
        plan.add_argument(f"--{setting.name}", type=setting.type, default=setting.default, help=setting.meaning)
    plan.add_argument("--out", type=Path, required=True)
    files = commands.add_parser("generate", help="write the files of a plan")
    files.set_defaults(run=_generate)
    files.add_argument("--out", type=Path, required=True)
    return parser


def _plan(arguments: argparse.Namespace) -> None:
    source = resolve_model(arguments.checkpoint, revision=arguments.revision or None, root=arguments.root)
    adapter, recipe = (_absolute(each, arguments.root) for each in (arguments.adapter, arguments.recipe))
    opened = open_checkpoint(source.path, None if adapter is None else Path(adapter))
    types = make_types(arguments.dtype, arguments.tensor_dtypes or "", arguments.cache_dtype or None)
    types = resolve_own(types, opened)
    options = Options(
        name=_checked_name(arguments.name or identifier(source.name)),
        source=arguments.source or source.name,
        revision=source.revision or arguments.commit or None,
        types=types,
        isas=resolve(arguments.isa, arguments.machine, types.used()),
        portable=resolve("portable", arguments.machine, types.used()),
        version=kaoken_version(),
        budget=make_budget(arguments.compile_memory or None, arguments.jobs),
        kernels=check_kernels(arguments.kernels),
        context=arguments.context,
        adapter=adapter,
        recipe=recipe,
    )
    checkpoint = os.path.abspath(source.path)
    directory = checkpoint if os.path.isdir(checkpoint) else os.path.dirname(checkpoint)
    planned = state(directory, [*watched_names(opened, source.path), *([recipe] if recipe else [])])
    baked = bake(source.path, options)
    warning = read_generation(baked.checkpoint).warning()
    if warning:
        print(f"kaoken: warning: {warning}", file=sys.stderr)
    check_reach(baked.packed.nbytes, canonical_machine(arguments.machine))
    arguments.out.mkdir(parents=True, exist_ok=True)
    saved = {"checkpoint": checkpoint, **asdict(options)}
    write_if_changed(arguments.out / "options.json", [json.dumps(saved, indent=1).encode()])
    write_if_changed(arguments.out / "plan.cmake", [plan_text(baked, _program()).encode()])
    write_if_changed(arguments.out / STATE, [json.dumps(planned, indent=1).encode()])


def _absolute(path: str | None, root: Path) -> str | None:
    """Symbolic links are kept."""
    return os.path.normpath(root.absolute() / os.path.expanduser(path)) if path else None


def _checked_name(name: str) -> str:
    if not re.fullmatch(r"[a-z][a-z0-9_]{0,47}", name):
        raise InputError(f"the name {name!r} is no identifier: give up to 48 of a to z, 0 to 9 and _, a letter first")
    return name


def _generate(arguments: argparse.Namespace) -> None:
    saved = json.loads((arguments.out / "options.json").read_text(encoding="utf-8"))
    directory = Path(saved.pop("checkpoint"))
    types = saved["types"]
    types["overrides"] = tuple(map(tuple, types["overrides"]))
    saved |= {"types": Types(**types), "budget": MemoryBudget(**saved["budget"])}
    saved |= {name: tuple(saved[name]) for name in ("isas", "portable")}
    options = Options(**saved)
    baked = bake(directory, options)
    generate(baked, arguments.out)
    if not same(json.loads((arguments.out / STATE).read_text(encoding="utf-8"))):
        raise CheckpointError(f"{directory} changed while it was baked: bake again when the checkpoint is complete")
    write_if_changed(arguments.out / "codegen.d", [_depfile(arguments.out).encode()])


def _program() -> list[str]:
    """Absolute paths of all that decides the generated files beside the checkpoint, which identity.py watches."""
    program = Path(__file__).resolve().parent
    families = [source for directory in EXTRA for source in directory.glob("*.py")]
    sources = [*program.rglob("*.py"), *families, *(path for path in TEMPLATES.iterdir() if path.is_file()), TABLE]
    return sorted(map(str, sources))


def _depfile(out: Path) -> str:
    """A Make rule for the first file of the plan."""
    target = os.path.abspath(out / "description.json")
    return f"{_escape(target)}: " + " \\\n  ".join(map(_escape, _program())) + "\n"


def _escape(path: str) -> str:
    return path.replace("$", "$$").replace("#", "\\#").replace(" ", "\\ ")


if __name__ == "__main__":
    sys.exit(main())
