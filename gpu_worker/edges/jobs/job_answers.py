"""Jobs that generate, answered by the model that this worker serves: behind everybody who asks at its doors."""

import asyncio
import hashlib
import logging
import re
import socket
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from types import MappingProxyType
from typing import Any

from gpu_worker.core.asked import LINE_BYTES_MAX, TEXT_CHARS_MAX, Answered, Asked
from gpu_worker.core.errors import Fault
from gpu_worker.core.inference.callers import Caller
from gpu_worker.core.inference.codes import InferenceError
from gpu_worker.core.model import LocalModel
from gpu_worker.inference.text.answering import begin
from gpu_worker.inference.text.engine import ModelCard
from gpu_worker.inference.text.service import UNBOUNDED, Service
from wire.openai import ChatMessage, ChatRequest, CompletionRequest

# Records of one job that are with the model at a time; fewer where it answers fewer.
AT_ONCE_MAX = 64
# Where an engine itself says how many it takes, others shall find room in it, too.
AT_ONCE_UNBOUNDED = 8
# While an answer is made it is told how far it is.
TELL_S = 2.0
# What breaks off is tried again, and may be what the engine breaks at; who only has no room is asked for ever.
PAUSES_S = (1.0, 4.0, 15.0)
WAIT_S = 1.0
# Nothing was computed: it is asked again, as long as the job's program is let live without progress.
_WAITING = ("no_capacity", "not_ready", "no_route")
# What of a record the model does not take.
_BUYERS = ("context_length_exceeded", "invalid_argument", "too_large")
# The buyer asked for temperature and top_p alone. What a server of its own does besides is its owner's word.
_NEUTRAL: Mapping[str, Any] = MappingProxyType({"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0})
_SHA256 = re.compile(r"[0-9a-f]{64}")

_LOG = logging.getLogger("livery.gpu_worker")


class JobAnswers:
    """
    Implements `model_port.Answers` with the models of `service`.

    Args:
        pauses_s: after which an answer that broke off is made anew; then its job ends.
    """

    def __init__(self, service: Service, *, pauses_s: Sequence[float] = PAUSES_S) -> None:
        self._service, self._pauses_s = service, tuple(pauses_s)

    def find(self, name: str, model_hash: str | None = None) -> LocalModel | None:
        """Return the whole model that is served as `name`, else the one that has `model_hash`, None: there is none."""
        cards = self._cards()
        wanted = self._service.aliases.get(name, name)
        found = [card for card in cards if card.name == wanted] or [
            card for card in cards if card.model_hash and card.model_hash == model_hash
        ]
        return _model(found[0]) if found else None

    def names(self) -> tuple[str, ...]:
        return tuple(card.name for card in self._cards())

    async def serve(self, job_id: str, model: str, ours: socket.socket) -> None:
        """Answer a job's program until it goes; what it asked then is given up."""
        reader, writer = await asyncio.open_connection(sock=ours, limit=LINE_BYTES_MAX)
        slots = self._service.turns.slots
        at_once = min(AT_ONCE_MAX, slots if slots < UNBOUNDED else AT_ONCE_UNBOUNDED)
        talk = _Talk(self._service, writer, Caller(kind="job", id=job_id), model, self._pauses_s)
        asks: set[asyncio.Task[None]] = set()
        try:
            await talk.tell(Answered(at_once=at_once))
            while line := await reader.readline():
                asked = Asked.from_json(line)
                if talk.open >= at_once:
                    raise ValueError(f"more than {at_once} records are asked at once")
                talk.open += 1
                ask = asyncio.create_task(talk.answer(asked))
                asks.add(ask)
                ask.add_done_callback(asks.discard)
        except ConnectionError:
            pass  # it was killed
        except ValueError as error:
            _LOG.warning("the program of %s asks otherwise than it should: %s", job_id, str(error)[:300])
        finally:
            for ask in asks:
                ask.cancel()
            await asyncio.gather(*asks, return_exceptions=True)
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    def _cards(self) -> tuple[ModelCard, ...]:
        """Return the models that answer in text, all of them computed here or where their owner says."""
        engine = self._service.engine
        # A pipeline's other stages are other machines: no job was sold to them.
        if engine is None or not self._service.is_head or self._service.mode != "single":
            return ()
        # A file says whether it makes vectors alone; of other engines only asking tells.
        return tuple(card for card in engine.cards() if not (engine.kind == "gguf" and card.embeds))


class _Talk:
    """One program and what it asks. `open` records are not answered yet."""

    def __init__(
        self,
        service: Service,
        writer: asyncio.StreamWriter,
        caller: Caller,
        model: str,
        pauses_s: Sequence[float],
    ) -> None:
        self.open = 0
        self._service, self._writer, self._caller, self._model = service, writer, caller, model
        self._pauses_s = pauses_s

    async def tell(self, answered: Answered) -> None:
        self._writer.write(answered.to_json() + b"\n")
        with suppress(ConnectionError):
            await self._writer.drain()

    async def answer(self, asked: Asked) -> None:
        """Tell what the model says to a record, or why it says nothing."""
        answered = await self._answered(asked)
        # Before it is told: the next one may come at once.
        self.open -= 1
        await self.tell(answered)

    async def _answered(self, asked: Asked) -> Answered:
        pauses = iter(self._pauses_s)
        while True:
            try:
                return await self._made(asked)
            except InferenceError as error:
                pause_s = WAIT_S if error.code in _WAITING else next(pauses, None)
                if not error.retryable or error.code == "draining" or pause_s is None:
                    fault: Fault = "buyer" if error.code in _BUYERS else "owner"
                    return Answered(number=asked.number, fault=fault, detail=str(error)[:1_000])
            except Exception:
                _LOG.exception("a record of %s cannot be answered", self._caller.id)
                return Answered(number=asked.number, fault="owner", detail="the model's engine failed")
            await asyncio.sleep(pause_s)

    async def _made(self, asked: Asked) -> Answered:
        """Return the answer, whole. Raises InferenceError."""
        kind = self._service.answering(is_sold=True).kind
        answer = await begin(self._service, request_of(asked, self._model, kind), self._caller)
        texts: list[str] = []
        chars, told_s = 0, time.monotonic()
        try:
            async for piece in answer.pieces():
                texts.append(piece.text)
                chars += len(piece.text)
                if chars > TEXT_CHARS_MAX:
                    raise InferenceError("internal", "the model's engine makes an answer without end")
                if time.monotonic() - told_s >= TELL_S:
                    told_s = time.monotonic()
                    await self.tell(Answered(number=asked.number, tokens=answer.tokens))
        finally:
            await answer.close()
        return Answered(number=asked.number, text="".join(texts), tokens=answer.tokens)


def request_of(asked: Asked, model: str, kind: str) -> ChatRequest | CompletionRequest:
    """Return a record as engines of `kind` are asked."""
    terms: dict[str, Any] = {
        "model": model,
        "max_tokens": asked.tokens_max,
        "temperature": float(asked.temperature),
        "top_p": float(asked.top_p),
        "seed": asked.seed,
        **({} if kind == "openai" else _NEUTRAL),
    }
    if not asked.messages:
        return CompletionRequest(prompt=asked.prompt, **terms)
    said = tuple(ChatMessage(role=turn.role, content=turn.content) for turn in asked.messages)
    # A record is answered as it is, or not at all.
    return ChatRequest(messages=said, context_overflow="error", **terms)


def _model(card: ModelCard) -> LocalModel:
    # Of some only the name is known: who goes on elsewhere with a checkpoint finds the model of that name.
    known = _SHA256.fullmatch(card.model_hash) is not None
    model_hash = card.model_hash if known else hashlib.sha256(f"{card.name} {card.model_hash}".encode()).hexdigest()
    return LocalModel(name=card.name, folder="", bytes=card.bytes, model_hash=model_hash, config={}, served=card.name)
