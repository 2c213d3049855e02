"""The logic of benchmarks/ and `kaoken bench`; no time is asserted."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from kaoken.codegen.checkpoint import open_checkpoint
from kaoken.codegen.families import read_graph
from kaoken.codegen.layout import MATRIX_TYPES

if TYPE_CHECKING:
    from kaoken import BakedGPT2, Session

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import peers, tables  # noqa: E402
from benchmarks.__main__ import main as run_benchmarks  # noqa: E402
from benchmarks.__main__ import without_paths  # noqa: E402
from benchmarks.bars import BARS, Bar  # noqa: E402
from benchmarks.children import WorkerError  # noqa: E402
from benchmarks.engines import PEERS, get_entry  # noqa: E402
from benchmarks.engines.base import Encoder, Ids, PaddedEncoder, Translator, Vectors  # noqa: E402
from benchmarks.http_load import make_request, send_all  # noqa: E402
from benchmarks.kernels import kernel_table  # noqa: E402
from benchmarks.machine import header  # noqa: E402
from benchmarks.models import SEED, get_checkpoint, task_of  # noqa: E402
from benchmarks.peers import save  # noqa: E402
from benchmarks.processes import measure_processes  # noqa: E402
from benchmarks.report import write_report  # noqa: E402
from benchmarks.rows import LONG, ROW_NAMES, ROWS, Row, rows_of  # noqa: E402
from benchmarks.running import count_running, sampling  # noqa: E402
from benchmarks.shapes import SHAPES, random_tensors  # noqa: E402
from benchmarks.summary import ratios, summarize  # noqa: E402
from benchmarks.worker import Worker  # noqa: E402


def test_a_summary_is_the_median_and_the_quartiles() -> None:
    summary = summarize([5.0, 1.0, 2.0, 4.0, 3.0])
    assert (summary.median, summary.low, summary.high, summary.count) == (3, 2, 4, 5)
    assert summary.scaled(10).high == 40


def test_ratios_are_of_neighbours() -> None:
    assert ratios([1.0, 6.0], [2.0, 3.0]) == [0.5, 2.0]
    with pytest.raises(ValueError, match="2 measurements of ours beside 1"):
        ratios([1.0, 2.0], [1.0])


@pytest.mark.parametrize(
    ("value", "verdict"), [(0.5, "reaches the aim"), (0.6, "reaches the bar"), (0.71, "MISSES the bar")]
)
def test_verdicts(value: float, verdict: str) -> None:
    assert Bar("", "", "", "", 0.7, 0.5).verdict(value) == verdict


def test_every_bar_is_of_a_row_and_an_engine_that_exist() -> None:
    for bar in BARS:
        assert bar.row in (*ROW_NAMES, "memory")
        assert bar.peer in (*PEERS[task_of(bar.model)][bar.dtype], "itself", "weights")


def test_every_engine_has_an_entry_and_a_module() -> None:
    for task, dtypes in PEERS.items():
        for name in {f"kaoken {dtype}" for dtype in dtypes} | {peer for each in dtypes.values() for peer in each}:
            assert (ROOT / "benchmarks" / "engines" / f"{get_entry(name, task).module}.py").is_file()


def test_the_kernels_are_those_of_the_table() -> None:
    assert kernel_table() == {
        "matrix": list(MATRIX_TYPES),
        "cache": ["float32", "bfloat16", "int8"],
    }


TINY = {  # the sizes of shapes that differ from those of a full shape
    "gpt2": {"vocab_size": 5, "n_positions": 3, "n_embd": 4, "n_layer": 1, "n_head": 2},
    "smollm2-135m": {
        "vocab_size": 11,
        "hidden_size": 12,
        "intermediate_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "num_key_value_heads": 1,
        "head_dim": 4,
        "max_position_embeddings": 16,
    },
    "qwen2.5-0.5b": {
        "vocab_size": 11,
        "hidden_size": 14,
        "intermediate_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 7,
        "num_key_value_heads": 1,
        "head_dim": 4,
        "max_position_embeddings": 16,
    },
    "bert-base": {
        "vocab_size": 11,
        "hidden_size": 8,
        "intermediate_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 16,
    },
    "t5-small": {"vocab_size": 11, "d_model": 8, "d_kv": 4, "d_ff": 16, "num_layers": 2, "num_heads": 2},
}


@pytest.mark.parametrize("shape", TINY)
def test_random_checkpoints_are_the_same_each_time(shape: str) -> None:
    config = {**SHAPES[shape], **TINY[shape]}
    first, second = random_tensors(config, 1), random_tensors(config, 1)
    assert all((first[name] == second[name]).all() for name in first)
    assert shape != "gpt2" or len(first) == 4 + 12


@pytest.mark.parametrize("shape", TINY)
def test_kaoken_reads_the_random_checkpoints(shape: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its families refuse names and shapes that they do not know, and those that are missing."""
    monkeypatch.setitem(SHAPES, shape, {**SHAPES[shape], **TINY[shape]})
    checkpoint = get_checkpoint(shape, tmp_path)
    graph = read_graph(open_checkpoint(checkpoint.directory))
    assert (graph.encoder is None) == (checkpoint.task() == "decode")
    assert checkpoint.parameters() > 0


