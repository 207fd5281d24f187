"""What the chain shows of one token, as values: the audit and the ports speak of it in these words."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TransferLog:
    """One ERC-20 Transfer in a mined transaction."""

    index: int
    value_atomic: int
    block: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """One Transfer from or to an account, addresses in lower case; `nonce` is the account's cheque that moved it."""

    transaction: str
    index: int
    block: int
    sender: str
    receiver: str
    value_atomic: int
    nonce: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """What one account did with the token between two blocks, in the chain's order; `cancelled` are cheques' nonces."""

    moves: tuple[Move, ...] = ()
    cancelled: tuple[str, ...] = ()
