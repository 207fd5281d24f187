"""A small vendor with one scripted answer per path, and the requests it got."""

import asyncio
from dataclasses import dataclass, field
from typing import Any

import httpx
import orjson
from fastapi import FastAPI, Request, Response

from agent.edges.vendor_http import HttpVendors
from outbound.http import HttpClient

QUOTE = {"vendorJobTemplateId": "tmpl_1", "priceEstimate": 1.4, "currency": "USDC", "etaMinutes": 60}
SUBMITTED = {"vendorJobId": "vjob-1", "status": "submitted", "paymentTxId": "0xaa"}
STATUS = {"vendorJobId": "vjob-1", "status": "running", "progress": 0.2, "cursor": "7", "costSoFar": 0.28, "logs": []}


@dataclass
class ScriptedVendor:
    """Answers every path in `answers` with its response, a 404 otherwise; never where `hangs`."""

    answers: dict[str, Response] = field(default_factory=dict)
    seen: list[tuple[Request, bytes]] = field(default_factory=list)
    hangs: asyncio.Event | None = None

    def says(self, path: str, body: Any, status: int = 200, **headers: str) -> None:
        content = body if isinstance(body, bytes) else orjson.dumps(body)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self.answers[path] = Response(content, status, headers={"content-type": "application/json"} | named)

    def app(self) -> FastAPI:
        app = FastAPI(openapi_url=None)

        @app.api_route("/{path:path}", methods=["GET", "POST"])
        async def answer(request: Request, path: str) -> Response:
            self.seen.append((request, await request.body()))
            if self.hangs is not None:
                await self.hangs.wait()
            return self.answers.get(f"/{path}", Response(b'{"detail":"Not Found"}', 404))

        return app

    def client(self, secrets: str = "s3cret", **options: Any) -> HttpVendors:
        transport = httpx.ASGITransport(self.app(), raise_app_exceptions=False)
        return HttpVendors(HttpClient(transport), secrets, retry_wait_s=0.001, **options)
