"""The `kaoken` command: its output, its exit codes, and one clear line for a user's mistake."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import kaoken
from kaoken import bench
from kaoken.cli import main
from kaoken.library import default_library
from oracles import bert, t5

if TYPE_CHECKING:
    from conftest import Bake, Checkpoints, LibraryOf
    from kaoken import BakedGPT2

Capture = pytest.CaptureFixture[str]


def kaoken_command(*arguments: str, **options: Any) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "kaoken", *arguments]
    return subprocess.run(command, capture_output=True, timeout=300, check=False, **options)


def succeed(capsys: Capture, *arguments: str) -> str:
    """What a command prints; it must exit with 0 and leave stderr empty."""
    assert main(arguments) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out


def fail(capsys: Capture, *arguments: str) -> str:
    """The one line that a command leaves on stderr; it must exit with 1 and print nothing."""
    assert main(arguments) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("kaoken: error: ")
    assert captured.err.count("\n") == 1
    return captured.err


@pytest.fixture(scope="module")
def encoder(bake_checkpoint: Bake, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The path of a tiny BERT's library."""
    return str(bake_checkpoint(bert.write(tmp_path_factory.mktemp("cli") / "bert", bert.config_of("one_type"))))


@pytest.fixture(scope="module")
def seq2seq(bake_checkpoint: Bake, bundled_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The path of a tiny T5's library, whose tokens are bytes."""
    directory = tmp_path_factory.mktemp("cli") / "t5"
    t5.write(directory, t5.config_of("deep_decoder") | {"vocab_size": 257})
    shutil.copy(bundled_directory / "tokenizer.json", directory)
    return str(bake_checkpoint(directory))


# generate


def test_generate_prints_the_prompt_and_its_completion(bundled: BakedGPT2, capsys: Capture) -> None:
    text = succeed(capsys, "generate", "ROMEO:", "--max-new-tokens", "30")
    assert text == "ROMEO:" + bundled.generate_text("ROMEO:", max_new_tokens=30) + "\n"


def test_generate_from_a_process_of_its_own(bundled: BakedGPT2) -> None:
    run = kaoken_command("generate", "ROMEO:", "--max-new-tokens", "30")
    assert (run.returncode, run.stderr) == (0, b"")
    assert run.stdout.decode() == "ROMEO:" + bundled.generate_text("ROMEO:", max_new_tokens=30) + "\n"


def test_the_command_is_installed() -> None:
    command = Path(sysconfig.get_path("scripts")) / "kaoken"
    run = subprocess.run([command, "--version"], capture_output=True, text=True, timeout=60, check=True)
    assert run.stdout == f"kaoken {kaoken.__version__}\n"


def test_where_the_cmake_package_lies(capsys: Capture) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--cmake-dir"])
    assert ended.value.code == 0
    assert (Path(capsys.readouterr().out.rstrip("\n")) / "KaokenConfig.cmake").is_file()


def test_a_prompt_from_standard_input(bundled: BakedGPT2, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("É:\n".encode())))
    text = succeed(capsys, "generate", "-", "--max-new-tokens", "5")
    assert text == "É:\n" + bundled.generate_text("É:\n", max_new_tokens=5) + "\n"


def test_standard_input_must_be_utf8(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"ab\xff")))
    assert "not UTF-8 (byte 2)" in fail(capsys, "generate", "-")


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        (["--do-sample", "--seed", "7"], {"seed": 7}),
        (["--seed", "7"], {"seed": 7}),
        (["--seed", "7", "--temperature", "0.5"], {"seed": 7, "temperature": 0.5}),
        (["--seed", "7", "--top-k", "3", "--top-p", "0.9"], {"seed": 7, "top_k": 3, "top_p": 0.9}),
        (["--top-k", "1"], {"top_k": 1}),
    ],
)
def test_sampling_options_turn_sampling_on(
    arguments: list[str], options: dict[str, Any], bundled: BakedGPT2, capsys: Capture
) -> None:
    text = succeed(capsys, "generate", "ROMEO:", "--max-new-tokens", "40", *arguments)
    assert text == "ROMEO:" + bundled.generate_text("ROMEO:", max_new_tokens=40, do_sample=True, **options) + "\n"


