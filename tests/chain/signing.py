"""Cheques for the tests of this folder."""

import secrets
import time

from eth_account import Account

from chain.abi import word
from chain.devchain import DevAccount
from wire.eip712 import typed_data
from wire.money import BASE_SEPOLIA_USDC, Asset
from wire.x402 import Authorization, ExactPayload, PaymentPayload, PaymentRequirements


def authorization_for(payer: DevAccount, to: str, value_atomic: int, *, seconds: int = 600) -> Authorization:
    return Authorization(
        from_=payer.address,
        to=to,
        value=str(value_atomic),
        valid_after="0",
        valid_before=str(int(time.time()) + seconds),
        nonce="0x" + secrets.token_hex(32),
    )


def signature_of(payer: DevAccount, authorization: Authorization, asset: Asset = BASE_SEPOLIA_USDC) -> str:
    """Return what the reference library signs, 0x-hex."""
    signed = Account.from_key(payer.key).sign_typed_data(full_message=typed_data(authorization, asset))
    return signed.signature.to_0x_hex()


def settle_data(authorization: Authorization, signature: str) -> str:
    """Return the calldata of transferWithAuthorization(...,uint8,bytes32,bytes32)."""
    parts = bytes.fromhex(signature[2:])
    numbers = (int(authorization.value), int(authorization.valid_after), int(authorization.valid_before))
    words = [word(authorization.from_), word(authorization.to), *map(word, numbers), word(authorization.nonce)]
    words += [word(parts[64]), "0x" + parts[:32].hex(), "0x" + parts[32:64].hex()]
    return "0xe3ee160e" + "".join(one[2:] for one in words)


def requirements_for(pay_to: str, value_atomic: int) -> PaymentRequirements:
    return PaymentRequirements(
        scheme="exact",
        network=BASE_SEPOLIA_USDC.network,
        asset=BASE_SEPOLIA_USDC.address,
        amount=str(value_atomic),
        pay_to=pay_to,
        max_timeout_seconds=600,
        extra={"name": BASE_SEPOLIA_USDC.name, "version": BASE_SEPOLIA_USDC.version},
    )


def payload_for(payer: DevAccount, requirements: PaymentRequirements) -> PaymentPayload:
    authorization = authorization_for(payer, requirements.pay_to, int(requirements.amount))
    signature = signature_of(payer, authorization)
    return PaymentPayload(accepted=requirements, payload=ExactPayload(signature=signature, authorization=authorization))
