"""The chain as the agent sees it: `chain.token` with its errors made ours, in one place."""

from collections.abc import Awaitable, Callable
from typing import TypeVar

from agent.core.errors import ChainUnavailable
from chain import history
from chain.errors import ChainError
from chain.moves import History, TransferLog
from chain.token import TokenReader

T = TypeVar("T")


class EvmChain:
    """Reads one token on one EVM chain, and only on that one: on another a payment would seem never made."""

    def __init__(self, token: TokenReader) -> None:
        self._token = token
        self._is_known = False

    async def _ours(self, ask: Callable[[], Awaitable[T]]) -> T:
        try:
            if not self._is_known:
                await self._know()
            return await ask()
        except ChainError as error:
            raise ChainUnavailable(str(error)) from error

    async def _know(self) -> None:
        chain_id, wanted = await self._token.chain_id(), self._token.asset.chain_id
        if chain_id != wanted:
            raise ChainUnavailable(f"the node serves chain {chain_id}, the wallet pays on chain {wanted}")
        self._is_known = True

    async def head(self) -> int:
        return await self._ours(lambda: self._token.head())

    async def finalized_time_s(self) -> int:
        return await self._ours(lambda: self._token.finalized_time_s())

    async def is_nonce_used(self, payer: str, nonce: str) -> bool:
        return await self._ours(lambda: self._token.is_nonce_used(payer, nonce))

    async def is_nonce_used_finalized(self, payer: str, nonce: str) -> bool:
        return await self._ours(lambda: self._token.is_nonce_used_finalized(payer, nonce))

    async def settlement(self, payer: str, nonce: str, pay_to: str, value_atomic: int, from_block: int) -> str | None:
        return await self._ours(lambda: self._token.settlement(payer, nonce, pay_to, value_atomic, from_block))

    async def transfers(self, transaction: str, sender: str, receiver: str) -> list[TransferLog]:
        return await self._ours(lambda: self._token.transfers(transaction, sender, receiver))

    async def cancellation(self, payer: str, nonce: str, from_block: int) -> str | None:
        return await self._ours(lambda: self._token.cancellation(payer, nonce, from_block))

    async def balance(self, address: str, block: int | None = None) -> int:
        return await self._ours(lambda: self._token.balance(address, block))

    async def history(self, account: str, from_block: int, to_block: int) -> History:
        return await self._ours(lambda: history.history(self._token, account, from_block, to_block))