def test_output_that_cannot_show_a_character_goes_on() -> None:
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    run = kaoken_command("generate", "é", "--max-new-tokens", "5", env=environment)
    assert (run.returncode, run.stdout[:1]) == (0, b"?")


def test_threads_do_not_change_the_text(capsys: Capture) -> None:
    texts = {succeed(capsys, "generate", "ROMEO:", "--threads", str(count)) for count in (1, 2)}
    assert len(texts) == 1


def test_a_translation_is_printed_without_its_source(seq2seq: str, capsys: Capture) -> None:
    text = succeed(capsys, "generate", "ROMEO:", "--max-new-tokens", "20", "--model", seq2seq)
    assert text == kaoken.load(seq2seq).generate_text("ROMEO:", max_new_tokens=20) + "\n"
    assert not text.startswith("ROMEO:")


def test_an_encoder_generates_nothing(encoder: str, capsys: Capture) -> None:
    message = fail(capsys, "generate", "x", "--model", encoder)
    assert "bert is for feature-extraction and makes no text: call encode(texts), hidden_states(ids)" in message


# info


def test_info_for_people(bundled: BakedGPT2, capsys: Capture) -> None:
    text = succeed(capsys, "info")
    facts = (
        "gptlite_shakespeare",
        bundled.info.weights_sha256,
        bundled.info.isa,
        bundled.info.isa_reason,
        "6 layers",
        "context 256",
    )
    assert all(fact in text for fact in facts)


def test_info_for_programs(bundled: BakedGPT2, capsys: Capture) -> None:
    facts = json.loads(succeed(capsys, "info", "--json"))
    assert facts["weights_sha256"] == bundled.info.weights_sha256
    assert facts["config"]["blocks"][5] == {"n_head": 8, "n_kv_head": 8, "head_dim": 32, "n_inner": 1024}
    assert facts["statistics"] == bundled.info.statistics


def test_info_of_differing_blocks_and_no_statistics(library_of: LibraryOf, tmp_path: Path, capsys: Capture) -> None:
    library = tmp_path / "irregular.so"
    library.write_bytes(library_of("irregular").read_bytes())
    text = succeed(capsys, "info", "--model", str(library))
    assert "1 heads of 7, n_inner 5; 3 heads of 8, n_inner 160" in text
    assert "no statistics" in text


def test_info_of_an_encoder(encoder: str, capsys: Capture) -> None:
    text = succeed(capsys, "info", "--model", encoder)
    facts = ("kind      encoder, bert, for feature-extraction\n", "shape     3 layers", "context 150, 1 token types\n")
    assert [fact for fact in facts if fact not in text] == []
    assert "cache" not in text


def test_info_of_an_encoder_decoder(seq2seq: str, capsys: Capture) -> None:
    text = succeed(capsys, "info", "--model", seq2seq)
    facts = (
        "kind      encoder-decoder, t5, for text2text-generation\n",
        "shape     encoder of 1 layers, decoder of 3 layers",
        "source 150, context 150\n",
        "KV cache in float32",
    )
    assert [fact for fact in facts if fact not in text] == []


# bench; test_benchmarks.py has decoders


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "READ_BYTES", 1 << 20)
    monkeypatch.setattr(bench, "ROUNDS", 1)


@pytest.mark.usefixtures("quick")
def test_bench_of_an_encoder(encoder: str, capsys: Capture) -> None:
    found = json.loads(succeed(capsys, "bench", "--model", encoder, "--threads", "1", "--json"))
    assert (found["threads"], found["text"], found["batch"]) == (1, 128, 16)
    assert min(found["text_tokens_per_second"], found["batch_tokens_per_second"]) > 0
    assert not any("decode" in name for name in found)
    text = succeed(capsys, "bench", "--model", encoder)
    assert "tokens/s, one text of 128\n" in text
    assert "tokens/s, 16 texts of 128\n" in text


