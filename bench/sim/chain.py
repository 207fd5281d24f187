"""
A chain with one token: blocks by the clock, newest ones that may be reorganised and finalised ones that may not.
"""

from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256

from agent.core.errors import ChainUnavailable
from agent.core.invariants import Settlement
from agent.ports import TransferLog
from wire.x402 import Authorization

BLOCK_S = 2
FINAL_BLOCKS = 10
# A reorganised transaction comes back so many blocks later; one that could not come back in time is left alone.
REORGANISED_BLOCKS = 3


@dataclass
class Transfer:
    """A token transfer; with `nonce` one by authorization. `known` says that the payer was, or will be, told of it."""

    transaction: str
    sender: str
    receiver: str
    value_atomic: int
    block: int
    nonce: str | None = None
    valid_before_s: int = 0
    known: bool = True


class MemoryChain:
    """`clock_s` is the Unix time of its blocks; `mined` is told of every transfer by authorization."""

    def __init__(self, clock_s: Callable[[], float]) -> None:
        self.clock_s = clock_s
        self.genesis_s = clock_s()
        self.transfers: dict[str, Transfer] = {}
        self.by_nonce: dict[tuple[str, str], Transfer] = {}
        # The block in which a cheque was cancelled.
        self.revoked: dict[tuple[str, str], int] = {}

    def head(self) -> int:
        return 1000 + int((self.clock_s() - self.genesis_s) // BLOCK_S)

    def finalized(self) -> int:
        return self.head() - FINAL_BLOCKS

    def time_of(self, block: int) -> int:
        return int(self.genesis_s) + (block - 1000) * BLOCK_S

    def settle(self, cheque: Authorization) -> Transfer | None:
        """Cash `cheque` in the newest block, None where the token contract would not: too late, or cashed."""
        block = self.head()
        key = cheque.from_.lower(), cheque.nonce.lower()
        if key in self.by_nonce or key in self.revoked or self.time_of(block) >= int(cheque.valid_before):
            return None
        sent = self._send(cheque.from_, cheque.to, int(cheque.value), block)
        sent.nonce, sent.valid_before_s = cheque.nonce.lower(), int(cheque.valid_before)
        self.by_nonce[key] = sent
        return sent

    def pay(self, sender: str, receiver: str, value_atomic: int) -> Transfer:
        """Send tokens in the newest block."""
        return self._send(sender, receiver, value_atomic, self.head())

    def revoke(self, payer: str, nonce: str) -> bool:
        """Cancel a cheque in the newest block; return whether it was not cashed."""
        key = payer.lower(), nonce.lower()
        if key in self.by_nonce or key in self.revoked:
            return False
        self.revoked[key] = self.head()
        return True

    def reorganise(self, transfer: Transfer) -> bool:
        """Take `transfer` out of a block that is not final and into a later one; return whether that can be."""
        block = self.head() + REORGANISED_BLOCKS
        is_too_late = transfer.nonce is not None and self.time_of(block) >= transfer.valid_before_s
        if is_too_late or not self.finalized() < transfer.block <= self.head():
            return False
        transfer.block = block
        return True

    def balance(self, address: str) -> int:
        """Return what came less what went; everybody began with nothing."""
        name = address.lower()
        moved = [one for one in self.transfers.values() if one.block <= self.head()]
        return sum(one.value_atomic * ((one.receiver == name) - (one.sender == name)) for one in moved)

    def settlements(self) -> list[Settlement]:
        return [
            Settlement(payer=payer, nonce=nonce, pay_to=one.receiver, amount_atomic=one.value_atomic)
            for (payer, nonce), one in self.by_nonce.items()
        ]

    def _send(self, sender: str, receiver: str, value_atomic: int, block: int) -> Transfer:
        name = f"{len(self.transfers)}:{sender}:{receiver}".lower()
        sent = Transfer("0x" + sha256(name.encode()).hexdigest(), sender.lower(), receiver.lower(), value_atomic, block)
        self.transfers[sent.transaction] = sent
        return sent


class Node:
    """One process's view of the chain; its node may be `lag` blocks behind, and in what is final it never goes back."""

    def __init__(self, chain: MemoryChain) -> None:
        self._chain = chain
        self._finalized = 0
        self.lag = 0

    def head(self) -> int:
        return self._chain.head() - self.lag

    def finalized_time_s(self) -> int:
        return self._chain.time_of(self._final())

    def is_nonce_used(self, payer: str, nonce: str) -> bool:
        return self._is_used(payer, nonce, self.head())

    def is_nonce_used_finalized(self, payer: str, nonce: str) -> bool:
        return self._is_used(payer, nonce, self._final())

    def settlement(self, payer: str, nonce: str, pay_to: str, value_atomic: int, from_block: int) -> str | None:
        found = self._chain.by_nonce.get((payer.lower(), nonce.lower()))
        if found is None or not from_block <= found.block <= self.head():
            return None
        is_it = (found.receiver, found.value_atomic) == (pay_to.lower(), value_atomic)
        return found.transaction if is_it else None

    def cancellation(self, payer: str, nonce: str, from_block: int) -> str | None:
        block = self._chain.revoked.get((payer.lower(), nonce.lower()))
        is_there = block is not None and from_block <= block <= self._final()
        return f"0x{block:064x}" if is_there else None

    def transfers(self, transaction: str, sender: str, receiver: str) -> list[TransferLog]:
        found = self._chain.transfers.get(transaction)
        if found is None or found.block > self.head():
            return []
        is_it = (found.sender, found.receiver) == (sender.lower(), receiver.lower())
        return [TransferLog(0, found.value_atomic, found.block)] if is_it else []

    def balance(self, address: str) -> int:
        return self._chain.balance(address)

    def _is_used(self, payer: str, nonce: str, block: int) -> bool:
        key = payer.lower(), nonce.lower()
        found = self._chain.by_nonce.get(key)
        used = self._chain.revoked.get(key) if found is None else found.block
        return used is not None and used <= block

    def _final(self) -> int:
        number = self._chain.finalized() - self.lag
        if number < self._finalized:
            raise ChainUnavailable(f"the node is at finalised block {number}, another was at {self._finalized}")
        self._finalized = number
        return number
