"""
Admission: whether who asks may, before a body is read. One for every door.

Nothing is used up by being admitted: a pass and a free request are taken when the session opens, and are given back
where nothing was begun after all.
"""

import hmac
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import sha256
from typing import NamedTuple, Protocol

from gpu_worker.core.inference.callers import (
    CREDENTIAL_CHARS_MAX,
    OWNER,
    Caller,
    Kind,
    Quota,
    Refusal,
    Rules,
    Ticket,
    Use,
    Visit,
    unnamed,
)
from gpu_worker.core.inference.codes import InferenceError
from gpu_worker.core.inference.free_tier import FreeTier
from gpu_worker.core.inference.session_passes import SessionPass


class Passes(Protocol):
    """What a registry has signed."""

    async def check(self, token: str) -> SessionPass:
        """Return what `token` admits to. Raises InferenceError unauthenticated: nothing, here and now."""

    async def close(self) -> None:
        """Let go of what it holds."""


class UsedPasses(Protocol):
    """Which session each pass has opened, over restarts."""

    async def take(self, ticket: Ticket, session: str, now_s: float) -> bool:
        """
        Return whether `session` is the one that the pass opens: the first that asked, and it again.

        `now_s` is Unix time. Raises InferenceError no_capacity: too many are remembered.
        """

    async def give_back(self, ticket: Ticket, session: str) -> None:
        """Forget that `session` took it, where it did."""

    async def close(self) -> None:
        """Let go of the file."""


class KeyHolder(NamedTuple):
    """Whose a prepaid key is: its account in the book, and what the owner or the buyer calls the key."""

    account: str
    name: str = ""


class PrepaidKeys(Protocol):
    """The keys that a worker has given out."""

    async def find(self, key: str) -> KeyHolder | None:
        """Return whose `key` is, None where it is none, or no longer."""


@dataclass(slots=True, kw_only=True)
class Admission:
    """
    Holds requests against what the owner asks of callers; where he asks nothing, his own machine is served alone.

    `secret` is API_SECRET, empty: none. `passes` needs `used`. `priority` are ids of callers, in lower case.
    `monotonic` and `clock` (Unix time) are in seconds.
    """

    secret: str = field(default="", repr=False)
    passes: Passes | None = None
    used: UsedPasses | None = None
    keys: PrepaidKeys | None = None
    is_priced: bool = False
    free_per_hour: int = 0
    priority: frozenset[str] = frozenset()
    monotonic: Callable[[], float] = time.monotonic
    clock: Callable[[], float] = time.time
    rules: Rules = field(init=False)
    _secret: bytes = field(init=False, repr=False)
    _free: FreeTier | None = field(init=False)

    def __post_init__(self) -> None:
        assert (self.passes is None) == (self.used is None)
        self.rules = Rules(has_secret=bool(self.secret), has_passes=self.passes is not None, is_priced=self.is_priced)
        self._secret = _digest(self.secret)
        self._free = FreeTier(self.free_per_hour) if self.free_per_hour else None

    async def admit(self, visit: Visit, use: Use = "infer") -> Caller | Refusal:
        """Return who asks, or why it may not. Uses nothing up."""
        # Where a credential is of no use one is not looked at: some clients cannot do without.
        if visit.credential and (self.rules.has_secret if use == "own" else self.is_guarded):
            return await self._named(visit.credential, use)
        is_owners = visit.is_near and not self.is_guarded
        if use == "infer" and self._free is not None and not visit.pays and not is_owners:
            return self._freely(self._free, visit)
        return unnamed(visit, use, self.rules)

    async def open(self, caller: Caller, session: str) -> None:
        """
        Take what admits `caller` once: its pass, a free request. Once for each session, and again for the same one.

        Raises InferenceError: unauthenticated, the pass has opened another session; rate_limited, no free request left.
        """
        if caller.ticket is not None:
            assert self.used is not None
            if not await self.used.take(caller.ticket, session, self.clock()):
                raise InferenceError("unauthenticated", "the session pass has opened another session")
        free = self._free if caller.kind == "free" else None
        if free is not None and not free.take(caller.id, session, self.monotonic()):
            raise InferenceError("rate_limited", _used_up(self.free_per_hour))

    async def unopened(self, caller: Caller, session: str) -> None:
        """Give back what `session` took: nothing was begun after all."""
        if caller.ticket is not None and self.used is not None:
            await self.used.give_back(caller.ticket, session)
        if caller.kind == "free" and self._free is not None:
            self._free.give_back(caller.id, session)

    async def close(self) -> None:
        """Let go of the registry and of the file of used passes; nobody is admitted any more."""
        if self.passes is not None:
            await self.passes.close()
        if self.used is not None:
            await self.used.close()

    @property
    def is_guarded(self) -> bool:
        """Whether anything is asked of callers, so that strangers may reach the doors."""
        return self.rules.is_guarded

    def is_secret(self, credential: str) -> bool:
        """Return whether `credential` is API_SECRET."""
        # Digests are as long as each other: how long it takes tells nothing of how much was right.
        return bool(self.secret) and hmac.compare_digest(_digest(credential), self._secret)

    def caller(self, kind: Kind, name: str, *, model: str | None = None, ticket: Ticket | None = None) -> Caller:
        """Return who was admitted otherwise: a payer, a job; with the owner's word on its priority."""
        is_priority = name.lower() in self.priority
        return Caller(kind=kind, id=name, model=model, is_priority=is_priority, ticket=ticket)

    def quota(self, caller: Caller) -> Quota | None:
        """Return the free requests of `caller`, None where they are not counted."""
        if caller.kind != "free" or self._free is None:
            return None
        return self._free.quota(caller.id, self.monotonic())

    def _freely(self, free: FreeTier, visit: Visit) -> Caller | Refusal:
        quota = free.quota(visit.client, self.monotonic())
        if quota.left:
            return self.caller("free", visit.client)
        return Refusal(why="used_up", detail=_used_up(quota.limit), quota=quota)

    async def _named(self, credential: str, use: Use) -> Caller | Refusal:
        if len(credential) > CREDENTIAL_CHARS_MAX:
            return _wrong(f"a key has at most {CREDENTIAL_CHARS_MAX} characters")
        if self.is_secret(credential):
            return self.caller("secret", OWNER)
        if use == "own":
            return _wrong("this is for the worker's owner: send its API_SECRET")
        # No key of ours has a point in it, every token has two.
        if self.passes is not None and credential.count(".") == 2:
            try:
                found = await self.passes.check(credential)
            except InferenceError as error:
                return _wrong(str(error))
            return self.caller("pass", found.client_id, model=found.model, ticket=Ticket(found.jti, found.exp_s))
        holder = None if self.keys is None else await self.keys.find(credential)
        if holder is None:
            return _wrong("the API key is wrong")
        is_priority = not self.priority.isdisjoint((holder.account.lower(), holder.name.lower()))
        return Caller(kind="key", id=holder.account, is_priority=is_priority)


def _digest(text: str) -> bytes:
    return sha256(text.encode("utf-8", "replace")).digest()


def _wrong(detail: str) -> Refusal:
    return Refusal(why="wrong", detail=detail)


def _used_up(limit: int) -> str:
    return f"the {limit} free requests of this hour are used up: send a key, or wait"
