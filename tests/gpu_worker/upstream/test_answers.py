"""A whole model behind a server that speaks OpenAI's API: what is asked of it, and what comes of its answers."""

import asyncio

import pytest

from gpu_worker.core.inference.codes import InferenceError
from gpu_worker.edges.engines.upstream_openai import OpenAiUpstream
from outbound.http import HttpClient
from tests.fixtures.openai_upstream import MODEL, FakeUpstream, Reply, chunk, models, says, upstream, usage
from tests.gpu_worker.upstream.asking import SECRET, answered, ask, opened, refused, told


async def test_an_answer_comes_in_its_pieces_and_is_counted(fake: FakeUpstream) -> None:
    engine = await opened(fake)
    pieces, answer = await answered(engine)
    assert [(piece.text, piece.tokens) for piece in pieces] == [("one", 1), (" two", 1), (" three", 1)]
    assert (answer.prompt_tokens, answer.cached_tokens, answer.tokens, answer.finish_reason) == (7, 2, 3, "stop")
    assert (engine.counts.prefix_queries, engine.counts.prefix_hits) == (7, 2)


async def test_it_is_asked_with_the_key_and_for_what_was_wanted() -> None:
    async with upstream(key="sk-1") as fake:
        engine = await opened(fake, key="sk-1", models=[MODEL])
        await answered(engine, ask(temperature=0))
        await answered(engine, ask(prompt="once", tokens_usual=16))
    chat, completion = fake.asked[1:]
    assert (chat.method, chat.path, chat.body["temperature"], chat.body["stream"]) == (
        "POST", "/v1/chat/completions", 0, True,
    )  # fmt: skip
    assert (completion.path, completion.body["max_tokens"]) == ("/v1/completions", 16)


@pytest.mark.parametrize("path", ["", "/", "/v1", "/v1/"])
async def test_its_url_may_end_before_v1_or_after_it(fake: FakeUpstream, path: str) -> None:
    async def empty(reply: Reply) -> None:
        await reply.json({})

    fake.answer, engine = empty, OpenAiUpstream(fake.url + path, None, HttpClient())
    await engine.open(told)
    await engine.post("/props", {})
    await engine.post("/v1/embeddings", {})
    assert [each.path for each in fake.asked] == ["/v1/models", "/props", "/v1/embeddings"]


async def test_who_leaves_in_the_middle_frees_the_server(fake: FakeUpstream) -> None:
    async def forever(reply: Reply) -> None:
        await reply.head()
        await reply.chunks("one")
        await reply.gone.wait()

    fake.answer = forever
    engine = await opened(fake)
    answer = await engine.begin(ask())
    pieces = aiter(answer.pieces())
    assert (await anext(pieces)).text == "one"
    assert engine.load().running == 1
    await answer.close()
    await answer.close()
    await fake.until(lambda fake: fake.gone == 1)
    assert (engine.load().running, answer.tokens, answer.finish_reason) == (0, 1, None)


async def test_who_leaves_while_it_waits_for_the_first_byte_frees_the_server(fake: FakeUpstream) -> None:
    async def hang(reply: Reply) -> None:
        await reply.gone.wait()

    fake.answer = hang
    engine = await opened(fake)
    beginning = asyncio.create_task(engine.begin(ask()))
    await fake.until(lambda fake: len(fake.asked) == 2)
    beginning.cancel()
    await asyncio.gather(beginning, return_exceptions=True)
    await fake.until(lambda fake: fake.gone == 1)
    assert engine.load().running == 0


async def test_closing_beside_a_reader_ends_its_answer(fake: FakeUpstream) -> None:
    async def forever(reply: Reply) -> None:
        await reply.head()
        await reply.chunks("one")
        await reply.gone.wait()

    fake.answer = forever
    engine = await opened(fake)
    answer = await engine.begin(ask())
    came = asyncio.Event()

    async def reading() -> None:
        async for _ in answer.pieces():
            came.set()

    task = asyncio.create_task(reading())
    await came.wait()
    await answer.close()
    with pytest.raises(InferenceError):
        await asyncio.wait_for(task, 10)
    await fake.until(lambda fake: fake.gone == 1)


async def test_what_hangs_after_its_end_holds_nobody_up(fake: FakeUpstream) -> None:
    async def lingers(reply: Reply) -> None:
        await says(reply)
        await reply.gone.wait()

    fake.answer = lingers
    async with asyncio.timeout(5):
        pieces, answer = await answered(await opened(fake, silence_s=60))
    assert (len(pieces), answer.finish_reason) == (3, "stop")


async def test_an_end_without_its_mark_is_an_end(fake: FakeUpstream) -> None:
    async def ends(reply: Reply) -> None:
        await reply.head()
        await reply.chunks("one")
        await reply.event(chunk(reply.asked, None, "length"))

    fake.answer = ends
    _, answer = await answered(await opened(fake))
    assert (answer.finish_reason, answer.tokens) == ("length", 1)


