"""`kaoken chat`: a conversation in a terminal, or a line a turn where there is none."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from contextlib import closing
from typing import TYPE_CHECKING, Any

from kaoken.errors import InputError, KaokenError
from kaoken.generation_arguments import add_generation, generation_of
from kaoken.output import print_at_once, print_what_does_not_encode
from kaoken.text_commands import Command, instead, read_lines

if TYPE_CHECKING:
    from kaoken.causal import BakedCausalLM

MAX_NEW_TOKENS = 512

_CHAT = """\
Talk with a model that has a chat template, such as those called Instruct or Chat. Answers appear while they are made.
Ctrl-C stops an answer and keeps what was said of it; at the empty prompt it leaves, as Ctrl-D and /exit do. /reset
begins anew, /help says so. Where input or output is no terminal, each line of standard input is a turn, and nothing but
the answers is printed.

The model keeps what it has read, so a turn costs its own tokens alone. A chat that outgrows the context loses its
oldest turns, and a note on standard error says so. Sampling is as for `kaoken generate`. The line editor needs
`pip install "kaoken[chat]"`; without it lines are read plainly.

  kaoken chat --model smol.so
  kaoken chat --model smol.so --system "Answer in one sentence." --temperature 0.7 --verbose
  printf 'My name is Ada.\\nWhat is my name?\\n' | kaoken chat --model smol.so
"""

_HELP = """\
/reset  forget what was said (the system message stays)
/exit   leave, as Ctrl-D does, and Ctrl-C at the empty prompt
/help   show this
Ctrl-C stops an answer. Everything else is said to the model."""


def add_command(commands: Any, command: Command) -> None:
    """Adds it to kaoken's subcommands."""
    parser = command(commands, "chat", _chat, _CHAT, "talk with a model")
    add_generation(parser, str(MAX_NEW_TOKENS))
    parser.add_argument("--system", metavar="TEXT", help="a system message, which stands in front of the chat")
    parser.add_argument("--verbose", action="store_true", help="say after each answer how long it took, on stderr")


def load_for_chat(path: str | None, threads: int | None) -> BakedCausalLM:
    """A model that has a chat template, or an error that says what the model is for."""
    from kaoken.model import load

    model = load(path, threads=threads)
    if model.kind != "decoder":
        raise InputError(f"{model.info.name} is for {model.config.task} and does not chat: {instead(model)}")
    decoder: BakedCausalLM = model
    _ = decoder.chat_format
    return decoder


class Conversation:
    """What was said so far, in a session that holds it."""

    def __init__(self, model: BakedCausalLM, system: str | None, verbose: bool, options: dict[str, Any]) -> None:
        self._model = model
        self._options = model._chat_options(options)  # type: ignore[arg-type]
        self._verbose = verbose
        self._session = model.session()
        self._system = [] if system is None else [{"role": "system", "content": system}]
        self.reset()

    def reset(self) -> None:
        self._messages: list[Any] = list(self._system)

    def say(self, text: str) -> None:
        """Prints the answer to a text while it is made. What was printed of it is kept where Ctrl-C stops it."""
        model, said = self._model, ""
        started = time.perf_counter()
        prompt = model.chat_format.prompt(
            [*self._messages, {"role": "user", "content": text}],
            model.config.n_positions,
            self._options.max_new_tokens,
        )
        if prompt.dropped:
            _note(prompt.notice)
        first = None
        try:
            with closing(model._answer(prompt.ids, self._session, self._options)) as pieces:
                for piece in pieces:
                    first = first or time.perf_counter()
                    said += piece
                    print_at_once(piece, end="")
        finally:
            if said:  # a question without an answer would be followed by another one, which templates refuse
                self._messages = [*prompt.messages, {"role": "assistant", "content": said}]
        print_at_once("")
        if self._verbose:
            _note(self._speed(len(prompt.ids), started, first or time.perf_counter()))

    def _speed(self, prompt: int, started: float, first: float) -> str:
        """How fast the last answer was; `first` is when its first piece came."""
        made = self._session.length - prompt + 1  # the last token is not read
        decoding = time.perf_counter() - first
        speed = f", {(made - 1) / decoding:.1f} tokens/s" if made > 1 else ""
        read = prompt - self._session.reused
        return f"{made} tokens{speed}; {first - started:.2f} s before, to read {read} of the prompt's {prompt} tokens"


def _chat(options: argparse.Namespace) -> None:
    model = load_for_chat(options.model, options.threads)
    generation = generation_of(options, MAX_NEW_TOKENS)
    conversation = Conversation(model, options.system, options.verbose, generation)
    print_what_does_not_encode("replace")
    if sys.stdin.isatty() and sys.stdout.isatty():
        print_at_once(f"{model.info.name} in {model.info.dtype}, context {model.config.n_positions}. /help says more.")
        _talk(conversation)
    else:
        for line in read_lines():
            if not _take(conversation, line):
                break


def _talk(conversation: Conversation) -> None:
    """Until the user leaves."""
    read = _line_reader()
    while True:
        try:
            line = read()
        except (EOFError, KeyboardInterrupt):
            print_at_once("")
            return
        try:
            if not _take(conversation, line):
                return
        except KeyboardInterrupt:
            print_at_once("")
        except KaokenError as error:  # the chat goes on without that turn
            _note(str(error))


def _take(conversation: Conversation, line: str) -> bool:
    """A line that the user wrote; False where it leaves."""
    text = line.strip()
    if text == "/exit":
        return False
    if text == "/reset":
        conversation.reset()
    elif text == "/help":
        print_at_once(_HELP)
    elif text:
        conversation.say(text)
    return True


def _line_reader() -> Callable[[], str]:
    """Reads a line behind a prompt, with the lines before it at the arrow keys where the terminal has such."""
    if os.environ.get("TERM", "dumb") == "dumb":
        return lambda: input("> ")
    try:
        from prompt_toolkit import PromptSession
        from prompt_toolkit.key_binding import KeyBindings
    except ImportError:
        return lambda: input("> ")
    keys = KeyBindings()
    keys.add("c-c")(_interrupt)
    read: Callable[[], str] = PromptSession("> ", key_bindings=keys).prompt
    return read


def _interrupt(event: Any) -> None:
    """Ctrl-C at the prompt: empties the line, and leaves where it is empty."""
    if event.current_buffer.text:
        event.current_buffer.reset()
    else:
        event.app.exit(exception=KeyboardInterrupt)


def _note(text: str) -> None:
    print(f"kaoken: {text}", file=sys.stderr, flush=True)
