"""`kaoken train`, `distill` and `prune`: help, one clear line for a mistake, signals and a full disk."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import toys
from checkpoints import write_json
from kaoken.cli import main
from oracles import bert, t5
from test_cli import Capture, fail

COMMANDS = ("train", "distill", "prune")


@pytest.mark.parametrize("name", COMMANDS)
def test_help_needs_no_torch(name: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    assert ended.value.code == 0
    assert "-o OUT" in capsys.readouterr().out


def test_help_loads_nothing_heavy() -> None:
    code = "import sys; from kaoken.cli import main\ntry: main(['--help'])\nfinally: print(sorted(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "distill" in run.stdout
    assert not {"'torch'", "'transformers'", "'numpy'"} & set(run.stdout.splitlines()[-1].strip("[]").split(", "))


@pytest.mark.parametrize(
    "missing", ["torch", *(pytest.param(name, marks=pytest.mark.ci) for name in ("transformers", "accelerate"))]
)
def test_what_is_not_installed(missing: str) -> None:
    code = f"import sys; sys.modules[{missing!r}] = None; from kaoken.cli import main; sys.exit(main(sys.argv[1:]))"
    if missing != "torch":
        pytest.importorskip("torch")
    run = subprocess.run(
        [sys.executable, "-c", code, "train", "--text", "text.txt", "-o", "out"], capture_output=True, text=True
    )
    assert (run.returncode, run.stdout) == (1, "")
    assert run.stderr == f'kaoken: error: {missing} is not installed: pip install "kaoken[distill]"\n'


@pytest.mark.parametrize("name", COMMANDS)
def test_what_must_be_given(name: str, capsys: Capture) -> None:
    with pytest.raises(SystemExit) as ended:
        main([name, *([] if name == "train" else ["teacher"])])
    assert ended.value.code == 2
    assert "required: --text, -o/--out" in capsys.readouterr().err


@pytest.fixture
def torch_or_skip() -> None:
    """As the other tests of compression: skipped without torch unless it is required."""
    if os.environ.get("KAOKEN_REQUIRE_TRANSFORMERS") != "1":
        pytest.importorskip("torch")
        pytest.importorskip("transformers")


MISTAKES = {
    "train --preset gptheavy": "there is no preset 'gptheavy'",
    "train --preset gptlite --config config.json": "--preset and --config both name a model",
    "train --config config.json --epochs 1 --max-steps 1": "expected one of epochs and max_steps",
    "train --axes layers": "say how --scale is meant",
    "train --config none.json --max-steps 1": "none.json cannot be read as JSON",
    "train --config bad.json --max-steps 1": "n_embd",
    "train --config llama.json --max-steps 1": "model_type is 'llama'",
    "train --config config.json --max-steps 0": "max_steps is 0; expected a number at least 1",
    "train --config config.json --max-steps 1 --scale 2": "the scale is 2.0",
    "train --config config.json --max-steps 1 --tokenizer .": "has neither tokenizer.json",
    "train --config config.json --max-steps 1 --holdout 1": "holdout is 1.0",
    "train --config config.json --max-steps 1 --stride 17": "stride is 17",
    "train --config config.json --max-steps 1 --holdout 0.999": "tokens; expected more than the model's context",
    "distill T --max-steps 1": "neither a scale nor steps are given",
    "distill T --max-steps 1 --scale 1.5": "the scale is 1.5",
    "distill T --max-steps 1 --scale 0.01": "0.01 of 2 layers leaves none",
    "distill T --max-steps 1 --scale 0.5 --steps 0.9,x": "--steps is '0.9,x'",
    "distill T --max-steps 1 --scale 0.5 --steps 0.4,0.5": "expected falling factors, down to the scale of 0.5",
    "distill T --max-steps 1 --scale 0.5 --axes wings": "axes are wings",
    "distill T --max-steps 1 --scale 0.5 --student T": "leave one out",
    "distill T --max-steps 1 --scale 0.5 --top-k 999": "top_k is 999",
    "distill T --max-steps 1 --scale 0.5 --loss kullback": "loss is 'kullback'",
    "distill T --max-steps 1 --scale 0.5 --temperature 0": "temperature is 0.0",
    "distill T --max-steps 1 --scale 0.5 --hidden-weight 1": "match those with an online teacher",
    "distill T --max-steps 1 --scale 0.5 --start nowhere": "start is 'nowhere'",
    "distill T --max-steps 1 --scale 0.5 --labels-from none.so": "none.so",
    "distill bert --max-steps 1 --scale 0.5": "model_type is 'bert', whose models continue no texts; expected a",
    "distill t5 --max-steps 1 --scale 0.5": "model_type is 't5', whose models continue no texts; expected a decoder",
    "distill T --max-steps 1 --student bert": "model_type is 'bert', whose models continue no texts",
    "distill no/such --max-steps 1 --scale 0.5": "no/such could not be fetched",
    "prune T": "say in one way what goes",
    "prune T --heads 0.5 --sparsity 0.5": "say in one way what goes",
    "prune T --sparsity 4:8": "--sparsity is '4:8'; expected a share such as 0.9, or 2:4",
    "prune bert --heads 0.5": "bert is a bert; expected a GPT-2: only that is pruned",
    "prune t5 --heads 0.5": "t5 is a t5; expected a GPT-2: only that is pruned",
    "prune T --heads 1.5": "heads is 1.5",
    "prune T --layers 2": "layers is 2",
    "prune T --mlp 0.5 --epochs 1 --max-steps 1": "expected one of epochs and max_steps",
}


@pytest.mark.ci
@pytest.mark.usefixtures("torch_or_skip")
def test_mistakes_are_one_line_and_leave_nothing(
    toy_text: Path, toy_teacher: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    write_json(Path("config.json"), toys.TOY)
    write_json(Path("bad.json"), {**toys.TOY, "n_head": 3})
    write_json(Path("llama.json"), {**toys.TOY, "model_type": "llama"})
    bert.write(Path("bert"), bert.TINY)
    t5.write(Path("t5"), t5.TINY)
    before = sorted(tmp_path.iterdir())
    for command, expected in MISTAKES.items():
        words = [str(toy_teacher) if word == "T" else word for word in command.split()]
        assert expected in fail(capsys, *words, "--text", str(toy_text), "-o", "out"), command
        assert sorted(tmp_path.iterdir()) == before, command


def arguments(toy_text: Path, toy_teacher: Path, out: Path, *more: str) -> list[str]:
    schedule = ["--max-steps", "40", "--batch-size", "8", "--learning-rate", "3e-3", "--seed", "1"]
    return ["distill", str(toy_teacher), "--text", str(toy_text), "--scale", "0.5", *schedule, "-o", str(out), *more]


# The command, which sends itself a signal behind a step.
SIGNALLED = """
import os, signal, sys
number, arguments = int(sys.argv[1]), sys.argv[2:]
from transformers import Trainer, TrainerCallback
from kaoken import cli

