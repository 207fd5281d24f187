"""A request for text, by whichever door it came: it waits for its turn, is answered, and is counted."""

import asyncio
from collections.abc import AsyncIterator
from decimal import Decimal

from gpu_worker.core.inference.callers import Caller, model_for
from gpu_worker.core.inference.codes import InferenceError
from gpu_worker.inference.text.engine import Answer, Ask, ModelCard, Piece, TextEngine
from gpu_worker.inference.text.fitting import Summed, fitted
from gpu_worker.inference.text.paying import Bill, bounded
from gpu_worker.inference.text.service import Service
from gpu_worker.inference.text.turns import Turn
from wire.openai import ChatRequest, CompletionRequest


async def begin(
    service: Service,
    request: ChatRequest | CompletionRequest,
    caller: Caller | None = None,
    tokens_usual: int | None = None,
) -> "Metered":
    """
    Return the answer that is being made; it must be closed.

    Args:
        caller: who asks, None: a program of the owner's.
        tokens_usual: how many tokens follow at most where the request names no limit, None: as there is room for.

    Raises:
        InferenceError: it is refused, before anything is computed.
    """
    engine = service.answering(is_sold=caller is not None and caller.kind == "job")
    name = request.model if caller is None else model_for(caller, request.model, service.resolve)
    card = service.card(name)
    ask = Ask(request=request, model=card.name, session=service.new_id(), tokens_usual=tokens_usual)
    summed = Summed()
    if caller is None:
        return await _begun(service, engine, card, ask, None, summed)
    await service.admission.open(caller, ask.session)
    try:
        return await _begun(service, engine, card, ask, caller, summed)
    except InferenceError:
        # Refused before anything was made of it: what admitted it is as good as before. Who left has used it up.
        if not summed.tokens:
            await service.admission.unopened(caller, ask.session)
        raise


async def _begun(
    service: Service, engine: TextEngine, card: ModelCard, ask: Ask, caller: Caller | None, summed: Summed
) -> "Metered":
    began_s, bill, is_asked = service.monotonic(), None, False
    if service.billing is not None:
        bill = await service.billing.open(engine, card, ask, caller, service.context_overflow)
        if bill is not None:
            bill.summed = summed
    try:
        is_priority, is_job = (False, False) if caller is None else (caller.is_priority, caller.kind == "job")
        turn = await service.turns.enter(is_priority, is_patient=is_job)
        try:
            is_asked = True
            ask = ask if bill is None else bounded(ask, card)
            ask = await fitted(engine, ask, card.context, service.context_overflow, summed)
            answer = await engine.begin(ask)
        except BaseException:
            turn.leave()
            raise
    except BaseException as error:
        if bill is not None:
            # Some engines read the whole prompt before they say anything.
            has_left = is_asked and isinstance(error, asyncio.CancelledError)
            await bill.settle(bill.cost_atomic(0, 0) if has_left else bill.summed_atomic)
        raise
    return Metered(service, card, ask, answer, turn, began_s, bill)


class Metered:
    """Implements `Answer`: another one, whose tokens and times are counted in the service's figures."""

    def __init__(
        self, service: Service, card: ModelCard, ask: Ask, answer: Answer, turn: Turn, began_s: float, bill: Bill | None
    ) -> None:
        self.session, self.model = ask.session, card.name
        self._service, self._card, self._ask, self._answer, self._turn = service, card, ask, answer, turn
        self._bill = bill
        self._began_s, self._admitted_s = began_s, service.monotonic()
        self._first_s: float | None = None
        self._last_s = self._admitted_s
        self._failed = self._closed = False
        self.reasoning_tokens = 0
        self._calls_max = ask.request.calls_max if isinstance(ask.request, ChatRequest) else None
        service.figures.queue_s.add(self._admitted_s - began_s)

    @property
    def prompt_tokens(self) -> int:
        return self._answer.prompt_tokens

    @property
    def cached_tokens(self) -> int:
        return self._answer.cached_tokens

    @property
    def tokens(self) -> int:
        return self._answer.tokens

    @property
    def finish_reason(self) -> str | None:
        return self._answer.finish_reason

    @property
    def model_hash(self) -> str:
        return self._answer.model_hash

    @property
    def cost(self) -> Decimal | None:
        """What it costs so far in decimal units of the worker's asset, None: nobody pays for it."""
        return None if self._bill is None else self._bill.cost(self.prompt_tokens, self.tokens)

    async def pieces(self) -> AsyncIterator[Piece]:
        """
        Yield the answer piece by piece, none of them empty.

        Raises:
            InferenceError: it cannot be gone on with; what was yielded stands.
        """
        try:
            async for piece in self._answer.pieces():
                if piece.tokens:
                    self._count(piece.tokens)
                    self.reasoning_tokens += piece.tokens if piece.reasoning and not piece.text else 0
                if piece.calls and self._calls_max is not None:
                    # Not every engine holds itself to it.
                    piece = piece._replace(calls=tuple(call for call in piece.calls if call.number < self._calls_max))
                if piece.text or piece.told or piece.calls or piece.reasoning:
                    yield piece
        except Exception:
            self._failed = True
            raise

    async def close(self) -> None:
        """Stop where it goes on still, and let the next one have its turn. Idempotent."""
        if self._closed:
            return
        self._closed = True
        try:
            await self._answer.close()
        finally:
            self._turn.leave()
            self._account()
            if self._bill is not None:
                await self._bill.settle(0 if self._failed else self._bill.cost_atomic(self.prompt_tokens, self.tokens))

    def _count(self, tokens: int) -> None:
        figures, now_s = self._service.figures, self._service.monotonic()
        if self._first_s is None:
            self._first_s = self._last_s = now_s
            figures.first_s.add(now_s - self._began_s)
            between = tokens - 1
        else:
            between = tokens
        for _ in range(between):
            figures.between_s.add((now_s - self._last_s) / between)
        self._last_s = now_s
        figures.tokens += tokens

    def _account(self) -> None:
        figures, tokens = self._service.figures, self._answer.tokens
        how = "error" if self._failed else self._answer.finish_reason or "abort"
        figures.ended[how] += 1
        figures.request_s.add(self._service.monotonic() - self._began_s)
        figures.prompt_tokens += self.prompt_tokens
        figures.prompt_lengths.add(self.prompt_tokens)
        figures.lengths.add(tokens)
        figures.lengths_max.add(self._tokens_max())
        if self._first_s is not None:
            figures.prefill_s.add(self._first_s - self._admitted_s)
            figures.decode_s.add(self._last_s - self._first_s)
            figures.inference_s.add(self._last_s - self._admitted_s)
        if tokens > 1 and self._first_s is not None:
            figures.per_token_s.add((self._last_s - self._first_s) / (tokens - 1))

    def _tokens_max(self) -> int:
        """Return the most tokens that it could get; without any limit at all, those that it got."""
        named, context, usual = self._ask.request.tokens_max, self._card.context, self._ask.tokens_usual
        room = None if context is None else max(0, context - self.prompt_tokens)
        limits = [each for each in (usual, room) if each is not None]
        return named if named is not None else min(limits, default=self._answer.tokens)