@pytest.mark.usefixtures("quick")
def test_bench_of_an_encoder_decoder(seq2seq: str, capsys: Capture) -> None:
    found = json.loads(succeed(capsys, "bench", "--model", seq2seq, "--json"))
    assert (found["prompt"], found["steps"]) == (128, 64)
    assert min(found["prefill_tokens_per_second"], found["decode_tokens_per_second"]) > 0
    text = succeed(capsys, "bench", "--model", seq2seq)
    assert "tokens/s, 64 behind a source of 128\nencode " in text


@pytest.mark.usefixtures("quick")
def test_a_token_of_any_kind_is_timed(encoder: str, seq2seq: str) -> None:
    """As the bakes with the kernels that are fastest do."""
    assert min(bench.decode_seconds([Path(encoder), Path(seq2seq)])) > 0


# verify


def test_verify(tmp_path: Path, capsys: Capture) -> None:
    assert "default.so is whole" in succeed(capsys, "verify")
    library = tmp_path / "model.so"
    library.write_bytes(default_library().read_bytes())
    assert succeed(capsys, "verify", str(library)).startswith(f"{library} is whole")
    with library.open("r+b") as file:
        file.seek(5000)
        file.write(b"damage")
    assert "was damaged or changed" in fail(capsys, "verify", str(library))


# bake; test_baking.py has the rest


def test_bake_prints_the_path(tiny_model: BakedGPT2, checkpoints: Checkpoints, capsys: Capture) -> None:
    path = Path(succeed(capsys, "bake", str(checkpoints("plain"))).rstrip("\n"))
    assert kaoken.load(path).config == tiny_model.config


@pytest.mark.parametrize(("command", "printed"), [("bake", b"\xff.so\n"), ("verify", b"\xff.so is whole: ")])
def test_a_path_that_is_no_utf8_is_printed(command: str, printed: bytes) -> None:
    code = (
        "import sys\n"
        "from kaoken import baking, cli, library\n"
        "baking.bake = library.verify = lambda path, **_: path\n"
        "cli.main()"
    )
    arguments = [sys.executable, "-c", code, command, b"\xff.so"]
    environment = os.environ | {"PYTHONIOENCODING": "utf-8:strict"}
    run = subprocess.run(arguments, env=environment, capture_output=True, timeout=60, check=True)
    assert run.stdout.startswith(printed)


@pytest.mark.parametrize(("handler", "status"), [("SIG_DFL", 128 + signal.SIGHUP), ("SIG_IGN", 0)])
def test_a_signal_that_nohup_ignores_stays_ignored(handler: str, status: int) -> None:
    code = (
        "import signal, sys\n"
        "from kaoken import baking, cli\n"
        "baking.bake = lambda *_, **__: signal.raise_signal(signal.SIGHUP)\n"
        f"signal.signal(signal.SIGHUP, signal.{handler})\n"
        "sys.exit(cli.main())"
    )
    run = subprocess.run([sys.executable, "-c", code, "bake", "x"], capture_output=True, timeout=60, check=False)
    assert (run.returncode, run.stderr) == (status, b"")


