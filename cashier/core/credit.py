"""
What the book knows of credit: accounts that payments fill and requests use up.

In every state of every account `deposited == available + held + spent + withdrawn`, and none of them is below zero.
Amounts are atomic units of the cashier's asset, times Unix seconds.
"""

import hashlib
import re
from dataclasses import dataclass, replace
from typing import Literal

from cashier.core.model import Refund

# running: set aside, a request is being served. spent: it cost something. released: all of it is available, no request
# has come for it yet, or what came cost nothing.
HoldState = Literal["running", "spent", "released"]
# Why a hold cannot be begun: a request runs on it, it was used up, or the account has too little left.
Hindrance = Literal["busy", "spent", "short"]

KEY_PREFIX = "lv_"
HOUR_S = 3_600

_ADDRESS = re.compile(r"0x[0-9a-f]{40}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """
    Somebody's credit. `name` is the address that paid, in lower case, or what the owner called it.

    `is_free`: the owner's own, nothing is charged. `moved_s` is when anything last changed.
    """

    name: str
    deposited: int = 0
    held: int = 0
    spent: int = 0
    withdrawn: int = 0
    is_free: bool = False
    moved_s: int = 0

    def __post_init__(self) -> None:
        if min(self.deposited, self.held, self.spent, self.withdrawn, self.available) < 0:
            raise ValueError(f"the account {self.name} does not add up")

    @property
    def available(self) -> int:
        return self.deposited - self.held - self.spent - self.withdrawn


@dataclass(frozen=True, slots=True, kw_only=True)
class Deposit:
    """`payment_id` makes it happen once."""

    payment_id: str
    account: str
    amount_atomic: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Hold:
    """
    What a request may cost at most, set aside before it is served; `cost_atomic` is what it did cost.

    `is_payment`: it is of the payment with its id, which is remembered when it has ended. The ids of payments are their
    payers' to choose, so no other hold has one that could be a payment's.
    """

    id: str
    account: str
    amount_atomic: int
    state: HoldState = "running"
    cost_atomic: int = 0
    is_payment: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """A bearer that uses an account up. Only the SHA-256 of the key itself is kept; `id` is for people."""

    id: str
    sha256: str
    account: str
    made_s: int
    revoked_s: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Income:
    """What requests cost those who paid, that ended in the hour of UTC from `hour_s` on."""

    hour_s: int
    requests: int
    spent_atomic: int


def withdrawal(key: str, name: str, pay_to: str, amount_atomic: int | None = None) -> Refund:
    """Return the refund that a withdrawal is, before it has happened; of no amount: all that is available."""
    return Refund(key=key, payment_id="", pay_to=pay_to, payer=name, amount_atomic=amount_atomic or 0)


def is_address(name: str) -> bool:
    """Return whether an account is of somebody who paid, whom its credit can be sent back to."""
    return _ADDRESS.fullmatch(name) is not None


def digest_of(key: str) -> str:
    """Return the SHA-256 of a key as hex. A key has 256 bits of chance in it, so nobody can try them all."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


def put_in(account: Account, amount_atomic: int) -> Account:
    if amount_atomic <= 0:
        raise ValueError("a deposit is above zero")
    return replace(account, deposited=account.deposited + amount_atomic)


def reserve(account: Account, hold: Hold) -> tuple[Account, Hold] | None:
    """Return both with the hold's amount set aside, None where the account has too little left."""
    if hold.amount_atomic < 0:
        raise ValueError("nothing below zero can be set aside")
    hold = replace(hold, amount_atomic=0 if account.is_free else hold.amount_atomic)
    if hold.amount_atomic > account.available:
        return None
    return replace(account, held=account.held + hold.amount_atomic), hold


def begin(account: Account, hold: Hold) -> tuple[Account, Hold] | Hindrance:
    """Return both with a request running on the hold of a payment, or why none can."""
    if hold.state == "running":
        return "busy"
    if hold.state == "spent":
        return "spent"
    reserved = reserve(account, replace(hold, state="running"))
    return "short" if reserved is None else reserved


def end(account: Account, hold: Hold, cost_atomic: int) -> tuple[Account, Hold]:
    """Return both with `cost_atomic` charged, never more than was set aside; the rest is available again."""
    if hold.state != "running":
        return account, hold
    cost = max(0, min(cost_atomic, hold.amount_atomic))
    account = replace(account, held=account.held - hold.amount_atomic, spent=account.spent + cost)
    return account, replace(hold, state="spent" if cost else "released", cost_atomic=cost)


def take_out(account: Account, amount_atomic: int) -> Account | None:
    """Return the account without `amount_atomic`, None where it has less, or that is nothing."""
    if not 0 < amount_atomic <= account.available:
        return None
    return replace(account, withdrawn=account.withdrawn + amount_atomic)
