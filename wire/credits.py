"""
Credit for inference: bought with a payment, used up with a key, sent back to who paid.

Amounts are decimal units of the worker's asset.
"""

from decimal import Decimal
from typing import Annotated

from pydantic import Field

from wire.model import Body

CREDITS_PATH = "/v1/credits"
WITHDRAW_PATH = f"{CREDITS_PATH}/withdraw"


class CreditsRequest(Body):
    """`amount` is what is paid. `key_sha256`: hex of the SHA-256 of a key that the buyer made, so that none is told."""

    amount: Decimal
    key_sha256: Annotated[str, Field(pattern=r"^[0-9a-fA-F]{64}$")] | None = None


class CreditsReply(Body):
    """
    What was bought. `account` is the payer's address.

    `key` is told once, to the request that was paid for; it is None where the buyer has it already, and in repeats.
    `key_id` is None where the payer's account has got no other key.
    """

    account: str
    amount: Decimal
    currency: str
    key_id: str | None = None
    key: str | None = None


class AccountReply(Body):
    """An account: `deposited` is all that was paid, and what became of it. `is_free`: nothing is charged to it."""

    account: str
    available: Decimal
    held: Decimal
    spent: Decimal
    withdrawn: Decimal
    deposited: Decimal
    is_free: bool
    currency: str
    asset: str
    network: str


class WithdrawRequest(Body):
    """`amount` None: all that is available."""

    amount: Decimal | None = None


class WithdrawReply(Body):
    """`transaction` is None while it is owed: it will be sent, and the same request again tells of it."""

    account: str
    amount: Decimal
    currency: str
    transaction: str | None = None
