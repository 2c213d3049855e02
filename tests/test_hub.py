"""Where a model comes from: directories, and the hub through the real huggingface_hub or its failures."""

from __future__ import annotations

import errno
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import huggingface_hub.utils
import pytest
from kaoken.codegen.errors import CheckpointError, HubError, KaokenError
from kaoken.codegen.hub import Source, resolve_model

from checkpoints import write_checkpoint
from oracles import sentence

# Where every version of the library has its errors.
hub_utils: Any = huggingface_hub.utils

COMMIT = "607a30d783dfa663caf39e06633721c8d4cfcd7e"

# Files of openai-community/gpt2 and of others like it.
REPOSITORY = {
    "config.json": True,
    "generation_config.json": True,
    "model.safetensors": True,
    "model-00001-of-00002.safetensors": True,
    "model.safetensors.index.json": True,
    "tokenizer.json": True,
    "tokenizer_config.json": True,
    "special_tokens_map.json": True,
    "added_tokens.json": True,
    "merges.txt": True,
    "vocab.json": True,
    "vocab.txt": True,
    "spiece.model": True,
    ".gitattributes": False,
    "64-8bits.tflite": False,
    "README.md": False,
    "adapter_model.safetensors": False,
    "flax_model.msgpack": False,
    "modeling_gpt2.py": False,
    "models/copy.safetensors": False,
    "model_old/model.safetensors": False,
    "onnx/config.json": False,
    "onnx/decoder_model.onnx": False,
    "pytorch_model.bin": False,
    "pytorch_model-00001-of-00002.bin": False,
    "rust_model.ot": False,
    "tf_model.h5": False,
}

Download = Callable[..., str]
Patch = Callable[[Download], list[dict[str, Any]]]


@pytest.fixture
def download(monkeypatch: pytest.MonkeyPatch) -> Patch:
    """`download(function)` puts a function in place of snapshot_download; it returns the list of calls."""

    def patch(function: Download) -> list[dict[str, Any]]:
        calls: list[dict[str, Any]] = []

        def snapshot_download(repo_id: str, **options: Any) -> str:
            calls.append({"repo_id": repo_id, **options})
            return function(repo_id, **options)

        monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
        return calls

    return patch


@pytest.fixture
def no_download(download: Patch) -> list[dict[str, Any]]:
    """The calls of a hub that must not be asked."""

    def fail(repo_id: str, **options: Any) -> str:
        raise AssertionError(f"asked the hub for {repo_id}")

    return download(fail)


def refused(kind: type[KaokenError], model: str, root: Path, *parts: str, revision: str | None = None) -> str:
    """The message with which a model is refused; it must contain all of `parts`."""
    with pytest.raises(KaokenError) as caught:
        resolve_model(model, revision=revision, root=root)
    assert type(caught.value) is kind
    for part in parts:
        assert part in str(caught.value)
    return str(caught.value)


# Directories


@pytest.mark.parametrize("model", ["gpt2", "./gpt2", "org/../gpt2", "gpt2/", "{root}/gpt2"])
def test_a_directory_wins_over_a_hub_id(tmp_path: Path, no_download: list[Any], model: str) -> None:
    (tmp_path / "gpt2").mkdir()
    source = resolve_model(model.format(root=tmp_path), revision=None, root=tmp_path)
    assert source == Source(tmp_path / "gpt2", "gpt2", None)


def test_two_parts_may_be_a_directory_too(tmp_path: Path, no_download: list[Any]) -> None:
    (tmp_path / "openai-community" / "gpt2").mkdir(parents=True)
    source = resolve_model("openai-community/gpt2", revision=None, root=tmp_path)
    assert source == Source(tmp_path / "openai-community" / "gpt2", "gpt2", None)