def test_recorded_commands_name_no_paths() -> None:
    assert without_paths(["--rounds", "2", "--out", "/a", "--cache=/b", "--quick"]) == ["--rounds", "2", "--quick"]


def test_encoders_are_peers_of_two_shapes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[tuple[peers.Plan, list[str]]] = []
    monkeypatch.setattr(peers, "run", lambda plan, arguments, say, only_prepare: ran.append((plan, arguments)))
    run_benchmarks(["encoders", "--quick", "--out", str(tmp_path)])
    assert [plan.model for plan, _ in ran] == ["minilm-l6", "bert-base"]
    assert ran[1][0].rows == rows_of("encode", quick=True)
    assert ran[1][1] == ["--model", "bert-base", "--quick"], "as `peers` would record it"


class FakeChild:
    """Answers with one step a turn; fails from a given turn on."""

    def __init__(self, engine: str, second: float, fails_from: int = 1 << 30) -> None:
        self.engine = engine
        self._second = second
        self._left = fails_from
        self.seeds: list[int] = []

    def ask(self, request: str, **fields: Any) -> dict[str, Any]:
        self.seeds.append(fields["seed"])
        self._left -= 1
        if self._left < 0:
            raise WorkerError(f"{self.engine} fails")
        return {"seconds": [self._second]}


@pytest.fixture
def results(monkeypatch: pytest.MonkeyPatch) -> peers.Results:
    monkeypatch.setattr(peers, "SETTLE", 0)
    return peers.Results(header("peers", 2) | {"model": "gpt2"})


def seeds() -> Iterator[int]:
    return iter(range(1, 1000))


def take_turns(results: peers.Results, row: Row, *children: FakeChild, rounds: int = 3) -> list[str]:
    said: list[str] = []
    ours, *others = children
    peers.take_turns(ours, others, row, rounds, results, seeds(), said.append)  # type: ignore[arg-type]
    return said


def test_ours_takes_a_turn_before_each_peer_on_fresh_ids(results: peers.Results) -> None:
    ours, a, b = FakeChild("kaoken int8", 1.0), FakeChild("a", 2.0), FakeChild("b", 4.0)
    take_turns(results, ROWS["decode"], ours, a, b)
    assert [turn["peer"] for turn in results.turns] == ["a", "b"] * 3
    assert len({*ours.seeds, *a.seeds, *b.seeds}) == 4 * 4, "a round for warmth and three that count"
    assert tables.turn_ratios(results.document(), "decode", "kaoken int8", "b") == [0.25] * 3


def test_a_peer_that_fails_is_named_and_the_others_go_on(results: peers.Results) -> None:
    take_turns(results, ROWS["decode"], FakeChild("kaoken int8", 1.0), FakeChild("a", 2.0, 2), FakeChild("b", 4.0))
    assert results.missing == {"a, decode": "a fails"}
    assert [turn["peer"] for turn in results.turns] == ["a", "b", "b", "b"]


