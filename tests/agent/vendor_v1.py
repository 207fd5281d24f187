"""
A vendor that speaks x402 version 1 and nothing else, as servers did before version 2.

What it says and hears is the official package's version 1; its facilitator verifies and settles over HTTP.
"""

import base64
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import httpx
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from x402.http.utils import decode_payment_signature_header
from x402.schemas import PaymentPayloadV1, PaymentRequirementsV1
from x402.schemas.v1 import PaymentRequiredV1

from wire.money import BASE_SEPOLIA_USDC

PER_HOUR_ATOMIC = 1_400_000


@dataclass
class VendorV1:
    """
    `paid` are the X-PAYMENT headers that came, in order; `changes` go into every offer of its 402.

    One that is `forgetful` finds no job by its key; it still starts one job per payment.
    """

    pay_to: str
    facilitator_url: str
    forgetful: bool = False
    changes: dict[str, Any] = field(default_factory=dict)
    paid: list[str] = field(default_factory=list)
    jobs: dict[str, str] = field(default_factory=dict)

    def asks(self, hours: str) -> PaymentRequirementsV1:
        asset = BASE_SEPOLIA_USDC
        return PaymentRequirementsV1(
            scheme="exact",
            network="base-sepolia",
            max_amount_required=str(int(Decimal(hours) * PER_HOUR_ATOMIC)),
            resource="http://vendor-v1/submit-job",
            description="A GPU job",
            mime_type="application/json",
            pay_to=self.pay_to,
            max_timeout_seconds=300,
            asset=asset.address,
            extra={"name": asset.name, "version": asset.version},
        )

    async def facilitate(self, verb: str, payment: PaymentPayloadV1, asked: PaymentRequirementsV1) -> Any:
        body = {
            "x402Version": 1,
            "paymentPayload": payment.model_dump(by_alias=True, exclude_none=True),
            "paymentRequirements": asked.model_dump(by_alias=True, exclude_none=True),
        }
        async with httpx.AsyncClient(timeout=30) as client:
            return (await client.post(f"{self.facilitator_url}/{verb}", json=body)).json()

    def app(self) -> FastAPI:
        app = FastAPI(openapi_url=None)

        @app.post("/quote")
        async def quote(request: Request) -> Any:
            hours = str((await request.json())["maxHours"])
            price = Decimal(hours) * PER_HOUR_ATOMIC / 1_000_000
            template = {"vendorJobTemplateId": f"tmpl_{hours}", "priceEstimate": float(price)}
            return template | {"currency": "USDC", "etaMinutes": 60}

        @app.post("/submit-job")
        async def submit(request: Request) -> JSONResponse:
            asked = self.asks((await request.json())["vendorJobTemplateId"].removeprefix("tmpl_"))

            def refuse(error: str) -> JSONResponse:
                body = PaymentRequiredV1(error=error, accepts=[asked]).model_dump(by_alias=True, exclude_none=True)
                body["accepts"] = [offer | self.changes for offer in body["accepts"]]
                return JSONResponse(body, 402)

            header = request.headers.get("x-payment")
            if header is None:
                return refuse("X-PAYMENT header is required")
            self.paid.append(header)
            payment = decode_payment_signature_header(header)
            assert isinstance(payment, PaymentPayloadV1), payment
            key = request.headers["idempotency-key"]
            if key not in self.jobs:
                verified = await self.facilitate("verify", payment, asked)
                if not verified["isValid"]:
                    return refuse(verified["invalidReason"])
                settled = await self.facilitate("settle", payment, asked)
                if not settled["success"]:
                    return refuse(settled["errorReason"])
                self.jobs[key] = settled["transaction"]
            settlement = {"success": True, "transaction": self.jobs[key], "network": "base-sepolia"}
            said = base64.b64encode(httpx.Response(200, json=settlement).content).decode()
            return JSONResponse({"vendorJobId": key, "status": "submitted"}, headers={"X-PAYMENT-RESPONSE": said})

        @app.get("/jobs")
        async def jobs(key: str) -> Any:
            found = [{"vendorJobId": key, "status": "running"}] if key in self.jobs and not self.forgetful else []
            return {"jobs": found}

        @app.get("/job-status")
        async def job_status(request: Request) -> Any:
            job = {"vendorJobId": request.query_params["vendorJobId"], "status": "completed", "progress": 1}
            return job | {"logs": ["done"], "cursor": "1", "costSoFar": 1.4, "finalMetrics": {"loss": 0.5}}

        @app.get("/artifacts/{vendor_job_id}")
        async def artifacts(vendor_job_id: str) -> Any:
            return {"artifacts": []}

        return app
