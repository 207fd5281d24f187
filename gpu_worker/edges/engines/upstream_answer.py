"""One answer of a server that speaks OpenAI's API, while it comes."""

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack

from gpu_worker.core.inference.codes import InferenceError
from gpu_worker.inference.text.engine import Piece
from gpu_worker.inference.upstream.events import Events, EventTooLarge
from gpu_worker.inference.upstream.reading import Reading
from gpu_worker.inference.upstream.refusals import broken, refusal, silent
from outbound.http import Broken, HttpClient, HttpStream, OutboundError, TimedOut, TooLarge, Unreachable

ANSWER_BYTES_MAX = 256 * 1024 * 1024
# Of an answer that is no stream: an error, or a whole answer of a server that knows no streams.
WHOLE_BYTES_MAX = 16 * 1024 * 1024
_EVENTS = "text/event-stream"


class UpstreamAnswer:
    """
    Implements `Answer`. What it holds of the network is given back by `close`.

    Args:
        reading: what makes pieces of it.
        echo: what is told before the answer.
        is_told: False: the answer itself is not told, no token of it was asked for.
        on_close: called once, when it is closed.
    """

    model_hash = ""

    def __init__(
        self,
        reading: Reading,
        *,
        silence_s: float,
        echo: str = "",
        is_told: bool = True,
        on_close: Callable[["UpstreamAnswer"], None],
    ) -> None:
        self.finish_reason: str | None = None
        self._reading, self._silence_s, self._echo, self._is_told = reading, silence_s, echo, is_told
        self._on_close: Callable[[UpstreamAnswer], None] | None = on_close
        self._stack = AsyncExitStack()
        self._stream: HttpStream | None = None

    @property
    def prompt_tokens(self) -> int:
        return self._reading.prompt_tokens

    @property
    def cached_tokens(self) -> int:
        return self._reading.cached_tokens

    @property
    def tokens(self) -> int:
        return self._reading.tokens

    async def open(self, http: HttpClient, url: str, headers: dict[str, str], body: bytes, context: int | None) -> None:
        """Send the request, and return when it is being answered. Raises InferenceError: it is not."""
        try:
            coming = http.stream("POST", url, headers=headers, content=body, silence_s=self._silence_s)
            stream = await self._stack.enter_async_context(coming)
            if stream.status != 200:
                raise refusal(stream.status, await _whole(stream), context)
        except OutboundError as error:
            raise fault(error, self._silence_s) from None
        self._stream = stream

    async def pieces(self) -> AsyncIterator[Piece]:
        """Yield the answer as it comes, once. Raises InferenceError: it breaks off."""
        if self._echo:
            yield Piece(self._echo)
        reading = self._reading
        try:
            async for data in self._events():
                piece = reading.push(data)
                if self._is_told and any(piece):
                    yield piece
                if reading.is_done:
                    break
        except OutboundError as error:
            # What comes after the end of an answer is not missed.
            if reading.reason is None:
                raise fault(error, self._silence_s) from None
        except EventTooLarge:
            raise broken("sent far more than an answer has") from None
        reading.end()
        self.finish_reason = reading.reason if self._is_told else "length"

    async def close(self) -> None:
        """End the exchange: a server hears of it, and stops. Idempotent."""
        on_close, self._on_close = self._on_close, None
        try:
            await self._stack.aclose()
        finally:
            if on_close is not None:
                on_close(self)

    async def _events(self) -> AsyncIterator[bytes]:
        """Yield the data of each event; a server's whole answer is one."""
        assert self._stream is not None
        kind = self._stream.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind == "application/json":
            yield await _whole(self._stream)
            return
        if kind != _EVENTS:
            raise broken("answered with something else than an answer: it does not speak OpenAI's API")
        events, received = Events(), 0
        async for chunk in self._stream.chunks:
            received += len(chunk)
            if received > ANSWER_BYTES_MAX:
                raise broken("sent far more than an answer has")
            for data in events.push(chunk):
                yield data


async def _whole(stream: HttpStream) -> bytes:
    body = bytearray()
    async for chunk in stream.chunks:
        body += chunk
        if len(body) > WHOLE_BYTES_MAX:
            raise broken("sent far more than an answer has")
    return bytes(body)


def fault(error: OutboundError, silence_s: float) -> InferenceError:
    """Return what it means that a server was not heard."""
    if isinstance(error, TimedOut) and not isinstance(error, Broken):
        return silent(silence_s)
    words = {Unreachable: "cannot be reached", Broken: "broke its answer off", TooLarge: "sent far more than it may"}
    return broken(words.get(type(error), "cannot be asked"))
