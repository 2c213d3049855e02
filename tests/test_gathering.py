"""Concurrent callers of one encoder: common passes, the same bits as alone, errors and interrupts of one, and forks."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import kaoken
from children import fork, in_child
from kaoken import encoder, gathering
from kaoken.gathering import Call, Gatherer, Texts, join
from native_build import bake_together
from oracles import bert, sentence
from test_texts import MODEL_CONFIGS

PATIENCE = 20.0  # seconds after which something hangs


def texts_of(*lists: list[int], **options: Any) -> Texts:
    return Texts(np.array([len(ids) for ids in lists]), np.concatenate(lists), **options)


def vectors_of(texts: Texts) -> NDArray[np.float32]:
    """What `Slow` makes of texts: [texts, 2]."""
    sums = np.add.reduceat(texts.ids, np.cumsum(texts.lengths) - texts.lengths)
    return np.stack([sums, texts.lengths], 1).astype(np.float32)


class Slow:
    """A model whose first call lasts until `go` is set; `calls` are the texts of each call."""

    def __init__(self, fails: Callable[[Texts], BaseException | None] = lambda texts: None) -> None:
        self.calls: list[Texts] = []
        self.started, self.go = threading.Event(), threading.Event()
        self.fails = fails

    def __call__(self, texts: Texts, outputs: NDArray[np.float32] | None) -> NDArray[np.float32]:
        self.calls.append(texts)
        if len(self.calls) == 1:
            self.started.set()
            assert self.go.wait(PATIENCE)
        if error := self.fails(texts):
            raise error
        found = vectors_of(texts)
        if outputs is None:
            return found
        outputs[:] = found
        return outputs


class Callers:
    """Threads that call one gatherer; the first computes when the others come."""

    def __init__(self, model: Slow) -> None:
        self.model, self.gatherer = model, Gatherer()
        self.pool = ThreadPoolExecutor(32)
        self.results = [self.start(texts_of([1, 2]))]
        assert model.started.wait(PATIENCE)

    def start(self, texts: Texts) -> Future[Any]:
        return self.pool.submit(self.gatherer.run, Call(texts, len(texts.lengths)), self.model)

    def add(self, texts: Texts) -> None:
        """Returns once it waits, so that callers have an order."""
        waiting = len(self.gatherer._waiting)
        self.results.append(self.start(texts))
        wait_until(lambda: len(self.gatherer._waiting) > waiting)

    def finish(self) -> list[Any]:
        """Results, or errors."""
        self.model.go.set()
        found = [result.exception(PATIENCE) or result.result() for result in self.results]
        self.pool.shutdown()
        assert not self.gatherer._waiting
        assert not self.gatherer._leader
        return found


def wait_until(reached: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not reached():
        assert time.monotonic() < end, "it hangs"
        time.sleep(0.001)


def test_those_that_wait_share_the_next_call() -> None:
    model = Slow()
    callers = Callers(model)
    given = [texts_of([1, 2]), *(texts_of([index], [index, 7]) for index in range(15))]
    for texts in given[1:]:
        callers.add(texts)
    for found, texts in zip(callers.finish(), given, strict=True):
        np.testing.assert_array_equal(found, vectors_of(texts))
        assert found.base is None, "a view would keep the results of all"
    assert [len(texts.lengths) for texts in model.calls] == [1, 30]


def test_kinds_are_not_mixed() -> None:
    model = Slow()
    callers = Callers(model)
    types, positions = np.zeros(2, np.int64), {"counts": np.array([1]), "positions": np.array([1])}
    kinds: list[dict[str, Any]] = [{}, {"hidden_states": True}, {"types": types}, positions]
    for number in range(8):
        callers.add(texts_of([number, 1], **kinds[number % 4]))
    callers.finish()
    assert [(len(texts.lengths), texts.kind) for texts in model.calls[1:]] == [
        (2, texts_of([1, 1], **kind).kind) for kind in kinds
    ]


def test_a_call_of_the_library_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gathering, "MOST_TOKENS", 10)
    model = Slow()
    callers = Callers(model)
    for length in (4, 4, 4, 30, 1):
        callers.add(texts_of([1] * length))
    callers.finish()
    assert [texts.lengths.tolist() for texts in model.calls] == [[2], [4, 4], [4], [30], [1]]


def test_an_error_is_that_of_one() -> None:
    """Texts of the others are computed all the same."""
    model = Slow(lambda texts: MemoryError("13 is too much") if 13 in texts.ids else None)
    callers = Callers(model)
    for number in (12, 13, 14):
        callers.add(texts_of([number]))
    first, twelve, thirteen, fourteen = callers.finish()
    assert isinstance(thirteen, MemoryError)
    for found, number in ((first, 3), (twelve, 12), (fourteen, 14)):
        assert found[0, 0] == number


def test_who_leads_may_be_interrupted() -> None:
    """The next computes the texts of all that wait."""
    interrupts = iter([None, KeyboardInterrupt()])
    model = Slow(lambda texts: next(interrupts, None))
    callers = Callers(model)
    for number in (12, 13, 14):
        callers.add(texts_of([number]))
    _, *found = callers.finish()
    assert isinstance(found[0], KeyboardInterrupt)
    assert [each[0, 0] for each in found[1:]] == [13, 14]
    assert [len(texts.lengths) for texts in model.calls] == [1, 3, 2]


def test_who_waits_may_be_interrupted() -> None:
    model = Slow()
    callers = Callers(model)
    main = threading.main_thread().ident
    assert main is not None

    def interrupt() -> None:
        wait_until(lambda: len(callers.gatherer._waiting) == 2)
        time.sleep(0.05)
        signal.pthread_kill(main, signal.SIGINT)

    interrupting = threading.Thread(target=interrupt)
    interrupting.start()
    with pytest.raises(KeyboardInterrupt):
        callers.gatherer.run(Call(texts_of([5]), 1), model)
    interrupting.join()
    callers.add(texts_of([6]))
    assert [each[0, 0] for each in callers.finish()] == [3, 6]
    assert [len(texts.lengths) for texts in model.calls] == [1, 1]


def test_who_is_to_lead_may_be_interrupted() -> None:
    """It was woken and ends before it looks: the next is woken in its place."""
    gatherer, model = Gatherer(), Slow()
    model.go.set()
    gone = Call(texts_of([5]), 1)
    gatherer._waiting[gone] = None  # as of a caller that was interrupted on its way
    gone.turn.put(None)
    with ThreadPoolExecutor(1) as pool:
        gatherer._leader["leader"] = gone
        result = pool.submit(gatherer.run, Call(texts_of([6]), 1), model)
        wait_until(lambda: len(gatherer._waiting) == 2)
        gatherer._leave(gone)
        assert result.result(PATIENCE)[0, 0] == 6


def test_who_leaves_may_be_interrupted() -> None:
    class Interrupted(Gatherer):
        interrupts = 1

        def _leave(self, call: Call) -> None:
            if self.interrupts:
                self.interrupts = 0
                raise KeyboardInterrupt
            super()._leave(call)

    gatherer, model = Interrupted(), Slow()
    model.go.set()
    with pytest.raises(KeyboardInterrupt):
        gatherer.run(Call(texts_of([5]), 1), model)
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(gatherer.run, Call(texts_of([6]), 1), model).result(PATIENCE)[0, 0] == 6


def test_a_call_within_a_call_is_computed_at_once() -> None:
    """A signal handler may call the model whose call it interrupts."""
    gatherer = Gatherer()

    def outer(texts: Texts, outputs: NDArray[np.float32] | None) -> NDArray[np.float32]:
        inner = gatherer.run(Call(texts_of([5]), 1), lambda texts, outputs: vectors_of(texts))
        np.testing.assert_array_equal(inner, [[5, 1]])
        return vectors_of(texts)

    found = in_thread(lambda: gatherer.run(Call(texts_of([1, 2]), 1), outer))
    np.testing.assert_array_equal(found, [[3, 2]])
    np.testing.assert_array_equal(gatherer.run(Call(texts_of([7]), 1), outer), [[7, 1]])


def in_thread(call: Callable[[], Any]) -> Any:
    """What a call gives, which may hang."""
    return ThreadPoolExecutor(1).submit(call).result(PATIENCE)


def test_callers_that_come_again_are_expected() -> None:
    """Sixteen that call in a loop share nearly every call, rather than two groups taking turns."""
    gatherer, model = Gatherer(), Slow()
    model.go.set()

    def compute(texts: Texts, outputs: Any) -> NDArray[np.float32]:
        time.sleep(0.005)
        return model(texts, outputs)

    with ThreadPoolExecutor(16) as pool:
        loops = [
            pool.submit(lambda: [gatherer.run(Call(texts_of([1]), 1), compute) for _ in range(20)]) for _ in range(16)
        ]
        assert all(len(loop.result(PATIENCE)) == 20 for loop in loops)
    assert sum(len(texts.lengths) for texts in model.calls) == 320
    assert len(model.calls) < 160


@fork
def test_a_child_begins_anew() -> None:
    """Whatever the parent's threads were at when it forked."""
    model = Slow()
    callers = Callers(model)
    callers.add(texts_of([4]))
    assert in_child(lambda: str(callers.gatherer.run(Call(texts_of([9]), 1), model)[0, 0]).encode()) == b"9.0"
    assert [each[0, 0] for each in callers.finish()] == [3, 4]


