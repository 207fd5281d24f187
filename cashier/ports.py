"""What the cashier needs of the world. Edges implement these."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

from cashier.core.claiming import Claim
from cashier.core.credit import Account, Deposit, Hindrance, Hold, Income, Key
from cashier.core.dialects import X402, Ask, Dialects
from cashier.core.model import Answer, Lease, PaidRequest, Price, Refund, Sale, Taking
from cashier.core.reading import requirements_for
from wire.money import Asset
from wire.x402 import PaymentRequirements

# Whether the seller can start one more, given how many open payments already count on being started; an answer says
# why not in the seller's own words.
HasCapacity = Callable[[int], Awaitable[bool | Answer]]
# Why nothing is sold to this payer (lower case), None where it may buy.
Admit = Callable[[str], str | None]
# Starts the work of a sale and returns the body of its answer. Idempotent by `payment_id`: called again after a crash.
Start = Callable[[Sale], Awaitable[Mapping[str, Any]]]


class Till(Protocol):
    """The rows that a crash must not lose. Every write is guarded by the lease's holder."""

    async def claim(self, taking: Taking, lease: Lease, *, insert: bool) -> Claim:
        """Decide and store a claim in one transaction: `core.claiming.decide_claim`."""

    async def take_over(self, taking: Taking, lease: Lease) -> None:
        """Make `lease` the row's own, whoever held it: for recovery."""

    async def save(self, taking: Taking, lease: Lease, *, durable: bool = False) -> bool:
        """Store the row's state; return False, with nothing written, where another holder has it."""

    async def drop(self, taking: Taking, lease: Lease) -> bool:
        """Forget a row that took nothing; return False, with nothing done, where another holder has it."""

    async def release(self, taking: Taking, lease: Lease) -> None:
        """End the lease, where `lease` still holds it."""

    async def unfinished(self) -> list[Taking]:
        """Return every row without an answer, the oldest first."""

    async def find_payment(self, payment_id: str) -> Taking | None: ...

    async def ask_refund(self, refund: Refund) -> Refund:
        """
        Store a refund that is owed, or return the one with its key.

        Raises:
            RefundConflict: the key stands for another payment or amount.
            RefundTooLarge: all refunds of the payment would exceed what was paid.
        """

    async def read_refund(self, key: str) -> Refund: ...

    async def signed_refund(self, pay_to: str) -> Refund | None:
        """Return the one refund from `pay_to` that is signed and not known to be mined."""

    async def sign_refund(self, refund: Refund) -> bool:
        """Store a signed transfer durably; False where `pay_to` has one on its way already."""

    async def end_refund(self, refund: Refund, *, paid: bool) -> None:
        """Store that a signed transfer was mined, or that it never will be and is owed again."""


class CreditBook(Protocol):
    """Accounts of credit in one asset, each change of which is one transaction; see `core.credit`."""

    async def deposit(self, deposit: Deposit, now_s: int, *, holds: bool = False) -> None:
        """Put a payment on its account, once by its id; `holds`: a request may be begun on it, under that id."""

    async def reserve(self, hold: Hold, now_s: int) -> Hold | None:
        """Set aside what a request may cost, and return it; None: there is no such account, or it has too little."""

    async def begin(self, hold_id: str, now_s: int) -> Hold | Hindrance:
        """Let a request run on the hold of a payment, once at a time; a hold that cost nothing may be begun again."""

    async def end(self, hold_id: str, cost_atomic: int, now_s: int) -> int:
        """Charge the cost, at most what was set aside; return what was charged, 0 where the hold had ended before."""

    async def release_all(self, now_s: int) -> int:
        """End every open hold at no cost: for the start, when nothing runs. Return how many there were."""

    async def account(self, name: str) -> Account | None: ...
    async def accounts(self) -> list[Account]: ...

    async def keyless(self, least_atomic: int, before_s: int) -> list[Account]:
        """Return payers without a key that have so much available and did not move after `before_s`."""

    async def open_account(self, account: Account) -> bool:
        """Make an account; False, with nothing done, where there is one of that name."""

    async def add_key(self, key: Key) -> None:
        """Keep a key, once."""

    async def find_key(self, sha256: str) -> Key | None:
        """Return the key with this digest, revoked or not."""

    async def keys(self) -> list[Key]: ...
    async def revoke_key(self, key_id: str, now_s: int) -> bool:
        """Return whether there is such a key; from now on it opens nothing."""

    async def withdraw(self, refund: Refund, now_s: int, least_atomic: int = 1) -> Refund:
        """
        Take a `core.credit.withdrawal` out of its account and store it as the refund that is owed; once by its key.

        Raises:
            CreditTooSmall: so much is not available, or it is less than the least.
        """

    async def income(self, since_s: int) -> list[Income]:
        """Return the hours that ended after `since_s` and brought anything, the oldest first."""

    async def owed(self) -> list[str]:
        """Return the keys of withdrawals that are not known to be paid, the oldest first."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """A facilitator's word on a cheque; `reason` says why it refused."""

    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Settled:
    transaction: str


