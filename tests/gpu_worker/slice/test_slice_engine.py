"""The engine of a slice, over real stages: what a step gives, what is refused, and that others do not notice."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gpu_worker.core.errors import OwnersFault
from gpu_worker.core.inference.layers import Layers
from gpu_worker.core.inference.sampling import Sampled, Sampling
from gpu_worker.core.inference.step import Done, Open, Run, Step, Tensor
from gpu_worker.core.inference.tensor import HIDDEN
from gpu_worker.engine.slice.slice_engine import EngineOptions, SliceEngine, open_engine
from gpu_worker.engine.slice.stage import Stage
from tests.fixtures.tiny import Tiny

MIB = 1024 * 1024
GREEDY = Sampling(temperature=0.0)
SAMPLINGS = (
    GREEDY,
    Sampling(seed=5),
    Sampling(seed=6, temperature=0.7, top_k=20, top_p=0.9),
    Sampling(seed=7, repetition_penalty=1.3, frequency_penalty=0.2, min_p=0.02, logprobs=2),
    Sampling(seed=8, schema='{"type": "array", "items": {"type": "integer"}}', temperature=2.0),
    Sampling(temperature=0.0, presence_penalty=0.5, logit_bias={40: 3.0}),
)
_INFO_VOCABULARY = 258


class Clock:
    def __init__(self) -> None:
        self.s = 100.0

    def __call__(self) -> float:
        return self.s


def options(**named: Any) -> EngineOptions:
    return EngineOptions(**{"cache_bytes_max": 8 * MIB, "back_end": "hf", **named})


@pytest.fixture(scope="module")
def model(tiny: Tiny) -> Path:
    return tiny.model


@pytest.fixture(scope="module")
def whole(model: Path) -> SliceEngine:
    return open_engine(model, Layers(0, 2, 2), options())


@pytest.fixture(scope="module")
def halves(model: Path) -> tuple[SliceEngine, SliceEngine]:
    return open_engine(model, "0:1", options()), open_engine(model, "1:2", options())


@pytest.fixture(autouse=True)
def _left_empty(request: pytest.FixtureRequest):
    yield
    for name in ("whole", "halves"):
        if name in request.fixturenames:
            found = request.getfixturevalue(name)
            for engine in found if isinstance(found, tuple) else (found,):
                engine.close()


def prompt_of(number: int) -> tuple[int, ...]:
    return tuple((7 * number + 3 * at * at + 1) % 250 for at in range(3 + 5 * number % 17))


def opened(name: str, it: Sampling, prompt: Sequence[int], *, epoch: int = 1, said: Sequence[int] = ()) -> Open:
    return Open(session=name, epoch=epoch, positions=200, sampling=it, history=(*prompt, *said), prompt_len=len(prompt))


def through(engines: Sequence[SliceEngine], step: Step) -> Done:
    """Return what the last of a chain of stages makes of a step of the first."""
    for engine in engines[:-1]:
        done = engine.step(step)
        assert not done.refusals
        assert done.hidden is not None or not done.runs
        step = replace(step, runs=done.runs, rows=done.hidden or ())
    return engines[-1].step(step)


def run(name: str, position: int, count: int = 1, *, samples: bool = True, epoch: int = 1) -> Run:
    return Run(session=name, epoch=epoch, position=position, count=count, samples=samples)


def answers(engines: Sequence[SliceEngine], name: str, it: Sampling, prompt: Sequence[int], most: int) -> list[Sampled]:
    """Return what a session gets that is alone."""
    found: list[Sampled] = []
    step = Step(opens=(opened(name, it, prompt),), runs=(run(name, 0, len(prompt)),), rows=tuple(prompt))
    while len(found) < most:
        done = through(engines, step)
        assert not done.refusals
        found += done.tokens
        step = Step(runs=(run(name, found[-1].position),), rows=(found[-1].token,))
        if found[-1].is_eos:
            break
    through(engines, Step(closes=(name,)))
    return found


def same(one: Sampled, other: Sampled) -> bool:
    """Whether two answers are the same; log probabilities have the rounding of their pass in the last digits."""
    return one._replace(logprob=None, top=(), session="") == other._replace(logprob=None, top=(), session="") and (
        [token for token, _ in one.top] == [token for token, _ in other.top]
        and one.logprob == pytest.approx(other.logprob, abs=1e-4)
    )


def test_a_session_gets_the_same_tokens_in_any_company(whole: SliceEngine, halves: tuple[SliceEngine, ...]):
    alone = [answers([whole], "alone", it, prompt_of(at), 12) for at, it in enumerate(SAMPLINGS)]
    assert all(
        same(a, b) for a, b in zip(alone[3], answers(halves, "alone", SAMPLINGS[3], prompt_of(3), 12), strict=True)
    )
    # They join one after the other, with their prompts in two pieces.
    got: list[list[Sampled]] = [[] for _ in SAMPLINGS]
    at = 0
    while any(len(mine) < len(wanted) for mine, wanted in zip(got, alone, strict=True)):
        opens, runs, rows = [], [], []
        for number, it in enumerate(SAMPLINGS):
            name, prompt, mine = f"s{number}", prompt_of(number), got[number]
            if at < number or len(mine) == len(alone[number]):
                continue
            if at == number:
                opens.append(opened(name, it, prompt))
                runs.append(run(name, 0, 2, samples=False))
                rows += prompt[:2]
            elif at == number + 1:
                runs.append(run(name, 2, len(prompt) - 2))
                rows += prompt[2:]
            else:
                runs.append(run(name, mine[-1].position))
                rows.append(mine[-1].token)
        done = through(halves, Step(opens=tuple(opens), runs=tuple(runs), rows=tuple(rows)))
        assert not done.refusals
        for sampled in done.tokens:
            got[int(sampled.session[1:])].append(sampled)
        at += 1
    for mine, wanted in zip(got, alone, strict=True):
        assert all(same(a, b) for a, b in zip(mine, wanted, strict=True))


def test_greedy_is_the_unsplit_models_largest_logit(whole: SliceEngine, model: Path):
    from transformers import AutoModelForCausalLM

    theirs = AutoModelForCausalLM.from_pretrained(model, local_files_only=True)
    tokens = list(prompt_of(3))
    mine = answers([whole], "greedy", GREEDY, tokens, 8)
    with torch.inference_mode():
        for sampled in mine:
            assert sampled.token == int(theirs(torch.tensor([tokens])).logits[0, -1].argmax())
            assert sampled.position == len(tokens)
            tokens.append(sampled.token)


@pytest.mark.parametrize("number", range(len(SAMPLINGS)))
def test_a_replacement_that_is_told_the_tokens_goes_on_with_the_same(
    whole: SliceEngine, halves: tuple[SliceEngine, ...], number: int
):
    it, prompt = SAMPLINGS[number], prompt_of(number)
    wanted = answers([whole], "first", it, prompt, 10)
    kept = len(wanted) // 2
    tokens = (*prompt, *(sampled.token for sampled in wanted[:kept]))
    begun = opened("again", it, prompt, epoch=2, said=tokens[len(prompt) :])
    done = through(halves, Step(opens=(begun,), runs=(run("again", 0, len(tokens), epoch=2),), rows=tokens))
    assert [sampled.token for sampled in done.tokens] == [wanted[kept].token]
    assert done.tokens[0].epoch == 2


@settings(max_examples=8)
@given(number=st.integers(0, len(SAMPLINGS) - 1), backs=st.lists(st.integers(0, 9), max_size=4))
def test_a_session_that_goes_back_says_the_same_again(whole: SliceEngine, number: int, backs: list[int]):
    it, prompt = SAMPLINGS[number], prompt_of(number)
    wanted = answers([whole], "straight", it, prompt, 10)
    whole.step(Step(opens=(opened("back", it, prompt),), runs=(run("back", 0, len(prompt)),), rows=prompt))
    tokens = [*prompt, *(sampled.token for sampled in wanted)]
    at = len(prompt)
    for back in [*backs, 0]:
        for position in range(at, len(tokens) - 1):
            done = whole.step(Step(runs=(run("back", position),), rows=(tokens[position],)))
            assert not done.refusals
            assert done.tokens[0].token == tokens[position + 1]
        at = len(prompt) + min(back, len(wanted) - 1)
    whole.step(Step(closes=("back",)))


def test_what_is_wrong_with_one_session_is_refused_and_the_others_go_on(whole: SliceEngine):
    prompt = prompt_of(1)
    names = ("good", "gap", "strange", "late", "old")
    whole.step(Step(opens=tuple(replace(opened(name, GREEDY, prompt), epoch=3) for name in names)))
    whole.step(Step(opens=(Open(session="mute", epoch=1, positions=9),)))
    whole.step(Step(opens=(Open(session="short", epoch=1, positions=1, sampling=GREEDY),)))
    runs = (
        run("unknown", 0, 2),
        run("gap", 4, 2, epoch=3),
        run("good", 0, len(prompt), epoch=3),
        run("strange", 0, 2, epoch=3),
        run("old", 0, 1, epoch=2),
        run("mute", 0, 1),
        run("short", 0, 2),
        run("good", len(prompt), 1, epoch=3),
    )
    rows = (1, 2, 3, 4, *prompt, 5, _INFO_VOCABULARY, 6, 7, 8, 9, 10)
    done = whole.step(Step(runs=runs, rows=rows))
    assert {(each.session, each.code) for each in done.refusals} == {
        ("unknown", "unknown_session"),
        ("gap", "position_gap"),
        ("strange", "invalid_argument"),
        ("old", "stale_epoch"),
        ("mute", "invalid_argument"),
        ("short", "no_capacity"),
        ("good", "invalid_argument"),
    }
    assert [each.session for each in done.runs] == ["good"]
    assert done.tokens[0].token == answers([whole], "alone", GREEDY, prompt, 1)[0].token


def hidden(engine: SliceEngine, rows: int, dtype: str = "float32") -> Tensor:
    data = np.ones((rows, engine.info.hidden_size), np.float32).tobytes()
    return Tensor(dtype, (rows, engine.info.hidden_size), data)


@pytest.mark.parametrize(
    "bend",
    [
        lambda rows: replace_tensor(rows, data=rows.data[:-4]),
        lambda rows: replace_tensor(rows, shape=(3, rows.shape[1])),
        lambda rows: replace_tensor(rows, shape=(2, 10**15)),
        lambda rows: replace_tensor(rows, dtype="float16"),
        lambda rows: replace_tensor(rows, dtype="int64"),
        lambda rows: replace_tensor(rows, dtype="strange"),
        lambda rows: (1, 2),
        lambda rows: (),
    ],
    ids=["cut", "rows", "bomb", "half", "ids", "strange", "tokens", "nothing"],
)
def test_rows_that_are_not_those_of_the_runs_are_refused_and_nothing_changes(
    halves: tuple[SliceEngine, SliceEngine], bend: Callable[[Tensor], Any]
):
    last = halves[1]
    last.step(Step(opens=(Open(session="a", epoch=1, positions=9, sampling=GREEDY),)))
    good = Step(runs=(run("a", 0, 2),), rows=hidden(last, 2))
    assert last.step(good).tokens
    again = replace(good, runs=(run("a", 1, 2),), rows=bend(hidden(last, 2)))
    done = last.step(again)
    assert [(each.session, each.code) for each in done.refusals] == [("a", "invalid_tensor")]
    assert not done.runs
    assert last.step(replace(good, runs=(run("a", 2, 2),))).tokens


def replace_tensor(rows: Tensor, **fields: Any) -> Tensor:
    return Tensor(**{"dtype": rows.dtype, "shape": rows.shape, "data": rows.data, **fields})


@pytest.mark.parametrize("counts", [(0,), (-1, 3)], ids=["none", "negative"])
def test_a_run_has_rows(whole: SliceEngine, counts: tuple[int, ...]):
    runs = tuple(run(f"s{at}", 0, count) for at, count in enumerate(counts))
    done = whole.step(Step(runs=runs, rows=(1,) * sum(counts)))
    assert {each.code for each in done.refusals} == {"invalid_tensor"}


@pytest.mark.parametrize(
    ("new", "code"),
    [
        (Open(session="s", epoch=1, positions=100_000), "context_length_exceeded"),
        (Open(session="s", epoch=1, positions=0), "invalid_argument"),
        (Open(session="s", epoch=1, positions=9, sampling=Sampling(top_p=2.0)), "invalid_argument"),
        (Open(session="s", epoch=1, positions=9, sampling=GREEDY, history=(-1,)), "invalid_argument"),
        (Open(session="s", epoch=1, positions=9, sampling=GREEDY, history=(999,)), "invalid_argument"),
        (Open(session="s", epoch=1, positions=9, sampling=GREEDY, history=(1,), prompt_len=2), "invalid_argument"),
        (Open(session="s", epoch=1, positions=9, sampling=Sampling(schema="nope")), "invalid_argument"),
    ],
    ids=["long", "empty", "sampling", "negative", "strange", "prompt", "schema"],
)
def test_a_session_that_cannot_be_opened_is_refused(whole: SliceEngine, new: Open, code: str):
    done = whole.step(Step(opens=(new, Open(session="other", epoch=1, positions=5))))
    assert [(each.session, each.code) for each in done.refusals] == [("s", code)]
    assert whole.cache.sessions == 1


def test_a_newer_epoch_brings_new_sampling_and_keeps_the_cache(whole: SliceEngine):
    prompt = prompt_of(2)
    whole.step(Step(opens=(opened("s", GREEDY, prompt),), runs=(run("s", 0, len(prompt)),), rows=prompt))
    biased = replace(GREEDY, logit_bias={77: 1000.0})
    whole.step(Step(opens=(opened("s", biased, prompt, epoch=2),)))
    done = whole.step(Step(runs=(run("s", len(prompt) - 1, epoch=2),), rows=prompt[-1:]))
    assert done.tokens[0].token == 77
    # Told by the chain, which does not know it: it stays.
    whole.step(Step(opens=(Open(session="s", epoch=3, positions=200),)))
    assert whole.step(Step(runs=(run("s", len(prompt), epoch=3),), rows=(1,))).tokens[0].token == 77
    old = whole.step(Step(opens=(opened("s", GREEDY, prompt, epoch=2),)))
    assert [each.code for each in old.refusals] == ["stale_epoch"]


def test_penalties_need_the_tokens_before(halves: tuple[SliceEngine, SliceEngine]):
    last = halves[1]
    last.step(Step(opens=(Open(session="s", epoch=1, positions=9, sampling=SAMPLINGS[3], history=(1, 2)),)))
    done = last.step(Step(runs=(run("s", 0, 5),), rows=hidden(last, 5)))
    assert [each.code for each in done.refusals] == ["position_gap"]


def test_a_full_cache_takes_nobody_in_until_somebody_goes(model: Path):
    clock = Clock()
    stage = open_engine(model, "0:1", options())._stage
    engine = SliceEngine(stage, sessions_max=2, idle_s=60.0, clock=clock)
    two = tuple(Open(session=name, epoch=1, positions=50) for name in "ab")
    third = Step(opens=(Open(session="c", epoch=1, positions=50),))
    assert not engine.step(Step(opens=two)).refusals
    assert [each.code for each in engine.step(third).refusals] == ["no_capacity"]
    clock.s += 50.0
    engine.step(Step(runs=(run("b", 0, 1),), rows=(1,)))
    clock.s += 20.0
    # Only a has been idle for a minute.
    assert not engine.step(third).refusals
    done = engine.step(Step(runs=(run("a", 0), run("b", 1)), rows=(1, 2)))
    assert [(each.session, each.code) for each in done.refusals] == [("a", "unknown_session")]
    assert [each.session for each in done.runs] == ["b"]


def test_a_cache_that_is_full_of_idle_sessions_is_emptied_for_who_comes(model: Path):
    clock = Clock()
    stage = open_engine(model, "0:1", options(cache_bytes_max=64 * 1024))._stage
    engine = SliceEngine(stage, idle_s=60.0, clock=clock)
    most = engine.cache.positions_max
    assert not engine.step(Step(opens=(Open(session="a", epoch=1, positions=most),))).refusals
    wanted = Step(opens=(Open(session="b", epoch=1, positions=most),))
    assert [each.code for each in engine.step(wanted).refusals] == ["no_capacity"]
    clock.s += 61.0
    assert not engine.step(wanted).refusals
    assert engine.cache.sessions == 1


class Faulty:
    """A real stage whose next passes raise what they are told to."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self.error: BaseException | None = None
        self.logits: float | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stage, name)

    def forward(self, x: Any, runs: Any) -> Any:
        if self.error is not None:
            raise self.error
        made = self._stage.forward(x, runs)
        if self.logits is not None:
            made = made.clone()
            made[0] = self.logits
        return made


