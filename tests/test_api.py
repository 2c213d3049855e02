"""What users write in Python: shapes, types, defaults, and a clear refusal of everything else."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import threading
from collections import UserDict
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from kaoken.codegen.isa import ISA, resolve, table
from numpy.typing import NDArray

import kaoken
from conftest import Bake, Checkpoints
from native_kernels import processor_features

if TYPE_CHECKING:
    from kaoken import BakedGPT2

PROMPT = [82, 79, 77, 69, 79, 58]  # ROMEO:


class Tensor:
    """Like a torch tensor: no ndarray, but it converts to one."""

    def __init__(self, values: Any, dtype: Any = np.int64) -> None:
        self.values = np.array(values, dtype)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return self.values

    @property
    def ndim(self) -> int:
        return self.values.ndim


def run_python(code: str, **environment: str) -> str:
    result = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


# The package


def test_import_is_lazy() -> None:
    code = "import sys, kaoken; print([name for name in ('numpy', 'kaoken._core') if name in sys.modules])"
    assert run_python(code) == "[]"


def test_every_public_name_is_there() -> None:
    assert set(kaoken.__all__) <= set(dir(kaoken))
    assert all(getattr(kaoken, name) is not None for name in kaoken.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="GPT5"):
        kaoken.GPT5  # noqa: B018


# What a model says of itself


def test_config_of_the_bundled_model(bundled: BakedGPT2) -> None:
    config = bundled.config
    assert (config.vocab_size, config.n_positions, config.n_embd, config.n_layer) == (257, 256, 256, 6)
    assert config.blocks == (kaoken.BlockConfig(n_head=8, n_kv_head=8, head_dim=32, n_inner=1024),) * 6
    assert (config.activation_function, config.tie_word_embeddings) == ("gelu_new", True)
    assert (config.eos_token_ids, config.bos_token_id, config.pad_token_id) == ((256,), 256, None)


def test_info_of_the_bundled_model(bundled: BakedGPT2) -> None:
    info = bundled.info
    assert (info.name, info.source) == ("gptlite_shakespeare", "gptlite-shakespeare")
    assert (info.revision, info.dtype, info.kaoken_version) == (None, "float32", kaoken.__version__)
    assert info.weights_sha256 == "ee5a05b552428a6184f5f7df6f5ad4308d9a9735f2cf94d904151945d9de000c"
    assert info.isa in info.isas
    assert info.settings["isa"] == list(info.isas)
    assert info.statistics is None  # which a wheel leaves out


def test_config_and_info_are_frozen(bundled: BakedGPT2) -> None:
    for part in (bundled.config, bundled.info, bundled.config.blocks[0]):
        with pytest.raises(AttributeError):
            part.n_embd = 1  # type: ignore[union-attr,misc]


def test_repr_names_the_model(bundled: BakedGPT2) -> None:
    assert "gptlite_shakespeare float32" in repr(bundled)


# Token ids


@pytest.mark.parametrize(
    "ids",
    [
        pytest.param(PROMPT, id="list"),
        pytest.param(tuple(PROMPT), id="tuple"),
        pytest.param(range(82, 88), id="range"),
        pytest.param([PROMPT], id="nested"),
        pytest.param(np.array(PROMPT), id="array"),
        pytest.param(np.array([PROMPT], np.uint8), id="uint8"),
        pytest.param(np.array([PROMPT, PROMPT]).T[:, :1].T, id="strided"),
        pytest.param([np.int32(token) for token in PROMPT], id="numpy-scalars"),
        pytest.param([np.array(PROMPT)], id="list-of-arrays"),
        pytest.param(Tensor(PROMPT), id="tensor"),
        pytest.param([Tensor(PROMPT)], id="list-of-tensors"),
    ],
)
def test_forms_of_ids(ids: Any, bundled: BakedGPT2) -> None:
    logits = bundled.logits(ids)
    assert logits.dtype == np.float32
    assert (logits.ndim, logits.shape[0], logits.shape[2]) == (3, 1, 257)
    assert logits.tobytes() == bundled.logits([list(np.asarray(ids).reshape(-1))]).tobytes()


def test_a_result_is_no_view_of_the_prompt(bundled: BakedGPT2) -> None:
    ids = np.array([PROMPT])
    tokens = bundled.generate(ids, max_new_tokens=2)
    tokens[:] = 0
    assert ids.tolist() == [PROMPT]


BAD_IDS = [
    ([], "empty"),
    ([[]], "empty"),
    (np.zeros((1, 0), np.int64), "empty"),
    ([[1, 2], []], "empty"),
    ([[1, 2], [257]], r"token id 257 \(ids\[1, 0\]\)"),
    ([1, [2]], "mix"),
    ([[[1]]], "dimensions"),
    (np.zeros((1, 1, 1), np.int64), "3 dimensions"),
    ([np.zeros((1, 1), np.int64)], "3 dimensions"),
    (Tensor([[[1]]]), "3 dimensions"),
    (7, "not int"),
    (np.int64(7), "0 dimensions"),
    (None, "not NoneType"),
    ({1, 2}, "not set"),
    ("ROMEO", "text"),
    (["RO", "ME"], "text"),
    (b"ROMEO", "text"),
    ([1.0, 2.0], "integer, not 1.0"),
    (np.array([1.5]), "integers, not float64"),
    (Tensor([1.0], np.float32), "integers, not float32"),
    ([True], "integer, not True"),
    (np.array([True]), "integers, not bool"),
    ([np.True_], "integer, not"),
    ([1, None], "integer, not None"),
    ([0, -1], r"token id -1 \(ids\[0, 1\]\) is outside the vocabulary, 0 to 256"),
    ([[0, 1], [2, 257]], r"token id 257 \(ids\[1, 1\]\)"),
    (np.array([300]), r"token id 300 \(ids\[0\]\)"),
    ([2**70], str(2**70)),
    (np.array([2**64 - 1], np.uint64), str(2**64 - 1)),
    ([0] * 257, "257 tokens.*n_positions = 256"),
]


@pytest.mark.parametrize(("ids", "message"), BAD_IDS)
def test_bad_ids_are_refused(ids: Any, message: str, bundled: BakedGPT2) -> None:
    for call in (bundled.logits, bundled.generate, bundled.stream):
        with pytest.raises(kaoken.InputError, match=message):
            call(ids)


def test_an_array_that_does_not_convert_is_refused(bundled: BakedGPT2) -> None:
    class OnDevice:
        def __array__(self, *_: Any, **__: Any) -> NDArray[Any]:
            raise TypeError("can't convert cuda:0 device type tensor to numpy")

    with pytest.raises(kaoken.InputError, match="cuda:0"):
        bundled.logits(OnDevice())


def test_input_errors_are_value_errors(bundled: BakedGPT2) -> None:
    with pytest.raises(ValueError, match="empty"):
        bundled.logits([])
    assert issubclass(kaoken.InputError, kaoken.KaokenError)


# Generation


def test_generate_is_the_argmax_of_logits(bundled: BakedGPT2) -> None:
    tokens = bundled.generate(PROMPT, max_new_tokens=12)
    assert tokens.dtype == np.int64
    assert tokens.shape == (1, 18)
    assert tokens[0, :6].tolist() == PROMPT
    assert tokens[0, 6:].tolist() == bundled.logits(tokens)[0, 5:-1].argmax(-1).tolist()


def test_the_default_is_20_new_tokens(bundled: BakedGPT2) -> None:
    assert bundled.generate(PROMPT).shape == (1, 26)
    assert bundled.generate(PROMPT).tolist() == bundled.generate(PROMPT, 20).tolist()


def test_a_row_alone_and_in_a_batch(bundled: BakedGPT2) -> None:
    rows = [PROMPT, PROMPT[::-1], [10] * 6]
    together = bundled.generate(rows, max_new_tokens=15, eos_token_id=None)
    alone = [bundled.generate(row, max_new_tokens=15, eos_token_id=None)[0].tolist() for row in rows]
    assert together.tolist() == alone


def test_a_prompt_of_n_positions_comes_back(tiny_model: BakedGPT2) -> None:
    ids = [[index % 61 for index in range(32)]]
    assert tiny_model.generate(ids).tolist() == ids
    assert list(tiny_model.stream(ids)) == []


def test_sampling_options_wait_for_do_sample(tiny_model: BakedGPT2) -> None:
    greedy = tiny_model.generate([1, 2], 5)
    ignored = tiny_model.generate([1, 2], 5, temperature=0.0, top_k=-1, top_p=7.0, seed=-1)
    assert ignored.tolist() == greedy.tolist()


def test_seeds_of_any_size(tiny_model: BakedGPT2) -> None:
    def draw(seed: int | None) -> bytes:
        return tiny_model.generate([1, 2], 25, do_sample=True, top_k=0, seed=seed).tobytes()

    seeds = (0, 1, 2**63, 2**64 - 1, 2**64, 10**40)
    assert all(draw(seed) == draw(seed) for seed in seeds)
    assert len({draw(seed) for seed in (0, 1, 2**63, 10**40)}) == 4
    assert draw(None) != draw(None)


def encoding(**values: Any) -> UserDict[str, Any]:
    """Like transformers' BatchEncoding, which is a UserDict too."""
    return UserDict(values)