async def test_a_server_that_knows_no_streams_is_understood(fake: FakeUpstream) -> None:
    async def whole(reply: Reply) -> None:
        choice = {"message": {"role": "assistant", "content": "all at once"}, "finish_reason": "stop"}
        await reply.json({"choices": [choice], "usage": usage(4, 3)})

    fake.answer = whole
    pieces, answer = await answered(await opened(fake))
    assert ([piece.text for piece in pieces], answer.prompt_tokens, answer.tokens) == (["all at once"], 4, 3)


async def test_sizes_that_are_lied_about_are_not_believed(fake: FakeUpstream) -> None:
    async def lies(reply: Reply) -> None:
        await reply.head()
        await reply.chunks("one")
        await reply.end(usage=usage(10**15, 10**15, 10**15))

    fake.answer = lies
    _, answer = await answered(await opened(fake), ask(max_tokens=5))
    assert (answer.prompt_tokens, answer.cached_tokens, answer.tokens) == (0, 0, 1)


async def test_no_tokens_are_none(fake: FakeUpstream) -> None:
    pieces, answer = await answered(await opened(fake), ask(max_tokens=0))
    assert (pieces, answer.tokens, answer.prompt_tokens, answer.finish_reason) == ([], 0, 7, "length")


async def test_an_echo_is_told_first_and_is_no_token(fake: FakeUpstream) -> None:
    engine = await opened(fake)
    pieces, answer = await answered(engine, ask(prompt="zero ", echo=True))
    assert "".join(piece.text for piece in pieces) == "zero one two three"
    assert (pieces[0].tokens, answer.tokens) == (0, 3)
    error = await refused(engine, ask(prompt=(1, 2), echo=True))
    assert (error.code, error.param) == ("invalid_argument", "echo")


async def test_a_prompt_of_tokens_is_echoed_by_a_server_that_can(fake: FakeUpstream) -> None:
    async def text(reply: Reply) -> None:
        assert reply.asked.body == {"model": MODEL, "tokens": [1, 2]}
        await reply.json({"prompt": "zero "})

    fake.listing, fake.at["/detokenize"] = models(MODEL, owner="vllm", max_model_len=100), text
    pieces, _ = await answered(await opened(fake), ask(prompt=(1, 2), echo=True))
    assert pieces[0].text == "zero "


@pytest.mark.parametrize(("owner", "counts"), [("vllm", 60), ("someone", None)])
async def test_a_prompt_is_counted_where_the_server_can_before_it_is_computed(
    fake: FakeUpstream, owner: str, counts: int | None
) -> None:
    async def count(reply: Reply) -> None:
        await reply.json({"count": 60, "tokens": [0] * 60, "max_model_len": 100})

    fake.listing, fake.at["/tokenize"] = models(MODEL, owner=owner, max_model_len=100), count
    engine = await opened(fake)
    assert await engine.count(ask()) == counts
    assert await engine.count(ask(prompt=(1, 2, 3))) == 3
    fake.asked.clear()
    if counts is None:
        await answered(engine, ask(max_tokens=41))
        return
    error = await refused(engine, ask(max_tokens=41))
    assert error.code == "context_length_exceeded"
    assert [each.path for each in fake.asked] == ["/tokenize"]
    await answered(engine, ask(max_tokens=40))
    await answered(engine, ask(tokens_usual=500))
    assert [each.body["max_tokens"] for each in fake.asked if "chat" in each.path] == [40, 40]


async def test_a_request_that_surely_fits_is_not_counted_first(fake: FakeUpstream) -> None:
    fake.listing = models(MODEL, owner="vllm", max_model_len=8_192)
    await answered(await opened(fake), ask(max_tokens=500))
    assert [each.path for each in fake.asked] == ["/v1/models", "/v1/chat/completions"]


async def test_vectors_are_made_and_refused(fake: FakeUpstream) -> None:
    async def embeds(reply: Reply) -> None:
        assert reply.asked.body == {"model": MODEL, "input": ["a", [1, 2]], "encoding_format": "float"}
        data = [{"index": at, "embedding": [at, 0.5]} for at in (1, 0)]
        await reply.json({"data": data, "usage": {"prompt_tokens": 3}})

    async def none(reply: Reply) -> None:
        await reply.json({"error": {"message": SECRET}}, 501)

    fake.at["/v1/embeddings"] = embeds
    engine = await opened(fake)
    made = await engine.embed(MODEL, ["a", (1, 2)])
    assert (made.vectors, made.tokens) == (((0.0, 0.5), (1.0, 0.5)), 3)
    fake.at["/v1/embeddings"] = none
    with pytest.raises(InferenceError) as caught:
        await engine.embed(MODEL, ["a"])
    assert (caught.value.code, "hidden" in str(caught.value)) == ("invalid_argument", False)
