"""
Everything that one account did with one token since a block: for an audit, which asks what moved, not what should have.

The same rule as `TokenReader.settlement`: a transfer belongs to an authorization where its Transfer follows at once.
"""

from typing import Any

from chain.abi import TOPICS, has_topics, quantity, transaction_hash, word
from chain.errors import RpcUnavailable
from chain.moves import History, Move
from chain.token import TokenReader

_USED = TOPICS["AuthorizationUsed(address,bytes32)"]
_CANCELED = TOPICS["AuthorizationCanceled(address,bytes32)"]
_TRANSFER = TOPICS["Transfer(address,address,uint256)"]


async def history(token: TokenReader, account: str, from_block: int, to_block: int) -> History:
    """Return the account's transfers, and its cancelled nonces, in these blocks. Raises ChainError."""
    asset, own = token.asset.address, word(account)
    used: dict[tuple[str, int], str] = {}
    cancelled: list[str] = []
    async for log in token.logs([[_USED, _CANCELED], own], from_block, to_block):
        nonce = _topic(log, 2)
        if has_topics(log, asset, (_USED, own, nonce)):
            used[transaction_hash(log.get("transactionHash")), quantity(log.get("logIndex")) + 1] = nonce
        elif has_topics(log, asset, (_CANCELED, own, nonce)):
            cancelled.append(nonce)
    found: dict[tuple[str, int], Move] = {}
    for topics in ([_TRANSFER, own], [_TRANSFER, None, own]):
        async for log in token.logs(topics, from_block, to_block):
            sender, receiver = _topic(log, 1), _topic(log, 2)
            if own not in (sender, receiver) or not has_topics(log, asset, (_TRANSFER, sender, receiver)):
                continue
            place = (transaction_hash(log.get("transactionHash")), quantity(log.get("logIndex")))
            found[place] = Move(
                transaction=place[0],
                index=place[1],
                block=quantity(log.get("blockNumber")),
                sender="0x" + sender[-40:],
                receiver="0x" + receiver[-40:],
                value_atomic=quantity(log.get("data")),
                # A cheque of ours moves our money: what comes in was moved by somebody else's.
                nonce=used.get(place) if sender == own else None,
            )
    moves = sorted(found.values(), key=lambda move: (move.block, move.index))
    return History(moves=tuple(moves), cancelled=tuple(cancelled))


def _topic(log: Any, place: int) -> str:
    topics = log.get("topics") if isinstance(log, dict) else None
    if not isinstance(topics, list) or len(topics) <= place:
        raise RpcUnavailable("the node's log has too few topics")
    return str(topics[place]).lower()
