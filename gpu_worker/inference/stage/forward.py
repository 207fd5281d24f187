"""
The older way through a slice: one call for the rows of one session, whose cache stays here between its calls.

It needs nothing but the calls themselves, so clients and stages that lack `Steps` are served by it. A call that is
sent again gets the same answer.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import Protocol

from gpu_worker.core.errors import Unavailable
from gpu_worker.core.inference.batch import Hop
from gpu_worker.core.inference.codes import InferenceError
from gpu_worker.core.inference.sampling import Sampling
from gpu_worker.core.inference.step import Open, Run, Step, Tensor
from gpu_worker.inference.ports import Engine, Registry, Text, TextStream

SESSIONS_MAX = 64
IDLE_S = 300.0
KEPT_BYTES_MAX = 1024 * 1024
# Of so many, one that was silent for so long gives its place to who comes.
CROWDED_S = 30.0
# No id of the wire has a line break: sessions of these calls are out of reach of the pipelines'.
PREFIX = "forward\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Forward:
    """
    `rows` at [position, ...) of a session: token ids on the first stage, else hidden states.

    `past` are its tokens so far, the rows' own among them, where they are known. `tokens_max` may follow. `next` is the
    stage to chain to, empty: the answer is what this slice makes of the rows.
    """

    session: str
    position: int
    rows: tuple[int, ...] | Tensor
    sampling: Sampling
    tokens_max: int = 1
    past: tuple[int, ...] = ()
    next: str = ""
    session_pass: str = ""

    @property
    def count(self) -> int:
        return self.rows.shape[0] if isinstance(self.rows, Tensor) else len(self.rows)

    @property
    def end(self) -> int:
        return self.position + self.count


@dataclass(frozen=True, slots=True, kw_only=True)
class Forwarded:
    """What became of the rows: hidden states, or the token that follows them."""

    hidden: Tensor | None = None
    token: int = 0
    is_eos: bool = False
    text: str = ""


class Forwards(Protocol):
    """Who serves these calls: a ForwardService, or who has one while its slice is loaded."""

    async def forward(self, request: Forward) -> Forwarded: ...

    def has(self, session: str) -> bool:
        """Return whether the session is open: an earlier call of it was admitted."""


class Onward(Protocol):
    async def forward(self, endpoint: str, request: Forward) -> Forwarded:
        """Return the answer of the stage at `endpoint`. Raises Unavailable; InferenceError: it refuses."""

    async def close(self) -> None: ...


@dataclass(slots=True)
class _Session:
    used_s: float
    opened: Open | None = None
    length: int = 0
    tokens: list[int] = field(default_factory=list)
    prompt_len: int = 0
    text: TextStream | None = None
    last: tuple[bytes, Forwarded] | None = None
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)


class ForwardService:
    """`text` makes the words of the last stage's tokens, None: none are told. `registry` knows whom it may chain to."""

    def __init__(
        self,
        *,
        engine: Engine,
        registry: Registry,
        onward: Onward,
        text: Text | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine, self._registry, self._onward, self._text = engine, registry, onward, text
        self._clock = clock
        self._sessions: OrderedDict[str, _Session] = OrderedDict()

    async def forward(self, request: Forward) -> Forwarded:
        """
        Return what this stage, or those it chains to, make of the rows.

        Raises:
            InferenceError: unknown_session, position_gap, context_length_exceeded, forbidden (a stage that nobody here
                knows), lost_stage, or what the engine refuses.
        """
        self._check(request)
        if self._text is not None:
            request = replace(request, sampling=ending(request.sampling, self._text.eos))
        session = await self._session(request)
        async with session.turn:
            key = _key(request)
            if session.last is not None and session.last[0] == key:
                return session.last[1]
            hops = await self._hops(request) if request.next else ()
            hidden, token = await self._compute(request, session)
            if hidden is None:
                answer = token
            elif hops:
                answer = await self._chain(request, hidden, session, hops)
            else:
                answer = Forwarded(hidden=hidden)
            # Rows that are many are made again where they are asked for again: they come out the same.
            keeps = answer.hidden is None or len(answer.hidden.data) <= KEPT_BYTES_MAX
            session.last = (key, answer) if keeps else None
            return answer

    def has(self, session: str) -> bool:
        return session in self._sessions

    def _check(self, request: Forward) -> None:
        info = self._engine.info
        if request.end > info.context:
            raise InferenceError("context_length_exceeded", f"a session has at most {info.context} positions here")
        ids = request.rows if not isinstance(request.rows, Tensor) else ()
        if any(not 0 <= token < info.vocab_size for token in (*ids, *request.past)):
            raise InferenceError(
                "invalid_argument", f"a token of this model is a number from 0 to {info.vocab_size - 1}"
            )

    async def _session(self, request: Forward) -> _Session:
        now = self._clock()
        idle = [name for name, each in self._sessions.items() if each.used_s < now - IDLE_S]
        session = self._sessions.get(request.session)
        if session is None:
            if request.position:
                raise InferenceError("unknown_session", f"{request.session} is not open here: begin at position 0")
            if len(self._sessions) >= SESSIONS_MAX and not idle:
                oldest, other = next(iter(self._sessions.items()))
                if other.used_s >= now - CROWDED_S or other.turn.locked():
                    raise InferenceError("no_capacity", f"{SESSIONS_MAX} sessions are open here, no more")
                idle = [oldest]
            session = _Session(now)
            self._sessions[request.session] = session
        session.used_s = now
        self._sessions.move_to_end(request.session)
        await self._close([name for name in idle if name != request.session])
        return session

    async def _close(self, names: Sequence[str]) -> None:
        for name in names:
            self._sessions.pop(name, None)
        if names:
            await self._engine.step(Step(closes=tuple(PREFIX + name for name in names)))

    async def _hops(self, request: Forward) -> tuple[Hop, ...]:
        """Return the next stage and the one behind it. Raises InferenceError: it is not one that is known here."""
        mine = self._engine.info.layers
        try:
            stages = await self._registry.stages()
        except Unavailable as error:
            raise InferenceError("no_route", str(error)) from None
        found = next((hop for hop in stages if hop.endpoint == request.next), None)
        if found is None:
            raise InferenceError("forbidden", f"{request.next[:200]} is no stage that is known here")
        if found.start != mine.end:
            raise InferenceError("invalid_argument", f"{found.endpoint} has not the layers from {mine.end} on")
        after = next((hop for hop in stages if hop.start == found.end), None)
        return (found,) if after is None else (found, after)

    async def _compute(self, request: Forward, session: _Session) -> tuple[Tensor | None, Forwarded]:
        """Return hidden states, or on the last stage the token behind the rows."""
        if request.position > session.length:
            raise InferenceError(
                "position_gap", f"the rows begin at {request.position}, the cache ends at {session.length}"
            )
        self._remember(request, session)
        name, is_last = PREFIX + request.session, self._engine.info.layers.is_last
        opened = self._open(request, session, name, is_last)
        run = Run(session=name, epoch=1, position=request.position, count=request.count, samples=is_last)
        opens = () if opened == session.opened else (opened,)
        if is_last and opens and opened.sampling is not None and opened.sampling.schema is not None:
            await self._engine.prepare(opened.sampling.schema)
        done = await self._engine.step(Step(runs=(run,), rows=request.rows, opens=opens))
        if done.refusals:
            await self._close([request.session])
            raise InferenceError(done.refusals[0].code, done.refusals[0].detail)
        session.opened, session.length = opened, request.end
        if not is_last:
            return done.hidden, Forwarded()
        chosen = done.tokens[0]
        del session.tokens[request.end :]
        if len(session.tokens) == request.end:
            session.tokens.append(chosen.token)
        return None, Forwarded(
            token=chosen.token, is_eos=chosen.is_eos, text=self._text_of(chosen.token, request, session)
        )

    def _remember(self, request: Forward, session: _Session) -> None:
        """Take over what the request tells of the session's tokens."""
        if request.past:
            session.tokens = list(request.past)
        elif not isinstance(request.rows, Tensor):
            session.tokens[request.position :] = request.rows
        if not request.position:
            session.prompt_len = len(session.tokens)

    def _open(self, request: Forward, session: _Session, name: str, is_last: bool) -> Open:
        """Return how the session must stand open for this request; the same as before where nothing is new."""
        before = session.opened
        room = min(self._engine.info.context, request.end + max(1, request.tokens_max))
        positions = before.positions if before and before.positions >= request.end else room
        sampling = request.sampling if is_last else None
        history: tuple[int, ...] = ()
        if sampling is not None and sampling.needs_history:
            if len(session.tokens) < request.end:
                raise InferenceError("invalid_argument", "penalties and schemas need past_token_ids: the tokens so far")
            # What the engine itself drew is in its own history.
            is_known = before is not None and before.sampling == sampling and request.position == session.length
            history = before.history if is_known and before else tuple(session.tokens[: request.end])
        return Open(
            session=name,
            epoch=1,
            positions=positions,
            sampling=sampling,
            history=history,
            prompt_len=min(session.prompt_len, len(history)),
        )

    def _text_of(self, token: int, request: Forward, session: _Session) -> str:
        if self._text is None or token in self._text.eos:
            return ""
        if session.text is None or not request.position:
            session.text = self._text.stream()
        return session.text.push(token)

    async def _chain(self, request: Forward, hidden: Tensor, session: _Session, hops: Sequence[Hop]) -> Forwarded:
        past = request.past or (tuple(session.tokens) if request.sampling.needs_history else ())
        layers = self._engine.info.layers
        passed = request.session_pass or self._registry.session_pass(request.session, [(layers.end, layers.total)])
        after = hops[1].endpoint if len(hops) > 1 else ""
        on = replace(request, rows=hidden, past=past, next=after, session_pass=passed)
        try:
            return await self._onward.forward(hops[0].endpoint, on)
        except Unavailable as error:
            raise InferenceError("lost_stage", str(error)) from None

    async def close(self) -> None:
        """Give the caches of all sessions back, and the ways to other stages."""
        await self._close(tuple(self._sessions))
        await self._onward.close()


def ending(sampling: Sampling, eos: tuple[int, ...]) -> Sampling:
    """Return `sampling` with the ends of the model, where its client names none: a plain one cannot."""
    return sampling if sampling.eos or sampling.ignore_eos else replace(sampling, eos=eos)


def _key(request: Forward) -> bytes:
    """Return what a call that is sent again has in common with the first, and with no other."""
    rows = request.rows
    data = rows.data if isinstance(rows, Tensor) else repr(rows).encode()
    rest = replace(request, rows=(), session_pass="")
    return sha256(repr(rest).encode() + b"\0" + bytes(data)).digest()
