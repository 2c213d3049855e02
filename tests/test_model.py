"""The compiled model: its numbers against the oracle, and its promises of bits, threads, forks and ISAs."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from kaoken.codegen.isa import resolve
from numpy.typing import NDArray

import reference
from bits import decode, random_splits, require_decode_equals_prefill, require_same_bits
from checkpoints import make_tensors
from children import fork, in_child
from configurations import CONFIGURATIONS
from conftest import Bake, Baked, Checkpoints, LibraryOf, RecordError, some_only_in_ci
from oracle import open_oracle

if TYPE_CHECKING:
    from kaoken import BakedGPT2

Ids = NDArray[np.int64]
Logits = NDArray[np.float32]

# Between them: heads of 16, 12, 7 and 72, odd sizes, blocks that differ, and many attention tiles.
BITWISE = ("plain", "heads_of_12", "odd_width", "wide_head", "heads_of_64", "irregular", "long_context")

# What others have too, or almost: these are baked in continuous integration alone.
ONLY_IN_CI = {
    "heads_of_12",
    "wide_head",
    "one_layer",
    "inverse_layer_scale",
    "unscaled",
    "large_epsilon",
    "reordered",
    "float16",
    "sharded",
    "old_names",
    "pruned",
}


# Six prompts of one length, whose first line breaks come after 0, 1, 2, 11, 23 and 34 further bytes.
PROMPTS = [list(text) for text in (b"ROMEO:", b"JULIET", b"Citize", b"\n\nKING", b"Enter ", b"the ho")]


def bundled_ids(model: BakedGPT2, batch: int = 1) -> Ids:
    """Trained text [batch, n_positions], each row a different stretch of it."""
    prompt, tokens = next(iter(reference.greedy().items()))
    text = np.array([*prompt.encode(), *tokens] * 2, dtype=np.int64)
    return np.stack([text[row : row + model.config.n_positions] for row in range(batch)])


# What the model computes


@pytest.mark.parametrize("name", some_only_in_ci(CONFIGURATIONS, ONLY_IN_CI))
def test_logits_equal_the_oracle(name: str, checkpoints: Checkpoints, baked: Baked, record_error: RecordError) -> None:
    ids = CONFIGURATIONS[name].ids()
    logits = baked(name).logits(ids)
    error = reference.relative_error(open_oracle(checkpoints(name)).logits(ids), logits)
    record_error("logits against the float64 oracle", error)
    assert logits.dtype == np.float32
    assert error < reference.LIMIT


@pytest.mark.parametrize("name", some_only_in_ci(reference.comparable(), ONLY_IN_CI))
def test_logits_equal_transformers(
    name: str, checkpoints: Checkpoints, baked: Baked, record_error: RecordError
) -> None:
    stored = reference.read(name)
    stored.require_checkpoint(checkpoints(name))
    error = reference.relative_error(stored.logits, baked(name).logits(stored.ids)[:, stored.positions])
    record_error("logits against transformers' stored float32", error)
    assert error < reference.LIMIT


def test_logits_of_the_bundled_model(bundled: BakedGPT2, bundled_directory: Path, record_error: RecordError) -> None:
    stored = reference.read(reference.BUNDLED)
    stored.require_checkpoint(bundled_directory)
    error = reference.relative_error(stored.logits, bundled.logits(stored.ids)[:, stored.positions])
    record_error("logits against transformers' stored float32", error)
    assert error < reference.LIMIT


def test_logits_of_the_bundled_model_equal_the_oracle_over_the_whole_context(
    bundled: BakedGPT2, bundled_directory: Path, record_error: RecordError
) -> None:
    ids = bundled_ids(bundled, batch=2)
    error = reference.relative_error(open_oracle(bundled_directory).logits(ids), bundled.logits(ids))
    record_error("logits against the float64 oracle", error)
    assert error < reference.LIMIT


@pytest.mark.parametrize("prompt", reference.greedy())
def test_200_greedy_tokens_equal_transformers(
    prompt: str, bundled: BakedGPT2, bundled_directory: Path, record_property: Callable[[str, object], None]
) -> None:
    ids, expected = list(prompt.encode()), reference.greedy()[prompt]
    margins = open_oracle(bundled_directory).greedy(ids, 200).margins
    record_property("smallest_margin_in_float64", min(margins))
    tokens = bundled.generate(ids, max_new_tokens=200, eos_token_id=None)[0, len(ids) :]
    reference.require_same_greedy(tokens.tolist(), expected, margins)


# The same bits, however it is asked


@pytest.mark.parametrize("name", some_only_in_ci(BITWISE, ONLY_IN_CI))
def test_decode_equals_prefill(name: str, baked: Baked) -> None:
    ids = CONFIGURATIONS[name].ids()
    require_decode_equals_prefill(baked(name), ids, range(1, ids.shape[1]))


@pytest.mark.parametrize("name", some_only_in_ci(BITWISE, ONLY_IN_CI))
@pytest.mark.parametrize("seed", range(4))
def test_any_split_of_the_prompt_gives_the_same_bits(name: str, seed: int, baked: Baked) -> None:
    ids = CONFIGURATIONS[name].ids(batch=1 + seed)
    require_decode_equals_prefill(baked(name), ids, random_splits(ids.shape[1], seed))


def test_decode_equals_prefill_on_the_bundled_model(bundled: BakedGPT2) -> None:
    ids = bundled_ids(bundled)
    require_decode_equals_prefill(bundled, ids, range(1, ids.shape[1]))
    require_decode_equals_prefill(bundled, ids, random_splits(ids.shape[1], 5))


@pytest.mark.parametrize("name", some_only_in_ci(BITWISE, ONLY_IN_CI))
def test_a_prefix_has_the_same_bits_as_the_whole(name: str, baked: Baked) -> None:
    ids = CONFIGURATIONS[name].ids()
    logits = baked(name).logits(ids)
    for count in {1, 2, 3, 15, 16, 17, 31, 33, 65, 256, 257} & set(range(ids.shape[1])):
        require_same_bits(baked(name).logits(ids[:, :count]), logits[:, :count])


@pytest.mark.parametrize("name", some_only_in_ci(BITWISE, ONLY_IN_CI))
def test_the_batch_around_a_row_does_not_change_its_bits(name: str, baked: Baked) -> None:
    ids = CONFIGURATIONS[name].ids(batch=17)[:, :70]
    alone = baked(name).logits(ids[:1])
    for batch in (3, 9, 17):
        for row in (0, batch // 2, batch - 1):
            rows = np.roll(ids[:batch], row, axis=0)
            require_same_bits(baked(name).logits(rows)[row : row + 1], alone)


@pytest.mark.parametrize("name", some_only_in_ci(BITWISE, ONLY_IN_CI))
def test_the_number_of_threads_does_not_change_a_bit(name: str, library_of: LibraryOf) -> None:
    from kaoken import load

    path, ids = library_of(name), CONFIGURATIONS[name].ids(batch=3)
    splits = random_splits(ids.shape[1], 7)
    one, *others = (load(path, threads=threads) for threads in (1, 2, 3, 4))
    for model, threads in zip(others, (2, 3, 4), strict=True):
        assert model.session().threads == threads
        require_same_bits(model.logits(ids), one.logits(ids))
        for last, expected in zip(decode(model, ids, splits), decode(one, ids, splits), strict=True):
            require_same_bits(last, expected)


@pytest.mark.parametrize("name", some_only_in_ci(BITWISE, ONLY_IN_CI))
def test_rewind_leaves_nothing_behind(name: str, baked: Baked) -> None:
    ids, others = CONFIGURATIONS[name].ids(batch=2), CONFIGURATIONS[name].ids(batch=4)[2:]
    session = baked(name).session(2)
    session.append(others)
    for kept in (ids.shape[1] - 1, 17, 1, 0):
        session.rewind(0)
        session.append(np.concatenate([ids[:, :kept], others[:, kept:]], axis=1))
        session.rewind(kept)
        assert session.length == kept
        require_same_bits(session.append(ids[:, kept : kept + 3]), baked(name).logits(ids[:, : kept + 3])[:, -1])


# Instruction sets

ISAS: dict[str, dict[str, list[str]]] = json.loads(
    (Path(__file__).parent.parent / "cmake" / "isas.json").read_text(encoding="utf-8")
)

RUN_WITH_ONE_ISA = """
import json, sys
import numpy as np
import kaoken

