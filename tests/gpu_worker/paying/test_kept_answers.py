"""Answers that were paid for are kept for an hour, so many bytes of them, and only whole ones."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from gpu_worker.edges.http.kept_answers import ANSWER_BYTES_MAX, KEPT_S, KeptAnswers, KeptReply


class Kitchen:
    """Makes an answer once for an id, then gives the kept one."""

    def __init__(self, **options: Any) -> None:
        self.clock_s = 0.0
        self.kept = KeptAnswers(lambda: self.clock_s, **options)
        self.made = 0
        self.cooking = asyncio.Event()
        self.make = self._plain
        app = Starlette(routes=[Route("/{payment_id}", self._serve)])
        self.client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://kitchen")

    async def get(self, payment_id: str = "one") -> httpx.Response:
        return await self.client.get(f"/{payment_id}")

    async def _serve(self, request: Request) -> Response:
        payment_id = request.path_params["payment_id"]
        found = await self.kept.find(payment_id)
        if found is not None:
            return found
        self.made += 1
        self.cooking.set()
        kept = self.kept.begin(payment_id)
        return KeptReply(self.make(), {"x-paid": "yes"}, kept, lambda: self.kept.end(payment_id, kept))

    def _plain(self) -> Response:
        return PlainTextResponse(f"answer {self.made}", headers={"x-own": "1"})


def events(*parts: bytes) -> Response:
    async def told() -> AsyncIterator[bytes]:
        for part in parts:
            yield part

    return StreamingResponse(told(), media_type="text/event-stream")


async def test_the_same_answer_is_given_again_headers_and_all() -> None:
    kitchen = Kitchen()
    first, again = await kitchen.get(), await kitchen.get()

    assert (first.text, kitchen.made) == ("answer 1", 1)
    assert (again.content, again.headers) == (first.content, first.headers)
    assert (first.headers["x-paid"], first.headers["x-own"]) == ("yes", "1")
    assert (await kitchen.get("two")).text == "answer 2"


async def test_it_is_forgotten_after_an_hour() -> None:
    kitchen = Kitchen()
    await kitchen.get()
    kitchen.clock_s = KEPT_S - 1
    assert (await kitchen.get()).text == "answer 1"
    kitchen.clock_s = KEPT_S

    assert (await kitchen.get()).text == "answer 2"


async def test_the_oldest_go_where_there_are_too_many_bytes() -> None:
    kitchen = Kitchen(bytes_max=24)
    for payment_id in ("a", "b", "c"):
        await kitchen.get(payment_id)
    assert kitchen.made == 3
    await kitchen.get("d")

    assert [(await kitchen.get(payment_id)).text for payment_id in ("b", "c", "d")] == [
        "answer 2",
        "answer 3",
        "answer 4",
    ]
    assert (await kitchen.get("a")).text == "answer 5"


@pytest.mark.parametrize(
    ("made", "is_kept"),
    [
        (lambda: events(b"data: {}\n\n", b"data: [DONE]\n\n"), True),
        (lambda: events(b'data: {"error": {}}\n\n'), False),
        (lambda: PlainTextResponse("refused", 503), False),
        (lambda: PlainTextResponse("x" * (ANSWER_BYTES_MAX + 1)), False),
    ],
)
async def test_only_what_was_told_to_its_end_is_kept(made: Any, is_kept: bool) -> None:
    kitchen = Kitchen()
    kitchen.make = made
    await kitchen.get()
    await kitchen.get()

    assert kitchen.made == (1 if is_kept else 2)


async def test_an_answer_in_the_making_is_waited_for() -> None:
    kitchen, go = Kitchen(), asyncio.Event()

    async def told() -> AsyncIterator[bytes]:
        await go.wait()
        yield b"data: [DONE]\n\n"

    kitchen.make = lambda: StreamingResponse(told(), media_type="text/event-stream")
    first = asyncio.create_task(kitchen.get())
    await kitchen.cooking.wait()
    second = asyncio.create_task(kitchen.get())
    for _ in range(5):
        await asyncio.sleep(0)
    assert not second.done()
    go.set()

    assert (await first).content == (await second).content == b"data: [DONE]\n\n"
    assert kitchen.made == 1


async def test_who_waited_for_what_broke_off_has_it_made_anew() -> None:
    kitchen, go = Kitchen(), asyncio.Event()

    async def broken() -> AsyncIterator[bytes]:
        await go.wait()
        yield b"data: {}\n\n"

    kitchen.make = lambda: StreamingResponse(broken(), media_type="text/event-stream")
    first = asyncio.create_task(kitchen.get())
    await kitchen.cooking.wait()
    second = asyncio.create_task(kitchen.get())
    await asyncio.sleep(0)
    kitchen.make = lambda: PlainTextResponse("whole")
    go.set()

    assert (await first).content == b"data: {}\n\n"
    assert (await second).text == "whole"