@pytest.mark.parametrize("mask", [None, [1] * 6, [[1] * 6], Tensor([[1] * 6])])
def test_a_batch_encoding_is_taken(mask: Any, bundled: BakedGPT2) -> None:
    given = encoding(input_ids=Tensor([PROMPT]), attention_mask=mask)
    assert bundled.generate(given).tolist() == bundled.generate(PROMPT).tolist()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (encoding(input_ids=[PROMPT] * 2, attention_mask=[[1] * 6]), "attention_mask must have the shape of ids"),
        (encoding(input_ids=[PROMPT] * 2, attention_mask=[[1] * 6, [1] * 5]), "attention_mask must have the shape"),
        (encoding(input_ids=PROMPT, attention_mask=7), "attention_mask cannot be read"),
        (encoding(input_ids=PROMPT, attention_mask=[0.5] * 6), r"attention_mask\[0\] must be of zeros and ones"),
        (encoding(input_ids=PROMPT, attention_mask=[2] * 6), r"attention_mask\[0\] must be of zeros and ones"),
        (encoding(input_ids=[PROMPT], attention_mask=[[0] * 6]), "of which a one at least"),
        (encoding(input_ids=PROMPT, attention_mask=[1, 1, 0, 1, 1, 0]), r"attention_mask\[0\] hides tokens between"),
        (encoding(labels=PROMPT), r"without 'input_ids' \(it has \['labels'\]\)"),
        ({}, "without 'input_ids'"),
    ],
)
def test_a_batch_encoding_that_is_refused(given: Any, message: str, bundled: BakedGPT2) -> None:
    for call in (bundled.generate, bundled.logits, bundled.session(2).append):
        with pytest.raises(kaoken.InputError, match=message):
            call(given)