library, ids_file, output_file = sys.argv[1:]
ids = np.load(ids_file)
try:
    model = kaoken.BakedGPT2(library or None, threads=2)
    session = model.session(len(ids))
    steps = [session.append(ids[:, [position]]) for position in range(ids.shape[1])]
except kaoken.ISAError as error:
    sys.exit(f"ISAError: {error}")
np.savez(output_file, prefill=model.logits(ids), decode=np.stack(steps, axis=1), row=model.logits(ids[1:2]))
print(json.dumps({"executed": session.executed_isa, "isa": model.info.isa}))
"""


def runs_here(isa: str) -> bool:
    """Whether this machine has an ISA, by its own word rather than the library's."""
    if ISAS[isa]["machines"] and platform.machine() not in ISAS[isa]["machines"]:
        return False
    return not ISAS[isa]["cpu"] or set(ISAS[isa]["cpu"]) <= cpu_flags()


def cpu_flags() -> set[str]:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return {flag.replace("_", "") for line in lines if line.startswith("flags") for flag in line.split(":")[1].split()}


def run_with_one_isa(isa: str, library: Path | None, ids: Ids, directory: Path) -> subprocess.CompletedProcess[str]:
    """Runs a model in a process of its own under KAOKEN_ISA; the logits are left in output.npz."""
    np.save(directory / "ids.npy", ids)
    arguments = [str(library or ""), str(directory / "ids.npy"), str(directory / "output.npz")]
    return subprocess.run(
        [sys.executable, "-c", RUN_WITH_ONE_ISA, *arguments],
        env={**os.environ, "KAOKEN_ISA": isa},
        capture_output=True,
        text=True,
        timeout=120,
    )


