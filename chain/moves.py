"""What a token's logs show, as plain values: this room reads them, whoever asks it speaks of them in these words."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TransferLog:
    """One Transfer in a mined transaction; `index` is the log's place in its block, `block` that block's number."""

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
