"""Text out of tokens: whole characters, stop strings, log probabilities, ends, and the figures of it."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_worker.core.inference.codes import InferenceError
from gpu_worker.core.inference.layers import Layers
from gpu_worker.core.inference.sampling import Sampled
from gpu_worker.inference.text.answering import Metered, begin
from gpu_worker.inference.text.engine import Piece
from gpu_worker.inference.text.service import NotHead, Service
from tests.fixtures.talker import Talker, service_of
from wire.openai import CompletionRequest


class Clock:
    """Seconds that pass only where a test says so."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


class Ticking(Talker):
    """Takes `took_s` of the clock for each token."""

    clock: Clock
    took_s: tuple[float, ...]

    async def start(self, request: Any) -> Any:
        stream = await super().start(request)
        self.clock.now_s += 0.25
        took_s, clock = self.took_s, self.clock

        class Slow:
            async def __aiter__(self) -> AsyncIterator[Sampled]:
                index = 0
                async for sampled in stream:
                    clock.now_s += took_s[index]
                    index += 1
                    yield sampled

            async def cancel(self) -> None:
                await stream.cancel()

        return Slow()


def ask(tokens_max: int | None = None, *stops: str, prompt: bytes = b"prompt") -> CompletionRequest:
    return CompletionRequest(prompt=tuple(prompt), max_tokens=tokens_max, stop=stops, logprobs=1)


async def said(service: Service, asked: CompletionRequest, usual: int | None = None) -> tuple[Metered, list[Piece]]:
    generation = await begin(service, asked, tokens_usual=usual)
    try:
        return generation, [piece async for piece in generation.pieces()]
    finally:
        await generation.close()


@given(
    text=st.text(max_size=30),
    stops=st.lists(st.text(min_size=1, max_size=4), max_size=3),
    tokens_max=st.integers(1, 60),
)
def test_pieces_are_the_text_up_to_the_first_stop_string(text: str, stops: list[str], tokens_max: int) -> None:
    text = text.encode("utf-8", "ignore").decode()
    generation, pieces = asyncio.run(said(service_of(Talker(says=text.encode())), ask(tokens_max, *stops)))
    whole = text.encode()[:tokens_max].decode("utf-8", "replace")
    # Of the stop strings the one that is complete first ends the text, of two the longer one.
    ends = [(at + len(stop), at) for stop in stops if (at := whole.find(stop)) >= 0]
    expected = whole[: min(ends)[1]] if ends else whole
    assert "".join(piece.text for piece in pieces) == expected
    told = [token for piece in pieces for token in piece.told]
    assert b"".join(token.data or b"" for token in told).decode("utf-8", "replace").startswith(expected)
    assert [token.offset for token in told] == sorted(token.offset for token in told)
    is_cut = len(text.encode()) >= tokens_max
    assert generation.finish_reason == ("stop" if ends or not is_cut else "length")


async def test_what_may_begin_a_stop_string_is_held_back_and_told_in_the_end() -> None:
    _, pieces = await said(service_of(Talker(says=b"one </sto")), ask(None, "</stop>"))
    assert [piece.text for piece in pieces] == ["o", "n", "e", " ", "</sto"]
    assert [[token.text for token in piece.told] for piece in pieces] == [["o"], ["n"], ["e"], [" "], list("</sto")]


async def test_after_a_stop_string_no_token_more_is_drawn() -> None:
    talker = Talker(says=b"one two three")
    generation, pieces = await said(service_of(talker), ask(None, "two"))
    assert "".join(piece.text for piece in pieces) == "one "
    assert (generation.tokens, talker.told, talker.cancelled.is_set()) == (7, 7, True)


async def test_a_character_that_is_never_whole_is_told_as_what_it_is() -> None:
    _, pieces = await said(service_of(Talker(says="ab世".encode()[:-1])), ask())
    assert "".join(piece.text for piece in pieces) == "ab\ufffd"


async def test_an_answer_has_the_whole_context_where_no_limit_is_sent() -> None:
    talker = Talker(context=10)
    generation, _ = await said(service_of(talker), ask(prompt=b"1234"))
    assert (talker.requests[0].tokens_max, generation.tokens, generation.finish_reason) == (6, 6, "length")


@pytest.mark.parametrize(("usual", "most"), [(4, 4), (100, 6)])
async def test_a_usual_limit_gives_way_to_the_context(usual: int, most: int) -> None:
    talker = Talker(context=10)
    await said(service_of(talker), ask(prompt=b"1234"), usual)
    assert talker.requests[0].tokens_max == most


@pytest.mark.parametrize(("prompt", "tokens_max"), [(10, None), (10, 1), (1, 10), (2_000, 1)])
async def test_what_is_over_the_context_is_refused_before_it_begins(prompt: int, tokens_max: int | None) -> None:
    talker = Talker(context=10)
    with pytest.raises(InferenceError) as refused:
        await begin(service_of(talker), ask(tokens_max, prompt=b"x" * prompt))
    assert refused.value.code == "context_length_exceeded"
    assert talker.requests == []


async def test_each_session_has_its_own_name() -> None:
    talker = Talker()
    service = service_of(talker)
    for _ in range(3):
        await said(service, ask(1))
    assert len({request.session for request in talker.requests}) == 3


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"engine": None}, "not_ready"),
        ({"is_draining": True}, "draining"),
        ({"layers": Layers(1, 4, 4), "is_loaded": True}, "not_head"),
    ],
    ids=["loading", "draining", "not the head"],
)
async def test_who_cannot_answer_says_why(fields: dict[str, Any], code: str) -> None:
    service = service_of(Talker(), **fields)
    with pytest.raises(InferenceError) as refused:
        await begin(service, ask())
    assert refused.value.code == code
    assert isinstance(refused.value, NotHead) == (code == "not_head")
    assert service.is_ready == (code == "not_head")


async def test_the_figures_of_a_request_are_its_times() -> None:
    talker, clock = Ticking(says=b"ab"), Clock()
    talker.clock, talker.took_s = clock, (2.0, 1.0, 3.0)
    service = service_of(talker, monotonic=clock)
    await said(service, ask())
    figures = service.figures
    assert (figures.queue_s.total, figures.first_s.total, figures.prefill_s.total) == (0.25, 2.25, 2.0)
    assert (figures.between_s.total, figures.between_s.count) == (4.0, 2)
    assert (figures.per_token_s.total, figures.decode_s.total) == (2.0, 4.0)
    assert (figures.inference_s.total, figures.request_s.total) == (6.0, 6.25)
    assert (figures.prompt_tokens, figures.tokens, dict(figures.ended)) == (6, 3, {"stop": 1})


async def test_an_answer_that_is_left_is_cancelled_once_and_counted_as_left() -> None:
    talker = Talker()
    service = service_of(talker)
    generation = await begin(service, ask())
    pieces = generation.pieces()
    await anext(pieces)
    await generation.close()
    await generation.close()
    await pieces.aclose()
    assert (dict(service.figures.ended), talker.stats.running) == ({"abort": 1}, 0)
