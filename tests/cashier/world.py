"""What the tests of the paid door share: cheques, a facilitator that obeys a script, a cashier on a real chain."""

import asyncio
import json
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
from eth_account import Account
from fastapi import FastAPI, Request
from fastapi.responses import Response

from cashier.core.model import Answer, PaidRequest, Price, Sale
from cashier.ports import Desk
from cashier.wiring import Cashier, open_cashier
from chain.abi import word
from chain.devchain import DevAccount, DevChain
from outbound.http import HttpClient
from wire.eip712 import typed_data
from wire.money import BASE_SEPOLIA_USDC, Amount
from wire.x402 import (
    PAYMENT_RESPONSE,
    Authorization,
    ExactPayload,
    PaymentPayload,
    PaymentRequirements,
    SettleResponse,
    decode_header,
    encode_header,
)

URL = "http://seller.example/submit-job"
BODY = b'{"job": 1}'
PRICE_ATOMIC = 1_400_000
FACILITATOR = "http://facilitator.example"

Step = Callable[[bytes], Awaitable[Response]]


class ScriptedFacilitator:
    """The real facilitator behind a door where each next request to /verify or /settle may meet a step instead."""

    def __init__(self, real: FastAPI) -> None:
        self.app = FastAPI()
        self.steps: dict[str, list[Step]] = {"verify": [], "settle": []}
        self.calls: list[str] = []
        self._real = httpx.ASGITransport(real)

        @self.app.post("/{verb}")
        async def answer(verb: str, request: Request) -> Response:
            self.calls.append(verb)
            body = await request.body()
            steps = self.steps[verb]
            return await (steps.pop(0)(body) if steps else self.ask(verb, body))

    async def ask(self, verb: str, body: bytes) -> Response:
        """Return what the real one answers."""
        async with httpx.AsyncClient(transport=self._real, base_url=FACILITATOR) as client:
            reply = await client.post(f"/{verb}", content=body)
        return Response(reply.content, reply.status_code, media_type="application/json")

    def client(self) -> HttpClient:
        return HttpClient(httpx.ASGITransport(self.app))


def says(document: Any, status: int = 200) -> Step:
    """A step that answers `document` and does nothing."""

    async def step(_: bytes) -> Response:
        content = document if isinstance(document, bytes) else json.dumps(document).encode()
        return Response(content, status)

    return step


