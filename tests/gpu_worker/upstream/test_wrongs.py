"""A whole model behind a server that hangs, lies, breaks off and answers HTML: the next request is served."""

import asyncio
from typing import Any

import pytest

from gpu_worker.core.inference.codes import CODES
from tests.fixtures.openai_upstream import Answer, FakeUpstream, Reply, says, upstream
from tests.gpu_worker.upstream.asking import SECRET, answered, ask, opened, refused


# How a server does wrong once it is asked: what it says, and what that is to the client.
async def _html(reply: Reply) -> None:
    await reply.head(kind="text/html")
    await reply.raw(f"<html>{SECRET}</html>".encode())


async def _nothing(reply: Reply) -> None:
    pass


async def _no_http(reply: Reply) -> None:
    await reply.raw(b"what do you want?\r\n\r\n")


async def _cut(reply: Reply) -> None:
    await reply.head(content_length="100000")
    await reply.chunks("one")


async def _unended(reply: Reply) -> None:
    await reply.head()
    await reply.chunks("one")


async def _no_json(reply: Reply) -> None:
    await reply.head()
    await reply.event(b"<html>" + SECRET.encode())


async def _error_in_it(reply: Reply) -> None:
    await reply.head()
    await reply.chunks("one")
    await reply.event({"error": {"message": SECRET, "code": 500}})


async def _error_as_an_answer(reply: Reply) -> None:
    await reply.json({"error": {"message": SECRET}})


async def _endless(reply: Reply) -> None:
    await reply.head()
    while True:
        await reply.chunks(*["more"] * 100)


async def _endless_line(reply: Reply) -> None:
    await reply.head()
    while True:
        await reply.raw(b"data: " + b"x" * 65_536)


async def _endless_life(reply: Reply) -> None:
    await reply.head()
    while True:
        await reply.raw(b": " + b"x" * 1_000_000 + b"\n\n")


async def _events_on_a_page(reply: Reply) -> None:
    await reply.head(kind="text/html")
    await reply.chunks("one")
    await reply.end()


async def _endless_error(reply: Reply) -> None:
    await reply.head(500, "application/json")
    while True:
        await reply.raw(b" " * 65_536)


async def _moved(reply: Reply) -> None:
    await reply.head(307, location="http://127.0.0.1:1/hidden")


async def _packed(reply: Reply) -> None:
    await reply.head(content_encoding="gzip")
    await reply.raw(b"\x1f\x8b" + b"0" * 100)


def _status(status: int, **error: Any) -> Answer:
    async def answer(reply: Reply) -> None:
        await reply.json({"error": {"message": SECRET, **error}}, status)

    return answer


WRONGS: dict[str, tuple[Answer, str]] = {
    "a web page": (_html, "upstream_error"),
    "nothing at all": (_nothing, "upstream_error"),
    "no HTTP": (_no_http, "upstream_error"),
    "a cut stream": (_cut, "upstream_error"),
    "an answer without an end": (_unended, "upstream_error"),
    "events of something else": (_no_json, "upstream_error"),
    "an error in the stream": (_error_in_it, "upstream_error"),
    "an error as an answer": (_error_as_an_answer, "upstream_error"),
    "tokens without end": (_endless, "upstream_error"),
    "a line without end": (_endless_line, "upstream_error"),
    "signs of life without end": (_endless_life, "upstream_error"),
    "a web page of events": (_events_on_a_page, "upstream_error"),
    "an error without end": (_endless_error, "upstream_error"),
    "a move": (_moved, "upstream_error"),
    "a packed body": (_packed, "upstream_error"),
    "a wrong key": (_status(401), "upstream_error"),
    "a failure": (_status(500), "upstream_error"),
    "a full queue": (_status(429), "no_capacity"),
    "a model that is being loaded": (_status(503), "not_ready"),
    "a model that is gone": (_status(404), "model_not_found"),
    "a value that it does not take": (_status(400, param="temperature"), "invalid_argument"),
    "too long a prompt": (_status(400, type="exceed_context_size_error"), "context_length_exceeded"),
}


@pytest.mark.parametrize("wrong", WRONGS)
async def test_whatever_goes_wrong_is_a_refusal_without_its_words_and_the_next_is_served(
    fake: FakeUpstream, wrong: str
) -> None:
    fake.answer, code = WRONGS[wrong]
    engine = await opened(fake)
    error = await refused(engine, ask(max_tokens=50))
    assert error.code == code
    await fake.until(lambda fake: fake.open == 0)
    fake.answer = says
    pieces, _ = await answered(engine)
    assert len(pieces) == 3


@pytest.mark.parametrize("begun", [0, 1, 2])
async def test_a_server_that_hangs_is_given_up_and_hears_of_it(fake: FakeUpstream, begun: int) -> None:
    async def hang(reply: Reply) -> None:
        if begun > 0:
            await reply.head()
        if begun > 1:
            await reply.chunks("one")
        await reply.gone.wait()

    fake.answer = hang
    engine = await opened(fake, silence_s=0.3)
    error = await refused(engine)
    assert (error.code, CODES[error.code].http) == ("upstream_timeout", 504)
    await fake.until(lambda fake: fake.gone == 1)
    fake.answer = says
    assert len((await answered(engine))[0]) == 3


async def test_signs_of_life_are_no_silence(fake: FakeUpstream) -> None:
    async def slow(reply: Reply) -> None:
        await reply.head()
        for _ in range(10):
            await asyncio.sleep(0.1)
            await reply.raw(b": ping\n\n")
        await reply.chunks("one")
        await reply.end()

    fake.answer = slow
    assert [piece.text for piece in (await answered(await opened(fake, silence_s=0.6)))[0]] == ["one"]


async def test_nobody_there_is_told_so() -> None:
    async with upstream() as fake:
        engine = await opened(fake)
    error = await refused(engine)
    assert (error.code, str(error)) == ("upstream_error", "the server that computes for this worker cannot be reached")