def test_pieces_are_the_whole() -> None:
    random = np.random.default_rng(1)
    lengths = random.integers(1, 30, 40)
    counts = random.integers(0, 3, 40)
    ids, types = random.integers(0, 9, (2, int(lengths.sum())))
    whole = Texts(lengths, ids, types, False, counts, random.integers(0, 9, int(counts.sum())))
    for most in (1, 30, 100, 10**6):
        pieces = list(whole.pieces(most))
        assert all(len(piece.ids) <= most or len(piece.lengths) == 1 for piece in pieces)
        again = join(pieces)
        for name in ("lengths", "ids", "types", "counts", "positions"):
            np.testing.assert_array_equal(getattr(again, name), getattr(whole, name))


# Models


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    root = tmp_path_factory.mktemp("callers")
    directories = {
        "vectors": sentence.write(root / "vectors"),
        "labels": bert.write(root / "labels", {**bert.TINY, **MODEL_CONFIGS["labels"]}),
        "masked": bert.write(root / "masked", {**bert.TINY, **MODEL_CONFIGS["masked"]}),
    }
    for directory in directories.values():
        sentence.write_vocabulary(directory, tokenizer_class="BertTokenizer")
    libraries = bake_together(root, {name: (directory, "ISA native") for name, directory in directories.items()})
    return {name: kaoken.load(library, threads=2) for name, library in libraries.items()}