class Send(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 25:
            os.kill(os.getpid(), number)

original = Trainer.__init__
def initialize(self, *given, **options):
    original(self, *given, **options)
    self.add_callback(Send())

Trainer.__init__ = initialize
sys.argv = ["kaoken", *arguments]
sys.exit(cli.main())
"""


@pytest.mark.ci
@pytest.mark.usefixtures("torch_or_skip")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_run_that_goes_on(number: int, toy_text: Path, toy_teacher: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = arguments(toy_text, toy_teacher, out)
    run = subprocess.run([sys.executable, "-c", SIGNALLED, str(int(number)), *command], capture_output=True, text=True)
    assert (run.returncode, run.stdout) == (128 + number, "")
    assert run.stderr.splitlines()[-1] == f"kaoken: stopped; the same command goes on from {out}.work"
    assert "Traceback" not in run.stderr
    assert main(command) == 0
    assert main(arguments(toy_text, toy_teacher, tmp_path / "whole")) == 0
    assert weights(out) == weights(tmp_path / "whole")


def weights(directory: Path) -> bytes:
    return (directory / "model.safetensors").read_bytes()


@pytest.mark.ci
@pytest.mark.usefixtures("torch_or_skip")
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_a_disk_that_is_full_at_every_stage(toy_text: Path, toy_teacher: Path, tmp_path: Path, capsys: Capture) -> None:
    """Whatever is written when the disk is full, the same command goes on when there is room."""
    mounted = tmp_path / "small"
    mounted.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(mounted)]
    if subprocess.run(mount, check=False, capture_output=True).returncode != 0:
        pytest.skip("this container may not mount")
    try:
        command = arguments(toy_text, toy_teacher, mounted / "out")
        errors: list[str] = []
        for size in range(1000, 3000, 16):  # KiB: a little further each time
            subprocess.run(["mount", "-o", f"remount,size={size}k", str(mounted)], check=True)
            status = main(command)
            error = capsys.readouterr().err
            if status == 0:
                break
            assert "Traceback" not in error
            errors.append(error.splitlines()[-1])
            assert errors[-1].startswith("kaoken: error: ")
            assert "free some" in errors[-1]
        assert (mounted / "out" / "model.safetensors").exists()
        assert any("soft labels" in error for error in errors)
        assert any("a checkpoint cannot be written" in error for error in errors)
        assert main(arguments(toy_text, toy_teacher, tmp_path / "whole")) == 0
        assert weights(mounted / "out") == weights(tmp_path / "whole")
    finally:  # lazily, as labels may still be mapped
        subprocess.run(["umount", "--lazy", str(mounted)], check=True)
