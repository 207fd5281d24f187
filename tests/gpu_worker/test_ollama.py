"""An Ollama behind our doors: what it is sent, and what becomes of what it says."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import openai
import pytest

from gpu_worker.core.inference.codes import InferenceError
from gpu_worker.edges.engines.upstream_ollama import OllamaEngine
from gpu_worker.inference.text.engine import Ask, Piece
from gpu_worker.inference.text.service import Service
from outbound.http import HttpClient
from tests.fixtures.ollama import Body, FakeOllama, Said, fake_ollama, model
from tests.fixtures.talker import client_of, served
from wire.openai import ChatRequest, CompletionRequest

LLAMA = "llama3.1:8b-instruct-q4_K_M"
USER: Any = [{"role": "user", "content": "How is the day?"}]
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"properties": {"city": {}}}}}


@asynccontextmanager
async def engine_at(fake: FakeOllama, *names: str, **more: Any) -> AsyncIterator[OllamaEngine]:
    """Yield an opened engine that serves `names`, else all that is installed."""
    engine = OllamaEngine(fake.base_url, HttpClient(), names or tuple(fake.installed), wait_s=0, **more)
    try:
        await engine.open(lambda what, done, total: None)
        fake.asked.clear()
        yield engine
    finally:
        await engine.close()


@asynccontextmanager
async def client_at(
    say: Callable[[str, Body], Said], **told: Any
) -> AsyncIterator[tuple[FakeOllama, openai.AsyncOpenAI]]:
    """Yield OpenAI's client at our door, behind it an Ollama that says `say`."""
    async with fake_ollama(model(LLAMA, **told), say=say) as fake, engine_at(fake) as engine:
        service = Service(model=LLAMA, engine=engine, aliases=engine.names)
        async with served(service) as url, client_of(f"{url}/v1") as client:
            yield fake, client


def says(said: Said) -> Callable[[str, Body], Said]:
    return lambda path, body: said


def chat(**fields: Any) -> Ask:
    request = ChatRequest.model_validate({"messages": USER, **fields})
    return Ask(request=request, model=LLAMA, session="s1")


async def answer_of(engine: OllamaEngine, ask: Ask) -> tuple[str, list[Piece], Any]:
    answer = await engine.begin(ask)
    try:
        pieces = [piece async for piece in answer.pieces()]
    finally:
        await answer.close()
    return "".join(piece.text for piece in pieces), pieces, answer


@pytest.mark.row(61)
async def test_a_clients_limits_reach_ollama_as_numbers() -> None:
    async with client_at(says(Said())) as (fake, client):
        made = await client.chat.completions.create(
            model=LLAMA,
            messages=USER,
            max_tokens=50,
            temperature=0.3,
            top_p=0.9,
            seed=2**40 + 7,
            stop=["\n\n", "END"],
            presence_penalty=0.5,
            frequency_penalty=-0.5,
            extra_body={"top_k": -1, "min_p": 0.05, "repetition_penalty": 1.1},
        )
    (body,) = fake.made
    assert body["options"] == {
        "num_ctx": 4096,
        "num_predict": 50,
        "temperature": 0.3,
        "top_p": 0.9,
        "min_p": 0.05,
        "repeat_penalty": 1.1,
        "presence_penalty": 0.5,
        "frequency_penalty": -0.5,
        "top_k": 0,
        "seed": 7,
        "stop": ["\n\n", "END"],
    }
    assert type(body["options"]["num_predict"]) is int
    assert (body["model"], body["truncate"], body["shift"]) == (LLAMA, False, False)
    assert body["messages"] == USER
    assert made.choices[0].message.content == "It is a good day today ."
    assert made.choices[0].finish_reason == "stop"
    assert made.usage is not None
    assert (made.usage.prompt_tokens, made.usage.completion_tokens) == (4, 7)


@pytest.mark.row(61)
async def test_a_stream_comes_word_by_word_and_ends_at_the_limit() -> None:
    # Each word but the first is said once the one before it has come: none of them is held back.
    pace = asyncio.Semaphore(1)
    async with client_at(says(Said(pace=pace))) as (_, client):
        stream = await client.chat.completions.create(
            model=LLAMA, messages=USER, max_tokens=3, stream=True, stream_options={"include_usage": True}
        )
        texts, reasons, usages = [], [], []
        async for chunk in stream:
            for choice in chunk.choices:
                if choice.delta.content:
                    texts.append(choice.delta.content)
                    pace.release()
                reasons.append(choice.finish_reason)
            usages.append(chunk.usage)
    assert (texts, reasons[-1]) == (["It", " is", " a"], "length")
    assert usages[-1].completion_tokens == 3


async def test_a_completion_goes_on_with_the_very_text() -> None:
    async with client_at(says(Said())) as (fake, client):
        made = await client.completions.create(model=LLAMA, prompt="Once upon", max_tokens=2, echo=True)
        with pytest.raises(openai.BadRequestError) as refused:
            await client.completions.create(model=LLAMA, prompt=[1, 2, 3])
    assert [(body["prompt"], body["raw"]) for body in fake.made] == [("Once upon", True)]
    assert made.choices[0].text == "Once uponIt is"
    assert refused.value.param == "prompt"