def require_isa(
    isa: str, library: Path | None, inside: Sequence[str], ids: Ids, directory: Path
) -> dict[str, Logits] | None:
    """The logits that an ISA gave, with proof that it ran; None where it is rightly refused."""
    result = run_with_one_isa(isa, library, ids, directory)
    if isa not in inside or not runs_here(isa):
        assert result.returncode != 0
        assert result.stderr.startswith("ISAError: "), result.stderr
        assert isa in result.stderr
        return None
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) == {"executed": isa, "isa": isa}
    with np.load(directory / "output.npz") as arrays:
        return dict(arrays)


def require_one_isa_is_right(logits: dict[str, Logits], expected: NDArray[np.float64]) -> float:
    require_same_bits(logits["decode"], logits["prefill"])
    require_same_bits(logits["row"], logits["prefill"][1:2])
    error = reference.relative_error(expected, logits["prefill"])
    assert error < reference.LIMIT
    return error


@pytest.mark.parametrize("isa", ISAS)
def test_each_isa_of_the_default_library(
    isa: str, bundled: BakedGPT2, bundled_directory: Path, tmp_path: Path, record_error: RecordError
) -> None:
    ids = bundled_ids(bundled, batch=2)[:, :100]
    logits = require_isa(isa, None, bundled.info.isas, ids, tmp_path)
    if logits is not None:
        error = require_one_isa_is_right(logits, open_oracle(bundled_directory).logits(ids))
        record_error("logits of each ISA against the oracle", error)


@pytest.mark.ci
@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_overflow_stays_visible_on_each_isa(dtype: str, bake_checkpoint: Bake, tmp_path: Path) -> None:
    """Where float64 is still finite, the variance of what the first MLP adds is beyond float32."""
    plain = CONFIGURATIONS["plain"]
    weight = 1e30 * make_tensors(plain.config)["h.0.mlp.c_fc.weight"]
    checkpoint = plain.write(tmp_path / "model", {"h.0.mlp.c_fc.weight": weight})
    assert np.isfinite(open_oracle(checkpoint).logits(plain.ids())).all()
    isas = [isa for isa in resolve("portable", dtypes={dtype}) if runs_here(isa)]
    library = bake_checkpoint(checkpoint, dtype=dtype, isa=",".join(isas))
    for isa in isas:
        logits = require_isa(isa, library, isas, plain.ids(), tmp_path)
        assert logits is not None
        assert all(np.isnan(values).all() for values in logits.values()), isa


