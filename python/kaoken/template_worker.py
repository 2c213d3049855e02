"""Renders chat templates, which nobody has checked, in a process that they cannot outgrow. `template.py` runs it.

python -I template_worker.py PATHS     PATHS is a JSON list, the sys.path that jinja2 is found on

Each line of standard input is a JSON object with `template` and `variables`, and a line with `text` answers it, or one
with `error` and whether the template `refused` the messages itself. A template that takes too long ends the process by
SIGPROF, one that takes too much memory gets a MemoryError, and none can open a file.

The environment is that of transformers (utils/chat_template_utils.py): its options, tags, filters and globals.
"""

from __future__ import annotations

import codecs
import json
import resource
import signal
import sys
from datetime import datetime
from functools import lru_cache
from typing import Any

if __name__ == "__main__":
    sys.path[:] = json.loads(sys.argv[1])

import jinja2.constants
import jinja2.debug  # noqa: F401 (Jinja loads these two when it needs them, and then no file can be opened)
from jinja2 import Template, TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

SECONDS = 1.0  # of processor time
MEMORY = 192 << 20  # bytes that the process may allocate, Python's own included
MAX_TEXT = 1 << 20  # characters; the tokenizer takes a second and 190 MiB for that many of the costliest


class RefusedError(TemplateError):
    """What a template says of messages that it does not take."""


class PlainNamespace(Namespace):
    """A namespace without names that begin with an underscore."""

    def __init__(self, /, *args: Any, **values: Any) -> None:
        given = dict(*args, **values)
        for name in given:
            _check_name(name)
        super().__init__(given)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace takes no name like {name!r}")


class PlainDict:
    """`dict` of templates, without the attributes of a class."""

    fromkeys = staticmethod(dict.fromkeys)

    def __call__(self, /, *args: Any, **values: Any) -> dict[Any, Any]:
        return dict(*args, **values)


class GenerationTag(Extension):
    """`{% generation %}`, which marks what an assistant said for those that train; its content stands as it is."""

    tags = {"generation"}  # noqa: RUF012 (as the class that it extends has it)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


def to_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """Jinja's own filter escapes what HTML reserves."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def refuse(message: str) -> None:
    raise RefusedError(message)


def now(format: str) -> str:
    return datetime.now().strftime(format)


def environment() -> ImmutableSandboxedEnvironment:
    made = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, loopcontrols])
    made.filters["tojson"] = to_json
    made.globals |= {
        "raise_exception": refuse,
        "strftime_now": now,
        "dict": PlainDict(),
        "namespace": PlainNamespace,
    }
    return made


@lru_cache(maxsize=1)
def compiled(template: str) -> Template:
    return environment().from_string(template)


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """The text, or what is wrong."""
    try:
        text = compiled(request["template"]).render(request["variables"])
    except MemoryError:
        return {"error": f"it takes more than {MEMORY >> 20} MiB of memory"}
    except Exception as error:
        line = getattr(error, "lineno", None)
        kind = "" if isinstance(error, RefusedError) else f"{type(error).__name__}: "
        place = "" if line is None else f" (line {line})"
        return {"error": f"{kind}{str(error)[:1000]}{place}", "refused": isinstance(error, RefusedError)}
    if len(text) > MAX_TEXT:
        return {"error": f"it makes a text of {len(text)} characters; expected at most {MAX_TEXT}"}
    return {"text": text}


def limit() -> None:
    """Takes from this process what templates do not need."""
    now("%c")  # these two open files
    codecs.lookup("unicode-escape")  # of a template's string constants
    wanted = {resource.RLIMIT_DATA: MEMORY, resource.RLIMIT_NOFILE: 0, resource.RLIMIT_CORE: 0}
    for which, most in wanted.items():
        hard = resource.getrlimit(which)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(which, (most, most))


def main() -> None:
    limit()
    for line in sys.stdin.buffer:
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        reply = json.dumps(answer(json.loads(line)))
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(reply, flush=True)


if __name__ == "__main__":
    main()
