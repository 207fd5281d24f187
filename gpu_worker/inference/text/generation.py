"""An answer out of tokens: text up to a stop string, the model's end or the limit, and the calls of tools in it."""

from collections.abc import AsyncIterator, Callable
from typing import NamedTuple

from gpu_worker.core.inference.calls import Call, CallFinder
from gpu_worker.core.inference.sampling import Sampled
from gpu_worker.core.inference.stops import Stops, feed
from gpu_worker.inference.ports import Text, TokenRequest, TokenStream
from gpu_worker.inference.text.engine import CallPart, Piece
from wire.openai_answers import Told


class Calls(NamedTuple):
    """What finds the calls of tools in a text, and what names them."""

    finder: CallFinder
    new_id: Callable[[], str]


class Generation:
    """
    Implements `Answer` over the stream of `request`.

    Args:
        shows: special tokens that are in the text all the same.
        calls: None: no calls of tools are looked for.
        echo: what is told before the answer.
    """

    cached_tokens = 0

    def __init__(
        self,
        text: Text,
        request: TokenRequest,
        stream: TokenStream,
        *,
        model_hash: str = "",
        stops: tuple[str, ...] = (),
        shows: tuple[str, ...] = (),
        calls: Calls | None = None,
        echo: str = "",
    ) -> None:
        self.model_hash = model_hash
        self.prompt_tokens = len(request.prompt)
        self.tokens = 0
        self.finish_reason: str | None = None
        self._text, self._stream, self._calls, self._echo = text, stream, calls, echo
        self._stops = Stops(stops)
        self._decoder = text.stream(request.prompt, shows)
        self._shown = self._decoded = self._called = 0
        self._untold: list[Told] = []
        self._closed = False

    async def pieces(self) -> AsyncIterator[Piece]:
        """
        Yield the answer: at least one piece for every token.

        Raises:
            InferenceError: it cannot be gone on with; what was yielded stands.
        """
        if self._echo:
            yield Piece(self._echo)
        ended = None
        async for sampled in self._stream:
            self.tokens += 1
            fresh = "" if sampled.is_eos else self._decoder.push(sampled.token)
            self._tell(sampled, fresh)
            if sampled.is_eos:
                ended = "stop"
                yield Piece(tokens=1)
                break
            self._stops, shown, hit = feed(self._stops, fresh)
            for piece in self._pieces(shown, tokens=1, is_end=hit is not None):
                yield piece
            if hit is not None:
                self._end("stop")
                return
        self._stops, shown, hit = feed(self._stops, self._decoder.end())
        rest = shown if hit is not None else shown + self._stops.held
        for piece in self._pieces(rest, is_end=True, is_last=hit is None):
            yield piece
        self._end("stop" if hit is not None else ended or "length")

    async def close(self) -> None:
        """Stop where it goes on still; every stage hears of it with its next step. Idempotent."""
        if not self._closed:
            self._closed = True
            await self._stream.cancel()

    def _end(self, reason: str) -> None:
        self.finish_reason = "tool_calls" if self._called and reason == "stop" else reason

    def _pieces(self, text: str, *, tokens: int = 0, is_end: bool = False, is_last: bool = False) -> list[Piece]:
        """
        Return what may be told now that `text` is certain, the first one with the tokens; `is_end`: no more follows.

        `is_last`: also the tokens are told whose text was not.
        """
        self._shown += len(text)
        at = next((at for at, told in enumerate(self._untold) if told.offset >= self._shown), len(self._untold))
        at = len(self._untold) if is_last else at
        told, self._untold = tuple(self._untold[:at]), self._untold[at:]
        found = self._found(text, is_end=is_end)
        # Tokens are told when they were drawn, though their text is held back.
        if (told or tokens) and not (found and found[0].text):
            found = [Piece(), *found]
        return [each._replace(told=told, tokens=tokens) if not at else each for at, each in enumerate(found)]

    def _found(self, text: str, *, is_end: bool) -> list[Piece]:
        if self._calls is None:
            return [Piece(text)] if text else []
        found = self._calls.finder.push(text, is_end=is_end)
        return [Piece(each) if isinstance(each, str) else self._call(each) for each in found]

    def _call(self, call: Call) -> Piece:
        assert self._calls is not None
        self._called += 1
        return Piece(calls=(CallPart(self._called - 1, self._calls.new_id(), call.name, call.arguments),))

    def _tell(self, sampled: Sampled, fresh: str) -> None:
        if sampled.logprob is not None and not sampled.is_eos:
            top = tuple((*self._shape(token), logprob) for token, logprob in sampled.top)
            self._untold.append(Told(*self._shape(sampled.token), sampled.logprob, self._decoded, top))
        self._decoded += len(fresh)

    def _shape(self, token: int) -> tuple[str, bytes]:
        data = self._text.token_bytes(token)
        return data.decode("utf-8", "replace"), data


class Nothing:
    """The stream of a request for no token."""

    async def __aiter__(self) -> AsyncIterator[Sampled]:
        return
        yield

    async def cancel(self) -> None:
        pass
