"""
Texts that an account signs, which are no transaction and move nothing: EIP-191, version 0x45.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from eth_account.signers.base import BaseAccount


def signed(account: "BaseAccount", text: str) -> str:
    """Return the signature of `text`, 65 bytes of hex with 0x."""
    from eth_account.messages import encode_defunct

    made = account.sign_message(encode_defunct(text=text))
    return f"0x{bytes(made.signature).hex()}"


def signer_of(text: str, signature: str) -> str | None:
    """Return the address whose key signed `text`, None where the signature is none."""
    from eth_account import Account
    from eth_account.messages import encode_defunct

    try:
        return str(Account.recover_message(encode_defunct(text=text), signature=signature))
    except Exception:
        # What is no point of the curve, no hex, of another length: it fails in many ways.
        return None
