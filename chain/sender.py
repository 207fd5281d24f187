"""
Sends transfers of one token from one key: the seller's refunds.

A transfer is prepared (signed, its hash known) before it is broadcast, so that the hash can be stored first; the
same bytes may then be broadcast any number of times and move the money once.
"""

import asyncio
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from chain.abi import call_data, quantity
from chain.errors import ChainError, NonceTaken, ReceiptLate, RpcRefused, RpcUnavailable
from chain.rpc import Rpc
from wire.money import Asset

if TYPE_CHECKING:
    from eth_account.signers.local import LocalAccount

# A token transfer costs about 50,000; room for tokens behind a proxy.
GAS = 120_000
POLL_S_MIN = 0.05
POLL_S_MAX = 1.0


async def draft(rpc: Rpc, asset: Asset, sender: str, data: str, account_nonce: int) -> dict[str, Any]:
    """
    Return the fields of a call of the token by `sender`, to be signed; nothing is sent.

    Raises:
        RpcRefused: the call would fail, as the node reckons now.
    """
    await rpc.call("eth_call", {"from": sender, "to": asset.address, "data": data}, "latest")
    block: Any = await rpc.call("eth_getBlockByNumber", "latest", False)
    if not isinstance(block, dict):
        raise RpcUnavailable("the node knows no newest block")
    base, tip = quantity(block.get("baseFeePerGas")), quantity(await rpc.call("eth_maxPriorityFeePerGas"))
    return {
        "chainId": asset.chain_id,
        "type": 2,
        "nonce": account_nonce,
        "to": asset.address,
        "data": data,
        "value": 0,
        "gas": GAS,
        # Stays valid while the base fee doubles; what is not needed is not charged.
        "maxFeePerGas": 2 * base + tip,
        "maxPriorityFeePerGas": tip,
    }


async def next_account_nonce(rpc: Rpc, account: str) -> int:
    """Return the number that the account's next transaction bears, pending ones counted."""
    return quantity(await rpc.call("eth_getTransactionCount", account, "pending"))


@dataclass(frozen=True, slots=True)
class SignedTransfer:
    """A signed transaction: its hash, 0x-hex, the bytes to broadcast, 0x-hex, and the account nonce it bears."""

    transaction: str
    raw: str
    account_nonce: int


@dataclass(frozen=True, slots=True)
class TokenSender:
    """Transfers `asset` from the account of `account_key` (0x-hex). The key is not shown by repr."""

    rpc: Rpc
    asset: Asset
    account_key: str = field(repr=False)

    @property
    def address(self) -> str:
        return str(self._account().address)

    async def account_nonce(self) -> int:
        """Return the number that the account's next transaction bears, pending ones counted."""
        return await next_account_nonce(self.rpc, self.address)

    async def prepare(self, to: str, value_atomic: int, account_nonce: int) -> SignedTransfer:
        """
        Return a signed transfer of `value_atomic` to `to`; nothing is sent.

        Two transfers under one `account_nonce` exclude each other: the chain mines at most one.

        Raises:
            RpcRefused: the transfer would fail (too little of the token), as the node reckons now.
        """
        data = call_data("transfer(address,uint256)", to, value_atomic)
        fields = await draft(self.rpc, self.asset, self.address, data, account_nonce)
        signed = self._account().sign_transaction(fields)
        return SignedTransfer(signed.hash.to_0x_hex(), signed.raw_transaction.to_0x_hex(), account_nonce)

    async def broadcast(self, transfer: SignedTransfer) -> None:
        """
        Hand `transfer` to the node; doing so again is harmless.

        Raises:
            NonceTaken: another transaction was mined and finalised under its account nonce; this one can never be.
            RpcUnavailable: its account nonce seems taken, by nobody knows what: ask again later.
            RpcRefused: the node will not have it (no coin for the fee, ...).
        """
        try:
            await self.rpc.call("eth_sendRawTransaction", transfer.raw)
        except RpcRefused as refusal:
            # Nodes say "already known", "already imported" or "nonce too low" to what they hold: only asking tells.
            if await self.rpc.call("eth_getTransactionByHash", transfer.transaction) is not None:
                return
            if await self._is_superseded(transfer):
                raise NonceTaken(f"{transfer.transaction}: {refusal.detail}") from refusal
            if "nonce too low" in refusal.detail.lower():
                raise RpcUnavailable(f"{transfer.transaction}: not to be found, and: {refusal.detail}") from refusal
            raise

    async def await_receipt(self, transaction: str, timeout_s: float) -> bool:
        """
        Return whether the mined `transaction` succeeded.

        Raises:
            ReceiptLate: it was not mined in `timeout_s`; it may still be.
        """
        deadline = time.monotonic() + timeout_s
        pause_s = POLL_S_MIN
        while True:
            receipt = await self.rpc.call("eth_getTransactionReceipt", transaction)
            if isinstance(receipt, dict):
                return quantity(receipt.get("status")) == 1
            if time.monotonic() + pause_s > deadline:
                raise ReceiptLate(f"{transaction} was not mined in {timeout_s:g} s")
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, POLL_S_MAX)

    async def _is_superseded(self, transfer: SignedTransfer) -> bool:
        """
        Return whether the account is past the nonce of `transfer` in finalised blocks, and not by `transfer`.

        The newest block proves nothing: a node that lags behind does not know of a transfer that another one mined.
        """
        used = quantity(await self.rpc.call("eth_getTransactionCount", self.address, "finalized"))
        if used <= transfer.account_nonce:
            return False
        return await self.rpc.call("eth_getTransactionReceipt", transfer.transaction) is None

    def _account(self) -> "LocalAccount":
        from eth_account import Account

        try:
            account: LocalAccount = Account.from_key(self.account_key)
            return account
        except ValueError:
            # The library's own message shows the key.
            raise ChainError("the account key is not a private key of 32 bytes, 0x-hex") from None
