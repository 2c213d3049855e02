"""Concurrent callers of an encoder beside one: 16 that send single texts, and one that encodes all of them at once.

Callers are threads that call `encode` with ids or with texts, and HTTP connections to examples/service. Every turn
follows one of the lone caller, which is handed the same in one list. How many threads run at a time is sampled in a
last turn, which is not timed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

import kaoken
from benchmarks.http_load import make_request, send_all
from benchmarks.machine import header
from benchmarks.models import ROOT, get_checkpoint
from benchmarks.peers import save
from benchmarks.preparing import cache_root
from benchmarks.running import sampling
from benchmarks.summary import summarize
from benchmarks.worker import corpus_lengths

CALLERS = 16
TEXTS = 512
SHORTEST, LONGEST = 3, 256
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")

Say = Callable[[str], None]
Turn = tuple[float, list[float]]  # seconds of all texts, and of each


@dataclass(frozen=True)
class Kind:
    """One way of calling: `together` takes a turn of all callers, `alone` the seconds of one who has all texts."""

    name: str
    process: int
    alone: Callable[[], float]
    together: Callable[[], Turn]


def run(options: argparse.Namespace, arguments: Sequence[str], say: Say) -> dict[str, Any]:
    """Measures, and writes service-<model>.json."""
    library = kaoken.bake(_checkpoint(options), dtype=options.dtype)
    model = kaoken.load(library, threads=options.threads)
    texts = _texts(model.config.vocab_size)
    document = {
        **header(" ".join(["service", *arguments]), options.threads),
        "model": options.model,
        "dtype": options.dtype,
        "count": CALLERS,
        "texts": TEXTS,
        "shared": [],
        "missing": [],
    }
    with _server(library, options.threads) as server:
        kinds = [*_threads(model, texts), *(_connections(model, texts, *server) if server else [])]
        document["shared"] = [_measure(kind, options.rounds, say) for kind in kinds]
    if server is None:
        document["missing"] = ["HTTP: pip install -r examples/service/requirements.txt"]
        say(document["missing"][0])
    save(document, options.out / f"service-{options.model}.json")
    return document


def _checkpoint(options: argparse.Namespace) -> Path:
    """The model of that name with mean pooling, and with made-up words as its vocabulary."""
    cache = cache_root(options.cache)
    plain = get_checkpoint(options.model, cache).directory
    directory = cache / "checkpoints" / f"{plain.name}-sentence"
    if not directory.is_dir():
        temporary = directory.with_name(f"{directory.name}.{os.getpid()}")
        shutil.copytree(plain, temporary)
        config = json.loads((plain / "config.json").read_text(encoding="utf-8"))
        words = [*SPECIAL, *map(_word, range(config["vocab_size"] - len(SPECIAL)))]
        (temporary / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
        modules = "sentence_transformers.models"
        entries = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
        listed = [
            {"idx": index, "name": str(index), "path": path, "type": f"{modules}.{name}"}
            for index, (path, name) in enumerate(entries)
        ]
        pooling = {"word_embedding_dimension": config["hidden_size"], "pooling_mode_mean_tokens": True}
        documents = {
            "modules.json": listed,
            "1_Pooling/config.json": pooling,
            "tokenizer_config.json": {"tokenizer_class": "BertTokenizer"},
        }
        for name, value in documents.items():
            (temporary / name).parent.mkdir(exist_ok=True)
            (temporary / name).write_text(json.dumps(value), encoding="utf-8")
        (temporary / "2_Normalize").mkdir()
        temporary.rename(directory)
    return directory


def _word(index: int) -> str:
    """Letters that no other index has."""
    return "w" + "".join(chr(ord("a") + index // 26**place % 26) for place in range(4))


def _texts(vocabulary: int) -> list[str]:
    """Of the corpus' lengths, in any order, with a token at either end that the tokenizer adds."""
    random = np.random.default_rng(1)
    lengths = random.permutation(corpus_lengths(TEXTS, SHORTEST, LONGEST))
    words = vocabulary - len(SPECIAL)
    return [" ".join(map(_word, random.integers(0, words, length - 2))) for length in lengths]


