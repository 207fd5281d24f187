"""What a small ASGI server needs: bodies read within a limit, replies, and who asked gone."""

import json
import threading
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

BODY_BYTES_MAX = 64 * 1024 * 1024

Json = dict[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Json], Awaitable[None]]


class Refused(Exception):
    """A request is answered with `status` and an error as llama.cpp's server writes them."""

    def __init__(self, status: int, kind: str, message: str) -> None:
        super().__init__(message)
        self.status, self.kind = status, kind

    def body(self) -> bytes:
        return json.dumps({"error": {"code": self.status, "message": str(self), "type": self.kind}}).encode()


async def begin(send: Send, status: int, kind: bytes) -> None:
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", kind)]})


async def part(send: Send, data: bytes, *, more: bool) -> None:
    await send({"type": "http.response.body", "body": data, "more_body": more})


async def reply(send: Send, status: int, data: bytes, kind: bytes = b"application/json") -> None:
    await begin(send, status, kind)
    await part(send, data, more=False)


async def read_object(receive: Receive) -> Json:
    """Return the body. Raises Refused: it is too large, or no JSON object."""
    data, more = bytearray(), True
    while more:
        piece = await receive()
        data += piece.get("body", b"")
        more = piece.get("more_body", False)
        if len(data) > BODY_BYTES_MAX:
            raise Refused(413, "invalid_request_error", "the body is too large")
    try:
        body = json.loads(data or b"{}")
    except (ValueError, RecursionError):
        body = None
    if not isinstance(body, dict):
        raise Refused(400, "invalid_request_error", "the body is no JSON object")
    return body


async def gone(receive: Receive, stop: threading.Event) -> None:
    """Set `stop` when who asked is gone."""
    while (await receive())["type"] != "http.disconnect":
        pass
    stop.set()