def test_bake_passes_every_option(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    passed: dict[str, Any] = {}

    def bake(checkpoint: str, **options: Any) -> Path:
        passed.update(options, checkpoint=checkpoint)
        return Path("there.so")

    monkeypatch.setattr("kaoken.baking.bake", bake)
    arguments = (
        "bake gpt2 -o x.so --dtype int4 --tensor-dtype h.*.mlp.*=int8 --tensor-dtype lm_head=bfloat16 "
        "--cache-dtype float32 --context 70 --kernels exploded --isa portable --revision main --adapter lora "
        "--recipe r --jobs 3 --compile-memory 300M"
    )
    assert succeed(capsys, *arguments.split()) == "there.so\n"
    assert passed == {
        "checkpoint": "gpt2",
        "out": "x.so",
        "adapter": "lora",
        "dtype": "int4",
        "recipe": "r",
        "tensor_dtypes": "h.*.mlp.*=int8,lm_head=bfloat16",
        "cache_dtype": "float32",
        "context": 70,
        "kernels": "exploded",
        "isa": "portable",
        "revision": "main",
        "jobs": 3,
        "compile_memory": "300M",
    }


# graph; test_graph.py has the rest


def test_graph_prints_dot_or_the_path(checkpoints: Checkpoints, tmp_path: Path, capsys: Capture) -> None:
    text = succeed(capsys, "graph", str(checkpoints("plain")), "--before", "--all-blocks")
    assert text.startswith('digraph "plain: Kaoken\'s graph before its rewrites"')
    out = tmp_path / "graph.txt"
    arguments = ("graph", str(checkpoints("plain")), "-o", str(out), "--format", "dot", "--before", "--all-blocks")
    assert (succeed(capsys, *arguments), out.read_text()) == (f"{out}\n", text)


# Mistakes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("generate x --model ./no.so", "no.so does not exist"),
        ("generate x --model .", "is a directory"),
        ("generate x --max-new-tokens 0", "max_new_tokens must be an integer of at least 1, not 0"),
        ("generate x --temperature 0", "temperature must be a number greater than 0, not 0.0: for the likeliest"),
        ("generate x --model gpt2", "if that is a hub id, bake it first"),
        ("bake ./no-checkpoint --dtype fp16", ": write bfloat16, which is as wide (there is no float16)"),
        ("bake ./no-checkpoint --tensor-dtype lm_head=bf16", ": write bfloat16"),
        ("generate x --threads 0", "threads"),
        (f"generate {'x' * 257}", "257 tokens"),
        ("info --model ./no.so", "no.so does not exist"),
        ("verify nofile", "nofile does not exist, so no model can be loaded from it: make one with `kaoken bake"),
        ("bake ./no-checkpoint -o x.so", "no-checkpoint is not a directory"),
        ("bake ./no-checkpoint -o ./no/x.so", "the directory no does not exist"),
        ("bake ./no-checkpoint --dtype int5", "dtype='int5' is unknown; expected one of float32, bfloat16"),
        ("bake ./no-checkpoint --tensor-dtype lm_head", "write PATTERN=TYPE"),
        ("bake ./no-checkpoint --isa avx3", "avx3"),
        ("bake ./no-checkpoint --jobs 0", "jobs"),
        ("bake ./no-checkpoint --compile-memory much", "much"),
        ("graph ./no-checkpoint", "no-checkpoint is not a directory"),
        ("graph ./no-checkpoint -o graph.png", "pictures are dot or svg"),
        ("graph ./no-checkpoint --onnx", "--onnx needs a file that the exports can lie beside"),
    ],
)
def test_a_mistake_is_one_line(arguments: str, message: str, capsys: Capture) -> None:
    assert message in fail(capsys, *arguments.split())


def test_a_mistake_in_a_process_of_its_own() -> None:
    run = kaoken_command("generate", "x", "--model", "no.so")
    assert (run.returncode, run.stdout) == (1, b"")
    assert run.stderr.startswith(b"kaoken: error: ")
    assert b"Traceback" not in run.stderr


