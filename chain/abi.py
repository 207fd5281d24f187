"""
The few words of the Ethereum ABI that an EIP-3009 token needs, written by hand, and a strict reading of answers.

A node is another machine: every quantity, hash and word it sends is checked before it is believed.
"""

import re
from collections.abc import Sequence
from typing import Any

from chain.errors import RpcUnavailable

# First four bytes of keccak256 of each signature; a test derives them anew.
SELECTORS = {
    "balanceOf(address)": "0x70a08231",
    "authorizationState(address,bytes32)": "0xe94a0102",
    "transfer(address,uint256)": "0xa9059cbb",
    "mint(address,uint256)": "0x40c10f19",
    "cancelAuthorization(address,bytes32,uint8,bytes32,bytes32)": "0x5a049a70",
}
# keccak256 of each event's signature.
TOPICS = {
    "Transfer(address,address,uint256)": "0xddf252ad1be2c89b69c2b068fc378daa952ba7f163c4a11628f55a4df523b3ef",
    "AuthorizationUsed(address,bytes32)": "0x98de503528ee59b575ef0c0a2576a82497bfc029a5685b209e9ec333479b10a5",
    "AuthorizationCanceled(address,bytes32)": "0x1cdd46ff242716cdaa72d159d339a485b3438398348d68f09d7c8c0a59353d81",
}

_QUANTITY = re.compile(r"0x[0-9a-fA-F]{1,64}")
_WORD = re.compile(r"0x[0-9a-fA-F]{64}")
_ADDRESS = re.compile(r"0x[0-9a-fA-F]{40}")


def call_data(signature: str, *arguments: str | int) -> str:
    """Return the calldata of `signature` (a key of SELECTORS); addresses and bytes32 as 0x-hex, integers as int."""
    return SELECTORS[signature] + "".join(word(argument)[2:] for argument in arguments)


def word(argument: str | int) -> str:
    """Return one argument as a 32-byte word, 0x-hex. Raises ValueError for what is none."""
    if isinstance(argument, int):
        return "0x" + argument.to_bytes(32, "big").hex()
    if _ADDRESS.fullmatch(argument) or _WORD.fullmatch(argument):
        return "0x" + argument[2:].lower().rjust(64, "0")
    raise ValueError(f"{argument[:80]!r} is neither an address nor 32 bytes")


def quantity(value: Any) -> int:
    """Return the integer of a JSON-RPC quantity or of a one-word answer."""
    if isinstance(value, str) and _QUANTITY.fullmatch(value):
        return int(value, 16)
    raise RpcUnavailable(f"the node answered {value!r:.80} where a number belongs")


def transaction_hash(value: Any) -> str:
    """Return `value` as a transaction hash. Raises RpcUnavailable for anything else that a node, or its user, sent."""
    if isinstance(value, str) and _WORD.fullmatch(value):
        return value.lower()
    raise RpcUnavailable(f"{value!r:.80} is not a transaction hash")


def is_transfer(log: Any, asset: str, sender: str, receiver: str) -> bool:
    """Return whether `log`, as a node sends it, is a Transfer of `asset` from `sender` to `receiver`."""
    return has_topics(log, asset, (TOPICS["Transfer(address,address,uint256)"], word(sender), word(receiver)))


def has_topics(log: Any, contract: str, topics: Sequence[str]) -> bool:
    """Return whether `log` comes from `contract`, has exactly these topics and was not undone by a reorganisation."""
    if not isinstance(log, dict) or not isinstance(log.get("topics"), list) or log.get("removed"):
        return False
    return str(log.get("address")).lower() == contract.lower() and [
        str(topic).lower() for topic in log["topics"]
    ] == list(topics)
