"""How large a body may be, by the path that it is sent to."""

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request

from inbound.web import BODY_BYTES_MAX, create_door
from wire.problems import problem_document

LARGE = 1_000_000
SMALL = 1_000


def a_door() -> FastAPI:
    door = create_door(
        title="t",
        version="1",
        description="d",
        errors=(),
        translate=lambda error: problem_document("internal", ""),
        bodies={"/files/": LARGE, "/files/notes/": SMALL},
    )

    @door.put("/{path:path}")
    async def put(request: Request) -> int:
        return len(await request.body())

    return door


async def in_pieces(size: int) -> AsyncIterator[bytes]:
    while size > 0:
        yield b"x" * min(size, 65_536)
        size -= 65_536


@pytest.mark.parametrize("declared", [True, False])
@pytest.mark.parametrize(
    ("path", "bytes_max"),
    [
        ("/files/a", LARGE),
        ("/files/notes/a", SMALL),
        ("/files/notes", LARGE),
        ("/file", BODY_BYTES_MAX),
        ("/other/files/a", BODY_BYTES_MAX),
    ],
)
async def test_a_body_is_refused_from_the_first_byte_above_what_its_path_takes(
    path: str, bytes_max: int, declared: bool
) -> None:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(a_door()), base_url="http://door") as client:
        for size in (bytes_max, bytes_max + 1):
            answer = await client.put(path, content=b"x" * size if declared else in_pieces(size))
            if size == bytes_max:
                assert (answer.status_code, answer.json()) == (200, size)
            else:
                assert (answer.status_code, answer.json()["code"]) == (413, "body_too_large")


async def test_a_caller_that_dies_in_the_middle_of_its_body_is_no_fault_of_ours(
    caplog: pytest.LogCaptureFixture,
) -> None:
    asked = [{"type": "http.request", "body": b"half", "more_body": True}, {"type": "http.disconnect"}]
    told: list[Any] = []
    scope = {
        "type": "http",
        "http_version": "1.1",
        "method": "PUT",
        "path": "/file",
        "raw_path": b"/file",
        "query_string": b"",
        "headers": [(b"host", b"door"), (b"content-length", b"8")],
    }

    async def receive() -> Any:
        return asked.pop(0)

    async def send(message: Any) -> None:
        told.append(message)

    await a_door()(scope, receive, send)

    assert told[0]["status"] < 500
    assert caplog.records == []