@pytest.mark.parametrize("arguments", ["", "generate", "generat x", "generate x --top-k many", "info --jso", "bake"])
def test_wrong_usage_exits_with_2(arguments: str, capsys: Capture) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments.split())
    assert caught.value.code == 2
    assert "usage: kaoken" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--bogus", "kaoken: error: unrecognized arguments: --bogus"),
        ("--bogus=3", "kaoken: error: unrecognized arguments: --bogus=3"),
        ("--bogus generate x", "kaoken: error: unrecognized arguments: --bogus"),
        ("generate --bogus", "kaoken generate: error: unrecognized arguments: --bogus"),
        ("generate -x --seed -1", "unrecognized arguments: -x (a text that starts with - goes behind --)"),
        ("bake -omy.so", "kaoken bake: error: the following arguments are required: CHECKPOINT"),
        ("generate --seed -1", "kaoken generate: error: the following arguments are required: PROMPT"),
    ],
)
def test_an_unknown_option_is_named(arguments: str, message: str, capsys: Capture) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments.split())
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "prompt"),
    [
        ("generate --max-new-tokens 5 -- -x", "-x"),
        ("-- generate --max-new-tokens 5 x", "x"),
        ("generate x --max-new-tokens 5 --", "x"),
        ("-- generate --max-new-tokens 5 -- --text", "--text"),
        ("generate --max-new-tokens 5 -- --", "--"),
    ],
)
def test_two_dashes_work_anywhere(arguments: str, prompt: str, bundled: BakedGPT2, capsys: Capture) -> None:
    text = succeed(capsys, *arguments.split())
    assert text == prompt + bundled.generate_text(prompt, max_new_tokens=5) + "\n"


@pytest.mark.parametrize("arguments", ["--help", "--version", "info", "info --help", "generate x --max-new-tokens 2"])
def test_output_that_cannot_be_written(arguments: str) -> None:
    with open("/dev/full", "wb") as full:
        command = [sys.executable, "-m", "kaoken", *arguments.split()]
        run = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, timeout=60, check=False)
    message = b"kaoken: error: the output cannot be written (No space left on device): write it elsewhere\n"
    assert (run.returncode, run.stderr) == (1, message)


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (KeyboardInterrupt(), 130, ""),
        (MemoryError(), 1, "kaoken: error: not enough memory\n"),
        (OSError(5, "Input/output error"), 1, "kaoken: error: [Errno 5] Input/output error\n"),
    ],
)
def test_other_ends(
    error: BaseException, status: int, message: str, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    def stream_text(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr("kaoken.causal.BakedCausalLM.stream_text", stream_text)
    assert main(["generate", "x"]) == status
    assert capsys.readouterr().err == message


@pytest.mark.parametrize("closed", [">&-", "<&-", "2>&-"])
def test_a_closed_stream_is_no_traceback(closed: str) -> None:
    command = f'"{sys.executable}" -m kaoken generate --max-new-tokens 2 x {closed}'
    ran = subprocess.run(["sh", "-c", command], capture_output=True, timeout=60, check=False)
    assert (ran.returncode, ran.stderr) == (0, b"")


def test_a_closed_pipe_is_quiet() -> None:
    command = [sys.executable, "-m", "kaoken", "generate", "ROMEO:", "--max-new-tokens", "200"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


# Help


@pytest.mark.parametrize(
    ("arguments", "lessons"),
    [
        ("--help", ("kaoken generate", "kaoken info", "kaoken bake", "exit codes")),
        ("generate --help", ("--seed", "turns sampling on", "standard input", "exit codes")),
        ("info --help", ("--json", "--model")),
        ("bake --help", ("CHECKPOINT", "kaoken[bake]", "--isa portable", "KAOKEN_CACHE")),
        ("graph --help", ("CHECKPOINT", "kaoken[graph]", "kaoken[onnx]", "--before", "--all-blocks")),
    ],
)
def test_help_teaches(arguments: str, lessons: tuple[str, ...], capsys: Capture) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments.split())
    text = capsys.readouterr().out
    assert caught.value.code == 0
    assert [lesson for lesson in lessons if lesson not in text] == []


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from kaoken.cli import main\n"
        "try: main(['generate', '--help'])\n"
        "except SystemExit: pass\n"
        "print([name for name in ('numpy', 'kaoken._core', 'tokenizers', 'tqdm') if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert run.stdout.splitlines()[-1] == "[]"