@dataclass(frozen=True, slots=True)
class Pending:
    """It may have been sent to the chain, and nobody knows its end; `transaction` is its hash where one was told."""

    transaction: str | None = None


@dataclass(frozen=True, slots=True)
class Declined:
    """Refused; `unsent` where that is certain: no transaction was handed to the chain, and none will be."""

    reason: str
    unsent: bool


class Facilitator(Protocol):
    """Who checks and settles cheques."""

    async def verify(self, payload: Mapping[str, Any], asked: PaymentRequirements) -> Verdict:
        """Raises FacilitatorUnavailable: nothing is known."""

    async def settle(self, payload: Mapping[str, Any], asked: PaymentRequirements) -> Settled | Pending | Declined:
        """Raises FacilitatorUnavailable: the question did not reach it. An answer that was lost is Pending."""


class Chain(Protocol):
    """What the chain shows of the token. Every method may raise ChainUnavailable."""

    async def head(self) -> int: ...
    async def finalized_time_s(self) -> int: ...
    async def is_nonce_used(self, payer: str, nonce: str) -> bool: ...
    async def is_nonce_used_finalized(self, payer: str, nonce: str) -> bool: ...
    async def settlement(self, payer: str, nonce: str, pay_to: str, value_atomic: int, from_block: int) -> str | None:
        """Return the transaction that settled this very transfer, None where there is none."""


@dataclass(frozen=True, slots=True)
class SignedTransfer:
    transaction: str
    raw: str
    account_nonce: int


@dataclass(frozen=True, slots=True)
class Superseded:
    """Another transaction used the account nonce, for good: this transfer can never be mined."""


class Sender(Protocol):
    """Sends the token from one address. Every method may raise ChainUnavailable."""

    async def account_nonce(self) -> int:
        """Return the nonce of the next transaction."""

    async def prepare(self, to: str, value_atomic: int, account_nonce: int) -> SignedTransfer: ...

    async def broadcast(self, transfer: SignedTransfer) -> Superseded | None:
        """Send `transfer`; sending it again is harmless. Superseded is said of finalised blocks only."""

    async def succeeded(self, transaction: str, timeout_s: float) -> bool:
        """Wait until it is mined and return whether it went through. Raises ChainUnavailable after `timeout_s`."""


class Locks:
    """One lock per key within this process, kept while somebody wants it: spares a wait or a 202, is not the guard."""

    def __init__(self) -> None:
        self._locks: dict[str, tuple[asyncio.Lock, int]] = {}

    @asynccontextmanager
    async def hold(self, key: str) -> AsyncIterator[None]:
        lock, users = self._locks.get(key, (asyncio.Lock(), 0))
        self._locks[key] = (lock, users + 1)
        try:
            async with lock:
                yield
        finally:
            lock, users = self._locks.pop(key)
            if users > 1:
                self._locks[key] = (lock, users - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Desk:
    """
    Everything a use case works with.

    `senders` are the keys that refunds are paid from, by lower-case address. `lease_s` outlasts the slowest
    settlement; a shorter one costs a second look at the chain, never a second payment. `lookback_blocks`
    is how far behind the head a settlement by somebody else is looked for: nearly three hours of two-second
    blocks, many times the life of a cheque, and one question to the most miserly RPC.
    """

    asset: Asset
    till: Till
    facilitator: Facilitator
    chain: Chain
    now_s: Callable[[], int]
    senders: Mapping[str, Sender] = field(default_factory=dict)
    lease_s: int = 90
    lookback_blocks: int = 5_000
    receipt_timeout_s: float = 30.0
    locks: Locks = field(default_factory=Locks)
    dialects: Dialects = field(default_factory=lambda: X402)

    def lease(self) -> Lease:
        """Return a lease that begins now, of a holder nobody else can be."""
        now_s = self.now_s()
        return Lease(secrets.token_hex(16), now_s, now_s + self.lease_s)

    def ask(self, request: PaidRequest, price: Price) -> Ask:
        """Return what `request` is asked to pay, now and once: no second ask has its salt."""
        asked = requirements_for(price.amount, price.pay_to, self.asset)
        return Ask(
            request=request,
            asked=asked,
            description=price.description,
            now_s=self.now_s(),
            salt=secrets.token_hex(16),
        )