@pytest.mark.ci
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", ["odd_width", "irregular"])
def test_each_isa_of_a_portable_library(
    isa: str,
    name: str,
    checkpoints: Checkpoints,
    bake_checkpoint: Bake,
    tmp_path: Path,
    record_error: RecordError,
) -> None:
    library = bake_checkpoint(checkpoints(name), isa="portable")
    machine = platform.machine()
    inside = [
        each
        for each, row in ISAS.items()
        if machine in (row["machines"] or [machine]) and "float32" in (row["products"] or ["float32"])
    ]
    ids = CONFIGURATIONS[name].ids(batch=3)
    logits = require_isa(isa, library, inside, ids, tmp_path)
    if logits is not None:
        error = require_one_isa_is_right(logits, open_oracle(checkpoints(name)).logits(ids))
        record_error("logits of each ISA against the oracle", error)


def test_at_least_the_scalar_isa_runs_everywhere(bundled: BakedGPT2) -> None:
    assert bundled.info.isa in bundled.info.isas
    assert runs_here(bundled.info.isa)
    session = bundled.session()
    assert session.executed_isa == ""
    session.append([1])
    assert session.executed_isa == bundled.info.isa


# Threads and processes


def in_thread(work: Callable[[], Any]) -> Callable[[], Any]:
    """Starts work in a thread; the returned function waits for its result, or raises what it raised."""
    outcome: list[Any] = []

    def run() -> None:
        try:
            outcome.append((work(), None))
        except BaseException as error:
            outcome.append((None, error))

    thread = threading.Thread(target=run)
    thread.start()

    def wait() -> Any:
        thread.join(timeout=120)
        assert not thread.is_alive(), "a thread did not finish within two minutes"
        result, error = outcome[0]
        if error is not None:
            raise error
        return result

    return wait


@pytest.mark.parametrize("threads", [1, 2])
def test_two_sessions_in_two_threads_give_right_results(threads: int) -> None:
    from kaoken import BakedGPT2

    model = BakedGPT2(threads=threads)
    expected = [model.generate(prompt, max_new_tokens=60, eos_token_id=None) for prompt in PROMPTS[:2]]

    def work(row: int) -> list[Ids]:
        return [model.generate(PROMPTS[row], max_new_tokens=60, eos_token_id=None) for _ in range(5)]

    waits = [in_thread(lambda row=row: work(row)) for row in range(2)]  # type: ignore[misc]
    for wait, tokens in zip(waits, expected, strict=True):
        for result in wait():
            assert result.tolist() == tokens.tolist()


def test_short_calls_finish_while_another_thread_is_inside_a_long_one() -> None:
    from kaoken import BakedGPT2

    model = BakedGPT2(threads=1)
    ids = bundled_ids(model, batch=32)
    started, finished = threading.Event(), threading.Event()

    def long_call() -> None:
        session = model.session(len(ids))
        started.set()
        session.append(ids)
        finished.set()

    wait, calls = in_thread(long_call), 0
    started.wait(timeout=60)
    while calls < 3 and not finished.is_set():
        model.logits([1])
        calls += not finished.is_set()
    wait()
    assert calls == 3, f"{calls} short calls returned before the long one did"


@fork
@pytest.mark.parametrize("threads", [1, 2, 4])
def test_a_session_goes_on_in_a_forked_child(threads: int) -> None:
    from kaoken import BakedGPT2

    model = BakedGPT2(threads=threads)
    ids = bundled_ids(model)[:, :80]
    expected = model.logits(ids)[:, -1].tobytes()
    session = model.session()
    session.append(ids[:, :50])
    assert in_child(lambda: session.append(ids[:, 50:]).tobytes()) == expected
    assert session.length == 50
    assert session.append(ids[:, 50:]).tobytes() == expected, "the child's work reached the parent's session"


