"""
Who may work on a payment: decided from the rows that share its authorization or its identifier.

The till asks inside the transaction that stores the claim, so two processes never both go on.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from cashier.core.model import Answer, Lease, Taking


@dataclass(frozen=True, slots=True)
class Claimed:
    """The payment is ours to go on with; `reserved` other payments to the same address are open."""

    taking: Taking
    reserved: int = 0


@dataclass(frozen=True, slots=True)
class Served:
    """It was answered before: the same answer again."""

    answer: Answer


@dataclass(frozen=True, slots=True)
class Conflict:
    """The authorization or the identifier belongs to another request."""


@dataclass(frozen=True, slots=True)
class Held:
    """Another holder is at work on it until `until_s`."""

    until_s: int


@dataclass(frozen=True, slots=True)
class Unknown:
    """No row, and none was to be made."""


Claim = Claimed | Served | Conflict | Held | Unknown


@dataclass(frozen=True, slots=True)
class Row:
    """A stored taking and the end of its lease, 0 when nobody holds it."""

    taking: Taking
    lease_until_s: int


def decide_claim(taking: Taking, rows: Sequence[Row], lease: Lease, *, insert: bool) -> Claim:
    """
    Return what a claim on `taking` comes to, given the rows with its (payer, nonce) or its payment id.

    The fingerprint covers the whole header, so a row with the same one is the same payment.
    """
    if any(row.taking.fingerprint != taking.fingerprint for row in rows):
        return Conflict()
    if not rows:
        return Claimed(taking) if insert else Unknown()
    found = rows[0]
    if found.taking.answer is not None:
        return Served(found.taking.answer)
    if found.lease_until_s > lease.now_s:
        return Held(found.lease_until_s)
    return Claimed(found.taking)
