"""The chain through `chain.token` and `chain.sender`, their errors turned into the cashier's."""

from collections.abc import Iterator
from contextlib import contextmanager

from cashier.core.errors import ChainUnavailable
from cashier.ports import SignedTransfer, Superseded
from chain import sender as chain_sender
from chain.errors import ChainError, NonceTaken
from chain.sender import TokenSender
from chain.token import TokenReader


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except ChainError as error:
        raise ChainUnavailable(f"the chain: {error}") from error


class RpcChain:
    """Implements `cashier.ports.Chain`."""

    def __init__(self, reader: TokenReader) -> None:
        self._reader = reader

    async def head(self) -> int:
        with _translated():
            return await self._reader.head()

    async def finalized_time_s(self) -> int:
        with _translated():
            return await self._reader.finalized_time_s()

    async def is_nonce_used(self, payer: str, nonce: str) -> bool:
        with _translated():
            return await self._reader.is_nonce_used(payer, nonce)

    async def is_nonce_used_finalized(self, payer: str, nonce: str) -> bool:
        with _translated():
            return await self._reader.is_nonce_used_finalized(payer, nonce)

    async def settlement(self, payer: str, nonce: str, pay_to: str, value_atomic: int, from_block: int) -> str | None:
        with _translated():
            return await self._reader.settlement(payer, nonce, pay_to, value_atomic, from_block)


class RpcSender:
    """Implements `cashier.ports.Sender`."""

    def __init__(self, sender: TokenSender) -> None:
        self._sender = sender
        self.address = sender.address.lower()

    async def account_nonce(self) -> int:
        with _translated():
            return await self._sender.account_nonce()

    async def prepare(self, to: str, value_atomic: int, account_nonce: int) -> SignedTransfer:
        with _translated():
            signed = await self._sender.prepare(to, value_atomic, account_nonce)
        return SignedTransfer(signed.transaction, signed.raw, signed.account_nonce)

    async def broadcast(self, transfer: SignedTransfer) -> Superseded | None:
        signed = chain_sender.SignedTransfer(transfer.transaction, transfer.raw, transfer.account_nonce)
        with _translated():
            try:
                await self._sender.broadcast(signed)
            except NonceTaken:
                return Superseded()
        return None

    async def succeeded(self, transaction: str, timeout_s: float) -> bool:
        with _translated():
            return await self._sender.await_receipt(transaction, timeout_s)