BAD_OPTIONS: list[tuple[dict[str, Any], str]] = [
    ({"max_new_tokens": 0}, "max_new_tokens must be an integer of at least 1, not 0"),
    ({"max_new_tokens": 1.5}, "max_new_tokens"),
    ({"max_new_tokens": True}, "max_new_tokens"),
    ({"do_sample": 1}, "do_sample must be True or False"),
    (
        {"do_sample": True, "temperature": 0.0},
        "temperature must be .* not 0.0: .*do_sample=False",
    ),
    ({"do_sample": True, "temperature": -1}, "temperature"),
    ({"do_sample": True, "temperature": float("nan")}, "temperature"),
    ({"do_sample": True, "temperature": float("inf")}, "temperature"),
    ({"do_sample": True, "temperature": 1e-60}, "temperature"),
    ({"do_sample": True, "temperature": "1"}, "temperature"),
    ({"do_sample": True, "temperature": np.ones(2)}, "temperature"),
    ({"do_sample": True, "top_p": np.ones(2)}, "top_p"),
    ({"do_sample": True, "top_k": -1}, "top_k must be an integer of at least 0, not -1"),
    ({"do_sample": True, "top_k": 2.0}, "top_k"),
    ({"do_sample": True, "top_p": 0.0}, "top_p must be a number greater than 0 and at most 1, not 0.0"),
    ({"do_sample": True, "top_p": 1.01}, "top_p"),
    ({"do_sample": True, "seed": -1}, "seed must be an integer of at least 0, not -1"),
    ({"do_sample": True, "seed": 1.0}, "seed"),
    ({"eos_token_id": 257}, "eos_token_id 257 is outside the vocabulary, 0 to 256; None turns it off"),
    ({"eos_token_id": [10, -1]}, "eos_token_id -1"),
    ({"eos_token_id": "x"}, "eos_token_id"),
    ({"pad_token_id": 257}, "pad_token_id 257"),
]


@pytest.mark.parametrize(("options", "message"), BAD_OPTIONS)
def test_bad_options_are_refused(options: dict[str, Any], message: str, bundled: BakedGPT2) -> None:
    for call in (bundled.generate, bundled.stream):
        with pytest.raises(kaoken.InputError, match=message):
            call(PROMPT, **options)