def test_a_path_may_leave_the_root_and_begin_at_home(
    tmp_path: Path, no_download: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a model; 'quoted'").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    expected = Source(tmp_path / "a model; 'quoted'", "a model; 'quoted'", None)
    assert resolve_model("../a model; 'quoted'", revision=None, root=tmp_path / "root") == expected
    assert resolve_model("~/a model; 'quoted'", revision=None, root=tmp_path / "root") == expected


def test_a_relative_root_is_resolved(tmp_path: Path, no_download: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gpt2").mkdir()
    monkeypatch.chdir(tmp_path)
    assert resolve_model(".", revision=None, root=Path("gpt2")).path == tmp_path / "gpt2"


def test_a_linked_directory_keeps_the_name_that_the_user_gave(tmp_path: Path, no_download: list[Any]) -> None:
    (tmp_path / "run-17").mkdir()
    (tmp_path / "latest").symlink_to("run-17")
    assert resolve_model("latest", revision=None, root=tmp_path) == Source(tmp_path / "latest", "latest", None)


@pytest.mark.parametrize("model", ["./gpt2", "../gpt2", "/nowhere/gpt2", "~/gpt2", "~nobody-at-all/gpt2", "./", "..x/"])
def test_a_path_that_does_not_exist_is_resolved_in_the_message(
    tmp_path: Path, no_download: list[Any], model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    root = tmp_path / "root"
    resolved = os.path.normpath(root / model.replace("~/", f"{tmp_path}/home/"))
    refused(HubError if model == "..x/" else CheckpointError, model, root, resolved)


@pytest.mark.parametrize("model", ["model.safetensors", "./model.safetensors"])
def test_a_file_is_not_a_directory(tmp_path: Path, no_download: list[Any], model: str) -> None:
    write_checkpoint(tmp_path)
    refused(CheckpointError, model, tmp_path, str(tmp_path / "model.safetensors"), "not a directory")


def test_a_directory_has_no_revision(tmp_path: Path, no_download: list[Any]) -> None:
    (tmp_path / "gpt2").mkdir()
    refused(CheckpointError, "gpt2", tmp_path, str(tmp_path / "gpt2"), "'v1'", revision="v1")


# Ids


@pytest.mark.parametrize(
    "model",
    [
        "a/b/c",
        "org/",
        "org//name",
        ".name",
        "name.",
        "-name",
        "name-",
        "a--b",
        "a..b",
        "gpt2.git",
        "my model",
        "gpt2\n",
        "gpt2\x00",
        "\x1b[2J",
        "é",
        "a" * 97,
        "a" * 5000,
        "https://huggingface.co/gpt2",
        "gpt2@main",
        "$(reboot)",
        "C:\\models\\gpt2",
    ],
    ids=lambda model: repr(model)[:24],
)
def test_what_is_neither_path_nor_id(tmp_path: Path, no_download: list[Any], model: str) -> None:
    message = refused(HubError, model, tmp_path, "neither a directory", "nor a hub id")
    assert message.isprintable()
    assert no_download == []


def test_an_empty_model_is_not_the_root(tmp_path: Path, no_download: list[Any]) -> None:
    refused(CheckpointError, "", tmp_path, "empty string", "a hub id")


@pytest.mark.parametrize(
    "revision", ["", "../../etc", "a..b", "/main", "-x", "a b", "main\n", "a\\b", "x" * 300], ids=repr
)
def test_revisions_that_are_none(tmp_path: Path, no_download: list[Any], revision: str) -> None:
    refused(HubError, "gpt2", tmp_path, repr(revision)[:20], "a branch, a tag or a commit", revision=revision)


# The hub


@pytest.mark.parametrize("model", ["gpt2", "openai-community/gpt2", "a", "A_b.C-d/e1"])
@pytest.mark.parametrize("revision", [None, "main", COMMIT, "refs/pr/1", "v1.0+x"])
def test_a_snapshot_is_named_by_its_commit(tmp_path: Path, download: Patch, model: str, revision: str | None) -> None:
    snapshot = write_checkpoint(tmp_path / "snapshots" / COMMIT)
    calls = download(lambda repo_id, **options: str(snapshot))
    assert resolve_model(model, revision=revision, root=tmp_path) == Source(snapshot, model, COMMIT)
    assert [(call["repo_id"], call["revision"]) for call in calls] == [(model, revision)]


def test_only_config_safetensors_and_tokenizer_are_fetched(tmp_path: Path, download: Patch) -> None:
    calls = download(lambda repo_id, **options: str(write_checkpoint(tmp_path / COMMIT)))
    resolve_model("gpt2", revision=None, root=tmp_path)
    patterns = {key: calls[0][key] for key in ("allow_patterns", "ignore_patterns")}
    fetched = set(hub_utils.filter_repo_objects(REPOSITORY, **patterns))
    assert fetched == {name for name, wanted in REPOSITORY.items() if wanted}


# Of a sentence-transformers model, with its transformer in the repository itself or in a folder: which files come.
SENTENCE_FILES = {
    "modules.json": True,
    "config_sentence_transformers.json": True,
    "1_Pooling/config.json": True,
    "2_Dense/config.json": True,
    "2_Dense/model.safetensors": True,
    "2_Dense/pytorch_model.bin": False,
    "2_Dense/deeper/config.json": False,
    "2_Dense_512/model.safetensors": False,
    "onnx/config.json": False,
}
TRANSFORMER_FILES = {
    "config.json": True,
    "sentence_bert_config.json": True,
    "model.safetensors": True,
    "tokenizer.json": True,
    "pytorch_model.bin": False,
}


@pytest.mark.parametrize("folder", ["", "0_Transformer"])
def test_the_folders_of_modules_are_fetched(folder: str, tmp_path: Path, download: Patch) -> None:
    """Those that modules.json names alone, of the commit that it came from."""
    snapshot = sentence.write(
        tmp_path / COMMIT, [sentence.POOLING, sentence.dense(sentence.WIDTH, 4)], subfolder=folder
    )
    calls = download(lambda repo_id, **options: str(snapshot))
    assert resolve_model("org/name", revision="main", root=tmp_path) == Source(snapshot, "org/name", COMMIT)
    assert [call["revision"] for call in calls] == ["main", COMMIT]
    files = SENTENCE_FILES | {os.path.join(folder, name): wanted for name, wanted in TRANSFORMER_FILES.items()}
    fetched: set[str] = set()
    for call in calls:
        patterns = {key: call[key] for key in ("allow_patterns", "ignore_patterns")}
        fetched |= set(hub_utils.filter_repo_objects(files, **patterns))
    assert fetched == {name for name, wanted in files.items() if wanted}


def test_a_malformed_list_of_modules_is_named(tmp_path: Path, download: Patch) -> None:
    snapshot = write_checkpoint(tmp_path / COMMIT)
    (snapshot / "modules.json").write_text('[{"type": "a", "path": "../b"}]')
    download(lambda repo_id, **options: str(snapshot))
    refused(CheckpointError, "org/name", tmp_path, "modules.json", "../b")


def test_a_sharded_snapshot_is_whole(tmp_path: Path, download: Patch) -> None:
    snapshot = write_checkpoint(tmp_path / COMMIT, shards=2)
    download(lambda repo_id, **options: str(snapshot))
    assert resolve_model("gpt2", revision=None, root=tmp_path).path == snapshot


def test_pickles_alone_are_refused_with_the_line_that_converts_them(tmp_path: Path, download: Patch) -> None:
    snapshot = write_checkpoint(tmp_path / COMMIT)
    (snapshot / "model.safetensors").unlink()
    download(lambda repo_id, **options: str(snapshot))
    message = refused(HubError, "org/gpt2-old", tmp_path, "org/gpt2-old", "pickles", "python -c ")
    line = message[message.index("python -c ") : message.index(" and pass that directory")]
    code = shlex.split(line)[2]
    compile(code, "line", "exec")
    assert "'org/gpt2-old', './gpt2-old'" in code


def http_error(kind: type[Exception]) -> Exception:
    """An error as huggingface_hub raises it for an answer of the server."""
    response: Any = SimpleNamespace(headers={}, request=None, status_code=404, json=dict, text="")
    return kind("404 Client Error", response=response)  # type: ignore[call-arg]


FAILURES = {
    "gated": (lambda: http_error(hub_utils.GatedRepoError), "hf auth login"),
    "missing": (lambda: http_error(hub_utils.RepositoryNotFoundError), "no such model"),
    "revision": (lambda: http_error(hub_utils.RevisionNotFoundError), "no revision 'v9'"),
    "server": (lambda: http_error(hub_utils.HfHubHTTPError), "404 Client Error"),
    "unreachable": (lambda: hub_utils.LocalEntryNotFoundError("no connection"), "out of reach"),
    "offline": (lambda: hub_utils.OfflineModeIsEnabled("offline"), "out of reach"),
    "validation": (lambda: hub_utils.HFValidationError("bad"), "does not allow"),
    "connection": (lambda: ConnectionError("refused"), "ConnectionError"),
    "timeout": (lambda: TimeoutError("timed out"), "timed out"),
    "disk": (lambda: OSError(errno.ENOSPC, "No space left on device"), "the disk is full"),
    "permission": (lambda: PermissionError(errno.EACCES, "Permission denied", "/cache"), "Permission denied"),
    "anything": (lambda: RuntimeError("\x1b[2J" + "x" * 10_000), "RuntimeError"),
}


@pytest.mark.parametrize(("make", "part"), FAILURES.values(), ids=FAILURES.keys())
def test_a_failure_names_the_id_and_says_how_to_pass_a_directory(
    tmp_path: Path, download: Patch, make: Callable[[], Exception], part: str
) -> None:
    def fail(repo_id: str, **options: Any) -> str:
        raise make()

    download(fail)
    message = refused(HubError, "org/name", tmp_path, "org/name", part, "model=./my-checkpoint", revision="v9")
    assert str(tmp_path / "org" / "name") in message
    assert message.isprintable()
    assert len(message) < 2000


def test_an_interrupt_is_not_swallowed(tmp_path: Path, download: Patch) -> None:
    def interrupt(repo_id: str, **options: Any) -> str:
        raise KeyboardInterrupt

    download(interrupt)
    with pytest.raises(KeyboardInterrupt):
        resolve_model("gpt2", revision=None, root=tmp_path)


def test_huggingface_hub_may_be_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    refused(HubError, "gpt2", tmp_path, "pip install huggingface_hub", "gpt2", "directory")
    assert resolve_model(".", revision=None, root=tmp_path).path == tmp_path


# GGUF files


def test_a_gguf_file_is_a_checkpoint(tmp_path: Path, no_download: list[Any]) -> None:
    path = tmp_path / "some.Q4_K_M.gguf"
    path.touch()
    for model in ("some.Q4_K_M.gguf", "./some.Q4_K_M.gguf", str(path)):
        assert resolve_model(model, revision=None, root=tmp_path) == Source(path, "some.Q4_K_M", None)
    refused(CheckpointError, str(path), tmp_path, "a local file", "no revision 'main'", revision="main")


@pytest.mark.parametrize("model", ["missing.gguf", "./missing.gguf", "a/missing.gguf", "model.bin"])
def test_files_that_are_no_ggufs(model: str, tmp_path: Path, no_download: list[Any]) -> None:
    (tmp_path / "model.bin").touch()
    refused(CheckpointError, model, tmp_path, "is not a directory", "or a .gguf file")


GGUF_REPOSITORY = {
    "SmolLM2-135M-Q4_K_M.gguf": True,
    "SmolLM2-135M-Q4_K_S.gguf": False,
    "SmolLM2-135M-IQ4_K_M.gguf": False,
    "SmolLM2-135M-Q4_K_M-00001-of-00002.gguf": False,
    "parts/SmolLM2-135M-Q4_K_M.gguf": False,
    "config.json": False,
    "model.safetensors": False,
}


@pytest.mark.parametrize("file", ["Q4_K_M", "q4_k_m", "SmolLM2-135M-Q4_K_M.gguf"])
def test_one_gguf_of_a_repository(file: str, tmp_path: Path, download: Patch) -> None:
    snapshot = tmp_path / COMMIT
    snapshot.mkdir()

    def fetch(repo_id: str, **options: Any) -> str:
        patterns = {key: options[key] for key in ("allow_patterns", "ignore_patterns")}
        fetched = set(hub_utils.filter_repo_objects(GGUF_REPOSITORY, **patterns))
        assert fetched == {name for name, wanted in GGUF_REPOSITORY.items() if wanted}
        (snapshot / "SmolLM2-135M-Q8_0.gguf").touch()  # of an earlier download
        for name in fetched:
            (snapshot / name).touch()
        return str(snapshot)

    calls = download(fetch)
    source = resolve_model(f"org/name:{file}", revision="v1", root=tmp_path)
    assert source == Source(snapshot / "SmolLM2-135M-Q4_K_M.gguf", f"org/name:{file}", COMMIT)
    assert [(call["repo_id"], call["revision"]) for call in calls] == [("org/name", "v1")]


@pytest.mark.parametrize(
    ("files", "part"), [([], "has none"), (["a-Q4_0.gguf", "b.Q4_0.gguf"], "has a-Q4_0.gguf, b.Q4_0.gguf")]
)
def test_none_or_several_ggufs_of_a_repository(files: list[str], part: str, tmp_path: Path, download: Patch) -> None:
    (tmp_path / COMMIT).mkdir()
    for file in files:
        (tmp_path / COMMIT / file).touch()
    download(lambda repo_id, **options: str(tmp_path / COMMIT))
    refused(
        HubError, "org/name:Q4_0", tmp_path, part, "https://huggingface.co/org/name/tree/main", "org/name:FILE.gguf"
    )


@pytest.mark.parametrize("model", ["org/name:", "org/name:../x", "org/name:a/b", "a:b:c", ":x", "org/name:x\n"])
def test_files_that_are_no_names(model: str, tmp_path: Path, no_download: list[Any]) -> None:
    refused(HubError, model, tmp_path, "nor a hub id")


# The real library: its environment is read when it is imported, so each case has a process of its own.


SCRIPT = """
import json, sys
from pathlib import Path
from kaoken.codegen.errors import KaokenError
from kaoken.codegen.hub import resolve_model
assert "huggingface_hub" not in sys.modules
try:
    source = resolve_model(sys.argv[1], revision=sys.argv[3] or None, root=Path(sys.argv[2]))
    print(json.dumps([str(source.path), source.name, source.revision]))
except KaokenError as error:
    print(json.dumps([type(error).__name__, str(error)]))
"""


def resolve_in_process(model: str, root: Path, revision: str = "", **environment: str) -> list[str]:
    """What resolve_model returns or raises, with a cache of its own under `root`."""
    settings = {"HF_HOME": str(root / "hf"), "HF_HUB_DISABLE_PROGRESS_BARS": "1", **environment}
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT, model, str(root), revision],
        env={**{key: value for key, value in os.environ.items() if not key.startswith("HF_")}, **settings},
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )
    answer: list[str] = json.loads(result.stdout)
    return answer


def write_cache(root: Path, model: str) -> Path:
    """The cache that huggingface_hub keeps for a model: blobs, and a snapshot of links to them."""
    folder = root / "hf" / "hub" / f"models--{model.replace('/', '--')}"
    blobs = write_checkpoint(folder / "blobs")
    snapshot = folder / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    for blob in blobs.iterdir():
        (snapshot / blob.name).symlink_to(Path("..", "..", "blobs", blob.name))
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(COMMIT)
    return snapshot


@pytest.mark.parametrize("revision", ["", "main", COMMIT])
def test_the_cache_serves_offline(tmp_path: Path, revision: str) -> None:
    snapshot = write_cache(tmp_path, "org/name")
    answer = resolve_in_process("org/name", tmp_path, revision, HF_HUB_OFFLINE="1")
    assert answer == [str(snapshot), "org/name", COMMIT]


@pytest.mark.parametrize(("model", "revision"), [("org/name", "v2"), ("org/other", "")])
def test_offline_without_a_copy(tmp_path: Path, model: str, revision: str) -> None:
    write_cache(tmp_path, "org/name")
    kind, message = resolve_in_process(model, tmp_path, revision, HF_HUB_OFFLINE="1")
    assert kind == "HubError"
    for part in (model, "HF_HUB_OFFLINE is set", str(tmp_path / "hf" / "hub"), "model=./my-checkpoint"):
        assert part in message


def test_an_unreachable_hub(tmp_path: Path) -> None:
    """Nothing listens at port 9 of this machine."""
    endpoint = "http://127.0.0.1:9"
    kind, message = resolve_in_process("org/name", tmp_path, HF_ENDPOINT=endpoint, no_proxy="127.0.0.1")
    assert kind == "HubError"
    for part in ("org/name", endpoint, "out of reach", "model=./my-checkpoint"):
        assert part in message