@fork
def test_a_child_forked_while_the_parent_generates_can_generate() -> None:
    from kaoken import BakedGPT2

    model = BakedGPT2(threads=2)
    expected = model.generate(PROMPTS[0], max_new_tokens=30, eos_token_id=None)
    stop = threading.Event()

    def keep_generating() -> list[Ids]:
        results = []
        while not stop.is_set():
            results.append(model.generate(PROMPTS[0], max_new_tokens=30, eos_token_id=None))
        return results

    def generate() -> bytes:
        return model.generate(PROMPTS[0], max_new_tokens=30, eos_token_id=None).tobytes()

    wait = in_thread(keep_generating)
    try:
        answers = [in_child(generate) for _ in range(10)]
    finally:
        stop.set()
    assert set(answers) == {expected.tobytes()}
    assert {result.tobytes() for result in wait()} == {expected.tobytes()}


def run_python(code: str, **environment: str) -> str:
    """What a Python process prints, with the environment changed; KAOKEN_THREADS is unset unless given."""
    inherited = {key: value for key, value in os.environ.items() if key != "KAOKEN_THREADS"}
    result = subprocess.run(
        [sys.executable, "-c", code], env=inherited | environment, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_threads_come_from_the_environment() -> None:
    code = "import kaoken; print(kaoken.BakedGPT2().session().threads)"
    assert run_python(code, KAOKEN_THREADS="3") == "3"


def test_an_argument_outweighs_the_environment() -> None:
    code = "import kaoken; print(kaoken.BakedGPT2(threads=2).session().threads)"
    assert run_python(code, KAOKEN_THREADS="3") == "2"


AFFINITY = hasattr(os, "sched_setaffinity")


@pytest.mark.skipif(not AFFINITY, reason="this system has no processor affinity")
def test_the_default_number_of_threads_respects_affinity() -> None:
    code = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "import kaoken; print(kaoken.BakedGPT2().session().threads)"
    )
    assert run_python(code) == "1"


TASKS = """
import os, kaoken
def tasks():
    return {int(task) for task in os.listdir("/proc/self/task")}
def use(threads):
    kaoken.BakedGPT2(threads=threads).logits([1])
cores = kaoken.BakedGPT2().session().threads
"""

tasks = pytest.mark.skipif(not os.path.exists("/proc/self/task"), reason="this system does not list threads")


@tasks
def test_the_next_session_has_the_threads_of_the_last() -> None:
    """As many as there are cores: those beyond leave with their session."""
    code = (
        "before = tasks()\n"
        "use(cores)\n"
        "kept = tasks()\n"
        "use(cores + 3)\n"
        "use(cores)\n"
        "print(len(kept - before) - cores, len(tasks()) - len(kept))"
    )
    assert run_python(TASKS + code) == "-1 0"
    assert run_python(f"{TASKS}use(cores); kept = tasks(); use(cores); print(tasks() == kept)") == "True"


@tasks
@pytest.mark.skipif(not AFFINITY or len(os.sched_getaffinity(0)) < 2, reason="needs two processors, and affinity")
def test_threads_of_a_past_session_do_not_keep_its_affinity() -> None:
    code = (
        "use(2)\n"
        "first = tasks()\n"
        "one = {min(os.sched_getaffinity(0))}\n"
        "os.sched_setaffinity(0, one)\n"
        "session = kaoken.BakedGPT2(threads=3).session()\n"
        "session.append([1])\n"
        "new = tasks() - first\n"
        "print(len(new), all(os.sched_getaffinity(task) == one for task in new))"
    )
    assert run_python(TASKS + code) == "2 True"


# The ends of a generation


def ended(tokens: Sequence[int], eos: Sequence[int], pad: int) -> list[int]:
    """The tokens up to the first that ends a text, and padding in the place of the others."""
    ends = [step for step, token in enumerate(tokens) if token in eos]
    kept = ends[0] + 1 if ends else len(tokens)
    return [*tokens[:kept], *[pad] * (len(tokens) - kept)]


