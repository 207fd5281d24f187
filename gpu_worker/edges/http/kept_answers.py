"""Answers that were paid for, kept in memory for an hour: the same payment, sent again, gets the same answer."""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

KEPT_S = 3_600.0
KEPT_BYTES_MAX = 64 * 1024 * 1024
ANSWER_BYTES_MAX = 4 * 1024 * 1024
# The last event of a stream that was told to its end.
_STREAM_END = b"data: [DONE]\n\n"


@dataclass(slots=True)
class Kept:
    """One answer. `whole` is set once it is told to its end; `over` once it will not be any more."""

    until_s: float
    status: int = 200
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    body: bytearray = field(default_factory=bytearray)
    whole: bool = False
    over: asyncio.Event = field(default_factory=asyncio.Event)


class KeptAnswers:
    """By the payment's id, the oldest are forgotten first. `monotonic` is in seconds."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic, bytes_max: int = KEPT_BYTES_MAX) -> None:
        self._monotonic, self._bytes_max = monotonic, bytes_max
        self._kept: OrderedDict[str, Kept] = OrderedDict()

    async def find(self, payment_id: str) -> Response | None:
        """Return the answer, once it is whole where it is being made; None: it is not kept."""
        self._forget()
        kept = self._kept.get(payment_id)
        if kept is None:
            return None
        await kept.over.wait()
        if not kept.whole:
            return None
        reply = Response(bytes(kept.body), kept.status)
        reply.raw_headers = [*kept.headers, (b"content-length", str(len(kept.body)).encode())]
        return reply

    def begin(self, payment_id: str) -> Kept:
        """Return the place of an answer that is going to be made. It must be ended."""
        self._forget()
        self._kept.pop(payment_id, None)
        kept = self._kept[payment_id] = Kept(self._monotonic() + KEPT_S)
        return kept

    def end(self, payment_id: str, kept: Kept) -> None:
        """Wake who waits for it. What is not whole, or too large, is not kept."""
        kept.whole = kept.whole and len(kept.body) <= ANSWER_BYTES_MAX
        kept.over.set()
        if not kept.whole and self._kept.get(payment_id) is kept:
            del self._kept[payment_id]
        self._forget()

    def _forget(self) -> None:
        now_s, held = self._monotonic(), sum(len(kept.body) for kept in self._kept.values())
        for payment_id, kept in list(self._kept.items()):
            if kept.over.is_set() and (kept.until_s <= now_s or held > self._bytes_max):
                held -= len(kept.body)
                del self._kept[payment_id]


class KeptReply(Response):
    """Tells `reply` and keeps what it tells. `end` is called in the end, however it ends."""

    def __init__(self, reply: Response, headers: Mapping[str, str], kept: Kept, end: Callable[[], None]) -> None:
        super().__init__()
        self._reply, self._kept, self._end = reply, kept, end
        reply.headers.update(headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        kept = self._kept

        async def tell(message: Message) -> None:
            if message["type"] == "http.response.start":
                kept.status = message["status"]
                kept.headers = [(name, value) for name, value in message["headers"] if name != b"content-length"]
            elif len(kept.body) <= ANSWER_BYTES_MAX:
                kept.body += message.get("body", b"")
            if message["type"] == "http.response.body" and not message.get("more_body", False):
                is_stream = any(value.startswith(b"text/event-stream") for _, value in kept.headers)
                kept.whole = kept.status == 200 and (not is_stream or kept.body.endswith(_STREAM_END))
            await send(message)

        try:
            await self._reply(scope, receive, tell)
        finally:
            self._end()
