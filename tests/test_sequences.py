"""Sequences of different lengths side by side: what each gives alone, bit for bit, and how a session keeps them."""

from __future__ import annotations

from collections import UserDict
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from numpy.typing import NDArray

import kaoken
from bits import require_same_bits

if TYPE_CHECKING:
    from kaoken import BakedGPT2

Ids = NDArray[np.int64]

LENGTHS = (1, 70, 3, 200, 64, 255, 65)  # one token, whole pages of the cache, and more rows than a pass has


def prompts_of(lengths: tuple[int, ...] = LENGTHS) -> list[list[int]]:
    random = np.random.Generator(np.random.PCG64(8))
    return [random.integers(0, 257, length).tolist() for length in lengths]


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_company_changes_no_bit_of_logits(threads: int, bundled: BakedGPT2) -> None:
    prompts = prompts_of()
    model = kaoken.load(threads=threads)
    for order in (prompts, prompts[::-1]):
        for prompt, logits in zip(order, model.logits(order), strict=True):
            require_same_bits(logits, bundled.logits(prompt)[0])


def test_generate_returns_a_list(bundled: BakedGPT2) -> None:
    """Each goes on to its own end: an end token, n_positions, or the number of new tokens."""
    prompts = prompts_of()
    found = bundled.generate(prompts, max_new_tokens=30)
    assert [len(tokens) for tokens in found] == [min(256, len(prompt) + 30) for prompt in prompts]
    for prompt, tokens in zip(prompts, found, strict=True):
        require_same_bits(tokens, bundled.generate(prompt, max_new_tokens=30)[0])


def test_a_prompt_without_room_comes_back(bundled: BakedGPT2) -> None:
    full, short = prompts_of((256, 2))
    found = bundled.generate([full, short], max_new_tokens=3)
    assert found[0].tolist() == full
    require_same_bits(found[1], bundled.generate(short, max_new_tokens=3)[0])


def test_end_tokens_end_each_by_itself(bundled: BakedGPT2) -> None:
    prompts = prompts_of((5, 9, 6))
    free = bundled.generate(prompts, max_new_tokens=20)
    end = int(free[1][9 + 4])
    ended = [list(bundled.stream(prompt, max_new_tokens=20, eos_token_id=end)) for prompt in prompts]
    found = bundled.generate(prompts, max_new_tokens=20, eos_token_id=end)
    assert [tokens[len(prompt) :].tolist() for prompt, tokens in zip(prompts, found, strict=True)] == ended
    assert len(ended[1]) <= 5


def test_draws_do_not_depend_on_company(bundled: BakedGPT2) -> None:
    """A row draws the same tokens whatever the others are, and whenever they end."""
    first, second, third = prompts_of((5, 9, 254))
    options: dict[str, Any] = {"max_new_tokens": 12, "do_sample": True, "seed": 3}
    together = bundled.generate([first, second, third], **options)
    for row, other in enumerate((first, second, third)):
        company = [prompts_of((40,))[0]] * 3
        company[row] = other
        require_same_bits(bundled.generate(company, **options)[row], together[row])


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_left_out(side: str, bundled: BakedGPT2) -> None:
    """Whatever its ids are: a tokenizer's padding may be no token of the model."""
    prompts = prompts_of((4, 7, 1))
    pads = [[1000] * (7 - len(prompt)) for prompt in prompts]
    padded = [pad + prompt if side == "left" else prompt + pad for pad, prompt in zip(pads, prompts, strict=True)]
    mask = [[int(token != 1000) for token in row] for row in padded]
    expected = bundled.generate(prompts, max_new_tokens=5)
    for found in (
        bundled.generate(UserDict(input_ids=np.array(padded), attention_mask=np.array(mask)), max_new_tokens=5),
        bundled.generate(padded, max_new_tokens=5, attention_mask=mask),
        bundled.generate(np.array(padded), 5, attention_mask=np.array(mask, bool)),
    ):
        for actual, tokens in zip(found, expected, strict=True):
            require_same_bits(actual, tokens)
    for actual, logits in zip(bundled.logits(padded, mask), bundled.logits(prompts), strict=True):
        require_same_bits(actual, logits)


def test_padding_of_all_makes_a_list_too(bundled: BakedGPT2) -> None:
    (tokens,) = bundled.generate([[7, 8, 0]], max_new_tokens=2, attention_mask=[[1, 1, 0]])
    assert tokens.tolist() == bundled.generate([7, 8], max_new_tokens=2)[0].tolist()


class Expected:
    """Sequences by hand: the tokens of each, whose last logits are those of a call of its own."""

    def __init__(self, model: BakedGPT2, batch: int) -> None:
        self.model = model
        self.tokens: list[list[int]] = [[] for _ in range(batch)]

    def require(self, logits: NDArray[np.float32], sequences: list[int]) -> None:
        for sequence, row in zip(sequences, logits, strict=True):
            require_same_bits(row, self.model.logits(self.tokens[sequence])[0, -1])


