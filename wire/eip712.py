"""
EIP-712 of two messages of EIP-3009: TransferWithAuthorization, the cheque that x402's `exact` scheme signs, and
CancelAuthorization, which takes it back.

Source: EIP-712, EIP-3009.
"""

from collections.abc import Callable
from typing import Any

from wire.money import Asset
from wire.x402 import Authorization

_DOMAIN_FIELDS = (("name", "string"), ("version", "string"), ("chainId", "uint256"), ("verifyingContract", "address"))
_MESSAGE_FIELDS = (
    ("from", "address"),
    ("to", "address"),
    ("value", "uint256"),
    ("validAfter", "uint256"),
    ("validBefore", "uint256"),
    ("nonce", "bytes32"),
)


def keccak256(data: bytes) -> bytes:
    """Return the Keccak-256 digest of `data` (Ethereum's, not NIST's SHA3-256)."""
    from Crypto.Hash import keccak

    return keccak.new(digest_bits=256, data=data).digest()


def checksum_address(address: str) -> str:
    """
    Return `address` in mixed case, as strict signers and facilitators want it.

    Source: EIP-55. Example: 0x5aaeb6… -> 0x5aAeb6….
    """
    digits = address[2:].lower()
    hashed = keccak256(digits.encode("ascii")).hex()
    return "0x" + "".join(
        digit.upper() if int(nibble, 16) >= 8 else digit for digit, nibble in zip(digits, hashed, strict=False)
    )


_CANCEL_FIELDS = (("authorizer", "address"), ("nonce", "bytes32"))


def typed_data(authorization: Authorization, asset: Asset) -> dict[str, Any]:
    """Return the EIP-712 document a signer is given (`eth_signTypedData_v4`) to authorize a transfer of `asset`."""
    message = {
        "from": authorization.from_,
        "to": authorization.to,
        "value": int(authorization.value),
        "validAfter": int(authorization.valid_after),
        "validBefore": int(authorization.valid_before),
        "nonce": authorization.nonce,
    }
    return _document("TransferWithAuthorization", _MESSAGE_FIELDS, message, asset)


def cancellation_data(payer: str, nonce: str, asset: Asset) -> dict[str, Any]:
    """Return the EIP-712 document a signer is given to cancel the authorization of `payer` with this nonce."""
    return _document("CancelAuthorization", _CANCEL_FIELDS, {"authorizer": payer, "nonce": nonce}, asset)


def _document(name: str, fields: tuple[tuple[str, str], ...], message: dict[str, Any], asset: Asset) -> dict[str, Any]:
    return {
        "types": {
            "EIP712Domain": [{"name": field, "type": kind} for field, kind in _DOMAIN_FIELDS],
            name: [{"name": field, "type": kind} for field, kind in fields],
        },
        "primaryType": name,
        "domain": {
            "name": asset.name,
            "version": asset.version,
            "chainId": asset.chain_id,
            "verifyingContract": asset.address,
        },
        "message": message,
    }


def authorization_digest(authorization: Authorization, asset: Asset) -> bytes:
    """Return the 32 bytes that are signed: keccak256(0x1901 | domain separator | message hash)."""
    document = typed_data(authorization, asset)
    domain = _hash_struct("EIP712Domain", _DOMAIN_FIELDS, document["domain"])
    message = _hash_struct("TransferWithAuthorization", _MESSAGE_FIELDS, document["message"])
    return keccak256(b"\x19\x01" + domain + message)


def _hash_struct(name: str, fields: tuple[tuple[str, str], ...], values: dict[str, Any]) -> bytes:
    kind = f"{name}({','.join(f'{kind} {field}' for field, kind in fields)})"
    return keccak256(keccak256(kind.encode()) + b"".join(_WORD[kind](values[field]) for field, kind in fields))


_WORD: dict[str, Callable[[Any], bytes]] = {
    "string": lambda value: keccak256(value.encode()),
    "uint256": lambda value: value.to_bytes(32, "big"),
    "address": lambda value: bytes.fromhex(value[2:]).rjust(32, b"\0"),
    "bytes32": lambda value: bytes.fromhex(value[2:]),
}
