"""
What the chain shows of one EIP-3009 token. Only reads; the calls are few, so they are encoded by hand.

A settlement is believed only when AuthorizationUsed is followed at once by its Transfer. A Transfer somewhere in
the same transaction proves nothing: a payer could settle two cheques in it and show either job the same Transfer.
"""

from collections.abc import AsyncIterator, Sequence
from typing import Any

from chain.abi import TOPICS, call_data, has_topics, is_transfer, quantity, transaction_hash, word
from chain.errors import RpcUnavailable
from chain.moves import TransferLog as TransferLog
from chain.rpc import Rpc
from wire.money import Asset

# Public nodes refuse wider questions.
LOG_WINDOW_BLOCKS = 5_000


class TokenReader:
    """
    Reads of `asset` through `rpc`. Every method may raise ChainError.

    What is read as finalised never goes backwards within one reader: behind a load balancer a node may lag, and
    a nonce unused in its older state says nothing about the time that a newer one gave.

    Args:
        log_window_blocks: how many blocks one question for logs spans.
    """

    def __init__(self, rpc: Rpc, asset: Asset, log_window_blocks: int = LOG_WINDOW_BLOCKS) -> None:
        self.asset = asset
        self._rpc = rpc
        self._log_window_blocks = log_window_blocks
        self._finalized_block = 0

    async def chain_id(self) -> int:
        return quantity(await self._rpc.call("eth_chainId"))

    async def head(self) -> int:
        """Return the newest block's number."""
        return quantity(await self._rpc.call("eth_blockNumber"))

    async def finalized_time_s(self) -> int:
        """Return the Unix time of the newest finalised block."""
        return quantity((await self._finalized()).get("timestamp"))

    async def is_nonce_used(self, payer: str, nonce: str) -> bool:
        """Return whether the authorization was settled or cancelled, at the newest block."""
        return await self._nonce_state(payer, nonce, "latest")

    async def is_nonce_used_finalized(self, payer: str, nonce: str) -> bool:
        """The same at the newest finalised block, the state that no reorganisation changes."""
        return await self._nonce_state(payer, nonce, hex(quantity((await self._finalized()).get("number"))))

    async def settlement(self, payer: str, nonce: str, pay_to: str, value_atomic: int, from_block: int) -> str | None:
        """
        Return the transaction that settled this authorization to `pay_to`, None where there is none.

        None as well where the nonce was used for another payee or value, or cancelled.
        """
        topics = [TOPICS["AuthorizationUsed(address,bytes32)"], word(payer), word(nonce)]
        async for used in self.logs(topics, from_block, await self.head()):
            if not has_topics(used, self.asset.address, topics):
                continue
            transaction = transaction_hash(used.get("transactionHash"))
            place = quantity(used.get("logIndex")) + 1
            moved = await self.transfers(transaction, payer, pay_to)
            if any((log.index, log.value_atomic) == (place, value_atomic) for log in moved):
                return transaction
        return None

    async def cancellation(self, payer: str, nonce: str, from_block: int) -> str | None:
        """
        Return the finalised transaction that cancelled this authorization, None where there is none, or none yet.

        A cancellation in a newer block may be reorganised away, and the cheque settled in its place.
        """
        topics = [TOPICS["AuthorizationCanceled(address,bytes32)"], word(payer), word(nonce)]
        last = quantity((await self._finalized()).get("number"))
        async for cancelled in self.logs(topics, from_block, last):
            if has_topics(cancelled, self.asset.address, topics) and quantity(cancelled.get("blockNumber")) <= last:
                return transaction_hash(cancelled.get("transactionHash"))
        return None

    async def logs(self, topics: Sequence[Any], from_block: int, to_block: int) -> AsyncIterator[Any]:
        """Yield the token's logs of `topics` (JSON-RPC's filter) as the node sends them: the reader checks each."""
        for start in range(from_block, to_block + 1, self._log_window_blocks):
            window = {"fromBlock": hex(start), "toBlock": hex(min(start + self._log_window_blocks - 1, to_block))}
            question = {"address": self.asset.address, "topics": list(topics), **window}
            for log in _list(await self._rpc.call("eth_getLogs", question)):
                yield log

    async def transfers(self, transaction: str, sender: str, receiver: str) -> list[TransferLog]:
        """
        Return the token's Transfers from `sender` to `receiver` in a mined, successful transaction.

        Raises:
            RpcUnavailable: a log names another block than its receipt, as while the chain is reorganised.
        """
        receipt = await self._rpc.call("eth_getTransactionReceipt", transaction_hash(transaction))
        if receipt is None:
            return []
        if not isinstance(receipt, dict):
            raise RpcUnavailable("the node's receipt is not an object")
        if quantity(receipt.get("status")) != 1:
            return []
        block = quantity(receipt.get("blockNumber"))
        logs = [log for log in _list(receipt.get("logs")) if is_transfer(log, self.asset.address, sender, receiver)]
        if any(quantity(log.get("blockNumber")) != block for log in logs):
            raise RpcUnavailable("the node's receipt names one block and its logs another")
        return [TransferLog(quantity(log.get("logIndex")), quantity(log.get("data")), block) for log in logs]

    async def balance(self, address: str, block: int | None = None) -> int:
        """Return what `address` holds of the token, atomic, in the newest block or in `block`."""
        at = "latest" if block is None else hex(block)
        return quantity(await self._view(call_data("balanceOf(address)", address), at))

    async def native_balance(self, address: str) -> int:
        """Return what `address` holds of the chain's own coin, in wei."""
        return quantity(await self._rpc.call("eth_getBalance", address, "latest"))

    async def _nonce_state(self, payer: str, nonce: str, block: str) -> bool:
        answer = await self._view(call_data("authorizationState(address,bytes32)", payer, nonce), block)
        return quantity(answer) != 0

    async def _view(self, data: str, block: str) -> Any:
        answer = await self._rpc.call("eth_call", {"to": self.asset.address, "data": data}, block)
        if answer == "0x":
            raise RpcUnavailable(f"there is no {self.asset.symbol} at {self.asset.address} in block {block}")
        return answer

    async def _finalized(self) -> dict[str, Any]:
        block = await self._rpc.call("eth_getBlockByNumber", "finalized", False)
        if not isinstance(block, dict):
            raise RpcUnavailable("the node knows no finalised block")
        number = quantity(block.get("number"))
        if number < self._finalized_block:
            raise RpcUnavailable(f"the node is at finalised block {number}, another was at {self._finalized_block}")
        self._finalized_block = number
        return block


def _list(value: Any) -> list[Any]:
    if isinstance(value, list):
        return value
    raise RpcUnavailable("the node's logs are not a list")