async def test_tools_are_offered_and_their_calls_told() -> None:
    said = Said(words=(), calls=(("weather", {"city": "Bern"}), ("unknown", {}), ("weather", {"city": "Köln"})))
    async with client_at(says(said)) as (fake, client):
        made = await client.chat.completions.create(model=LLAMA, messages=USER, tools=[WEATHER])
        calls = made.choices[0].message.tool_calls
        history = [
            *USER,
            made.choices[0].message.model_dump(exclude_none=True),
            {"role": "tool", "tool_call_id": calls[1].id, "content": "rain"},
        ]
        one = await client.chat.completions.create(
            model=LLAMA, messages=history, tools=[WEATHER], parallel_tool_calls=False
        )
    assert [(call.function.name, json.loads(call.function.arguments)) for call in calls] == [
        ("weather", {"city": "Bern"}),
        ("weather", {"city": "Köln"}),
    ]
    assert made.choices[0].finish_reason == "tool_calls"
    assert len(one.choices[0].message.tool_calls) == 1
    assert fake.made[0]["tools"] == [WEATHER]
    asked, told = fake.made[1]["messages"][1:]
    assert [call["function"]["arguments"] for call in asked["tool_calls"]] == [{"city": "Bern"}, {"city": "Köln"}]
    assert told == {"role": "tool", "content": "rain", "tool_call_id": calls[1].id, "tool_name": "weather"}


async def test_a_demanded_call_is_held_to_a_schema_and_read_from_the_text() -> None:
    text = '[{"name": "weather", "arguments": {"city": "Bern"}}]'
    async with client_at(says(Said(words=tuple(text.split(" "))))) as (fake, client):
        made = await client.chat.completions.create(model=LLAMA, messages=USER, tools=[WEATHER], tool_choice="required")
        await client.chat.completions.create(model=LLAMA, messages=USER, response_format={"type": "json_object"})
    (call,) = made.choices[0].message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == ("weather", {"city": "Bern"})
    assert made.choices[0].message.content is None
    assert [body["format"]["type"] for body in fake.made] == ["array", "object"]


async def test_thinking_and_log_probabilities_are_told_apart_from_the_answer() -> None:
    said = Said(thinking=("Hm", "so"), words=("Yes", "!"))
    capabilities = ["completion", "tools", "thinking"]
    async with fake_ollama(model(LLAMA, capabilities=capabilities), say=says(said)) as fake, engine_at(fake) as engine:
        ask = chat(logprobs=True, top_logprobs=2, chat_template_kwargs={"enable_thinking": True})
        text, pieces, answer = await answer_of(engine, ask)
    assert (fake.made[0]["think"], fake.made[0]["top_logprobs"]) == (True, 2)
    assert (text, "".join(piece.reasoning for piece in pieces)) == ("Yes !", "Hmso")
    assert answer.tokens == sum(piece.tokens for piece in pieces) == 4
    told = [each for piece in pieces for each in piece.told]
    assert [(each.text, each.offset, each.data, len(each.top)) for each in told] == [
        ("Yes", 0, b"Yes", 2),
        (" !", 3, b" !", 2),
    ]


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"logit_bias": {"5": 1.0}}, "invalid_argument", "logit_bias"),
    ({"ignore_eos": True}, "invalid_argument", "ignore_eos"),
    ({"max_tokens": 4097}, "context_length_exceeded", "context"),
    ({"chat_template_kwargs": {"chat_template": "{{ 1 }}"}}, "invalid_argument", "template"),
    ({"chat_template_kwargs": {"reasoning_effort": "endless"}}, "invalid_argument", "template"),
    ({"messages": [{"role": "user", "content": "long " * 4097}]}, "context_length_exceeded", "context length"),
]


async def test_what_ollama_does_not_do_is_refused_and_the_next_request_served() -> None:
    async with fake_ollama(model(LLAMA)) as fake, engine_at(fake) as engine:
        for fields, code, words in REFUSED:
            with pytest.raises(InferenceError, match=words) as refused:
                await engine.begin(chat(**fields))
            assert refused.value.code == code, fields
            assert engine.load().running == 0
        text, _, answer = await answer_of(engine, chat())
        nothing, _, none = await answer_of(engine, chat(max_tokens=0))
    assert (text, answer.finish_reason) == ("It is a good day today .", "stop")
    assert (nothing, none.finish_reason, none.tokens, none.prompt_tokens) == ("", "length", 0, 4)


