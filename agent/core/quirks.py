"""
How sellers in the wild misspell x402, and the same said properly: each quirk one function, none of which decides.

What a quirk returns is checked as if it had been said properly from the start. No quirk touches who is paid, how
much, or in which token: the number 1400 becomes the text "1400", never another amount.
"""

import base64
import binascii
from collections.abc import Mapping
from typing import Any

from wire.x402 import HeaderError
from wire.x402_v1 import NETWORK_NAMES, network_id

_URL_SAFE = str.maketrans("-_", "+/")

# What a seller names who wants the hash of a transfer made first. Such a transfer is bound to no job: whoever
# sees it on the chain can claim it, and a seller who does not answer keeps it. It is not made.
# Source: control planes in the wild (`X-Payment-Proof`); hashgraph/hedera-agent-kit-js#1007 (`X-Payment-Tx`).
PROOF_HEADERS = ("x-payment-proof", "x-payment-tx")


def header_json(text: str) -> bytes:
    """
    Return the JSON in a payment header: base64 of either alphabet, padded or not, or the bare JSON.

    Source: keep-starknet-strange/starknet-agentic#38 (base64url without padding),
    SlumperSan/agent-governed-vaults#279 (bare JSON).

    Raises:
        HeaderError: it is neither.
    """
    if text.lstrip().startswith("{"):
        return text.encode("utf-8", "replace")
    letters = text.strip().translate(_URL_SAFE).rstrip("=")
    try:
        return base64.b64decode(letters + "=" * (-len(letters) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise HeaderError("the header is not base64") from None


def amounts_as_text(offer: Mapping[str, Any]) -> dict[str, Any]:
    """
    Return `offer` with whole numbers for amounts as the decimal text they should be.

    Source: x402-foundation/x402#2760 (`amount: 10000`). A fraction stays what it is, and is refused: #3510.
    """
    return {name: str(value) if name in _AMOUNTS and type(value) is int else value for name, value in offer.items()}


def version_as_text(offer: Mapping[str, Any]) -> dict[str, Any]:
    """
    Return `offer` with the version of its EIP-712 domain as text.

    Source: x402-foundation/x402#865 (`"version": 1`).
    """
    extra = offer.get("extra")
    if not isinstance(extra, dict) or type(extra.get("version")) is not int:
        return dict(offer)
    return {**offer, "extra": {**extra, "version": str(extra["version"])}}


def network_as_id(offer: Mapping[str, Any]) -> dict[str, Any]:
    """
    Return `offer` of version 2 with its network as the CAIP-2 id, where it has the name of version 1.

    Source: SlumperSan/agent-governed-vaults#269 (`x402Version: 2`, network `base`), Scottcjn/bottube#2210.
    """
    network = offer.get("network")
    return {**offer, "network": network_id(network)} if isinstance(network, str) else dict(offer)


def network_as_name(offer: Mapping[str, Any]) -> dict[str, Any]:
    """
    Return `offer` of version 1 with its network by name, where it has the CAIP-2 id of version 2.

    Source: Merit-Systems/x402scan#762 (version 1 with `eip155:8453`), x402-foundation/x402#2729 (both, side by side).
    """
    network = offer.get("network")
    return {**offer, "network": NETWORK_NAMES.get(network, network)} if isinstance(network, str) else dict(offer)


_AMOUNTS = ("amount", "maxAmountRequired")
