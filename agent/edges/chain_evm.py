"""The chain as the agent sees it: `chain.token` with its errors made ours, in one place."""

from collections.abc import Awaitable
from typing import TypeVar

from agent.core.errors import ChainUnavailable
from agent.ports import TransferLog
from chain.errors import ChainError
from chain.token import TokenReader

T = TypeVar("T")


async def _ours(answer: Awaitable[T]) -> T:
    try:
        return await answer
    except ChainError as error:
        raise ChainUnavailable(str(error)) from error


class EvmChain:
    """Reads one token on one EVM chain."""

    def __init__(self, token: TokenReader) -> None:
        self._token = token

    async def head(self) -> int:
        return await _ours(self._token.head())

    async def finalized_time_s(self) -> int:
        return await _ours(self._token.finalized_time_s())

    async def is_nonce_used(self, payer: str, nonce: str) -> bool:
        return await _ours(self._token.is_nonce_used(payer, nonce))

    async def is_nonce_used_finalized(self, payer: str, nonce: str) -> bool:
        return await _ours(self._token.is_nonce_used_finalized(payer, nonce))

    async def settlement(self, payer: str, nonce: str, pay_to: str, value_atomic: int, from_block: int) -> str | None:
        return await _ours(self._token.settlement(payer, nonce, pay_to, value_atomic, from_block))

    async def transfers(self, transaction: str, sender: str, receiver: str) -> list[TransferLog]:
        logs = await _ours(self._token.transfers(transaction, sender, receiver))
        return [TransferLog(log.index, log.value_atomic) for log in logs]

    async def balance(self, address: str) -> int:
        return await _ours(self._token.balance(address))
