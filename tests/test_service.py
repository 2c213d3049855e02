"""examples/service: vectors and scores over HTTP are those of the model."""

from __future__ import annotations

import base64
import importlib.util
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kaoken
from native_build import SOURCE, bake_together
from oracles import bert, sentence
from test_texts import MODEL_CONFIGS

pytestmark = pytest.mark.ci

for package in ("fastapi", "orjson"):
    pytest.importorskip(package)
testclient = pytest.importorskip("fastapi.testclient", exc_type=(ImportError, RuntimeError))

TEXTS = ["ada lives", "in london .", "a b c", "x"]


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("service")
    directories = {
        "vectors": sentence.write(root / "vectors"),
        "ranker": bert.write(root / "ranker", {**bert.TINY, **MODEL_CONFIGS["ranker"]}),
    }
    for directory in directories.values():
        sentence.write_vocabulary(directory, tokenizer_class="BertTokenizer")
    return bake_together(root, {name: (directory, "ISA native") for name, directory in directories.items()})


@pytest.fixture
def serve(libraries: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """`serve(name)` is a client of the application with that model."""

    def serve(name: str) -> Any:
        monkeypatch.setenv("KAOKEN_MODEL", str(libraries[name]))
        spec = importlib.util.spec_from_file_location("app", SOURCE / "examples" / "service" / "app.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return testclient.TestClient(module.app)

    return serve


def test_vectors(serve: Callable[[str], Any], libraries: dict[str, Path]) -> None:
    expected = kaoken.load(libraries["vectors"]).encode(TEXTS)
    client = serve("vectors")
    answered = client.post("/encode", json={"texts": TEXTS})
    assert answered.status_code == 200
    np.testing.assert_array_equal(np.array(answered.json()["vectors"], np.float32), expected)
    for text in client.post("/encode", json={"texts": TEXTS[:1], "encoding": "base64"}).json()["vectors"]:
        np.testing.assert_array_equal(np.frombuffer(base64.b64decode(text), "<f4"), expected[0])
    assert client.get("/health").json()["task"] == "sentence-similarity"
    assert client.post("/score", json={"query": "a", "documents": ["b"]}).status_code == 404


def test_many_requests_at_once(serve: Callable[[str], Any], libraries: dict[str, Path]) -> None:
    expected = kaoken.load(libraries["vectors"]).encode(TEXTS)
    with serve("vectors") as client, ThreadPoolExecutor(8) as threads:
        found = threads.map(lambda text: client.post("/encode", json={"texts": [text]}).json(), TEXTS * 8)
        for index, answer in enumerate(found):
            np.testing.assert_array_equal(np.array(answer["vectors"][0], np.float32), expected[index % len(TEXTS)])


def test_scores(serve: Callable[[str], Any], libraries: dict[str, Path]) -> None:
    expected = kaoken.load(libraries["ranker"]).score([("ada", text) for text in TEXTS])
    answered = serve("ranker").post("/score", json={"query": "ada", "documents": TEXTS})
    np.testing.assert_array_equal(np.array(answered.json()["scores"], np.float32), expected)


def test_what_the_model_does_not_take_is_422(serve: Callable[[str], Any]) -> None:
    client = serve("vectors")
    surrogate = client.post(
        "/encode", content=b'{"texts": ["a \\ud800"]}', headers={"Content-Type": "application/json"}
    )
    assert surrogate.status_code == 422
    for body in ({"texts": []}, {"texts": "a"}, {"texts": [1]}, {"texts": ["a"], "encoding": "int8"}):
        assert client.post("/encode", json=body).status_code == 422