def id_lists() -> list[list[int]]:
    random = np.random.default_rng(2)
    return [random.integers(5, 60, length).tolist() for length in (1, 3, 17, 64, 65, 140) * 4]


WORK: list[tuple[str, Callable[[Any, list[int]], Any]]] = [
    ("vectors", lambda model, ids: model.encode(ids)),
    ("vectors", lambda model, ids: model.encode(["ada lives", "in london ."] * len(ids))),
    ("vectors", lambda model, ids: model.hidden_states([ids, ids[:2]])),
    ("vectors", lambda model, ids: model.hidden_states(ids, token_type_ids=[1] * len(ids))),
    ("labels", lambda model, ids: model.logits(ids)),
    ("labels", lambda model, ids: [label["score"] for label in model.classify([ids, ids])]),
    ("masked", lambda model, ids: model.logits(ids)),
    ("masked", lambda model, ids: [found["score"] for found in model.fill_mask("ada [MASK] london", top_k=3)]),
]


def flat(result: Any) -> NDArray[Any]:
    return np.concatenate([np.ravel(part) for part in result]) if isinstance(result, list) else np.ravel(result)


def test_many_callers_get_the_bits_of_one(models: dict[str, Any]) -> None:
    """Of all kinds of calls at once."""
    jobs = [(models[name], call, ids) for ids in id_lists() for name, call in WORK]
    expected = [flat(call(model, ids)) for model, call, ids in jobs]
    with ThreadPoolExecutor(16) as pool:
        found = pool.map(lambda job: flat(job[1](job[0], job[2])), jobs)
    for one, other in zip(expected, found, strict=True):
        np.testing.assert_array_equal(one, other)


def test_long_calls_go_in_pieces(models: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    ids = id_lists()

    def results() -> list[NDArray[Any]]:
        vectors, masked = models["vectors"], models["masked"]
        return [vectors.encode(ids), flat(vectors.hidden_states(ids)), flat(masked.logits(ids))]

    expected = results()
    for module in (encoder, gathering):
        monkeypatch.setattr(module, "MOST_TOKENS", 150)
    for one, other in zip(expected, results(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_wrong_call_beside_others(models: dict[str, Any]) -> None:
    model = models["vectors"]
    expected = model.encode([1, 2, 3])

    def call(number: int) -> Any:
        return model.encode([1, 2, 10**6] if number % 4 == 0 else [1, 2, 3])

    with ThreadPoolExecutor(8) as pool:
        results = [pool.submit(call, number) for number in range(64)]
    for number, result in enumerate(results):
        if number % 4 == 0:
            assert isinstance(result.exception(), kaoken.InputError)
        else:
            np.testing.assert_array_equal(result.result(), expected)


@fork
def test_a_child_encodes_while_others_call(models: dict[str, Any]) -> None:
    model = models["vectors"]
    expected = model.encode([1, 2, 3]).tobytes()
    stop = threading.Event()

    def loop() -> None:
        while not stop.is_set():
            model.encode([4] * 100)

    with ThreadPoolExecutor(4) as pool:
        for _ in range(4):
            pool.submit(loop)
        try:
            for _ in range(5):
                assert in_child(lambda: model.encode([1, 2, 3]).tobytes()) == expected
        finally:
            stop.set()
