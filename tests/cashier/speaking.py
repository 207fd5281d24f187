"""Payments as each dialect writes them: x402 by our own codecs, MPP by pympp's client."""

from typing import Any

from eth_account import Account
from mpp import Challenge, Credential
from mpp.methods.evm import BASE_SEPOLIA_USDC as MPP_USDC
from mpp.methods.evm.client import charge
from mpp.runtime import CredentialParams

from cashier.wiring import Cashier
from chain.devchain import DevAccount
from tests.cashier.world import World
from wire.x402 import PaymentPayload, encode_header
from wire.x402_v1 import payment_v1

DIALECTS = ("x402-v2", "x402-v1", "mpp")
CONFIRMATIONS = {"x402-v2": "payment-response", "x402-v1": "x-payment-response", "mpp": "payment-receipt"}


def in_v1(payment: PaymentPayload) -> dict[str, str]:
    return {"x-payment": encode_header(payment_v1(payment))}


async def in_mpp(world: World, cashier: Cashier, payer: DevAccount | None = None, **request: Any) -> dict[str, str]:
    """Ask what `request` costs and return the headers with which pympp's client answers."""
    unpaid = await world.pay(cashier, None, **request)
    client = charge(currency=MPP_USDC, account=Account.from_key((payer or world.payer).key))
    challenge = Challenge.from_www_authenticate(unpaid.headers["www-authenticate"])
    assert client.can_handle_challenge(challenge)
    text = await client.create_credential(CredentialParams(challenge=challenge))
    return {challenge.credential_header.lower(): text}


async def in_dialect(world: World, cashier: Cashier, dialect: str) -> dict[str, str]:
    """Return the headers that pay the world's request once."""
    if dialect == "mpp":
        return await in_mpp(world, cashier)
    payment = world.cheque()
    return in_v1(payment) if dialect == "x402-v1" else {"payment-signature": encode_header(payment)}


def altered(headers: dict[str, str], **changes: Any) -> dict[str, str]:
    """Return MPP headers whose credential has other parts: `challenge`, `payload` (merged), `source`."""
    credential = Credential.from_authorization(headers["payment-authorization"])
    parts = {"challenge": credential.challenge, "payload": credential.payload, "source": credential.source}
    if "payload" in changes and isinstance(changes["payload"], dict):
        changes["payload"] = {**credential.payload, **changes["payload"]}
    return {"payment-authorization": Credential(**{**parts, **changes}).to_authorization()}