def test_no_number_of_new_tokens_is_the_default_one(tiny_model: BakedGPT2) -> None:
    tokens = tiny_model.generate([1], max_new_tokens=None, eos_token_id=None)
    assert tokens.tolist() == tiny_model.generate([1], 20, eos_token_id=None).tolist()


def test_huge_options_mean_no_limit(tiny_model: BakedGPT2) -> None:
    tokens = tiny_model.generate([1], max_new_tokens=10**30, do_sample=True, top_k=10**30, seed=3)
    assert tokens.shape == (1, 32)
    assert tokens.tolist() == tiny_model.generate([1], 100, do_sample=True, top_k=0, seed=3).tolist()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("temprature", "'temprature': did you mean temperature"),
        ("max_tokens", "did you mean max_new_tokens"),
        ("xyz", "it takes max_new_tokens, do_sample, temperature, top_k, top_p, eos_token_id, pad_token_id, seed$"),
        ("repetition_penalty", "repetition_penalty, which transformers has: leave it out, or choose tokens yourself"),
        ("num_beams", "num_beams, which transformers has"),
        ("min_new_tokens", "min_new_tokens, which transformers has"),
        ("max_length", "max_length, which transformers has: max_new_tokens"),
        ("input_ids", "input_ids, which transformers has: pass the ids as the first argument"),
        ("position_ids", "position_ids, which transformers has: leave it out"),
    ],
)
def test_unknown_options_are_explained(name: str, message: str, bundled: BakedGPT2) -> None:
    for call in (bundled.generate, bundled.stream, bundled.generate_text, bundled.stream_text):
        with pytest.raises(kaoken.InputError, match=f"{call.__name__} has no option .*{message}"):
            call(**{name: 1})  # type: ignore[operator]


def test_arguments_may_be_named(bundled: BakedGPT2) -> None:
    assert bundled.generate(ids=PROMPT, max_new_tokens=3)[0, 6:].tolist() == list(
        bundled.stream(ids=PROMPT, max_new_tokens=3)
    )
    assert bundled.generate_text(prompt="ROMEO:") == "".join(bundled.stream_text(prompt="ROMEO:"))


@pytest.mark.parametrize("name", ["temperature", "top_k", "top_p"])
def test_none_turns_an_option_off(name: str, tiny_model: BakedGPT2) -> None:
    def draw(**options: Any) -> list[list[int]]:
        options = {"temperature": 2.0, "top_k": 30, "top_p": 0.9} | options
        return tiny_model.generate([[1, 2]] * 8, 30, do_sample=True, seed=5, **options).tolist()

    off = {"temperature": 1.0, "top_k": 0, "top_p": 1.0}[name]
    assert draw(**{name: None}) == draw(**{name: off}) != draw()


@pytest.mark.parametrize(
    ("use", "message"),
    [
        ("eval", "only ever infers"),
        ("to", "runs on the CPU"),
        ("cuda", "runs on the CPU"),
        ("half", r"kaoken\.bake\(checkpoint, dtype=\.\.\.\)"),
        ("forward", r"logits\(ids\)"),
        ("from_pretrained", r"kaoken\.load\(kaoken\.bake\('gpt2'\)\)"),
        ("xyz", "'xyz'$"),
    ],
)
def test_what_torch_models_have_is_explained(use: str, message: str, bundled: BakedGPT2) -> None:
    for owner in (bundled, kaoken.BakedGPT2):
        assert not hasattr(owner, use)
        with pytest.raises(AttributeError, match=f"BakedGPT2 has no attribute .*{message}"):
            getattr(owner, use)


def test_a_model_is_not_called(bundled: BakedGPT2) -> None:
    with pytest.raises(kaoken.InputError, match=r"not called: use logits\(ids\)"):
        bundled(PROMPT)


def test_stream_yields_what_generate_adds(bundled: BakedGPT2) -> None:
    tokens = list(bundled.stream(PROMPT, max_new_tokens=9))
    assert all(type(token) is int for token in tokens)
    assert tokens == bundled.generate(PROMPT, max_new_tokens=9)[0, 6:].tolist()


def test_stream_takes_one_sequence(bundled: BakedGPT2) -> None:
    with pytest.raises(kaoken.InputError, match="one sequence, not 2"):
        bundled.stream([PROMPT, PROMPT])


def test_streams_may_be_interleaved_and_left(bundled: BakedGPT2) -> None:
    first, second = (bundled.stream(ids, max_new_tokens=8) for ids in (PROMPT, PROMPT[::-1]))
    pairs = [(next(first), next(second)) for _ in range(4)]
    expected = [bundled.generate(ids, max_new_tokens=4)[0, 6:].tolist() for ids in (PROMPT, PROMPT[::-1])]
    assert [list(tokens) for tokens in zip(*pairs, strict=True)] == expected


