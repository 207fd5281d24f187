"""
A facilitator that lies, is late or says nothing, around the honest one: what it does wrong has a name.

It is for those who build sellers and buyers: whatever a facilitator does, nobody pays twice and nobody serves unpaid.
"""

import asyncio
import hashlib
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx
from fastapi import FastAPI, Request
from fastapi.responses import Response

from vendor_mock.config import FacilitatorFault
from wire import decimal_json

# How late a settlement came that a public facilitator was seen to make.
LATE_S = 28.0
_BAD_GATEWAY = 502
_LOG = logging.getLogger("livery.facilitator")


@dataclass
class Asked:
    """One request of a seller's: `honest` answers it as it should be, `payment` tells one cheque from another."""

    request: Request
    payment: str
    network: str
    honest: Callable[[], Awaitable[Response]]
    late_s: float
    receipts: dict[str, str]


@dataclass(frozen=True, slots=True)
class Fault:
    """What is done wrong at `verb`, `times` for each payment (None: always), and in words."""

    verb: str
    times: int | None
    does: Callable[[Asked], Awaitable[Response]]
    meaning: str


async def _hang(asked: Asked) -> Response:
    await asked.honest()
    while (await asked.request.receive())["type"] != "http.disconnect":
        pass
    return Response()


async def _break(asked: Asked) -> Response:
    await asked.honest()
    return Response(b"", _BAD_GATEWAY)


async def _refuse(asked: Asked) -> Response:
    return _said({"isValid": False, "invalidReason": "invalid_exact_evm_payload_signature"})


async def _be_late(asked: Asked) -> Response:
    answer = await asked.honest()
    await asyncio.sleep(asked.late_s)
    return answer


async def _never(asked: Asked) -> Response:
    return _said(
        {"success": False, "errorReason": "settlement_pending", "transaction": "", "network": asked.network},
    )


async def _name_another(asked: Asked) -> Response:
    await asked.honest()
    return _settled(asked, _invented(asked.payment))


async def _invent(asked: Asked) -> Response:
    return _settled(asked, _invented(asked.payment))


async def _replay(asked: Asked) -> Response:
    others = [receipt for payment, receipt in asked.receipts.items() if payment != asked.payment]
    return _settled(asked, others[-1]) if others else await asked.honest()


FAULTS: Mapping[FacilitatorFault, Fault] = {
    "settle_then_hang": Fault("settle", 1, _hang, "settles and never answers, once for each payment"),
    "settle_then_502": Fault("settle", 1, _break, "settles and answers 502, once for each payment"),
    "refuse_twice": Fault("verify", 2, _refuse, "calls a payment invalid twice: its buyer meets two more 402s"),
    "settle_late": Fault("settle", 1, _be_late, "settles and answers 28 s later, once for each payment"),
    "never_settle": Fault("settle", None, _never, "says for ever that the settlement is pending, and sends nothing"),
    "wrong_hash": Fault("settle", None, _name_another, "settles and names a transaction that there is none of"),
    "made_up_hash": Fault("settle", None, _invent, "settles nothing and names a transaction that there is none of"),
    "replayed_receipt": Fault("settle", None, _replay, "settles nothing and shows the receipt of another payment"),
}


@dataclass
class HostileFacilitator:
    """
    An ASGI app: `app`, the honest facilitator, but for what `fault` names (a key of FAULTS; None: nothing).

    `fault` may be changed while it runs. `late_s` is how late a late answer is, `happened` how often it did wrong, and
    `slowest_s` how long the slowest of these answers took.
    """

    app: FastAPI
    fault: FacilitatorFault | None = None
    late_s: float = LATE_S
    happened: int = 0
    slowest_s: float = 0.0
    receipts: dict[str, str] = field(default_factory=dict)
    _done: dict[tuple[str, str], int] = field(default_factory=dict)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or scope["path"] not in ("/verify", "/settle"):
            await self.app(scope, receive, send)
            return
        request = Request(scope, receive, send)
        answer = await self._answer(request, scope["path"].removeprefix("/"))
        await answer(scope, receive, send)

    async def _answer(self, request: Request, verb: str) -> Response:
        body = await request.body()
        payment, network = _payment_of(body)

        async def honest() -> Response:
            async with httpx.AsyncClient(transport=httpx.ASGITransport(self.app), base_url="http://honest") as client:
                reply = await client.post(f"/{verb}", content=body, timeout=None)
            if verb == "settle" and reply.status_code == 200 and reply.json().get("success"):
                self.receipts[payment] = str(reply.json()["transaction"])
            return Response(reply.content, reply.status_code, media_type=reply.headers.get("content-type"))

        fault = FAULTS[self.fault] if self.fault is not None else None
        if fault is None or fault.verb != verb or not self._takes(fault, payment):
            return await honest()
        self.happened += 1
        _LOG.info("%s: %s", self.fault, payment)
        began_s = time.monotonic()
        answer = await fault.does(Asked(request, payment, network, honest, self.late_s, self.receipts))
        self.slowest_s = max(self.slowest_s, time.monotonic() - began_s)
        return answer

    def _takes(self, fault: Fault, payment: str) -> bool:
        key = (str(self.fault), payment)
        self._done[key] = self._done.get(key, 0) + 1
        return fault.times is None or self._done[key] <= fault.times


def _payment_of(body: bytes) -> tuple[str, str]:
    """Return the nonce and the network that a request is about; what cannot be read is for the honest one to refuse."""
    try:
        sent = decimal_json.loads(body)
        nonce = sent["paymentPayload"]["payload"]["authorization"]["nonce"]
        return str(nonce).lower(), str(sent["paymentRequirements"]["network"])
    except (KeyError, TypeError, ValueError):
        return "", ""


def _settled(asked: Asked, transaction: str) -> Response:
    return _said({"success": True, "transaction": transaction, "network": asked.network})


def _said(document: dict[str, Any]) -> Response:
    return Response(decimal_json.dumps(document), media_type="application/json")


def _invented(payment: str) -> str:
    return "0x" + hashlib.sha256(payment.encode()).hexdigest()
