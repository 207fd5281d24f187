"""One contract, every engine of whole models: what a request gets is the same, whoever computes it."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from gpu_worker.core.inference.codes import InferenceError
from gpu_worker.inference.text.engine import Ask, CallPart, Piece
from tests.contracts.text_engine_place import KINDS, REAL, SLOTS, EnginePlace, engine_place, tooled
from tests.fixtures.tiny_gguf import TinyGguf
from wire.openai import ChatRequest, CompletionRequest
from wire.openai_answers import Told

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]

PROMPT = "The worker pays the vendor"
HELLO = [{"role": "user", "content": "What does the tick do?"}]
LOOK = {
    "type": "function",
    "function": {
        "name": "look",
        "parameters": {"type": "object", "properties": {"at": {"enum": ["sea"]}}, "required": ["at"],
                       "additionalProperties": False},
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tiny_gguf: TinyGguf, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tooled(tiny_gguf, tmp_path_factory.mktemp("engines"))


@pytest_asyncio.fixture(loop_scope="module", scope="module", params=KINDS)
async def place(request: pytest.FixtureRequest, folder: Path) -> AsyncIterator[EnginePlace]:
    async with engine_place(request.param, folder) as found:
        yield found


# What a server of tests that has no model cannot show.
real = pytest.mark.parametrize("place", REAL, indirect=True)


@dataclass(frozen=True)
class Said:
    """An answer that has come. `sum` are the tokens of its pieces."""

    text: str
    tokens: int
    sum: int
    prompt_tokens: int
    cached_tokens: int
    reason: str | None
    told: tuple[Told, ...]
    calls: tuple[CallPart, ...]


_NUMBERS = iter(range(10**9))


def asked(place: EnginePlace, tokens_usual: int | None = None, **fields: Any) -> Ask:
    if "prompt" in fields:
        request: Any = CompletionRequest(**{"temperature": 0, **fields})
    else:
        request = ChatRequest(**{"messages": HELLO, "temperature": 0, **fields})
    name = place.engine.cards()[0].name
    return Ask(request=request, model=name, session=f"{next(_NUMBERS):032x}", tokens_usual=tokens_usual)


async def say(place: EnginePlace, ask: Ask | None = None, **fields: Any) -> Said:
    answer = await place.engine.begin(ask or asked(place, **fields))
    try:
        pieces: list[Piece] = [piece async for piece in answer.pieces()]
    finally:
        await answer.close()
    return Said(
        text="".join(piece.text for piece in pieces),
        tokens=answer.tokens,
        sum=sum(piece.tokens for piece in pieces),
        prompt_tokens=answer.prompt_tokens,
        cached_tokens=answer.cached_tokens,
        reason=answer.finish_reason,
        told=tuple(told for piece in pieces for told in piece.told),
        calls=tuple(call for piece in pieces for call in piece.calls),
    )


async def refused(place: EnginePlace, **fields: Any) -> InferenceError:
    with pytest.raises(InferenceError) as caught:
        await say(place, **fields)
    # Its slots are free, and the next request is served.
    await asyncio.gather(*(say(place, prompt=PROMPT, max_tokens=1) for _ in range(SLOTS)))
    await idle(place)
    return caught.value


async def idle(place: EnginePlace) -> None:
    """Return once it computes nothing; slices hear of an end with their next step."""
    async with asyncio.timeout(20):
        while place.engine.load().running or place.engine.load().waiting:  # noqa: ASYNC110 - it rings no bell
            await asyncio.sleep(0.005)


async def test_it_says_what_it_serves_without_asking_anybody(place: EnginePlace) -> None:
    (card,) = place.engine.cards()
    assert (place.engine.kind, card.is_loaded, card.context) == (place.kind, True, place.context)
    assert place.engine.load().running == 0


@pytest.mark.parametrize("fields", [{"prompt": PROMPT}, {"messages": HELLO}])
async def test_an_answer_has_as_many_tokens_as_were_asked_for_and_all_are_counted(
    place: EnginePlace, fields: dict[str, Any]
) -> None:
    said = await say(place, **fields, max_tokens=5)
    assert (said.tokens, said.sum, said.reason) == (5, 5, "length")
    assert said.text
    assert 0 <= said.cached_tokens <= said.prompt_tokens
    assert said.prompt_tokens > 0


async def test_the_likeliest_tokens_are_the_models_own(place: EnginePlace) -> None:
    said = await say(place, prompt=PROMPT, max_tokens=6)
    assert said.text == place.greedy(PROMPT, 6)


@pytest.mark.parametrize("fields", [{"prompt": PROMPT}, {"messages": HELLO}, {"prompt": (5, 6, 7)}])
async def test_a_prompt_is_counted_as_it_is_computed_or_not_at_all(place: EnginePlace, fields: dict[str, Any]) -> None:
    if not place.is_real and not isinstance(fields.get("prompt", ""), str):
        assert (await refused(place, **fields, max_tokens=1)).code == "invalid_argument"
        return
    said = await say(place, **fields, max_tokens=1)
    assert await place.engine.count(asked(place, **fields)) == (said.prompt_tokens if place.is_real else None)


@real
async def test_tokens_are_a_prompt_like_their_text(place: EnginePlace, folder: Path) -> None:
    from transformers import AutoTokenizer

    ids = tuple(AutoTokenizer.from_pretrained(folder / "tiny-gguf").backend_tokenizer.encode(PROMPT).ids)
    said = await say(place, prompt=ids, max_tokens=6)
    assert (said.text, said.prompt_tokens) == (place.greedy(PROMPT, 6), len(ids))


@real
async def test_a_seed_draws_the_same_again(place: EnginePlace) -> None:
    drawn = [await say(place, prompt=PROMPT, max_tokens=12, temperature=1.5, seed=seed) for seed in (7, 7, 8)]
    assert drawn[0].text == drawn[1].text != drawn[2].text


async def test_no_tokens_are_an_answer(place: EnginePlace) -> None:
    said = await say(place, prompt=PROMPT, max_tokens=0)
    assert (said.text, said.tokens, said.sum, said.reason) == ("", 0, 0, "length")


async def test_where_no_number_is_named_the_usual_one_holds(place: EnginePlace) -> None:
    said = await say(place, asked(place, tokens_usual=3, prompt=PROMPT))
    assert (said.tokens, said.reason) == (3, "length")


@pytest.mark.parametrize(
    "fields", [{"prompt": "worker " * 5_000}, {"messages": [{**HELLO[0], "content": "a b " * 9_000}]}]
)
async def test_a_prompt_over_the_context_is_refused(place: EnginePlace, fields: dict[str, Any]) -> None:
    assert (await refused(place, **fields)).code == "context_length_exceeded"


async def test_an_answer_that_has_no_room_is_refused(place: EnginePlace) -> None:
    most = place.context if place.is_real else place.context + 1
    assert (await refused(place, prompt=PROMPT, max_tokens=most)).code == "context_length_exceeded"


@real
async def test_a_stop_ends_the_answer_before_itself(place: EnginePlace) -> None:
    whole = (await say(place, prompt=PROMPT, max_tokens=6)).text
    stop = whole[len(whole) // 2 :][:3]
    said = await say(place, prompt=PROMPT, max_tokens=60, stop=[stop])
    assert (said.text, said.reason) == (whole[: whole.index(stop)], "stop")


async def test_log_probabilities_are_of_the_tokens_that_are_told(place: EnginePlace) -> None:
    said = await say(place, prompt=PROMPT, max_tokens=5, logprobs=2)
    assert "".join(told.text for told in said.told) == said.text
    assert [told.offset for told in said.told] == [said.text.index(told.text, told.offset) for told in said.told]
    assert len(said.told) == said.tokens
    for told in said.told:
        assert told.logprob <= 0
        assert len(told.top) == 2
        # The likeliest was taken.
        assert not place.is_real or told.logprob == pytest.approx(max(each for *_, each in told.top), abs=1e-4)
    assert (await say(place, prompt=PROMPT, max_tokens=5)).told == ()


async def test_an_echo_comes_first_and_is_no_token(place: EnginePlace) -> None:
    said = await say(place, prompt=PROMPT, max_tokens=4, echo=True)
    assert said.text == PROMPT + place.greedy(PROMPT, 4)
    assert (said.tokens, said.sum) == (4, 4)


# Characters of several bytes, each of several tokens: none is told by halves.
ANIMALS = {"type": "object", "properties": {"animal": {"enum": ["🐎 é漢"]}}, "required": ["animal"],
           "additionalProperties": False}  # fmt: skip


@real
@pytest.mark.parametrize("fields", [{"prompt": PROMPT}, {"messages": HELLO}])
async def test_a_schema_is_kept_to_and_characters_are_whole(place: EnginePlace, fields: dict[str, Any]) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "animal", "schema": ANIMALS}}
    said = await say(place, **fields, max_tokens=200, response_format=form)
    assert json.loads(said.text) == {"animal": "🐎 é漢"}
    assert (said.sum, said.reason) == (said.tokens, "stop")


@real
@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "look"}}])
async def test_a_demanded_call_is_made(place: EnginePlace, choice: Any) -> None:
    said = await say(place, tools=[LOOK], tool_choice=choice, parallel_tool_calls=False, max_tokens=200)
    begun = said.calls[0]
    arguments = "".join(call.arguments for call in said.calls)
    assert (begun.number, begun.name, bool(begun.id), said.reason) == (0, "look", True, "tool_calls")
    assert json.loads(arguments) == {"at": "sea"}
    assert said.text == ""


async def test_several_are_answered_at_once_and_each_gets_its_own(place: EnginePlace) -> None:
    prompts = [f"{PROMPT} {at}" for at in range(3 * SLOTS)]
    said = await asyncio.gather(*(say(place, prompt=prompt, max_tokens=4) for prompt in prompts))
    assert [each.text for each in said] == [place.greedy(prompt, 4) for prompt in prompts]


async def test_who_leaves_frees_the_slot(place: EnginePlace) -> None:
    answers = [await place.engine.begin(asked(place, prompt=PROMPT, max_tokens=400)) for _ in range(SLOTS)]
    load = place.engine.load()
    assert load.running + load.waiting == SLOTS
    for answer in answers:
        assert (await anext(aiter(answer.pieces()))).text
        await answer.close()
        await answer.close()
        assert answer.finish_reason is None
    await idle(place)
    # Long answers of all slots would take as long as those did not.
    async with asyncio.timeout(60):
        await asyncio.gather(*(say(place, prompt=PROMPT, max_tokens=1) for _ in range(SLOTS)))


async def test_who_leaves_before_an_answer_begins_frees_the_slot(place: EnginePlace) -> None:
    for _ in range(3):
        beginning = asyncio.create_task(place.engine.begin(asked(place, prompt=PROMPT, max_tokens=400)))
        await asyncio.sleep(0)
        beginning.cancel()
        for begun in await asyncio.gather(beginning, return_exceptions=True):
            assert isinstance(begun, asyncio.CancelledError)
    await idle(place)
    assert (await say(place, prompt=PROMPT, max_tokens=3)).text == place.greedy(PROMPT, 3)


async def test_an_answer_that_was_never_read_is_closed_all_the_same(place: EnginePlace) -> None:
    answer = await place.engine.begin(asked(place, prompt=PROMPT, max_tokens=400))
    await answer.close()
    await idle(place)


async def test_a_model_for_text_makes_no_vectors(place: EnginePlace) -> None:
    with pytest.raises(InferenceError) as caught:
        await place.engine.embed(place.engine.cards()[0].name, ["a"])
    assert caught.value.code == "invalid_argument"