@dataclass
class World:
    """A seller with one price, whose `start` starts one job per payment id and counts its calls."""

    chain: DevChain
    payer: DevAccount
    seller: DevAccount
    facilitator: ScriptedFacilitator
    database: Path
    clock_s: int = field(default_factory=lambda: int(time.time()))
    jobs: dict[str, str] = field(default_factory=dict)
    sales: list[Sale] = field(default_factory=list)
    reserved: list[int] = field(default_factory=list)
    room: int = 100
    full: Answer | None = None
    unwanted: dict[str, str] = field(default_factory=dict)
    opened: list[Cashier] = field(default_factory=list)

    def cashier(self, wrap: Callable[[Desk], Desk] = lambda desk: desk) -> Cashier:
        """Return a new cashier on the same till, as a process started now would have it."""
        cashier = open_cashier(
            asset=BASE_SEPOLIA_USDC,
            database=self.database,
            facilitator_url=FACILITATOR,
            rpc_url=self.chain.url,
            keys=[self.seller.key],
            facilitator_http=self.facilitator.client(),
            now_s=lambda: self.clock_s,
        )
        cashier.desk = wrap(cashier.desk)
        self.opened.append(cashier)
        return cashier

    @property
    def price(self) -> Price:
        amount = Amount(PRICE_ATOMIC, BASE_SEPOLIA_USDC.address, BASE_SEPOLIA_USDC.network)
        return Price(amount=amount, pay_to=self.seller.address, description="one job")

    def asked(self) -> PaymentRequirements:
        return PaymentRequirements(
            scheme="exact",
            network=BASE_SEPOLIA_USDC.network,
            asset=BASE_SEPOLIA_USDC.address,
            amount=str(PRICE_ATOMIC),
            pay_to=self.seller.address,
            max_timeout_seconds=300,
            extra={"name": "USDC", "version": "2", "paymentFlow": "upfront"},
        )

    def cheque(self, **changes: Any) -> PaymentPayload:
        """Return a signed payment of the price; `changes` are to the authorization, `signer` signs it."""
        signer: DevAccount = changes.pop("signer", self.payer)
        fields = {
            "from_": self.payer.address,
            "to": self.seller.address,
            "value": str(PRICE_ATOMIC),
            "valid_after": "0",
            "valid_before": str(int(time.time()) + 300),
            "nonce": "0x" + secrets.token_hex(32),
        }
        authorization = Authorization(**{**fields, **changes})
        document = typed_data(authorization, BASE_SEPOLIA_USDC)
        signature = Account.from_key(signer.key).sign_typed_data(full_message=document).signature.to_0x_hex()
        payload = ExactPayload(signature=signature, authorization=authorization)
        return PaymentPayload(accepted=self.asked(), payload=payload)

    async def has_capacity(self, reserved: int) -> bool | Answer:
        self.reserved.append(reserved)
        return self.full or len(self.jobs) + reserved < self.room

    async def start(self, sale: Sale) -> Mapping[str, Any]:
        self.sales.append(sale)
        return {"job": self.jobs.setdefault(sale.payment_id, f"job-{secrets.token_hex(4)}")}

    async def pay(
        self,
        cashier: Cashier,
        payment: PaymentPayload | None,
        *,
        price: Price | None = None,
        start: Callable[[Sale], Awaitable[Mapping[str, Any]]] | None = None,
        **request: Any,
    ) -> Answer:
        headers = {} if payment is None else {"payment-signature": encode_header(payment)}
        asked = request_with(**{"headers": headers, **request})
        admit = self.unwanted.get
        return await cashier.charge(asked, price or self.price, self.has_capacity, start or self.start, admit)

    def earned(self) -> int:
        return self.chain.balance(self.seller.address)

    def settle_outside(self, payment: PaymentPayload) -> str:
        """Settle the cheque as a stranger would who saw it on its way; return the transaction."""
        authorization = payment.payload.authorization
        parts = bytes.fromhex(payment.payload.signature[2:])
        numbers = (authorization.value, authorization.valid_after, authorization.valid_before)
        words = [word(authorization.from_), word(authorization.to), *(word(int(n)) for n in numbers)]
        words += [word(authorization.nonce), word(parts[64]), "0x" + parts[:32].hex(), "0x" + parts[32:64].hex()]
        return self.chain.transact(BASE_SEPOLIA_USDC.address, "0xe3ee160e" + "".join(one[2:] for one in words))

    def cancel_outside(self, payment: PaymentPayload) -> None:
        """Use the cheque's nonce up without a transfer (EIP-3009 cancelAuthorization)."""
        authorization = payment.payload.authorization
        document = typed_data(authorization, BASE_SEPOLIA_USDC)
        document["types"].pop("TransferWithAuthorization")
        document["types"]["CancelAuthorization"] = [
            {"name": "authorizer", "type": "address"},
            {"name": "nonce", "type": "bytes32"},
        ]
        document["primaryType"] = "CancelAuthorization"
        document["message"] = {"authorizer": authorization.from_, "nonce": authorization.nonce}
        signature = Account.from_key(self.payer.key).sign_typed_data(full_message=document).signature
        words = [word(authorization.from_), word(authorization.nonce), word(signature[64])]
        words += ["0x" + signature[:32].hex(), "0x" + signature[32:64].hex()]
        selector = "0x5a049a70"  # cancelAuthorization(address,bytes32,uint8,bytes32,bytes32)
        self.chain.transact(BASE_SEPOLIA_USDC.address, selector + "".join(one[2:] for one in words))


def request_with(**changes: Any) -> PaidRequest:
    return replace(PaidRequest(method="POST", url=URL, headers={}, body=BODY), **changes)


def settlement(answer: Answer) -> SettleResponse:
    return decode_header(SettleResponse, answer.headers[PAYMENT_RESPONSE.lower()])


def code(answer: Answer) -> str:
    return str(json.loads(answer.body)["code"])


def detail(answer: Answer) -> str:
    return str(json.loads(answer.body)["detail"])


class Crash(BaseException):
    """The process dies here."""


class Fuse:
    """Burns at each boundary; the process dies at the `last` one."""

    def __init__(self, last: int) -> None:
        self.left = last

    def burn(self) -> None:
        self.left -= 1
        if self.left == 0:
            raise Crash


class Mortal:
    """An edge that dies, when its fuse ends, before or after what it does for real."""

    def __init__(self, edge: Any, fuse: Fuse) -> None:
        self._edge = edge
        self._fuse = fuse

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._edge, name)
        if not asyncio.iscoroutinefunction(method):
            return method

        async def call(*args: Any, **kwargs: Any) -> Any:
            self._fuse.burn()
            result = await method(*args, **kwargs)
            self._fuse.burn()
            return result

        return call