def trimmed(rows: Sequence[Sequence[int]], eos: Sequence[int]) -> int:
    """How many steps are taken: until the last row has ended, or all of them."""
    ends = [next((step + 1 for step, token in enumerate(row) if token in eos), len(row)) for row in rows]
    return max(ends)


@pytest.fixture(scope="module")
def continuations(bundled_directory: Path) -> list[list[int]]:
    """The oracle's 40 greedy tokens after each of PROMPTS."""
    oracle = open_oracle(bundled_directory)
    return [oracle.greedy(prompt, 40).tokens for prompt in PROMPTS]


@pytest.mark.parametrize("eos", [[10], [10, 32], [46], [256], []])
@pytest.mark.parametrize("pad", [None, 0, 99])
def test_rows_of_a_batch_end_each_at_its_own_step(
    eos: list[int], pad: int | None, bundled: BakedGPT2, continuations: list[list[int]]
) -> None:
    steps = trimmed(continuations, eos)
    padding = pad if pad is not None else next(iter(eos), 0)
    expected = [
        [*prompt, *ended(row, eos, padding)[:steps]] for prompt, row in zip(PROMPTS, continuations, strict=True)
    ]
    tokens = bundled.generate(PROMPTS, max_new_tokens=40, eos_token_id=eos or None, pad_token_id=pad)
    assert tokens.dtype == np.int64
    assert tokens.tolist() == expected


def test_a_single_end_token_may_be_an_integer(bundled: BakedGPT2, continuations: list[list[int]]) -> None:
    tokens = bundled.generate(PROMPTS[3], max_new_tokens=40, eos_token_id=10)
    assert tokens.tolist() == [PROMPTS[3] + continuations[3][: continuations[3].index(10) + 1]]


def test_the_end_token_of_the_checkpoint_is_the_default(baked: Baked, checkpoints: Checkpoints) -> None:
    """`three_heads` names one in its config.json, and one of its two rows meets it."""
    model, oracle = baked("three_heads"), open_oracle(checkpoints("three_heads"))
    eos, pad = (oracle.config[key] for key in ("eos_token_id", "pad_token_id"))
    assert (model.config.eos_token_ids, model.config.pad_token_id) == ((eos,), pad)
    prompts = CONFIGURATIONS["three_heads"].ids()[:, :4].tolist()
    rows = [oracle.greedy(prompt, 12).tokens for prompt in prompts]
    expected = [prompt + ended(row, [eos], pad) for prompt, row in zip(prompts, rows, strict=True)]
    assert sorted(eos in row for row in rows) == [False, True]
    assert model.generate(prompts, max_new_tokens=12).tolist() == expected


def test_a_vocabulary_without_an_end_token_has_none(tiny_model: BakedGPT2) -> None:
    assert tiny_model.config.eos_token_ids == ()
    assert tiny_model.generate([[1], [2]], max_new_tokens=25).shape == (2, 26)


@pytest.mark.parametrize("count", [1, 29, 31, 32])
def test_generation_stops_at_n_positions(count: int, tiny_model: BakedGPT2) -> None:
    ids = CONFIGURATIONS["plain"].ids()[:, :count]
    tokens = tiny_model.generate(ids, max_new_tokens=100)
    assert tokens.shape == (2, 32)
    assert tokens[:, :count].tolist() == ids.tolist()


def test_stream_stops_at_n_positions_too(tiny_model: BakedGPT2) -> None:
    ids = CONFIGURATIONS["plain"].ids(batch=1)[:, :20]
    assert list(tiny_model.stream(ids, max_new_tokens=100)) == tiny_model.generate(ids, 12)[0, 20:].tolist()


def test_a_full_session_refuses_more_and_stays_as_it_was(tiny_model: BakedGPT2) -> None:
    from kaoken import InputError

    ids = CONFIGURATIONS["plain"].ids(batch=1)
    session = tiny_model.session()
    session.append(ids[:, :30])
    with pytest.raises(InputError, match="n_positions"):
        session.append(ids[:, :3])
    assert session.length == 30
    require_same_bits(session.append(ids[:, 30:]), tiny_model.logits(ids)[:, -1])