def test_control_c_stops_a_generation() -> None:
    code = (
        "import kaoken\n"
        "model = kaoken.BakedGPT2()\n"
        "try:\n"
        "    print('ready', flush=True)\n"
        "    while True: model.generate([[1]] * 8, 255, eos_token_id=None)\n"
        "except KeyboardInterrupt: print('interrupted')\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        try:
            assert process.communicate(timeout=60)[0] == "interrupted\n"
        finally:
            process.kill()


# Sessions


def test_append_returns_the_last_logits(bundled: BakedGPT2) -> None:
    session = bundled.session()
    assert (session.batch, session.length) == (1, 0)
    logits = session.append(PROMPT)
    assert logits.dtype == np.float32
    assert (logits.shape, session.length) == ((1, 257), 6)
    assert logits.tobytes() == bundled.logits(PROMPT)[:, -1].tobytes()


def test_rewind_forgets(bundled: BakedGPT2) -> None:
    session = bundled.session(2)
    session.append([PROMPT, PROMPT])
    session.rewind(3)
    assert session.length == 3
    again = session.append([PROMPT[3:], [1, 2, 3]])
    assert again.tobytes() == bundled.logits([PROMPT, [*PROMPT[:3], 1, 2, 3]])[:, -1].tobytes()


@pytest.mark.parametrize("length", [-1, 7, 1.0, None, 10**30])
def test_rewind_only_backwards(length: Any, bundled: BakedGPT2) -> None:
    session = bundled.session()
    session.append(PROMPT)
    with pytest.raises(kaoken.InputError, match=r"length|rewind"):
        session.rewind(length)
    assert session.length == 6


@pytest.mark.parametrize(
    ("ids", "message"),
    [([257], "token id 257"), ([[1], [2]], "2 sequences.*batch = 1"), ([0] * 251, "n_positions = 256")],
)
def test_a_refused_append_changes_nothing(ids: Any, message: str, bundled: BakedGPT2) -> None:
    session = bundled.session()
    session.append(PROMPT)
    with pytest.raises(kaoken.InputError, match=message):
        session.append(ids)
    assert session.length == 6
    assert session.append([10]).tobytes() == bundled.logits([*PROMPT, 10])[:, -1].tobytes()


@pytest.mark.parametrize("batch", [0, -1, 1.0, True, None])
def test_a_batch_is_a_positive_integer(batch: Any, bundled: BakedGPT2) -> None:
    with pytest.raises(kaoken.InputError, match="batch"):
        bundled.session(batch)


def test_one_session_serves_one_thread_at_a_time(bundled: BakedGPT2) -> None:
    session, ids = bundled.session(8), [[1] * 256] * 8
    refused = threading.Event()

    def hammer() -> None:
        for _ in range(50):
            if refused.is_set():
                return
            try:
                session.rewind(0)
                session.append(ids)
            except kaoken.InputError as error:
                if "one thread" in str(error):
                    refused.set()

    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(hammer) for _ in range(2)]:
            done.result()
    assert refused.is_set()


def test_a_generation_has_its_session_to_itself() -> None:
    from kaoken import _core
    from kaoken.library import default_library

    session = _core.Library(default_library()).session()
    options = {
        "temperature": 1.0,
        "top_k": 0,
        "top_p": 1.0,
        "seed": 0,
        "eos_token_ids": [],
        "pad_token_id": 0,
    }
    ids = np.array([PROMPT])
    generation = session.generate(ids, max_new_tokens=2, do_sample=False, **options)  # type: ignore[arg-type]
    with pytest.raises(kaoken.InputError, match="in use"):
        session.append(ids)
    assert [generation.next()[1], generation.next()[1]] == [False, True]
    assert session.append(ids) is not None
    with pytest.raises(kaoken.InputError):
        generation.next()


# One model in many threads and processes


def test_threads_share_a_model(bundled: BakedGPT2) -> None:
    prompts = [[index] * 4 for index in range(16)]
    expected = [bundled.generate(prompt, 10).tolist() for prompt in prompts]
    with ThreadPoolExecutor(4) as pool:
        assert [result.tolist() for result in pool.map(lambda ids: bundled.generate(ids, 10), prompts)] == expected


