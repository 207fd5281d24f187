"""What a vendor's answer to a paid submission can be: a job, nothing final, or a no."""

from dataclasses import dataclass

from agent.core.dialects import Challenge
from wire.vendor import SubmitReply


@dataclass(frozen=True, slots=True)
class Submitted:
    """The vendor answered 200: the job, and the settlement it claims (None where it named none)."""

    reply: SubmitReply
    transaction: str | None


@dataclass(frozen=True, slots=True)
class Unsettled:
    """No final word: 202, 5xx, a timeout, garbage. The same bytes may be sent again."""

    detail: str


@dataclass(frozen=True, slots=True)
class Declined:
    """A final no (402, 4xx), and what it asks now, if it does. The chain decides whether money moved all the same."""

    status: int
    detail: str
    asks: tuple[Challenge, ...] = ()