@pytest.mark.parametrize("seed", range(6))
def test_sessions_of_many_sequences(seed: int, bundled: BakedGPT2) -> None:
    """Appends of any lengths to some of them, rewinds and forks, in any order."""
    random = np.random.Generator(np.random.PCG64(seed))
    batch = 4
    session, expected = bundled.session(batch), Expected(bundled, batch)
    for _ in range(25):
        action = random.choice(["append", "append", "rewind", "fork"])
        if action == "append":
            chosen = sorted(random.permutation(batch)[: random.integers(1, batch + 1)].tolist())
            chosen = [each for each in chosen if len(expected.tokens[each]) < 180]
            if not chosen:
                continue
            new = [random.integers(0, 257, random.integers(1, 76)).tolist() for _ in chosen]
            logits = session.append(new, sequences=chosen)
            for each, tokens in zip(chosen, new, strict=True):
                expected.tokens[each] += tokens
            expected.require(logits, chosen)
        elif action == "rewind":
            each = int(random.integers(batch))
            length = int(random.integers(len(expected.tokens[each]) + 1))
            session.rewind(length, each)
            del expected.tokens[each][length:]
        else:
            source, target = random.integers(batch, size=2).tolist()
            session.fork(source, target)
            expected.tokens[target] = list(expected.tokens[source])
        assert session.lengths == tuple(map(len, expected.tokens))


@pytest.mark.parametrize("length", [1, 63, 64, 65, 130])
def test_a_fork_goes_on_by_itself(length: int, bundled: BakedGPT2) -> None:
    (prompt,) = prompts_of((length,))
    session = bundled.session(3)
    session.append([prompt], sequences=[1])
    session.fork(1, 0)
    session.fork(0, 2)
    session.fork(2, 2)
    assert session.lengths == (length,) * 3
    tokens = [[*prompt, 7], [*prompt, 8, 9], [*prompt, 10]]
    for row, sequence in zip(session.append([row[length:] for row in tokens]), tokens, strict=True):
        require_same_bits(row, bundled.logits(sequence)[0, -1])
    session.rewind(length - 1, 1)
    require_same_bits(session.append([[5]], sequences=[1])[0], bundled.logits([*prompt[:-1], 5])[0, -1])
    require_same_bits(session.append([[5]], sequences=[0])[0], bundled.logits([*tokens[0], 5])[0, -1])


def test_forks_of_a_whole_context(bundled: BakedGPT2) -> None:
    """Every page is taken, and each sequence gets its own where it goes another way."""
    (prompt,) = prompts_of((255,))
    session = bundled.session(5)
    session.append([prompt], sequences=[0])
    for target in range(1, 5):
        session.fork(0, target)
    for repeat in range(3):
        logits = session.append([[repeat + each] for each in range(5)])
        for each, row in enumerate(logits):
            require_same_bits(row, bundled.logits([*prompt, repeat + each])[0, -1])
        session.rewind(255)
    session.rewind(0)
    fresh = prompts_of((100, 101, 102, 103, 104))
    for row, sequence in zip(session.append(fresh), fresh, strict=True):
        require_same_bits(row, bundled.logits(sequence)[0, -1])


def test_what_a_session_refuses(bundled: BakedGPT2) -> None:
    session = bundled.session(3)
    session.append([[1, 2], [3], [4, 5, 6]])
    cases: list[tuple[Any, str]] = [
        (lambda: session.append([[1], [2]]), "ids hold 2 sequences, but this session has batch = 3"),
        (lambda: session.append([[1], [2]], sequences=[0]), "ids hold 2 sequences, but 1 are named"),
        (lambda: session.append([[1], [2]], sequences=[1, 0]), "ascending"),
        (lambda: session.append([[1], [2]], sequences=[1, 1]), "ascending"),
        (lambda: session.append([[1]], sequences=[3]), "no sequence 3"),
        (lambda: session.append([[1]], sequences=0), "sequences must be a list of integers, not 0"),
        (lambda: session.append([[1]], sequences=[-1]), "sequence must be an integer of at least 0"),
        (lambda: session.append([[1] * 255], sequences=[0]), "holds 2 positions, so 255 more"),
        (lambda: session.append([[1], [2, 257]], sequences=[0, 1]), "token id 257"),
        (lambda: session.rewind(2, 1), "holds only 1 positions"),
        (lambda: session.rewind(4), "holds only 3 positions"),
        (lambda: session.rewind(0, 3), "no sequence 3"),
        (lambda: session.fork(0, 3), "no sequence 3"),
    ]
    for call, message in cases:
        with pytest.raises(kaoken.InputError, match=message):
            call()
    assert session.lengths == (2, 1, 3)
    session.rewind(2)
    assert session.lengths == (2, 1, 2)
