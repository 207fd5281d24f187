"""A request for text: its prompt's tokens in, pieces of text out, up to a stop string, the model's end or the limit."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import NamedTuple

from gpu_worker.core.inference.codes import InferenceError
from gpu_worker.core.inference.sampling import Sampled, Sampling, flaw
from gpu_worker.core.inference.stops import Stops, feed
from gpu_worker.inference.ports import Generator, Text, TokenRequest, TokenStream
from gpu_worker.inference.text.service import Service
from wire.openai_answers import Told


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """
    What a request wants, by whichever door it came.

    `tokens_max` None: as many as the context has room for, and of these not more than `tokens_usual`. `shows` are
    special tokens that are in the text all the same.
    """

    prompt: tuple[int, ...]
    tokens_max: int | None
    sampling: Sampling
    stops: tuple[str, ...] = ()
    tokens_usual: int | None = None
    shows: tuple[str, ...] = ()


class Piece(NamedTuple):
    """`text` is new and whole, never a part of a character; `told` are the tokens whose text begins in it."""

    text: str
    told: tuple[Told, ...] = ()


async def begin(service: Service, ask: Ask) -> "Generation":
    """
    Return the answer that is being made; it must be closed.

    Raises:
        InferenceError: it is refused, before anything is computed.
    """
    speaker = service.speaker()
    generator = speaker[0]
    tokens_max = _tokens_max(ask, generator.info.context)
    _check(ask, generator.info.vocab_size)
    session, began_s = service.new_id(), service.monotonic()
    request = TokenRequest(session=session, prompt=ask.prompt, tokens_max=tokens_max, sampling=ask.sampling)
    stream: TokenStream = await generator.start(request) if tokens_max else _Nothing()
    return Generation(service, speaker, request, ask, stream, began_s)


def _tokens_max(ask: Ask, context: int) -> int:
    room = context - len(ask.prompt)
    usual = max(1, room if ask.tokens_usual is None else min(room, ask.tokens_usual))
    wanted = usual if ask.tokens_max is None else ask.tokens_max
    if not ask.prompt:
        raise InferenceError("invalid_argument", "the prompt has no tokens", "prompt")
    if wanted > room:
        raise InferenceError(
            "context_length_exceeded",
            f"This model's maximum context length is {context} tokens. However, you requested "
            f"{len(ask.prompt) + wanted} tokens ({len(ask.prompt)} in the prompt, {wanted} in the completion). "
            "Please reduce the length of the prompt or of the completion.",
        )
    return wanted


def _check(ask: Ask, vocab_size: int) -> None:
    for param, tokens in (("prompt", ask.prompt), ("logit_bias", tuple(ask.sampling.logit_bias))):
        if tokens and not 0 <= min(tokens) <= max(tokens) < vocab_size:
            detail = f"a token of this model is a number from 0 to {vocab_size - 1}"
            raise InferenceError("invalid_argument", detail, param)
    if (why := flaw(ask.sampling, vocab_size)) is not None:
        raise InferenceError("invalid_argument", why)


class Generation:
    """An answer in the making. `tokens` were drawn so far; `finish_reason` is stop or length, None before the end."""

    def __init__(
        self,
        service: Service,
        speaker: tuple[Generator, Text],
        request: TokenRequest,
        ask: Ask,
        stream: TokenStream,
        began_s: float,
    ) -> None:
        generator, text = speaker
        self.model_hash = generator.info.model_hash
        self.session = request.session
        self.prompt_tokens = len(request.prompt)
        self.tokens = 0
        self.finish_reason: str | None = None
        self._service, self._text, self._request, self._stream = service, text, request, stream
        self._stops = Stops(ask.stops)
        self._decoder = text.stream(request.prompt, ask.shows)
        self._shown = self._decoded = 0
        self._untold: list[Told] = []
        self._began_s, self._admitted_s = began_s, service.monotonic()
        self._first_s: float | None = None
        self._last_s = self._admitted_s
        self._failed = self._closed = False
        service.figures.prompt_tokens += self.prompt_tokens
        service.figures.queue_s.add(self._admitted_s - began_s)

    async def pieces(self) -> AsyncIterator[Piece]:
        """
        Yield the answer piece by piece, none of them empty.

        Raises:
            InferenceError: it cannot be gone on with; what was yielded stands.
        """
        try:
            async for sampled in self._stream:
                self._count()
                fresh = "" if sampled.is_eos else self._decoder.push(sampled.token)
                self._tell(sampled, fresh)
                if sampled.is_eos:
                    self.finish_reason = "stop"
                    break
                if (piece := self._show(fresh)) is not None:
                    yield piece
                if self.finish_reason is not None:
                    return
        except Exception:
            self._failed = True
            raise
        if (piece := self._rest()) is not None:
            yield piece

    async def close(self) -> None:
        """Stop where it goes on still; every stage hears of it with its next step. Idempotent."""
        if self._closed:
            return
        self._closed = True
        try:
            await self._stream.cancel()
        finally:
            self._account()

    def _show(self, fresh: str) -> Piece | None:
        """Return what may be told of the text, whose newest part is `fresh`."""
        self._stops, text, hit = feed(self._stops, fresh)
        if hit is not None:
            self.finish_reason = "stop"
        return self._piece(text)

    def _rest(self) -> Piece | None:
        """Return what was held back until the model or the limit ended the answer."""
        self._stops, text, hit = feed(self._stops, self._decoder.end())
        self.finish_reason = "stop" if hit is not None else self.finish_reason or "length"
        rest = text if hit is not None else text + self._stops.held
        return self._piece(rest, is_last=hit is None)

    def _piece(self, text: str, *, is_last: bool = False) -> Piece | None:
        self._shown += len(text)
        at = next((at for at, told in enumerate(self._untold) if told.offset >= self._shown), len(self._untold))
        at = len(self._untold) if is_last else at
        told, self._untold = tuple(self._untold[:at]), self._untold[at:]
        return Piece(text, told) if text or told else None

    def _tell(self, sampled: Sampled, fresh: str) -> None:
        if sampled.logprob is not None and not sampled.is_eos:
            top = tuple((*self._shape(token), logprob) for token, logprob in sampled.top)
            self._untold.append(Told(*self._shape(sampled.token), sampled.logprob, self._decoded, top))
        self._decoded += len(fresh)

    def _shape(self, token: int) -> tuple[str, bytes]:
        data = self._text.token_bytes(token)
        return data.decode("utf-8", "replace"), data

    def _count(self) -> None:
        figures, now_s = self._service.figures, self._service.monotonic()
        if self._first_s is None:
            self._first_s = now_s
            figures.first_s.add(now_s - self._began_s)
        else:
            figures.between_s.add(now_s - self._last_s)
        self._last_s = now_s
        self.tokens += 1
        figures.tokens += 1

    def _account(self) -> None:
        figures = self._service.figures
        how = "error" if self._failed else self.finish_reason or "abort"
        figures.ended[how] += 1
        figures.request_s.add(self._service.monotonic() - self._began_s)
        figures.prompt_lengths.add(self.prompt_tokens)
        figures.lengths.add(self.tokens)
        figures.lengths_max.add(self._request.tokens_max)
        if self._first_s is not None:
            figures.prefill_s.add(self._first_s - self._admitted_s)
            figures.decode_s.add(self._last_s - self._first_s)
            figures.inference_s.add(self._last_s - self._admitted_s)
        if self.tokens > 1 and self._first_s is not None:
            figures.per_token_s.add((self._last_s - self._first_s) / (self.tokens - 1))


class _Nothing:
    """The stream of a request for no token."""

    async def __aiter__(self) -> AsyncIterator[Sampled]:
        return
        yield

    async def cancel(self) -> None:
        pass
