"""A chat that is longer than the context: refused, its oldest turns left out, or summed up, as it was asked for."""

from typing import Any

import pytest

from gpu_worker.core.inference.codes import InferenceError
from gpu_worker.inference.text.answering import begin
from gpu_worker.inference.text.engine import Ask, ModelCard
from gpu_worker.inference.text.token_engine import TokenEngine
from tests.fixtures.talker import MODEL, ByteText, Talker, client_of, served, service_of
from wire.openai import ChatRequest

SYSTEM: Any = {"role": "system", "content": "Be brief."}


def turn(number: int, chars: int = 40) -> list[Any]:
    question = f"question {number} ".ljust(chars, ".")
    return [{"role": "user", "content": question}, {"role": "assistant", "content": f"answer {number}"}]


def long_chat(turns: int = 20) -> list[Any]:
    return [
        SYSTEM,
        *(each for number in range(turns) for each in turn(number)),
        {"role": "user", "content": "And now?"},
    ]


def prompt_of(talker: Talker, at: int = -1) -> str:
    return bytes(talker.requests[at].prompt).decode()


@pytest.mark.row(70)
async def test_a_long_chat_does_not_end_in_an_error_where_the_oldest_may_go() -> None:
    talker = Talker(context=400)
    service = service_of(talker, context_overflow="drop_oldest")
    async with served(service) as url, client_of(f"{url}/v1") as client:
        answer = await client.chat.completions.create(model=MODEL, messages=long_chat(), max_tokens=20)
    said = prompt_of(talker)
    assert answer.choices[0].message.content
    assert said.startswith("<system>Be brief.<user>question ")
    assert said.endswith("<user>And now?<assistant>")
    assert "question 19" in said
    assert "question 0 " not in said
    # Not one turn more than had to go: with it the prompt and the answer would not fit.
    assert 400 - 20 - len(turn(0)[0]["content"]) - len("<user><assistant>answer 10") < len(said) <= 400 - 20


async def test_without_being_asked_for_it_a_long_chat_is_refused() -> None:
    talker = Talker(context=400)
    async with served(service_of(talker)) as url, client_of(f"{url}/v1") as client:
        with pytest.raises(Exception, match="maximum context length") as refused:
            await client.chat.completions.create(model=MODEL, messages=long_chat(), max_tokens=20)
        assert refused.value.code == "context_length_exceeded"
        assert talker.requests == []
        asked = {"context_overflow": "drop_oldest"}
        await client.chat.completions.create(model=MODEL, messages=long_chat(), max_tokens=20, extra_body=asked)
    assert len(talker.requests) == 1


async def test_a_request_may_ask_to_be_refused_where_the_owner_drops() -> None:
    talker = Talker(context=400)
    request = ChatRequest.model_validate({"messages": long_chat(), "max_tokens": 20, "context_overflow": "error"})
    with pytest.raises(InferenceError) as refused:
        await begin(service_of(talker, context_overflow="drop_oldest"), request)
    assert refused.value.code == "context_length_exceeded"


@pytest.mark.parametrize("overflow", ["drop_oldest", "summarise"])
@pytest.mark.parametrize("chars", [500, 5_000])
async def test_a_last_message_that_alone_does_not_fit_is_always_refused(overflow: str, chars: int) -> None:
    talker = Talker(context=400)
    request = ChatRequest.model_validate({"messages": [*long_chat(), {"role": "user", "content": "x" * chars}]})
    service = service_of(talker, context_overflow=overflow)
    with pytest.raises(InferenceError) as refused:
        await begin(service, request)
    assert (refused.value.code, refused.value.param) == ("context_length_exceeded", "messages")
    assert (talker.requests, service.turns.running) == ([], 0)


async def test_what_goes_is_summed_up_by_the_model_itself() -> None:
    talker = Talker(says=b"They asked and were answered.", context=900)
    service = service_of(talker, context_overflow="summarise")
    request = ChatRequest.model_validate({"messages": long_chat(), "max_tokens": 20})
    answer = await begin(service, request)
    assert "".join([piece.text async for piece in answer.pieces()])
    await answer.close()
    summing, asked = (prompt_of(talker, at) for at in (0, 1))
    # A token is a byte here: of what goes, the end is told, as much as fits.
    assert "\nuser: question " in summing
    assert "And now?" not in summing
    assert "Summary of the conversation before: They asked and were answered." in asked
    assert "question 0 " not in asked
    assert asked.endswith("<user>And now?<assistant>")
    assert len(asked) + 20 <= 900
    assert service.turns.running == 0


class Uncounted(TokenEngine):
    """An engine that cannot say how many tokens a prompt is, as an upstream; it says that its context is 1,000."""

    async def count(self, ask: Ask) -> None:  # type: ignore[override]
        return None

    def cards(self) -> list[ModelCard]:
        return [ModelCard(name=MODEL, context=1_000)]


async def test_where_nobody_counts_it_is_estimated() -> None:
    talker = Talker(context=100_000)
    service = service_of(talker, context_overflow="drop_oldest")
    service.engine = Uncounted(MODEL, talker, ByteText())
    request = ChatRequest.model_validate({"messages": long_chat(100), "max_tokens": 20})
    answer = await begin(service, request)
    await answer.close()
    assert "question 99" in prompt_of(talker)
    assert "question 0 " not in prompt_of(talker)
    # Four bytes of such a text are a token, and each message takes four tokens more.
    assert 2_000 < len(prompt_of(talker)) < 4_000


async def test_a_chat_that_fits_is_left_as_it_is() -> None:
    talker = Talker(context=4_000)
    request = ChatRequest.model_validate({"messages": long_chat(3), "max_tokens": 20})
    answer = await begin(service_of(talker, context_overflow="summarise"), request)
    await answer.close()
    assert len(talker.requests) == 1
    assert "question 0 " in prompt_of(talker)