@pytest.fixture
def faulty(whole: SliceEngine) -> Faulty:
    return Faulty(whole._stage)


def test_a_device_without_memory_refuses_the_step_and_lives(faulty: Faulty):
    engine = SliceEngine(faulty)
    begin = Step(opens=(opened("a", GREEDY, (1, 2)),), runs=(run("a", 0, 2),), rows=(1, 2))
    for error in (torch.OutOfMemoryError("CUDA out of memory"), MemoryError(), too_large()):
        faulty.error = error
        done = engine.step(begin)
        assert [(each.session, each.code) for each in done.refusals] == [("a", "no_capacity")]
        assert engine.cache.sessions == 0
        faulty.error = None
        assert engine.step(begin).tokens


def too_large() -> RuntimeError:
    """Return what torch says on a CPU that has no memory left."""
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60)
    return caught.value


def test_what_nobody_expects_is_raised(faulty: Faulty):
    faulty.error = RuntimeError("a bug")
    with pytest.raises(RuntimeError, match="a bug"):
        SliceEngine(faulty).step(Step(opens=(opened("a", GREEDY, (1,)),), runs=(run("a", 0, 1),), rows=(1,)))


def test_logits_that_are_no_numbers_end_their_session_alone(faulty: Faulty):
    engine = SliceEngine(faulty)
    faulty.logits = float("nan")
    opens = (opened("a", GREEDY, (1,)), opened("b", Sampling(seed=1), (1,)))
    done = engine.step(Step(opens=opens, runs=(run("a", 0), run("b", 0)), rows=(1, 1)))
    assert [(each.session, each.code) for each in done.refusals] == [("a", "internal")]
    assert [each.session for each in done.tokens] == ["b"]


