"""
What the cashier knows: a request, its price, the cheque that pays it, the row that remembers it, a refund.

Addresses and nonces that are keys are lower case. Amounts are atomic units, times Unix seconds.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from wire.money import Amount
from wire.x402 import Authorization, PaymentRequirements

# How a payment was handed over: x402 version 2, version 1, or the Machine Payments Protocol.
DialectName = Literal["x402-v2", "x402-v1", "mpp"]
# claimed: held while it is verified, nothing sent. settling: a settlement may have been sent.
# settled: the money is ours, the work is owed. served: the answer is stored.
TakingState = Literal["claimed", "settling", "settled", "served"]
# asked: owed. signed: a raw transaction is stored, and may have been broadcast. paid: mined.
RefundState = Literal["asked", "signed", "paid"]

PAID: tuple[TakingState, ...] = ("settled", "served")


@dataclass(frozen=True, slots=True, kw_only=True)
class PaidRequest:
    """
    An HTTP request as it came; the names of `headers` are lower case.

    `keeps_body`: the till may remember what was asked for, not only its digest.
    """

    method: str
    url: str
    headers: Mapping[str, str]
    body: bytes
    keeps_body: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """What a request costs and who is paid. A short `description`: it travels in a header."""

    amount: Amount
    pay_to: str
    description: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """An HTTP answer, stored as it was sent."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Sale:
    """A settled payment and the request that it pays; `payment_id` makes starting the work idempotent."""

    payment_id: str
    payer: str
    pay_to: str
    amount: Amount
    transaction: str
    url: str
    body: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Cheque:
    """
    A payment header as it was read: nothing in it is trusted yet.

    `payload` is the payment in the JSON of x402 version 2, `wrong` why its dialect refuses it.
    """

    dialect: DialectName
    accepted: PaymentRequirements
    authorization: Authorization
    payload: Mapping[str, Any]
    payment_id: str
    fingerprint: str
    wrong: str | None = None

    @property
    def payer(self) -> str:
        return self.authorization.from_.lower()

    @property
    def nonce(self) -> str:
        return self.authorization.nonce.lower()


@dataclass(frozen=True, slots=True, kw_only=True)
class Taking:
    """
    One payment being taken for one request: a row of the till.

    `from_block` is where a search of the chain's logs begins. `transaction` is the settlement, or
    before the row is settled the one that a facilitator said was pending.
    """

    payer: str
    nonce: str
    payment_id: str
    fingerprint: str
    pay_to: str
    amount: Amount
    valid_before_s: int
    payload: Mapping[str, Any]
    url: str
    body: bytes
    dialect: DialectName = "x402-v2"
    state: TakingState = "claimed"
    from_block: int = 0
    transaction: str | None = None
    answer: Answer | None = None


@dataclass(frozen=True, slots=True)
class Lease:
    """Who works on a payment and until when; a lapsed one may be taken over."""

    holder: str
    now_s: int
    until_s: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Refund:
    """A transfer back to a payer. `key` names it: asked twice, it is paid once."""

    key: str
    payment_id: str
    pay_to: str
    payer: str
    amount_atomic: int
    state: RefundState = "asked"
    account_nonce: int | None = None
    raw: str | None = None
    transaction: str | None = None


def sale_of(taking: Taking) -> Sale:
    """Return what a settled row sold."""
    if taking.state not in PAID or taking.transaction is None:
        raise ValueError(f"a payment that is {taking.state} sold nothing yet")
    return Sale(
        payment_id=taking.payment_id,
        payer=taking.payer,
        pay_to=taking.pay_to,
        amount=taking.amount,
        transaction=taking.transaction,
        url=taking.url,
        body=taking.body,
    )
