"""Chats: templates as transformers renders them, templates that mean harm, answers, and chats longer than a context."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
import warnings
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from kaoken.codegen import chat as baked_chat
from kaoken.codegen.checkpoint import open_checkpoint
from kaoken.codegen.errors import CheckpointError
from tokenizers import Tokenizer

import kaoken
from chat_templates import CHATS, END, POSITIONS, SPECIAL, START, TEMPLATES, said, write_chat_model
from checkpoints import TOKENIZER
from kaoken import ChatWarning, InputError, KaokenError
from kaoken.template import ChatTemplate

if TYPE_CHECKING:
    from conftest import Bake
    from kaoken import BakedCausalLM


@pytest.fixture(scope="module")
def library(bake_checkpoint: Bake, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bake_checkpoint(write_chat_model(tmp_path_factory.mktemp("chat") / "toy"))


@pytest.fixture(scope="module")
def model(library: Path) -> BakedCausalLM:
    loaded: BakedCausalLM = kaoken.load(library)
    return loaded


def render(template: str, messages: Any = (), **variables: Any) -> str:
    return ChatTemplate(template, SPECIAL, "toy").render({"messages": list(messages), **variables})


# What the library carries


def test_the_file_wins_over_the_field(tmp_path: Path) -> None:
    write_chat_model(tmp_path, "of the field")
    assert open_checkpoint(tmp_path).tokenizer_config["chat_template"] == "of the field"
    (tmp_path / "chat_template.jinja").write_text("öf the file", encoding="utf-8")
    opened = open_checkpoint(tmp_path)
    assert opened.tokenizer_config["chat_template"] == "öf the file"
    assert tmp_path / "chat_template.jinja" in opened.files


def test_the_default_of_named_templates() -> None:
    named = [{"name": "tool_use", "template": "a"}, {"name": "default", "template": "b"}]
    assert baked_chat.describe({"chat_template": named, "eos_token": {"content": "</s>"}}) == {
        "template": "b",
        "special_tokens": {"eos_token": "</s>"},
    }
    assert baked_chat.describe({"chat_template": named[:1]}) is None
    assert baked_chat.describe({}) is None


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"chat_template": 5}, "chat_template is 5; expected a text"),
        ({"chat_template": "\ud800"}, "lone surrogate"),
        ({"chat_template": "a" * 300_000}, "300000 bytes; expected at most 262144"),
        ({"chat_template": "a", "eos_token": "b" * 300}, "eos_token is .* of 300 characters"),
    ],
)
def test_an_unsound_template_is_refused_when_it_is_baked(config: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        baked_chat.describe(config)


def test_a_template_that_is_not_utf8(tmp_path: Path) -> None:
    write_chat_model(tmp_path)
    (tmp_path / "chat_template.jinja").write_bytes(b"a\xff")
    with pytest.raises(CheckpointError, match=r"chat_template.jinja is not UTF-8 \(byte 1\)"):
        open_checkpoint(tmp_path)


def test_a_model_without_a_template(bundled: BakedCausalLM) -> None:
    assert bundled.info.chat_template is None
    with pytest.raises(KaokenError, match=r"has no chat template: use generate_text, or add a chat_template\.jinja"):
        bundled.chat(said("Hi"))


# Templates


def test_a_prompt(model: BakedCausalLM) -> None:
    text = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
    assert model.apply_chat_template(said("Hi"), tokenize=False) == text
    ids = model.apply_chat_template(said("Hi"), add_generation_prompt=True)
    assert ids == model.tokenizer.encode(f"{text}<|im_start|>assistant\n").ids
    assert ids[0] == START


@pytest.mark.ci
@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("name", TEMPLATES)
def test_templates_are_rendered_as_transformers_does(name: str, chat: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    messages, variables = CHATS[chat]
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(TOKENIZER), **SPECIAL)
    try:
        expected = tokenizer.apply_chat_template(
            messages, chat_template=TEMPLATES[name], tokenize=False, **{"add_generation_prompt": False, **variables}
        )
    except Exception as error:  # what the template raises, and what Jinja does
        expected = error
    info = type("Info", (), {"chat_template": TEMPLATES[name], "special_tokens": SPECIAL, "name": name})
    format = kaoken.chat.ChatFormat(info, Tokenizer.from_file(str(TOKENIZER)))  # type: ignore[arg-type]
    if isinstance(expected, str):
        assert format.render(messages, variables) == expected
    else:
        with pytest.raises(KaokenError, match=re.escape(str(expected))):
            format.render(messages, variables)


def test_what_transformers_adds_to_jinja() -> None:
    assert render("{{ messages[0] | tojson }}", [{"a": "<é'&>"}]) == '{"a": "<é\'&>"}'
    assert render("{% for m in [1, 2, 3] %}{% if m == 2 %}{% break %}{% endif %}{{ m }}{% endfor %}") == "1"
    assert render("{% generation %}{{ bos_token }}{% endgeneration %}") == "<|endoftext|>"
    assert render("{{ strftime_now('%Y') | length }}") == "4"
    assert render("{% set d = dict(a=1) %}{{ d.a }}{% set n = namespace(a=1) %}{% set n.a = 2 %}{{ n.a }}") == "12"
    assert render("  {% if true %}\nx\n  {% endif %}\n") == "x\n"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "more than a second"),
        ("{{ 'a' * 10**10 }}", "more than 192 MiB"),
        (
            "{% set a = namespace(b='a' * 9999999) %}{% for i in range(99) %}{% set a.b = a.b + a.b %}{% endfor %}",
            "MiB",
        ),
        ("{{ '%999999999d' % 1 }}", "more than 192 MiB"),
        ("{{ messages | string | center(99999999) }}", "makes a text of 99999999 characters; expected at most 1048576"),
        ("{{ range(10**9) }}", "OverflowError"),
        ("{{ ''.__class__.__mro__ }}", "SecurityError: access to attribute '__class__'"),
        ("{{ cycler.__init__.__globals__.os.system('true') }}", "SecurityError"),
        ("{{ (messages | attr('append'))(1) }}", "SecurityError"),
        ("{% set n = namespace(__class__=1) %}", "SecurityError"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
        ("{{" + "(" * 9999 + "1" + ")" * 9999 + "}}", "RecursionError"),
        ("{% for a in b %}" * 30 + "{% endfor %}" * 30, "SyntaxError"),
        ("a\n{% if %}", r"TemplateSyntaxError: .* \(line 2\)"),
        ("{% include '/etc/passwd' %}", "no loader"),
        ("{{ messages.a.b }}", "UndefinedError"),
        ("{{ nothing() }}", "'nothing' is undefined"),
    ],
)
def test_a_template_that_means_harm_is_an_error(template: str, message: str) -> None:
    started = time.process_time()
    with pytest.raises(KaokenError, match=message) as refused:
        render(template)
    assert "correct the checkpoint's chat template" in str(refused.value)
    assert len(str(refused.value)) < 600
    assert time.process_time() - started < 1  # of this process: the other one has a second of its own


def test_a_format_shows_nothing_that_is_private() -> None:
    assert render("{{ '{0.__class__} {0}'.format(1) }}") == " 1"


@pytest.mark.parametrize(
    ("installed", "message"),
    [(None, r"need the package jinja2: `pip install \"kaoken\[chat\]\"`"), ("3.1.2", r"need jinja2 3\.1\.6 or newer")],
)
def test_a_jinja_that_is_not_there(installed: str | None, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        if installed is None:
            raise PackageNotFoundError(name)
        return installed

    monkeypatch.setattr("kaoken.template.version", version)
    with pytest.raises(KaokenError, match=message):
        ChatTemplate("a", {}, "toy")


def test_what_a_template_refuses_is_the_users_mistake() -> None:
    with pytest.raises(InputError, match=r"refuses these messages: no  roles here$"):
        render("{{ raise_exception('no \x1b\nroles here'.replace('\n', '')) }}")


def test_a_template_goes_on_after_another_failed() -> None:
    template = ChatTemplate("{% if hang %}{% for i in range(99999) %}{{ 'a' * i }}{% endfor %}{% endif %}.", {}, "toy")
    for _ in range(2):
        assert template.render({"hang": False}) == "."
        with pytest.raises(KaokenError):
            template.render({"hang": True})


def test_no_file_is_open_to_templates(tmp_path: Path) -> None:
    """Even where a template got out of the sandbox."""
    template = ChatTemplate("{{ 1 }}", {}, "toy")
    template.render({})
    assert template._process is not None
    limits = Path(f"/proc/{template._process.pid}/limits").read_text()
    assert [line.split()[3:5] for line in limits.splitlines() if line.startswith("Max open files")] == [["0", "0"]]


def test_threads_and_forks_have_answers_of_their_own() -> None:
    template = ChatTemplate("{{ messages }}", {}, "toy")
    found: dict[int, str] = {}

    def ask(number: int) -> None:
        found[number] = template.render({"messages": number})

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {number: str(number) for number in range(8)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of a fork beside threads
        child = os.fork()
    if child == 0:
        os._exit(0 if template.render({"messages": 9}) == "9" else 1)
    assert template.render({"messages": 10}) == "10"
    assert os.waitpid(child, 0)[1] == 0
    assert template.render({"messages": 11}) == "11"


def test_its_process_ends_with_it() -> None:
    template = ChatTemplate("a", {}, "toy")
    template.render({})
    assert template._process is not None
    number = template._process.pid
    del template
    with pytest.raises(ProcessLookupError):
        os.kill(number, 0)


def test_a_process_that_was_killed_is_started_again() -> None:
    template = ChatTemplate("a", {}, "toy")
    template.render({})
    assert template._process is not None
    template._process.send_signal(signal.SIGKILL)
    template._process.wait()
    with pytest.raises(KaokenError, match="its process ended with status -9"):
        template.render({})
    assert template.render({}) == "a"


@pytest.mark.parametrize(
    "messages",
    [[], "Hi", {"role": "user", "content": "Hi"}, [[*said("Hi")]], [{"content": "Hi"}], [{"role": 5}], None],
)
def test_unsound_messages(messages: Any, model: BakedCausalLM) -> None:
    with pytest.raises(InputError, match=r"messages? .*must be a"):
        model.apply_chat_template(messages)


def test_messages_that_json_lacks(model: BakedCausalLM) -> None:
    with pytest.raises(InputError, match="what JSON can hold"):
        model.chat([{"role": "user", "content": {1, 2}}])
    with pytest.raises(InputError, match="lone surrogate"):
        model.chat(said("\ud800"))


# Answers


def answer_of(model: BakedCausalLM, messages: list[dict[str, Any]], **options: Any) -> tuple[list[int], str]:
    """The tokens of an answer by generate, and its text."""
    ids = model.apply_chat_template(messages, add_generation_prompt=True)
    tokens = model.generate(ids, eos_token_id=(256, END), **options)[0, len(ids) :].tolist()
    return tokens, model.tokenizer.decode(tokens)


def test_an_answer_ends_where_the_template_ends_a_turn(model: BakedCausalLM) -> None:
    assert model.chat_format.end_token_ids == (END,)
    assert model.config.eos_token_ids == (256,)
    ended = 0
    for seed in range(12):
        options = {"do_sample": True, "temperature": 5.0, "top_k": 0, "seed": seed, "max_new_tokens": 120}
        tokens, text = answer_of(model, said("Hi"), **options)
        assert model.chat(said("Hi"), **options) == {"role": "assistant", "content": text}
        ended += tokens[-1] == END
    assert ended


@pytest.mark.parametrize(
    ("template", "ends"),
    [
        ("{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}", (END,)),
        ("{% for m in messages %}[{{ m.content }}] \n {{ bos_token }}{% endfor %}", ()),
        ("{% for m in messages %}{{ m.content }} \n{{ bos_token }}{% endfor %}", (256,)),
        ("{% for m in messages %}{{ m.content }}\n{% endfor %}", ()),
        ("{{ messages[0].content }}", ()),
        ("{{ raise_exception('no') }}", ()),
    ],
)
def test_the_end_of_a_turn(template: str, ends: tuple[int, ...], model: BakedCausalLM) -> None:
    info = type("Info", (), {"chat_template": template, "special_tokens": SPECIAL, "name": "toy"})
    assert kaoken.chat.ChatFormat(info, model.tokenizer).end_token_ids == ends  # type: ignore[arg-type]


def test_the_options_are_those_of_generate(model: BakedCausalLM) -> None:
    assert model.chat(said("Hi"), max_new_tokens=7)["content"] == answer_of(model, said("Hi"), max_new_tokens=7)[1]
    assert model._chat_options({}).max_new_tokens == 256
    assert model._chat_options({"eos_token_id": None}).eos_token_ids == ()
    with pytest.raises(InputError, match="chat has no option 'max_tokens': did you mean max_new_tokens"):
        model.chat(said("Hi"), max_tokens=5)  # type: ignore[call-arg]
    with pytest.raises(InputError, match="the last message is the assistant's"):
        model.chat(said("Hi", "Ho"))


def test_a_stream_is_the_answer_in_pieces(model: BakedCausalLM) -> None:
    pieces = list(model.stream_chat(said("Hi"), max_new_tokens=30))
    assert len(pieces) > 1
    assert "".join(pieces) == model.chat(said("Hi"), max_new_tokens=30)["content"]


# Sessions


def test_a_session_computes_what_is_new_and_gives_the_same_bits(model: BakedCausalLM) -> None:
    session = model.session()
    messages = said("Hi", system="Crow.")
    for question in ("And?", "So?", "Now?"):
        before = session.length
        answer = model.chat(messages, session, max_new_tokens=12)
        assert answer == model.chat(messages, max_new_tokens=12)
        if before:
            assert session.reused > before - 16  # but for bytes that are no text and came back as others
        messages = [*messages, answer, {"role": "user", "content": question}]


def test_what_follows_a_chat_has_the_bits_of_a_fresh_prefill(model: BakedCausalLM) -> None:
    session = model.session()
    first = model.chat(said("One, two"), session, max_new_tokens=9)
    second = [*said("One, two"), first, {"role": "user", "content": "three"}]
    model.chat(second, session, max_new_tokens=1)
    assert session.reused > 0
    ids = model.apply_chat_template(second, add_generation_prompt=True)
    assert session.length == len(ids)
    assert np.array_equal(session.append([5]), model.session().append([*ids, 5]))


def test_another_chat_keeps_what_both_begin_with(model: BakedCausalLM) -> None:
    session = model.session()
    model.chat(said("abc"), session, max_new_tokens=5)
    expected = model.chat(said("abd"), max_new_tokens=5)
    assert model.chat(said("abd"), session, max_new_tokens=5) == expected
    prompt = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nab"
    assert session.reused == len(model.tokenizer.encode(prompt).ids)
    assert model.chat(said("abd"), session, max_new_tokens=5) == expected
    assert session.reused == len(model.apply_chat_template(said("abd"), add_generation_prompt=True)) - 1


def test_a_session_that_was_changed_by_hand_is_read_anew(model: BakedCausalLM) -> None:
    expected = model.chat(said("Hi"), max_new_tokens=5)
    for change in (lambda each: each.append([7]), lambda each: each.rewind(3), lambda each: each.rewind(3, 0)):
        session = model.session()
        model.chat(said("Hi"), session, max_new_tokens=5)
        change(session)
        assert model.chat(said("Hi"), session, max_new_tokens=5) == expected
        assert session.reused == 0


def test_an_answer_that_was_stopped_leaves_a_sound_session(model: BakedCausalLM) -> None:
    session = model.session()
    pieces = model.stream_chat(said("Hi"), session, max_new_tokens=50)
    next(pieces)
    pieces.close()
    assert model.chat(said("Hi"), session, max_new_tokens=9) == model.chat(said("Hi"), max_new_tokens=9)
    assert session.reused > 0


def test_sessions_that_a_chat_cannot_take(model: BakedCausalLM, bundled: BakedCausalLM) -> None:
    for session in (model.session(batch=2), bundled.session()):
        with pytest.raises(InputError, match="a session of this model with batch = 1"):
            model.chat(said("Hi"), session)


# Chats that outgrow the context


def test_the_oldest_turns_go_and_the_system_message_stays(model: BakedCausalLM) -> None:
    messages = said(*(f"{at} {'x' * 8}" for at in range(15)), system="Crow.")
    with pytest.warns(ChatWarning, match="its [0-9]+ oldest messages were left out") as warned:
        answer = model.chat(messages, max_new_tokens=16)
    with pytest.warns(ChatWarning) as warned_again:
        pieces = model.stream_chat(messages, max_new_tokens=16)
    assert {warning.filename for warning in (*warned, *warned_again)} == {__file__}
    assert "".join(pieces) == answer["content"]
    kept = model.chat_format.prompt(messages, POSITIONS, 16)
    assert kept.messages == [messages[0], *messages[1 + kept.dropped :]]
    assert kept.dropped % 2 == 0
    assert len(kept.ids) <= (POSITIONS - 16) * 3 // 4
    fewer = [messages[0], *messages[kept.dropped - 1 :]]
    assert len(model.apply_chat_template(fewer, add_generation_prompt=True)) > (POSITIONS - 16) * 3 // 4
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert model.chat(kept.messages, max_new_tokens=16) == answer


def test_a_chat_that_fits_stays_whole(model: BakedCausalLM) -> None:
    messages = said("a", "b", "c")
    length = len(model.apply_chat_template(messages, add_generation_prompt=True))
    assert model.chat_format.prompt(messages, length + 20, 20).dropped == 0
    assert model.chat_format.prompt(messages, length + 19, 20).dropped == 2
    assert model.chat_format.prompt(messages, 2 * length, 9999).dropped == 0  # half of the context is room enough


def test_a_last_turn_that_is_too_long(model: BakedCausalLM) -> None:
    with pytest.raises(InputError, match=r"the last turn of the chat has 5.. tokens .* n_positions = 256: shorten it"):
        model.chat(said("a", "b", "x" * 500))
    close = "x" * (POSITIONS - 80)
    assert model.chat_format.prompt(said("a", "b", close), POSITIONS, 128).dropped == 2
    assert model.chat(said(close))["content"]