async def test_a_model_without_tools_refuses_them_and_one_for_embeddings_refuses_to_speak() -> None:
    plain, embeds = model(LLAMA, capabilities=["completion"]), model("bge-m3:latest", capabilities=["embedding"])
    async with fake_ollama(plain, embeds) as fake, engine_at(fake, preload=["bge-m3"]) as engine:
        with pytest.raises(InferenceError, match="no tools"):
            await engine.begin(chat(tools=[WEATHER]))
        with pytest.raises(InferenceError, match="embeddings alone"):
            await engine.begin(Ask(request=chat().request, model="bge-m3", session="s"))
        with pytest.raises(InferenceError, match="makes no embeddings"):
            await engine.embed(LLAMA, ["a"])
        with pytest.raises(InferenceError, match="text alone"):
            await engine.embed("bge-m3", [(1, 2)])
        made = await engine.embed("bge-m3", ["a word", "two"])
    assert (made.vectors, made.tokens) == (((6.0, 0.5, -1.0), (3.0, 0.5, -1.0)), 3)
    assert fake.of("/api/embed")[-1]["truncate"] is False


HARMED: list[tuple[Said, str]] = [
    (Said(status=502, raw=b"<html>Bad gateway at /srv/secret</html>"), "upstream_error"),
    (Said(raw=b"<html>hello</html>\n"), "upstream_error"),
    (Said(raw=b'{"message": {"content": "%s"}}\n{"done": true}\n' % (b"x" * 5_000_000)), "upstream_error"),
    (Said(raw=b'{"message": {"content": 5}}\n'), "upstream_error"),
    (Said(raw=b'{"message": {"content": "a"}}\n'), "upstream_error"),
    (Said(raw=b'{"done": true, "eval_count": -5}\n'), "upstream_error"),
    (Said(cut=True), "upstream_error"),
    (Said(late_error="CUDA error at /usr/lib/x.cu:17"), "upstream_error"),
    (Said(status=500, error="model requires more system memory (9 GiB) than is available (1 GiB)"), "upstream_error"),
    (Said(status=503, error="server busy, please try again. maximum pending requests exceeded"), "no_capacity"),
    (Said(status=400, error="invalid option /etc/passwd"), "invalid_argument"),
    (Said(words=("a",), late_error="the input length exceeds the context length"), "context_length_exceeded"),
]


async def test_whatever_ollama_does_is_one_clear_error_and_the_next_request_is_served() -> None:
    async with fake_ollama(model(LLAMA)) as fake, engine_at(fake) as engine:
        for said, code in HARMED:
            fake.say = says(said)
            with pytest.raises(InferenceError) as failed:
                await answer_of(engine, chat())
            assert failed.value.code == code, said
            assert not any(word in str(failed.value) for word in ("/", "<", "CUDA", "GiB")), failed.value
            assert engine.load().running == 0
        fake.say = says(Said())
        assert (await answer_of(engine, chat()))[0] == "It is a good day today ."


async def test_an_ollama_that_falls_silent_is_given_up_and_one_that_lies_is_not_believed() -> None:
    async with fake_ollama(model(LLAMA)) as fake, engine_at(fake, silence_s=0.2) as engine:
        fake.say = says(Said(pace=asyncio.Semaphore(2)))
        with pytest.raises(InferenceError) as failed:
            await answer_of(engine, chat())
        fake.say = says(Said(counts={"eval_count": 10**12, "prompt_eval_count": 10**12}))
        _, pieces, answer = await answer_of(engine, chat(max_tokens=9))
    assert failed.value.code == "upstream_timeout"
    assert (answer.tokens, answer.prompt_tokens, sum(piece.tokens for piece in pieces)) == (9, 4096, 9)


async def test_who_leaves_ends_the_answer() -> None:
    async with fake_ollama(model(LLAMA), say=says(Said(pace=asyncio.Semaphore(1)))) as fake, engine_at(fake) as engine:
        answer = await engine.begin(chat())
        assert engine.load().running == 1
        async for piece in answer.pieces():
            assert piece.text == "It"
            break
        await answer.close()
        await answer.close()
        assert engine.load().running == 0
        await asyncio.wait_for(fake.left.wait(), 10)


async def test_a_request_that_is_left_before_its_first_word_leaves_nothing_behind() -> None:
    async with fake_ollama(model(LLAMA), say=says(Said(pace=asyncio.Semaphore(0)))) as fake, engine_at(fake) as engine:
        begun = asyncio.create_task(engine.begin(chat()))
        await asyncio.wait_for(fake.is_making.wait(), 10)
        begun.cancel()
        await asyncio.gather(begun, return_exceptions=True)
        assert engine.load().running == 0
        await asyncio.wait_for(fake.left.wait(), 10)


async def test_a_prompt_of_the_other_door_is_limited_by_its_usual_length() -> None:
    request = CompletionRequest(prompt="Once", stop=("END",))
    async with fake_ollama(model(LLAMA)) as fake, engine_at(fake, context=512) as engine:
        await answer_of(engine, Ask(request=request, model=LLAMA, session="s", tokens_usual=16))
        await answer_of(engine, Ask(request=request, model=LLAMA, session="s"))
        assert await engine.count(chat()) is None
        card = engine.cards()[0]
    assert [body["options"]["num_predict"] for body in fake.made] == [16, 512]
    assert (card.context, card.quant, len(card.model_hash), card.is_loaded) == (512, "Q4_K_M", 64, True)