@pytest.mark.parametrize("wire", ["same", "bfloat16", "int8"])
def test_rows_go_out_as_the_wire_wants_them(model: Path, halves: tuple[SliceEngine, SliceEngine], wire: str):
    first = open_engine(model, "0:1", options(wire_dtype=wire))
    rows = prompt_of(2)
    step = Step(opens=(opened("s", GREEDY, rows),), runs=(run("s", 0, len(rows)),), rows=rows, takes=HIDDEN)
    plain = halves[0].step(step).hidden
    sent = first.step(step).hidden
    assert plain is not None
    assert sent is not None
    size = {"same": 4, "bfloat16": 2, "int8": 1 + 2 / 64}[wire]
    assert len(sent.data) == len(rows) * first.info.hidden_size * size
    assert sent.shape == plain.shape
    done = halves[1].step(replace(step, rows=sent))
    assert not done.refusals
    assert done.tokens[0].position == len(rows)
    if wire == "same":
        assert bytes(sent.data) == bytes(plain.data)


def test_what_it_says_of_itself(whole: SliceEngine):
    assert whole.info.dtype == "float32"
    assert whole.info.layers == Layers(0, 2, 2)
    assert whole.info.cost_s


def test_loading_is_told_of(model: Path):
    told: list[tuple[int, int]] = []
    open_engine(model, "1:2", options(), lambda done, total: told.append((done, total)))
    assert told[-1][0] == told[-1][1] > 0


@pytest.mark.parametrize(
    ("layers", "named", "said"),
    [
        ("1:3", {}, "slice"),
        ("0:1", {"wire_dtype": "int4"}, "int4"),
        ("0:1", {"back_end": "magic"}, "magic"),
        ("0:2", {"free_bytes": 1000}, "missing"),
    ],
    ids=["layers", "wire", "back end", "memory"],
)
def test_a_slice_that_cannot_be_served_is_the_owners_to_mend(
    model: Path, layers: str, named: dict[str, Any], said: str
):
    with pytest.raises(OwnersFault, match=said):
        open_engine(model, layers, options(**named))
