"""
Who asks this worker for something, and who may not: the same for every door, HTTP and gRPC.

A credential that holds enters; one that does not is refused. Without any, a client has its free requests where the
owner gives some; a priced model is to be paid for; a worker with a secret or with a registry's key asks for it; and one
that has nothing of all this serves programs of its own machine alone.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

from gpu_worker.core.inference.codes import InferenceError

# open: of this machine, where nothing is asked for. secret: shows API_SECRET. pass: a session pass of the registry.
# key: a prepaid key. free: a stranger's free request. paid: a payment came with the request.
# job: a job that was sold before, which waits behind all others.
Kind = Literal["open", "secret", "pass", "key", "free", "paid", "job"]
# infer: it opens a session, which a model computes. look: what is served, and for how much. own: figures and the
# pipeline, which are the owner's.
Use = Literal["infer", "look", "own"]
# missing: no credential was sent. wrong: one that does not hold. unpaid: it costs. used_up: the free ones are.
Why = Literal["missing", "wrong", "unpaid", "used_up"]

CREDENTIAL_CHARS_MAX = 4_096
OWNER = "owner"
# What each refusal is called in CODES.
CODE_OF: dict[Why, str] = {
    "missing": "unauthenticated",
    "wrong": "unauthenticated",
    "unpaid": "payment_required",
    "used_up": "rate_limited",
}
_SEND = "send `Authorization: Bearer <key>`"


class Visit(NamedTuple):
    """
    What a request shows before its body is read. `credential` is its bearer, empty: none was sent.

    `client` is the address it came from. `is_near`: a program of this machine sent it. `pays`: a payment is with it.
    """

    credential: str = ""
    client: str = ""
    is_near: bool = False
    pays: bool = False


class Ticket(NamedTuple):
    """What a session pass is used up by: its `jti`, which is kept until `exp_s`, Unix time."""

    jti: str
    exp_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """
    Who was admitted. `id`: OWNER, the client of a pass, the account of a key, a payer's address, a client's address.

    `model` is what a pass is for, None: any; `ticket` is a pass's alone.
    """

    kind: Kind
    id: str
    model: str | None = None
    is_priority: bool = False
    ticket: Ticket | None = None


class Quota(NamedTuple):
    """The free requests of a client: how many it has in an hour, how many are left, when the next one is there."""

    limit: int
    left: int
    reset_s: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """`detail` says why in one sentence; `quota` tells of the free requests that are used up."""

    why: Why
    detail: str
    quota: Quota | None = None

    def error(self) -> InferenceError:
        return InferenceError(CODE_OF[self.why], self.detail)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What the owner asks of callers."""

    has_secret: bool = False
    has_passes: bool = False
    is_priced: bool = False

    @property
    def is_guarded(self) -> bool:
        """Whether anything is asked of callers."""
        return self.has_secret or self.has_passes or self.is_priced


def unnamed(visit: Visit, use: Use, rules: Rules) -> Caller | Refusal:
    """Return what a request without a credential is, where nothing is free."""
    if use == "look" and rules.is_priced:
        # Who is to buy must see what there is, and for how much.
        return Caller(kind="open", id=visit.client)
    if use == "infer" and rules.is_priced:
        return Refusal(why="unpaid", detail=f"this model is paid for: pay over x402, or buy a key and {_SEND}")
    if rules.has_secret or (rules.has_passes and use != "own"):
        return Refusal(why="missing", detail=f"no API key was sent: {_SEND}")
    if visit.is_near:
        return Caller(kind="open", id=visit.client)
    return Refusal(
        why="missing",
        detail="this worker serves its own machine alone: its owner has set no API_SECRET, no price and no PASS_KEYS",
    )


def model_for(caller: Caller, asked: str | None, resolve: Callable[[str | None], str]) -> str:
    """
    Return the model that answers: what `resolve` makes of the name `asked`, or of a pass's where none is.

    Raises:
        InferenceError: forbidden, the pass is for another model; and whatever `resolve` raises.
    """
    if caller.model is None:
        return resolve(asked)
    own = resolve(caller.model)
    if asked and resolve(asked) != own:
        raise InferenceError("forbidden", f"the session pass is for the model {own[:200]}", "model")
    return own
