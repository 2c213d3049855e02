"""`kaoken chat` in pipes and in a terminal, and `kaoken generate --chat`."""

from __future__ import annotations

import io
import os
import pty
import re
import select
import signal
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

import kaoken
from chat_templates import said, write_chat_model
from kaoken.chat_command import Conversation
from kaoken.cli import main
from test_cli import Capture, fail, kaoken_command, succeed

if TYPE_CHECKING:
    from conftest import Bake
    from kaoken import BakedCausalLM


@pytest.fixture(scope="module")
def library(bake_checkpoint: Bake, tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(bake_checkpoint(write_chat_model(tmp_path_factory.mktemp("chat") / "toy")))


@pytest.fixture(scope="module")
def model(library: str) -> BakedCausalLM:
    loaded: BakedCausalLM = kaoken.load(library)
    return loaded


def answers(model: BakedCausalLM, *questions: str, system: str | None = None) -> list[str]:
    """What a model says in turns, by the Python API."""
    messages: list[dict[str, Any]] = said(system=system)
    found = []
    for question in questions:
        messages.append({"role": "user", "content": question})
        messages.append(model.chat(messages, max_new_tokens=8))
        found.append(messages[-1]["content"])
    return found


def printed(*texts: str) -> bytes:
    return "".join(f"{text}\n" for text in texts).encode()


# generate --chat


def test_generate_prints_an_answer_alone(model: BakedCausalLM, library: str, capsys: Capture) -> None:
    arguments = ("generate", "--model", library, "--max-new-tokens", "8", "--chat", "Hi")
    assert succeed(capsys, *arguments) == answers(model, "Hi")[0] + "\n"
    assert succeed(capsys, *arguments, "--system", "Crow.") == answers(model, "Hi", system="Crow.")[0] + "\n"


def test_what_generate_refuses(library: str, capsys: Capture) -> None:
    assert "--system is for chats: add --chat" in fail(capsys, "generate", "Hi", "--model", library, "--system", "a")
    assert "has no chat template" in fail(capsys, "generate", "--chat", "Hi")
    assert "has no chat template" in fail(capsys, "chat")


# Pipes


def test_a_line_is_a_turn(model: BakedCausalLM, library: str) -> None:
    command = ("chat", "--model", library, "--max-new-tokens", "8")
    run = kaoken_command(*command, input="Hi\n\nAnd é?\r\n/reset\nHi".encode())
    first, second = answers(model, "Hi", "And é?")
    assert (run.returncode, run.stderr, run.stdout) == (0, b"", printed(first, second, first))
    run = kaoken_command(*command, "--system", "Crow.", input=b"Hi\n/exit\nHi\n")
    assert (run.returncode, run.stderr, run.stdout) == (0, b"", printed(*answers(model, "Hi", system="Crow.")))


def test_help_and_how_fast_it_was(library: str) -> None:
    run = kaoken_command("chat", "--model", library, "--max-new-tokens", "8", "--verbose", input=b"/help\nHi\n\nYou\n")
    assert run.stdout.startswith(b"/reset  forget what was said")
    speeds = re.findall(
        rb"kaoken: [1-8] tokens, [0-9.]+ tokens/s; .* to read ([0-9]+) of the prompt's ([0-9]+)", run.stderr
    )
    (read, whole), (more, in_all) = speeds
    assert read == whole
    assert int(more) < int(in_all) / 2


def test_a_long_chat_goes_on_and_says_what_it_left_out(library: str) -> None:
    command = ("chat", "--model", library, "--max-new-tokens", "8", "--system", "Crow.")
    run = kaoken_command(*command, input=b"Tell me something new, please\n" * 12)
    assert run.returncode == 0
    notes = run.stderr.decode().splitlines()
    assert 1 <= len(notes) <= 5  # after one it goes on for some turns
    assert all(
        re.fullmatch("kaoken: the chat is longer than .* oldest messages? were left out .*", note) for note in notes
    )


def test_what_a_pipe_cannot_say(library: str) -> None:
    run = kaoken_command("chat", "--model", library, input=b"ab\xff\n")
    assert (run.returncode, run.stdout) == (1, b"")
    assert b"line 1 of standard input is not UTF-8 (byte 2 of it)" in run.stderr
    run = kaoken_command("chat", "--model", library, input=b"x" * 300)
    assert run.returncode == 1
    assert b"the last turn of the chat has" in run.stderr


def test_sampling(library: str, model: BakedCausalLM, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"Hi\n")))
    text = succeed(capsys, "chat", "--model", library, "--max-new-tokens", "8", "--seed", "3", "--temperature", "2")
    expected = model.chat(said("Hi"), max_new_tokens=8, do_sample=True, seed=3, temperature=2.0)
    assert text == expected["content"] + "\n"


# Ctrl-C


