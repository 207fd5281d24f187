"""A buyer of the mock vendors: knows their secrets, quotes, pays and polls over HTTP."""

import json
import secrets
import time
from decimal import Decimal
from typing import Any

import httpx
from eth_account import Account

from chain.devchain import DevAccount
from wire import decimal_json
from wire.eip712 import typed_data
from wire.money import BASE_SEPOLIA_USDC
from wire.x402 import (
    Authorization,
    ExactPayload,
    PaymentPayload,
    PaymentRequired,
    decode_header,
    encode_header,
    with_payment_identifier,
)

SECRETS = "gpu_vendor_1=secret-1,gpu_vendor_2=secret-2,gpu_vendor_3=secret-3"
BASE_URL = "http://vendors.example"


class Buyer:
    """One buyer of one vendor."""

    def __init__(self, client: httpx.AsyncClient, payer: DevAccount, vendor: int = 1, secret: str | None = None):
        self.client = client
        self.payer = payer
        self.headers = {
            "x-vendor-id": f"gpu_vendor_{vendor}",
            "authorization": f"Bearer {secret or f'secret-{vendor}'}",
            "content-type": "application/json",
        }

    async def get(self, path: str, **params: str) -> httpx.Response:
        return await self.client.get(path, params=params, headers=self.headers)

    async def post(self, path: str, body: Any, **headers: str) -> httpx.Response:
        content = body if isinstance(body, bytes) else decimal_json.dumps(body)
        return await self.client.post(path, content=content, headers={**self.headers, **headers})

    async def quote(self, hours: str = "1", gpu_type: str = "A10") -> dict[str, Any]:
        asked = {"jobType": "fine_tune", "gpuType": gpu_type, "maxHours": Decimal(hours)}
        reply = await self.post("/quote", asked)
        assert reply.status_code == 200, reply.text
        return read(reply)

    async def order(self, hours: str = "1") -> bytes:
        """Return the body that submits a freshly quoted job."""
        template = (await self.quote(hours))["vendorJobTemplateId"]
        return decimal_json.dumps({"vendorJobTemplateId": template, "jobParams": {"goal": "x"}})

    async def challenge(self, order: bytes) -> PaymentRequired:
        reply = await self.post("/submit-job", order)
        assert reply.status_code == 402, reply.text
        return decode_header(PaymentRequired, reply.headers["payment-required"])

    def sign(self, challenge: PaymentRequired, payment_id: str) -> dict[str, str]:
        """Return the headers that pay what `challenge` asks."""
        asked = challenge.accepts[0]
        authorization = Authorization(
            from_=self.payer.address,
            to=asked.pay_to,
            value=asked.amount,
            valid_after="0",
            valid_before=str(int(time.time()) + asked.max_timeout_seconds),
            nonce="0x" + secrets.token_hex(32),
        )
        signed = Account.from_key(self.payer.key).sign_typed_data(
            full_message=typed_data(authorization, BASE_SEPOLIA_USDC)
        )
        payment = PaymentPayload(
            resource=challenge.resource,
            accepted=asked,
            payload=ExactPayload(signature=signed.signature.to_0x_hex(), authorization=authorization),
            extensions=with_payment_identifier(challenge.extensions, payment_id),
        )
        return {"PAYMENT-SIGNATURE": encode_header(payment), "Idempotency-Key": payment_id}

    async def buy(self, hours: str = "1", payment_id: str | None = None) -> str:
        """Pay for a job and return its id."""
        order = await self.order(hours)
        headers = self.sign(await self.challenge(order), payment_id or new_payment_id())
        reply = await self.post("/submit-job", order, **headers)
        assert reply.status_code == 200, reply.text
        return str(read(reply)["vendorJobId"])

    async def poll(self, job_id: str, **params: str) -> dict[str, Any]:
        reply = await self.get("/job-status", vendorJobId=job_id, **params)
        assert reply.status_code == 200, reply.text
        return read(reply)


def new_payment_id() -> str:
    return f"pay-{secrets.token_hex(12)}"


def read(reply: httpx.Response) -> dict[str, Any]:
    """Return the body with exact numbers."""
    value: dict[str, Any] = decimal_json.loads(reply.content)
    return value


def code(reply: httpx.Response) -> str:
    problem = json.loads(reply.content)
    assert reply.headers["content-type"] == "application/problem+json"
    assert set(problem) >= {"type", "title", "status", "code", "detail", "hint"}
    assert problem["status"] == reply.status_code
    return str(problem["code"])