def _threads(model: kaoken.BakedEncoder, texts: list[str]) -> Iterator[Kind]:
    """Those of this process."""
    ids = [model.tokenizer.encode(text).ids for text in texts]
    for name, given in (("ids", ids), ("texts", texts)):

        def alone(given: Any = given) -> float:
            return _seconds(lambda: model.encode(given))

        def together(given: Any = given) -> Turn:
            return _call_all(model, given)

        yield Kind(f"threads, {name}", os.getpid(), alone, together)


def _seconds(call: Callable[[], object]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def _call_all(model: kaoken.BakedEncoder, given: list[Any]) -> Turn:
    left = iter(given)

    def loop(_: int) -> list[float]:
        return [_seconds(lambda text=text: model.encode(text)) for text in left]  # type: ignore[misc]

    begin = time.perf_counter()
    with ThreadPoolExecutor(CALLERS) as pool:
        latencies = [latency for found in pool.map(loop, range(CALLERS)) for latency in found]
    return time.perf_counter() - begin, latencies


@contextmanager
def _server(library: Path, threads: int) -> Iterator[tuple[int, int] | None]:
    """The process and the port of examples/service; None without its requirements."""
    if any(find_spec(name) is None for name in ("fastapi", "orjson", "uvicorn")):
        yield None
        return
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    application = ["app:app", "--app-dir", str(ROOT / "examples" / "service")]
    command = [sys.executable, "-m", "uvicorn", *application, "--port", str(port), "--log-level", "warning"]
    environment = {**os.environ, "KAOKEN_MODEL": str(library), "KAOKEN_THREADS": str(threads)}
    with subprocess.Popen(command, env=environment) as process:
        try:
            _wait_for(port, process)
            yield process.pid, port
        finally:
            process.terminate()


def _wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    while process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return
        except OSError:
            time.sleep(0.05)
    raise SystemExit("examples/service ended before it answered")


def _connections(model: kaoken.BakedEncoder, texts: list[str], process: int, port: int) -> Iterator[Kind]:
    """To examples/service, beside a lone caller of this process."""
    for encoding in ("float", "base64"):
        bodies = [json.dumps({"texts": [text], "encoding": encoding}).encode() for text in texts]
        requests = [make_request("/encode", body) for body in bodies]

        def together(requests: list[bytes] = requests) -> Turn:
            return send_all(port, requests, CALLERS)

        yield Kind(f"HTTP, {encoding}", process, lambda: _seconds(lambda: model.encode(texts)), together)


def _measure(kind: Kind, rounds: int, say: Say) -> dict[str, Any]:
    kind.alone(), kind.together()
    alone, together, latencies = [], [], []
    for _ in range(rounds):
        alone.append(kind.alone())
        seconds, each = kind.together()
        together.append(seconds)
        latencies.append([1e3 * float(np.percentile(each, percent)) for percent in (50, 99)])
    with sampling(kind.process) as running:
        kind.together()
    ratio = summarize([a / b for a, b in zip(alone, together, strict=True)])
    middle, high = (summarize([found[index] for found in latencies]).median for index in (0, 1))
    say(
        f"{kind.name}: {TEXTS / summarize(together).median:.0f} texts/s, {ratio.median:.3f} ({ratio.low:.3f} to "
        f"{ratio.high:.3f}) of one caller's; p50 {middle:.1f} ms, p99 {high:.1f} ms; threads that run "
        f"{dict(sorted(running.items()))}"
    )
    return {
        "kind": kind.name,
        "alone_seconds": alone,
        "together_seconds": together,
        "p50_milliseconds": [found[0] for found in latencies],
        "p99_milliseconds": [found[1] for found in latencies],
        "running": {str(threads): running[threads] for threads in sorted(running)},
    }