def test_a_stopped_answer_is_remembered(model: BakedCausalLM, capsys: Capture) -> None:
    conversation = Conversation(model, None, False, {"max_new_tokens": 30})
    shown: list[str] = []

    def stop(text: object, end: str = "\n") -> None:
        shown.append(str(text))
        if len(shown) == 3:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kaoken.chat_command.print_at_once", stop)
        with pytest.raises(KeyboardInterrupt):
            conversation.say("Hi")
    assert conversation._messages == said("Hi", "".join(shown))
    conversation.say("Go on")
    messages = said("Hi", "".join(shown), "Go on")
    assert capsys.readouterr().out == model.chat(messages, max_new_tokens=30)["content"] + "\n"


def test_a_question_that_was_stopped_at_once_is_forgotten(model: BakedCausalLM) -> None:
    conversation = Conversation(model, "Crow.", False, {"max_new_tokens": 30})

    def interrupted(*_: Any) -> Iterator[str]:
        raise KeyboardInterrupt
        yield ""

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "_answer", interrupted)
        with pytest.raises(KeyboardInterrupt):
            conversation.say("Hi")
    assert conversation._messages == said(system="Crow.")


def test_ctrl_c_ends_a_chat_of_pipes(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"Hi\n")))
    monkeypatch.setattr(Conversation, "say", interrupted)
    assert main(["chat", "--model", library]) == 128 + signal.SIGINT


# In a terminal


class Terminal:
    """`kaoken chat` behind a pseudo-terminal, with tokens that take 20 ms each."""

    def __init__(self, *arguments: str, **environment: str) -> None:
        code = (
            "import time, kaoken.causal as causal\n"
            "made = causal.new_tokens\n"
            "causal.new_tokens = lambda generation: (time.sleep(0.02) or step for step in made(generation))\n"
            "import sys; from kaoken.cli import main; sys.exit(main(None))"
        )
        self.process, self._file = pty.fork()
        if self.process == 0:
            os.execve(sys.executable, [sys.executable, "-c", code, "chat", *arguments], {**os.environ, **environment})
        self.shown, self._seen = b"", 0

    def wait_for(self, text: bytes) -> None:
        """Until it shows a text behind all that was waited for."""
        end = time.monotonic() + 60
        while text not in self.shown[self._seen :]:
            assert time.monotonic() < end, self.shown.decode(errors="replace")
            if select.select([self._file], [], [], 0.1)[0]:
                part = os.read(self._file, 1 << 16)
                if b"\x1b[6n" in part:  # where the cursor is
                    os.write(self._file, b"\x1b[24;1R")
                self.shown += part
        self._seen = self.shown.index(text, self._seen) + len(text)

    def write(self, text: bytes) -> None:
        os.write(self._file, text)

    def exit_code(self) -> int:
        """Of the process, which reads all that it has left to show first."""
        try:
            while os.read(self._file, 1 << 16):
                pass
        except OSError:  # how a pseudo-terminal ends
            pass
        os.close(self._file)
        return os.waitstatus_to_exitcode(os.waitpid(self.process, 0)[1])


LINE_IS_READ = b"\x1b[?2004h"  # prompt_toolkit turns bracketed paste on


def test_a_terminal(library: str) -> None:
    pytest.importorskip("prompt_toolkit")
    terminal = Terminal("--model", library, "--verbose", TERM="xterm")
    terminal.wait_for(LINE_IS_READ)
    terminal.write(b"Hi\r")
    terminal.wait_for(b"\x1b[?2004l")
    time.sleep(0.3)
    terminal.write(b"\x03")  # which stops the answer alone
    terminal.wait_for(LINE_IS_READ)
    assert b"tokens/s" not in terminal.shown
    terminal.write(b"/help\r")
    terminal.wait_for(b"forget what was said")
    terminal.wait_for(LINE_IS_READ)
    terminal.write(b"abc\x03")  # which empties the line
    time.sleep(0.3)
    terminal.write(b"\x1b[A")  # the arrow brings the line before back
    terminal.wait_for(b"/help")
    terminal.write(b"\r")
    terminal.wait_for(b"forget what was said")
    terminal.wait_for(LINE_IS_READ)
    terminal.write(b"\x03")
    assert terminal.exit_code() == 0


@pytest.mark.parametrize("leave", [b"\x04", b"/exit\n", b"\x03"])
def test_a_terminal_that_only_prints_lines(library: str, leave: bytes) -> None:
    terminal = Terminal("--model", library, "--max-new-tokens", "400", TERM="dumb")
    terminal.wait_for(b"> ")
    terminal.write(b"Hi\n")
    time.sleep(0.3)
    terminal.write(b"\x03")
    terminal.wait_for(b"\n> ")
    assert b"\x1b" not in terminal.shown
    terminal.write(leave)
    assert terminal.exit_code() == 0
