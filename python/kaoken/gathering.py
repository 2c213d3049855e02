"""Common passes: concurrent callers of one encoder share one call of the library.

Callers queue their texts, and one of them leads: it computes those of all that wait, gives each its rows, and goes on
with its own result; then the first that waits leads. So there is no thread beside the callers', and one call at a time
has all threads of the model. An example of three callers:

    A finds nobody computing and computes its text alone. Meanwhile B and C queue.
    A returns and wakes B, which computes the texts of B and C in one call, wakes C and returns.

Bits of a text do not depend on its company, so callers notice nothing of each other but the time.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from queue import SimpleQueue
from threading import get_ident
from weakref import WeakSet

import numpy as np
from numpy.typing import NDArray

MOST_TOKENS = 4096  # of a call of the library, but for a single longer text: others wait no longer than that takes
MOMENT = 1e-4  # seconds

Vectors = NDArray[np.float32]
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Texts:
    """Arguments of `_core.Session.encode`: ids of several texts one behind another, and what is asked of them."""

    lengths: Integers  # [texts]
    ids: Integers  # [sum of lengths]
    types: Integers | None = None  # [sum of lengths]
    hidden_states: bool = False
    counts: Integers | None = None  # [texts]
    positions: Integers | None = None  # [sum of counts]

    @property
    def kind(self) -> tuple[bool, bool, bool]:
        """Texts of one kind can be joined."""
        return self.hidden_states, self.types is None, self.counts is None

    def pieces(self, most: int) -> Iterator[Texts]:
        """In order, each of at most so many tokens or of a single text."""
        ends = np.cumsum(self.lengths)
        asked = None if self.counts is None else np.concatenate([[0], np.cumsum(self.counts)])
        first, begin = 0, 0
        while first < len(self.lengths):
            last = max(int(np.searchsorted(ends, begin + most, "right")), first + 1)
            end = int(ends[last - 1])
            piece = replace(self, lengths=self.lengths[first:last], ids=self.ids[begin:end])
            if self.types is not None:
                piece = replace(piece, types=self.types[begin:end])
            if asked is not None and self.counts is not None and self.positions is not None:
                positions = self.positions[asked[first] : asked[last]]
                piece = replace(piece, counts=self.counts[first:last], positions=positions)
            yield piece
            first, begin = last, end


def join(texts: Sequence[Texts]) -> Texts:
    """Those of several callers, which are of one kind, as those of one."""

    def joined(parts: list[Integers | None]) -> Integers | None:
        there = [part for part in parts if part is not None]
        return np.concatenate(there) if there else None

    return Texts(
        np.concatenate([each.lengths for each in texts]),
        np.concatenate([each.ids for each in texts]),
        joined([each.types for each in texts]),
        texts[0].hidden_states,
        joined([each.counts for each in texts]),
        joined([each.positions for each in texts]),
    )


@dataclass(eq=False)
class Call:
    """Texts of one caller, and how it learns what became of them."""

    texts: Texts
    rows: int  # of its outputs
    outputs: Vectors | None = None  # [rows, width]; where they are to be written, or None for a new array
    done: bool = False
    error: Exception | None = None
    thread: int = 0  # the caller's
    turn: SimpleQueue[None] = field(default_factory=SimpleQueue)  # something comes where the caller has to look again

    def finish(self, outputs: Vectors | None, error: Exception | None = None) -> None:
        """Tells the caller."""
        self.outputs, self.error, self.done = outputs, error, True
        self.turn.put(None)


# Computes texts, into an array where one is given: outputs [rows, width].
Compute = Callable[[Texts, "Vectors | None"], Vectors]


class Gatherer:
    """The queue of one model's callers.

    A caller may end at any line, by a KeyboardInterrupt or another asynchronous exception. So a call leaves the queue
    only once it is finished, whoever leads does so by an entry that its `finally` finds, and whoever ends wakes the
    next. Each step on the queue and on the entry is one operation of a dict, which is atomic.
    """

    def __init__(self) -> None:
        self.begin_anew()
        _gatherers.add(self)

    def begin_anew(self) -> None:
        """Forgets callers, which are threads of the parent where the process was forked."""
        self._waiting: dict[Call, None] = {}  # in their order
        self._leader: dict[str, Call] = {}  # "leader" is the one that computes, if any
        self._expected = 1  # callers: those of the last pass, and those that waited at its end

    def run(self, call: Call, compute: Compute) -> Vectors:
        """Outputs [rows, width] of a call's texts. Raises what `compute` raises of these texts alone."""
        call.thread = get_ident()
        leader = self._leader.get("leader")
        if leader is not None and leader.thread == call.thread:  # a signal handler in the leader's call, or a finalizer
            return compute(call.texts, call.outputs)
        try:
            self._waiting[call] = None
            while not call.done:
                if self._leader.setdefault("leader", call) is call:
                    self._lead(compute)
                else:
                    call.turn.get()
        finally:
            try:
                self._leave(call)
            except BaseException:  # an interrupt in there: others would wait for ever
                self._leave(call)
                raise
        if call.error is not None:
            raise call.error
        assert call.outputs is not None
        return call.outputs

    def _lead(self, compute: Compute) -> None:
        """Finishes the first of those that wait, and its company."""
        self._expect_others()
        calls = self._first_company()
        self._answer(calls, compute)
        self._expected = len(calls) + len(self._waiting)

    def _answer(self, calls: Sequence[Call], compute: Compute) -> None:
        """Computes calls together, or each by itself where that fails."""
        if len(calls) > 1:
            try:
                outputs = compute(join([call.texts for call in calls]), None)
            except Exception:  # such as too little memory for all at once
                pass
            else:
                ends = np.cumsum([call.rows for call in calls])
                for call, end in zip(calls, ends, strict=True):
                    self._finish(call, _own(outputs[end - call.rows : end], call.outputs))
                return
        for call in calls:
            try:
                outputs = compute(call.texts, call.outputs)
            except Exception as error:
                self._finish(call, None, error)
            else:
                self._finish(call, outputs)

    def _expect_others(self) -> None:
        """Waits for callers of the last pass, which often have a next text at once, as long as one comes each moment.

        Else two groups would take turns, and what one does between its calls would take cores from the other's pass.
        """
        before = 0
        while before < len(self._waiting) < self._expected:
            before = len(self._waiting)
            time.sleep(MOMENT)

    def _first_company(self) -> list[Call]:
        """Calls of the kind of the first that waits, as far as MOST_TOKENS reach."""
        first, *others = list(self._waiting)
        company, tokens = [first], len(first.texts.ids)
        for call in others:
            if call.texts.kind == first.texts.kind:
                tokens += len(call.texts.ids)
                if tokens > MOST_TOKENS:
                    break
                company.append(call)
        return company

    def _finish(self, call: Call, outputs: Vectors | None, error: Exception | None = None) -> None:
        call.finish(outputs, error)
        self._waiting.pop(call, None)

    def _leave(self, call: Call) -> None:
        """Lets the next lead, where nobody does. May be called twice."""
        self._waiting.pop(call, None)
        if self._leader.get("leader") is call:
            del self._leader["leader"]
        if not self._leader:
            for following in list(self._waiting)[:1]:
                following.turn.put(None)


def _own(rows: Vectors, outputs: Vectors | None) -> Vectors:
    """A copy, so that one caller's result does not keep those of all."""
    if outputs is None:
        return rows.copy()
    np.copyto(outputs, rows)
    return outputs


_gatherers: WeakSet[Gatherer] = WeakSet()


def _after_fork() -> None:
    for gatherer in list(_gatherers):
        gatherer.begin_anew()


os.register_at_fork(after_in_child=_after_fork)