def test_pickling_loads_the_library_again(tiny_model: BakedGPT2) -> None:
    model = pickle.loads(pickle.dumps(tiny_model))
    assert model.config == tiny_model.config
    assert model.generate([1, 2]).tolist() == tiny_model.generate([1, 2]).tolist()


@pytest.mark.parametrize("threads", [0, -2, 1.5, True, "2"])
def test_threads_is_a_positive_integer(threads: Any) -> None:
    with pytest.raises(kaoken.InputError, match="threads must be an integer of at least 1"):
        kaoken.BakedGPT2(threads=threads)


def test_an_unsupported_isa_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAOKEN_ISA", "z80")
    with pytest.raises(kaoken.ISAError, match="z80"):
        kaoken.BakedGPT2()


def test_the_choice_of_the_isa_has_a_reason(bundled: BakedGPT2, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = {name: row for name, row in table().items() if name in bundled.info.isas}
    better = list(rows.values())[list(rows).index(bundled.info.isa) + 1 :]
    lacking = [f"{row.name} needs {', '.join(_lacking(row))}, which this machine lacks" for row in reversed(better)]
    reason = "; ".join(lacking) or "nothing is better for this model"
    assert bundled.info.isa_reason == f"{bundled.info.isa}: {reason}"
    monkeypatch.setenv("KAOKEN_ISA", "scalar")
    assert kaoken.BakedGPT2().info.isa_reason == "scalar: KAOKEN_ISA asks for it"


def _lacking(row: ISA) -> list[str]:
    features = processor_features()
    return [feature for feature in row.cpu if feature not in features]


@pytest.mark.ci
def test_the_reason_names_what_was_not_baked_in(checkpoints: Checkpoints, bake_checkpoint: Bake) -> None:
    info = kaoken.load(bake_checkpoint(checkpoints("plain"), isa="scalar")).info
    absent = table()[resolve("portable", dtypes=["float32"])[1]]  # avx2 or neon
    says = f"{absent.name} needs {', '.join(_lacking(absent))}, which" if _lacking(absent) else "was not baked in"
    assert info.isa_reason.startswith("scalar: ")
    assert says in info.isa_reason


# Text


def test_the_tokenizer_travels_in_the_library(bundled: BakedGPT2) -> None:
    assert bundled.tokenizer.encode("ROMEO:").ids == PROMPT
    assert bundled.tokenizer.decode(PROMPT) == "ROMEO:"


def test_a_model_without_a_tokenizer_says_so(tiny_model: BakedGPT2) -> None:
    with pytest.raises(kaoken.KaokenError, match=r"without a tokenizer.*tokenizer\.json"):
        tiny_model.generate_text("ROMEO:")


def test_generate_text_is_the_completion(bundled: BakedGPT2) -> None:
    tokens = bundled.generate(PROMPT, max_new_tokens=60)[0, 6:].tolist()
    text = bundled.generate_text("ROMEO:", max_new_tokens=60)
    assert text == bundled.tokenizer.decode(tokens)
    assert "".join(bundled.stream_text("ROMEO:", max_new_tokens=60)) == text


def test_an_empty_prompt_starts_from_bos(bundled: BakedGPT2) -> None:
    tokens = bundled.generate([256], max_new_tokens=12)[0, 1:].tolist()
    assert bundled.generate_text("", max_new_tokens=12) == bundled.tokenizer.decode(tokens)


@pytest.mark.parametrize(("prompt", "message"), [(7, "str, not int"), ("\udcff", "Unicode"), ("x" * 257, "257 tokens")])
def test_bad_prompts_are_refused(prompt: Any, message: str, bundled: BakedGPT2) -> None:
    with pytest.raises(kaoken.InputError, match=message):
        bundled.generate_text(prompt)


def test_pieces_end_where_characters_do(bundled: BakedGPT2) -> None:
    from kaoken.text import decode_stream

    tokens = list("é€😀a".encode())
    pieces = list(decode_stream(bundled.tokenizer, PROMPT, tokens))
    assert pieces == ["é", "€", "😀", "a"]


def test_bytes_that_are_no_text_are_replaced(bundled: BakedGPT2) -> None:
    from kaoken.text import decode_stream

    tokens = [0xFF, 0x61, 256, 0x62, 0xF0, 0x9F]
    pieces = list(decode_stream(bundled.tokenizer, PROMPT, tokens))
    assert pieces == ["\ufffda", "b", bundled.tokenizer.decode([0xF0, 0x9F])]
    assert "".join(pieces) == bundled.tokenizer.decode(tokens)
