"""The sampler against a second one, written in numpy for one row at a time."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gpu_worker.core.inference.random import philox, uniform
from gpu_worker.core.inference.sampling import Sampling, flaw
from gpu_worker.engine.slice.past import Past
from gpu_worker.engine.slice.sampler import Draw, choose

VOCABULARY = 40
GREEDY = Sampling(temperature=0.0)


def oracle_kept(row: np.ndarray, it: Sampling, history: Sequence[int] = (), prompt_len: int = 0) -> dict[int, float]:
    """Return the tokens that may be drawn and their probabilities, one after another as the docs say it."""
    scores = [float(x) for x in row]
    for token, bias in it.logit_bias.items():
        scores[token] += bias
    for token in set(history):
        scores[token] = (
            scores[token] / it.repetition_penalty if scores[token] > 0 else scores[token] * it.repetition_penalty
        )
        count = list(history[prompt_len:]).count(token)
        scores[token] -= count * it.frequency_penalty + (it.presence_penalty if count else 0.0)
    if it.ignore_eos:
        for token in it.eos:
            scores[token] = -math.inf
    if it.temperature == 0.0:
        return {scores.index(max(scores)): 1.0}
    best = max(scores)
    weights = [math.exp((score - best) / it.temperature) for score in scores]
    order = sorted(
        (token for token in range(len(weights)) if weights[token]), key=lambda token: (-weights[token], token)
    )
    order = [token for token in order if weights[token] >= it.min_p * weights[order[0]]]
    if it.top_k:
        order = order[: it.top_k]
    total, sum_so_far, kept = sum(weights[token] for token in order), 0.0, []
    for token in order:
        if it.top_p < 1.0 and sum_so_far >= it.top_p * total and kept:
            break
        kept.append(token)
        sum_so_far += weights[token]
    total = sum(weights[token] for token in kept)
    return {token: weights[token] / total for token in sorted(kept)}


def oracle(row: np.ndarray, it: Sampling, position: int, history: Sequence[int] = (), prompt_len: int = 0) -> set[int]:
    """Return the token that is drawn; both neighbours where the number lies on their border."""
    kept = oracle_kept(row, it, history, prompt_len)
    number, at, found = uniform(it.seed, position), 0.0, set()
    for token, share in kept.items():
        if at - 1e-9 <= number < at + share + 1e-9:
            found.add(token)
        at += share
    return found


ROWS = st.lists(st.floats(-8, 8, width=16, allow_subnormal=False), min_size=VOCABULARY, max_size=VOCABULARY).map(
    lambda values: np.array(values, np.float32)
)


@st.composite
def samplings(draw: st.DrawFn) -> Sampling:
    return Sampling(
        temperature=draw(st.sampled_from([0.0, 0.5, 1.0, 2.0])),
        top_k=draw(st.sampled_from([0, 1, 3, 17, VOCABULARY, 1000])),
        top_p=draw(st.sampled_from([1.0, 0.9, 0.5, 0.01])),
        min_p=draw(st.sampled_from([0.0, 0.05, 0.5])),
        repetition_penalty=draw(st.sampled_from([1.0, 1.3, 0.8])),
        presence_penalty=draw(st.sampled_from([0.0, 0.7, -0.5])),
        frequency_penalty=draw(st.sampled_from([0.0, 0.4])),
        logit_bias=draw(
            st.dictionaries(st.integers(0, VOCABULARY - 1), st.sampled_from([-100.0, 1.5, 100.0]), max_size=3)
        ),
        seed=draw(st.integers(0, 2**64 - 1)),
        logprobs=draw(st.sampled_from([None, 0, 3])),
        eos=(5, 6),
        ignore_eos=draw(st.booleans()),
    )


HISTORIES = st.lists(st.integers(0, VOCABULARY - 1), max_size=90)


def draw_of(it: Sampling, position: int, history: Sequence[int], prompt_len: int) -> Draw:
    return Draw(it, position, Past(history, prompt_len) if it.needs_history else None)


@given(ROWS, samplings(), HISTORIES, st.integers(0, 90), st.integers(0, 10_000))
def test_a_token_is_the_oracles(row: np.ndarray, it: Sampling, history: list[int], prompt_len: int, position: int):
    prompt_len = min(prompt_len, len(history))
    (choice,) = choose(torch.from_numpy(row)[None], [draw_of(it, position, history, prompt_len)])
    assert choice.token in near_oracles(row, it, position, history, prompt_len)


def near_oracles(row: np.ndarray, it: Sampling, position: int, history: list[int], prompt_len: int) -> set[int]:
    """Penalties are computed in single precision: what ties in one may not in the other."""
    found = oracle(row, it, position, history, prompt_len)
    for shift in (1e-6, -1e-6):
        nearly = Sampling(
            **{
                **{name: getattr(it, name) for name in Sampling.__slots__},
                "top_p": min(1.0, it.top_p * (1 + shift)),
                "min_p": it.min_p * (1 + shift),
                "frequency_penalty": it.frequency_penalty * (1 + shift),
                "repetition_penalty": it.repetition_penalty * (1 + shift if it.repetition_penalty != 1.0 else 1.0),
            }
        )
        found |= oracle(row, nearly, position, history, prompt_len)
    return found


@settings(max_examples=40)
@given(
    st.lists(st.tuples(ROWS, samplings(), HISTORIES), min_size=1, max_size=6),
    st.integers(0, 1000),
)
def test_neighbours_change_no_choice(sessions: list[tuple[np.ndarray, Sampling, list[int]]], position: int):
    draws = [draw_of(it, position + at, history, len(history) // 2) for at, (_, it, history) in enumerate(sessions)]
    rows = torch.from_numpy(np.stack([row for row, _, _ in sessions]))
    before = rows.clone()
    together = choose(rows, draws)
    assert torch.equal(rows, before)
    assert together == [choose(rows[at : at + 1], [draw])[0] for at, draw in enumerate(draws)]
    assert together == choose(rows.flip(0), draws[::-1])[::-1]


def drawn_tokens(row: np.ndarray, it: Sampling, count: int = 600) -> set[int]:
    found = choose(torch.from_numpy(row).expand(count, -1), [Draw(it, position) for position in range(count)])
    return {choice.token for choice in found}


EVEN = np.log(np.array([0.4, 0.3, 0.2, 0.06, 0.04] + [1e-9] * 35)).astype(np.float32)


@pytest.mark.parametrize(
    ("it", "kept"),
    [
        (Sampling(top_k=2), {0, 1}),
        (Sampling(top_k=1, temperature=50.0), {0}),
        (Sampling(top_p=0.75), {0, 1, 2}),  # it takes the third to reach 0.75
        (Sampling(top_p=0.65), {0, 1}),
        (Sampling(top_p=0.0), {0}),
        (Sampling(min_p=0.4), {0, 1, 2}),
        (Sampling(min_p=1.0), {0}),
        (Sampling(top_k=3, top_p=0.5), {0, 1}),  # 0.4 / 0.9 is not enough
        (Sampling(top_k=2, top_p=0.5), {0}),  # 0.4 / 0.7 is
        (Sampling(temperature=1e-9), {0}),
        (Sampling(ignore_eos=True, eos=(0, 1), top_k=2), {2, 3}),
        (Sampling(logit_bias={39: 1000.0}), {39}),
    ],
    ids=lambda value: (
        None
        if isinstance(value, set)
        else "-".join(
            f"{name}={getattr(value, name)}" for name in ("temperature", "top_k", "top_p", "min_p", "ignore_eos")
        )
    ),
)
def test_what_may_be_drawn(it: Sampling, kept: set[int]):
    assert drawn_tokens(EVEN, it) == kept
    assert set(oracle_kept(EVEN, it)) == kept


def test_of_equal_logits_at_the_edge_the_lowest_tokens_stay():
    row = np.zeros(VOCABULARY, np.float32)
    row[7] = 1.0
    assert drawn_tokens(row, Sampling(top_k=4)) == {0, 1, 2, 7}


def test_a_nucleus_wider_than_the_guess_is_whole():
    row = torch.zeros(1, 3000)
    row[0, 17] = 1.0
    it = Sampling(top_p=0.5)
    found = choose(row.expand(2000, -1), [Draw(it, position) for position in range(2000)])
    # 1499.86 of 2999 equal ones and e: to half of the sum it takes the token 17 and the 1499 lowest others.
    assert max(choice.token or 0 for choice in found) < 1500
    assert len({choice.token for choice in found}) > 1000


@given(ROWS, st.integers(0, 2**64 - 1))
def test_temperature_zero_is_the_largest_logit(row: np.ndarray, seed: int):
    (choice,) = choose(torch.from_numpy(row)[None], [Draw(Sampling(temperature=0.0, seed=seed), 3)])
    assert choice.token == int(row.argmax())


def test_frequencies_are_the_probabilities():
    probabilities = np.array([0.5, 0.25, 0.125, 0.125])
    row = np.full(VOCABULARY, -1e4, np.float32)
    row[:4] = np.log(probabilities)
    found = choose(torch.from_numpy(row).expand(8192, -1), [Draw(Sampling(seed=11), at) for at in range(8192)])
    counts = np.bincount([choice.token or 0 for choice in found], minlength=4)[:4]
    # The numbers are fixed by the seed; four times the deviation that chance brings.
    assert np.all(np.abs(counts - 8192 * probabilities) < 4 * np.sqrt(8192 * probabilities))


@pytest.mark.parametrize("bad", [math.nan, math.inf], ids=["nan", "inf"])
@pytest.mark.parametrize("it", [GREEDY, Sampling(top_k=3, logprobs=2)], ids=["greedy", "sampled"])
def test_logits_that_are_no_numbers_are_the_matter_of_their_row_alone(bad: float, it: Sampling):
    rows = torch.from_numpy(np.stack([EVEN, EVEN, EVEN]))
    rows[1, 30] = bad
    first, broken, last = choose(rows, [Draw(it, 4)] * 3)
    assert (broken.token, broken.problem) == (None, "the model's logits are not numbers")
    assert first == last == choose(rows[:1], [Draw(it, 4)])[0]


def test_where_nothing_may_be_chosen_that_is_said():
    draws = [Draw(Sampling(temperature=t), 0, allowed=np.zeros(VOCABULARY, np.bool_)) for t in (0.0, 1.0)]
    found = choose(torch.from_numpy(np.stack([EVEN, EVEN])), draws)
    assert [(choice.token, choice.problem) for choice in found] == [(None, "no token is left that may be chosen")] * 2


def test_only_what_is_allowed_is_chosen():
    allowed = np.zeros(VOCABULARY, np.bool_)
    allowed[[3, 9]] = True
    rows = torch.from_numpy(EVEN).expand(200, -1)
    draws = [Draw(Sampling(temperature=0.0 if at % 2 else 30.0), at, allowed=allowed) for at in range(200)]
    found = choose(rows, draws)
    assert {choice.token for choice in found[1::2]} == {3}
    assert {choice.token for choice in found[::2]} == {3, 9}


def test_logprobs_are_those_before_temperature_and_cuts():
    it = Sampling(temperature=5.0, top_k=1, logit_bias={4: 100.0}, logprobs=3)
    (choice,) = choose(torch.from_numpy(EVEN)[None], [Draw(it, 0)])
    assert choice.token == 4
    assert choice.logprob == pytest.approx(math.log(0.04), abs=1e-5)
    assert [token for token, _ in choice.top] == [0, 1, 2]
    assert [value for _, value in choice.top] == pytest.approx(np.log([0.4, 0.3, 0.2]), abs=1e-5)


def test_without_alternatives_the_chosen_ones_is_told():
    (choice,) = choose(torch.from_numpy(EVEN)[None], [Draw(Sampling(temperature=0.0, logprobs=0), 0)])
    assert choice.logprob == pytest.approx(math.log(0.4), abs=1e-5)
    assert choice.top == ()


@given(st.lists(st.integers(0, 9), max_size=200), st.integers(0, 200), st.lists(st.integers(0, 200), max_size=5))
def test_a_past_that_is_cut_is_one_that_was_never_longer(tokens: list[int], prompt_len: int, cuts: list[int]):
    past = Past(tokens, prompt_len)
    for cut in cuts:
        past.cut(cut)
        tokens = tokens[:cut]
        past.append(cut % 10)
        tokens = [*tokens, cut % 10]
    said = tokens[prompt_len:]
    assert dict(zip(past.ids.tolist(), past.counts.tolist(), strict=True)) == {t: said.count(t) for t in set(tokens)}
    assert past.generated == said


@given(st.integers(0, 2**64 - 1), st.integers(1, 2**63))
def test_the_random_number_is_philox(seed: int, position: int):
    # numpy counts up before its first block.
    theirs = np.random.Philox(key=seed, counter=position - 1).random_raw(4)
    assert philox(seed, position) == tuple(int(word) for word in theirs)
    assert uniform(seed, position) == (int(theirs[0]) >> 12) / 2**52


def test_the_random_number_is_the_published_one():
    assert philox(0, 0) == (0x16554D9ECA36314C, 0xDB20FE9D672D0FDC, 0xD7E772CEE186176B, 0x7E68B68AEC7BA23B)


@given(st.floats(1, 1e300))
def test_the_largest_random_number_stays_below_any_total(total: float):
    assert (1 - 2.0**-52) * total < total


@pytest.mark.parametrize(
    ("it", "said"),
    [
        (Sampling(temperature=-0.1), "temperature"),
        (Sampling(temperature=math.nan), "temperature"),
        (Sampling(top_k=-1), "top_k"),
        (Sampling(top_p=1.1), "top_p"),
        (Sampling(min_p=-0.1), "min_p"),
        (Sampling(repetition_penalty=0.0), "repetition_penalty"),
        (Sampling(presence_penalty=math.inf), "presence_penalty"),
        (Sampling(frequency_penalty=math.nan), "frequency_penalty"),
        (Sampling(logit_bias={VOCABULARY: 1.0}), "token"),
        (Sampling(logit_bias={1: math.inf}), "bias"),
        (Sampling(eos=(-1,)), "token"),
        (Sampling(logprobs=21), "logprobs"),
        (Sampling(seed=2**64), "seed"),
        (Sampling(schema="{}", ignore_eos=True), "end"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_parameters_that_cannot_be_are_named(it: Sampling, said: str):
    assert said in (flaw(it, VOCABULARY) or "")


def test_parameters_that_can_be_have_no_flaw():
    assert flaw(Sampling(logit_bias={0: -100.0}, eos=(VOCABULARY - 1,), logprobs=20), VOCABULARY) is None