def test_ours_is_measured_without_any_peer(results: peers.Results) -> None:
    take_turns(results, ROWS["decode"], FakeChild("kaoken int8", 1.0))
    assert [turn["ours_seconds"] for turn in results.turns] == [[1.0]] * 3
    assert tables.engine_times(results.document(), "decode")["kaoken int8"].median == 1.0


def test_a_peer_that_is_not_installed_is_named(
    results: peers.Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.engines.find_spec", lambda module: None)
    plan = peers.Plan("bundled", ("int8",), ("decode",), (), 1, 1, tmp_path, tmp_path)
    entry = get_entry("llama.cpp Q8_0")
    assert peers.ready(entry, get_checkpoint("bundled", tmp_path), plan, results, lambda text: None) is None
    assert results.missing == {"llama.cpp Q8_0": "not installed: llama-cpp-python, gguf"}


def test_rows_past_the_context_are_named(results: peers.Results, tmp_path: Path) -> None:
    plan = peers.Plan("bundled", ("int8",), ("decode", "prefill-512"), (), 1, 1, tmp_path, tmp_path)
    assert [row.name for row in peers.rows_that_fit(plan, 256, results)] == ["decode"]
    assert results.skipped == {"prefill-512": "needs 512 positions, bundled has 256"}
    assert LONG.positions() <= 1024


def test_every_row_is_of_one_task() -> None:
    for task in PEERS:
        names = [name for name in rows_of(task, quick=False) if name in ROWS]
        assert {ROWS[name].task() for name in names} == {task}
        assert {*rows_of(task, quick=True)} <= {*rows_of(task, quick=False)}


def test_rows_of_other_tasks_and_types_that_kaoken_lacks_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Peers are not measured without it, and the run goes on."""
    plan = peers.Plan("bundled", ("int8",), ("encode-16",), (), 1, 1, tmp_path, tmp_path)
    monkeypatch.setattr("benchmarks.engines.find_spec", lambda module: None)
    document = peers.run(plan, [], lambda text: None, only_prepare=False)
    assert document["skipped"] == {"encode-16": "is for models that encode, and bundled is to decode"}
    assert document["missing"]["kaoken int8"] == "not installed: kaoken"
    assert document["turns"] == []


def test_an_engine_is_measured_with_the_families_that_it_has() -> None:
    assert get_entry("torch-compile float32").lacks("llama") == "measured with gpt2 alone"
    assert get_entry("kaoken int8", "encode").lacks("bert") is None


class FakeEncoder(PaddedEncoder):
    """Whose vectors are the ids, and what it was asked for."""

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []

    def forward(self, ids: Ids, mask: Ids) -> Vectors:
        self.shapes.append(ids.shape)
        assert (ids[mask == 0] == 0).all()
        return ids[:, :, None].astype(np.float32)


def test_padded_batches_are_of_texts_of_similar_lengths() -> None:
    encoder, texts = FakeEncoder(), [[5, 6, 7], [8], [1, 2, 3, 4], [9, 9]]
    encoder._size = 2
    assert [vectors[:, 0].tolist() for vectors in encoder.encode(texts)] == texts
    assert encoder.shapes == [(2, 2), (2, 4)]
    encoder.tune(texts)
    assert encoder._size in (1, 4)


@pytest.mark.ci
@pytest.mark.parametrize("shape", ["gpt2", "bert-base"])
def test_gguf_files_have_the_weights_of_their_checkpoints(
    shape: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gguf = pytest.importorskip("gguf")
    from benchmarks.engines.gguf_file import write_gguf

    monkeypatch.setitem(SHAPES, shape, {**SHAPES[shape], **TINY[shape]})
    checkpoint = get_checkpoint(shape, tmp_path)
    write_gguf(checkpoint, tmp_path / "model.gguf")
    found = {tensor.name: tensor.data for tensor in gguf.GGUFReader(tmp_path / "model.gguf").tensors}
    expected = random_tensors(checkpoint.config(), SEED)
    if shape == "gpt2":
        assert (found["blk.0.ffn_up.weight"] == expected["transformer.h.0.mlp.c_fc.weight"].T).all()
    else:
        assert (found["blk.0.ffn_up.weight"] == expected["encoder.layer.0.intermediate.dense.weight"]).all()
    assert len(found) == len([name for name in expected if not name.startswith("pooler.")])


@pytest.fixture
def threads_of_torch() -> Iterator[None]:
    """Sets back what engines set, which the bits of a later training depend on."""
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.ci
@pytest.mark.usefixtures("threads_of_torch")
@pytest.mark.parametrize("name", ["kaoken float32", *PEERS["encode"]["float32"]])
def test_encoders_agree_and_their_cold_starts_print_the_first_vector(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To 1e-3: the GELU of llama.cpp is a table of float16 numbers."""
    entry, reference = get_entry(name, "encode"), get_entry("torch float32", "encode")
    if lacks := entry.lacks("bert") or reference.lacks("bert"):
        pytest.skip(lacks)
    sizes = {"vocab_size": 32, "hidden_size": 64, "intermediate_size": 128}
    monkeypatch.setitem(SHAPES, "bert-base", {**SHAPES["bert-base"], **TINY["bert-base"], **sizes})
    checkpoint, texts = get_checkpoint("bert-base", tmp_path), [[*range(1, 17)], [8], [1, 2, 3, 4], [9, 9]]
    expected = reference.engine()(checkpoint, tmp_path, reference.variant, 1)
    prepared = entry.engine().locate(checkpoint, entry.variant) or tmp_path
    entry.engine().prepare(checkpoint, prepared, entry.variant)
    encoder = entry.engine()(checkpoint, prepared, entry.variant, 1)
    assert isinstance(encoder, Encoder)
    assert isinstance(expected, Encoder)
    vectors = expected.encode(texts)
    for ours, theirs in zip(encoder.encode(texts), vectors, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-3)
    script = entry.engine().cold_script(checkpoint, prepared, entry.variant, 1)
    assert script is not None
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    np.testing.assert_allclose(json.loads(ran.stdout), vectors[0][0], atol=1e-3)


class FakeTranslator(Translator):
    """Repeats what it reads."""

    def __init__(self) -> None:
        self.asked: list[tuple[tuple[int, ...], int]] = []

    def translate(self, ids: Ids, count: int) -> Ids:
        self.asked.append((ids.shape, count))
        return ids[:, :count]


def test_workers_encode_ragged_texts_and_translate(monkeypatch: pytest.MonkeyPatch) -> None:
    worker, encoder, translator = Worker(), FakeEncoder(), FakeTranslator()
    for name, engine in (("_vocabulary", 9), ("_engine", encoder)):
        monkeypatch.setattr(worker, name, engine)
    encoder._size = 32
    monkeypatch.setattr(encoder, "tune", lambda texts: None)
    row = ROWS["encode-corpus"]
    assert len(worker.encode(**row.fields(3))["seconds"]) == row.steps
    assert encoder.shapes[-1] == (32, 256)
    monkeypatch.setattr(worker, "_engine", translator)
    assert len(worker.translate(**ROWS["translate-batch16"].fields(3))["seconds"]) == 1
    assert translator.asked == [((16, 64), 1), ((16, 64), 64)]


def peers_document(results: peers.Results) -> dict[str, Any]:
    take_turns(results, ROWS["decode"], FakeChild("kaoken int8", 0.002), FakeChild("llama.cpp Q8_0", 0.004))
    results.turns.append({"row": "context", "ours": "kaoken int8", "short_seconds": [0.002], "long_seconds": [0.003]})
    results.engines = {
        "kaoken int8": {"note": "", "versions": {"kaoken": "0"}, "bytes_per_token": 100_000_000},
        "llama.cpp Q8_0": {"note": "its note", "versions": {}},
    }
    results.missing = {"openvino int8": "not installed: openvino"}
    cold = {"first_token_seconds": 0.1, "seconds": 0.2, "peak_bytes": 150 << 20}
    results.cold = [{"engine": engine, "round": 0, **cold} for engine in ("kaoken int8", "openvino int8")]
    held = {"alone_bytes": 60 << 20, "resident_bytes": [70 << 20] * 4, "proportional_bytes": [30 << 20] * 4}
    results.processes = [{"engine": "kaoken int8", **held}]
    results.weights_bytes = {"int8": 100 << 20}
    results.build = {"int8": {"library_bytes": 1 << 20, "wall_seconds": 7.1, "peak_bytes": 165 << 20}}
    return results.document()


def test_the_report_has_the_bars_the_rows_and_what_is_missing(results: peers.Results, tmp_path: Path) -> None:
    (tmp_path / "peers-gpt2.json").write_text(json.dumps(peers_document(results)))
    assert write_report(tmp_path, plots=False) == [tmp_path / "peers-gpt2.md"]
    text = (tmp_path / "peers-gpt2.md").read_text()
    assert "| decode int8 | llama.cpp Q8_0 | 0.72 | 0.64 | 0.500 (0.500 to 0.500) | reaches the aim |" in text
    assert "| decode float32 | ctranslate2 float32 | 1 | 0.92 |  | not measured |" in text
    assert "| decode at context 1000 over 16, int8 | itself | 1.35 | 1.15 | 1.500 (1.500 to 1.500) | MISSES" in text
    assert "| cold start to first token, int8 | openvino int8 | 0.4 | 0.3 | 1.000" in text
    assert "| peak memory then beside the weights, MB | weights | 60 | 40 | 52.4 " in text
    assert "| kaoken int8 | 2.00 (2.00 to 2.00) | 50.0 |  |" in text
    assert "| int8 | 7.1 | 165 | 1.0 |" in text
    assert "- openvino int8: not installed: openvino" in text
    assert "## 4 processes" in text
    assert "| kaoken int8 | 70 | 60 | 120 | 20 |" in text
    assert "its note" in text
    assert "## Cold start to the first token," in text
    assert "## Cold start to the first vector," in "".join(
        tables.peers_sections({**results.document(), "model": "minilm-l6"})
    )


def test_peers_are_plotted(results: peers.Results, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    (tmp_path / "peers-gpt2.json").write_text(json.dumps(peers_document(results)))
    assert write_report(tmp_path)[1] == tmp_path / "peers-gpt2.png"


def test_the_report_of_layers_and_kernels(tmp_path: Path) -> None:
    layer = {"layer": "MLP", "rows": 1, "ours_seconds": [1e-6], "torch_seconds": [4e-6]}
    layers = header("layers", 2) | {"note": "how", "missing": {}, "layers": [layer]}
    layer["published_milliseconds"] = [None, 32.51]  # type: ignore[assignment]
    kernel = {"isa": "avx2", "kernel": "linear 1x1", "dtype": "int4", "rows": 1, "seconds": 1e-6}
    kernel |= {"gigabytes_per_second": 20.0, "teraops_per_second": 0.5}
    limit = {"read": 40.0, "float32": 1.0, "bfloat16": 1.0, "int8": 2.0}
    kernels = header("kernels", 2) | {"limits": {"avx2": limit}, "kernels": [kernel]}
    for name, document in (("layers", layers), ("kernels", kernels)):
        (tmp_path / f"{name}.json").write_text(json.dumps(document))
    assert len(write_report(tmp_path, plots=False)) == 2
    expected = "| MLP, 1 rows | 1.00 | 4.00 | 0.250 (0.250 to 0.250) | not reported / 32.51 ms |"
    assert expected in (tmp_path / "layers.md").read_text()
    expected = "| linear 1x1 int4, 1 rows | 1.0 | 20.0 | 50 % | 0.500 | 25 % |"
    assert expected in (tmp_path / "kernels.md").read_text()


def test_the_report_of_callers_of_an_encoder(tmp_path: Path) -> None:
    record = {
        "kind": "threads, ids",
        "alone_seconds": [1.0, 1.0],
        "together_seconds": [2.0, 2.0],
        "p50_milliseconds": [3.0, 3.0],
        "p99_milliseconds": [4.0, 4.0],
        "running": {"1": 1, "2": 2, "5": 1},
    }
    document = {**header("service", 2), "model": "minilm-l6", "dtype": "int8", "count": 16, "texts": 512}
    save({**document, "shared": [record], "missing": ["HTTP: pip"]}, tmp_path / "service-minilm-l6.json")
    (path,) = write_report(tmp_path)
    text = path.read_text(encoding="utf-8")
    assert "| threads, ids | 256 (256 to 256) | 0.500 (0.500 to 0.500) | 3.0 | 4.0 | 25.0 %, 5 |" in text
    assert "- Missing: HTTP: pip" in text


def test_threads_that_run_are_counted() -> None:
    assert count_running(os.getpid()) >= 1
    with sampling(os.getpid()) as counts:
        time.sleep(0.05)
    assert sum(counts.values()) > 2


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="Linux alone says what processes share")
def test_processes_are_read_while_all_of_them_run(tmp_path: Path) -> None:
    (tmp_path / "library").write_bytes(bytes(8 << 20))
    script = f"""
import mmap
with open({str(tmp_path / "library")!r}, "rb") as file:
    pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
print(pages.find(b"x"), flush=True)
"""
    found = measure_processes(script, 1, tmp_path / "log", count=3)
    assert len(found["resident_bytes"]) == len(found["proportional_bytes"]) == 3
    assert sum(found["resident_bytes"]) - sum(found["proportional_bytes"]) > 2 * (8 << 20), "they share the library"
    with pytest.raises(WorkerError, match="status 1; see logs/log"):
        measure_processes("raise SystemExit('no')", 1, tmp_path / "log")
    assert "no" in (tmp_path / "log").read_text()


def test_requests_are_sent_one_after_another_on_each_connection() -> None:
    class Echo(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(500 if body == b"fail" else 200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Echo) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            seconds, latencies = send_all(server.server_port, [make_request("/", b"body")] * 10, 3)
            assert len(latencies) == 10
            assert max(latencies) <= seconds
            with pytest.raises(RuntimeError, match="500"):
                send_all(server.server_port, [make_request("/", b"fail")], 1)
        finally:
            server.shutdown()
            thread.join()


def test_a_report_of_nothing_says_so(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="holds no results"):
        write_report(tmp_path)


def test_kaoken_bench_as_json(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from kaoken import bench
    from kaoken.cli import main

    monkeypatch.setattr(bench, "READ_BYTES", 1 << 20)
    monkeypatch.setattr(bench, "ROUNDS", 1)
    assert main(["bench", "--json", "--threads", "1"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["threads"] == 1
    assert found["prompt"] + found["steps"] <= 256
    assert all(found[name] > 0 for name in ("decode_tokens_per_second", "prefill_tokens_per_second", "limit"))
    assert found["percent_of_limit"] == pytest.approx(100 * found["gigabytes_per_second"] / found["limit"])


def test_decoding_is_timed_in_turns(bundled: BakedGPT2, monkeypatch: pytest.MonkeyPatch) -> None:
    """The medians, without the first round, of times that were taken from empty caches."""
    from kaoken import bench
    from kaoken.library import default_library

    times = iter([100.0, 100.0, 1.0, 10.0, 5.0, 50.0, 2.0, 20.0, 3.0, 30.0, 4.0, 40.0])
    sessions = []

    def time_decode(session: Session, steps: int, vocabulary: int) -> float:
        sessions.append(session)
        assert (steps, vocabulary, session.length) == (64, bundled.config.vocab_size, 0)
        session.append([1])
        return next(times)

    monkeypatch.setattr(bench, "_time_decode", time_decode)
    assert bench.decode_seconds([default_library()] * 2) == [3.0, 30.0]
    assert sessions == sessions[:2] * 6


def test_kaoken_bench_for_people(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from kaoken import bench
    from kaoken.cli import main

    monkeypatch.setattr(bench, "ROUNDS", 1)
    assert main(["bench"]) == 0
    assert "tokens/s" in capsys.readouterr().out


@pytest.mark.ci
def test_the_page_of_graphs_shows_kaokens_as_they_are(tmp_path: Path) -> None:
    for name in ("torch", "onnx", "onnxruntime"):
        pytest.importorskip(name)
    from benchmarks import graphs

    graphs.write_checkpoint(tmp_path / "two-blocks")
    rows = [asdict(row) for row in graphs.own_rows(tmp_path / "two-blocks", tmp_path)]
    committed = json.loads((ROOT / "docs" / "graphs" / "graphs.json").read_text())["rows"]
    assert rows == [row for row in committed if row["maker"].startswith("Kaoken")]
    for picture in ("model-Kaoken-before-rewrites.dot", "model-Kaoken-after-rewrites.dot"):
        assert (tmp_path / picture).read_text() == (ROOT / "docs" / "graphs" / picture).read_text()


@pytest.mark.ci
def test_constants_that_repeat_others_are_counted(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("torch")
    from benchmarks import graphs

    matrix = onnx.helper.make_tensor("m", onnx.TensorProto.FLOAT, [2, 3], [1, 2, 3, 4, 5, 6])
    turned = onnx.helper.make_tensor("t", onnx.TensorProto.FLOAT, [3, 2], [1, 4, 2, 5, 3, 6])
    other = onnx.helper.make_tensor("o", onnx.TensorProto.FLOAT, [1], [1])
    value = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)
    nodes = [("MatMul", ["m", "t"], ["a"]), ("Constant", [], ["c"]), ("Gather", ["a", "c"], ["b"])]
    nodes += [("Gather", ["m", "c"], ["d"]), ("Dropout", ["d"], ["y"])]
    index = onnx.helper.make_tensor("c", onnx.TensorProto.INT64, [1], [0])
    made = [onnx.helper.make_node(op, *ends, **({"value": index} if op == "Constant" else {})) for op, *ends in nodes]
    model = onnx.helper.make_model(onnx.helper.make_graph(made, "g", [], [value], [matrix, turned, other]))
    onnx.save(model, tmp_path / "model.onnx")
    row = graphs.Row("block", "mine")
    graphs.count(row, tmp_path / "model.onnx")
    assert (row.nodes, row.shape_nodes, row.arrays, row.dropouts) == (4, 1, 4, 0)
    assert (row.bytes, row.twice) == (24 + 24 + 4 + 8, 24)


def test_the_page_of_graphs_quotes_its_table() -> None:
    page = (ROOT / "docs" / "onnx-graphs.md").read_text()
    rows = json.loads((ROOT / "docs" / "graphs" / "graphs.json").read_text())["rows"]
    shown = {
        (row["subject"], row["maker"]): row
        for row in rows
        if (row["way"], row["mode"]) in (("", ""), ("traced", "eval"))
    }
    makers = ("torchscript", "dynamo", "Kaoken before rewrites", "Kaoken after rewrites", "Kaoken baked")
    for label, subject, key in (
        ("ops", "model", "nodes"),
        ("of which move or measure tensors", "model", "shape_nodes"),
        ("ops in a block", "block", "nodes"),
        ("arrays", "model", "arrays"),
        ("bytes of arrays", "model", "bytes"),
        ("of which repeat another array", "model", "twice"),
    ):
        line = next(line for line in page.splitlines() if line.startswith(f"| {label} |"))
        quoted = [int(re.findall(r"\d+", cell)[0]) for cell in line.split("|")[2:7]]
        assert quoted == [shown[subject, maker][key] for maker in makers]
    links = re.findall(r"\]\(([^)]+)\)", page)
    assert len(links) > 8
    assert [link for link in links if not (ROOT / "docs" / link).exists() and "results" not in link] == []


@pytest.mark.ci
def test_the_native_loops_are_timed(tmp_path: Path) -> None:
    import ctypes

    from benchmarks.native_library import build

    library = build(["scalar"], tmp_path / "native")["scalar"]
    timed = library.time("layer_attention", 1, 4, 1, passes=2, result=ctypes.c_int64)
    assert len(timed.seconds) == 2
    assert all(seconds > 0 for seconds in timed.seconds)
