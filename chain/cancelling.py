"""
Takes a signed cheque back before it lapses: EIP-3009's cancelAuthorization, sent and paid for by the payer's account.

Whoever is first on the chain wins: the seller's settlement or this. Which it was only a finalised block tells
(`TokenReader.cancellation`).
"""

from typing import Any

from chain.abi import call_data, transaction_hash, word
from chain.rpc import Rpc
from chain.sender import draft, next_account_nonce
from wire.money import Asset


async def draft_cancellation(rpc: Rpc, asset: Asset, payer: str, nonce: str, signature: str) -> dict[str, Any]:
    """
    Return the transaction that cancels a cheque of `payer`, to be signed by its account; nothing is sent.

    Args:
        signature: the payer's, over `wire.eip712.cancellation_data`.

    Raises:
        RpcRefused: it would fail: the cheque is settled or cancelled already.
    """
    parts = bytes.fromhex(signature[2:])
    recovery, r, s = word(parts[64]), "0x" + parts[:32].hex(), "0x" + parts[32:64].hex()
    signature_of = "cancelAuthorization(address,bytes32,uint8,bytes32,bytes32)"
    data = call_data(signature_of, payer, nonce, recovery, r, s)
    return await draft(rpc, asset, payer, data, await next_account_nonce(rpc, payer))


async def send_raw(rpc: Rpc, raw: str) -> str:
    """Hand a signed transaction to the node and return its hash. Raises RpcRefused (no coin for the fee, ...)."""
    return transaction_hash(await rpc.call("eth_sendRawTransaction", raw))
