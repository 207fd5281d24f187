"""A worker that sells answers, with a real chain and facilitator: who speaks is a talker, what is paid is real."""

import asyncio
import hashlib
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
from eth_account import Account

from cashier.core.credit import Account as CreditAccount
from cashier.core.credit import Deposit, Key, digest_of
from cashier.core.reading import requirements_for
from cashier.ports import Admit
from cashier.wiring import Cashier, open_cashier
from chain.devchain import DevAccount, DevChain
from gpu_worker.core.inference.prices import Prices
from gpu_worker.edges.http.paid_door import PaidDoor
from gpu_worker.inference.text.admission import Admission
from gpu_worker.inference.text.paying import Billing, Keys
from gpu_worker.inference.text.service import Service
from gpu_worker.inference.text.turns import Turns
from tests.cashier.world import FACILITATOR, ScriptedFacilitator
from tests.fixtures.talker import MODEL, Talker, served, service_of
from wire.eip712 import typed_data
from wire.money import BASE_SEPOLIA_USDC, Amount
from wire.x402 import (
    PAYMENT_REQUIRED,
    Authorization,
    ExactPayload,
    PaymentPayload,
    PaymentRequired,
    PaymentRequirements,
    decode_header,
    encode_header,
)

# A token of a prompt costs 1000 atomic units, one of an answer 2000.
PROMPT_ATOMIC, ANSWER_ATOMIC = 1_000, 2_000
PRICES = Prices(prompt=Decimal(1_000), answer=Decimal(2_000), asset=BASE_SEPOLIA_USDC)
# `<user>Hello<assistant>`: a token of the talker is a byte.
PROMPT_TOKENS = 22
SAYS = b"Good day."
ANSWER_TOKENS = len(SAYS) + 1
TOKENS_MAX = 100
MOST_ATOMIC = PROMPT_TOKENS * PROMPT_ATOMIC + TOKENS_MAX * ANSWER_ATOMIC
COST_ATOMIC = PROMPT_TOKENS * PROMPT_ATOMIC + ANSWER_TOKENS * ANSWER_ATOMIC
LEAST_ATOMIC = 10_000
CHAT: dict[str, Any] = {
    "model": MODEL,
    "messages": [{"role": "user", "content": "Hello"}],
    "max_tokens": TOKENS_MAX,
}


@dataclass
class Selling:
    """What a worker that sells has; `door` opens it anew on the same books, as a start of the worker does."""

    chain: DevChain
    payer: DevAccount
    seller: DevAccount
    facilitator: ScriptedFacilitator
    database: Path
    talker: Talker = field(default_factory=lambda: Talker(says=SAYS))
    clock_s: int = field(default_factory=lambda: int(time.time()))
    opened: list[Cashier] = field(default_factory=list)

    def cashier(self) -> Cashier:
        cashier = open_cashier(
            asset=BASE_SEPOLIA_USDC,
            database=self.database,
            facilitator_url=FACILITATOR,
            rpc_url=self.chain.url,
            keys=[self.seller.key],
            facilitator_http=self.facilitator.client(),
            now_s=lambda: self.clock_s,
        )
        self.opened.append(cashier)
        return cashier

    def service(self, cashier: Cashier, **fields: Any) -> Service:
        billing = Billing(cashier.credit, PRICES, lambda: self.clock_s)
        admission = Admission(is_priced=True, keys=Keys(cashier.credit), **fields.pop("admission", {}))
        turns = Turns(fields.pop("slots", 4), fields.pop("queue_max", 4), 10.0)
        return service_of(self.talker, billing=billing, admission=admission, turns=turns, **fields)

    def door(self, admit: Admit | None = None, **fields: Any) -> PaidDoor:
        cashier = self.cashier()
        service = self.service(cashier, **fields)
        assert service.billing is not None
        return PaidDoor(service, service.billing, cashier, self.seller.address, LEAST_ATOMIC, admit)

    @asynccontextmanager
    async def selling(self, door: PaidDoor | None = None) -> AsyncIterator[httpx.AsyncClient]:
        """Serve a paid door; yields a client of its address."""
        door = door or self.door()
        async with (
            served(door.service, door) as url,
            httpx.AsyncClient(base_url=url, timeout=60, headers={"content-type": "application/json"}) as client,
        ):
            yield client

    def sign(self, asked: PaymentRequirements, signer: DevAccount | None = None, **changes: Any) -> PaymentPayload:
        """Return a payment of what was asked; `changes` are to its authorization."""
        payer = signer or self.payer
        told = {
            "from_": payer.address,
            "to": asked.pay_to,
            "value": asked.amount,
            "valid_after": "0",
            "valid_before": str(int(time.time()) + 300),
            "nonce": "0x" + secrets.token_hex(32),
        }
        authorization = Authorization(**{**told, **changes})
        document = typed_data(authorization, BASE_SEPOLIA_USDC)
        signature = Account.from_key(payer.key).sign_typed_data(full_message=document).signature.to_0x_hex()
        return PaymentPayload(accepted=asked, payload=ExactPayload(signature=signature, authorization=authorization))

    async def headers(self, client: httpx.AsyncClient, path: str, body: Any, **more: Any) -> dict[str, str]:
        """Return the header that pays for a request."""
        reply = await client.post(path, json=body)
        assert reply.status_code == 402, reply.text
        return {"payment-signature": encode_header(self.sign(asked_in(reply), **more))}

    async def pay(self, client: httpx.AsyncClient, body: Any = CHAT, path: str = "/v1/chat/completions") -> Any:
        return await client.post(path, json=body, headers=await self.headers(client, path, body))

    async def pay_at(self, client: httpx.AsyncClient, body: Any) -> httpx.Response:
        """Pay without being asked: what a client does that knows the price."""
        asked = requirements_for(
            Amount(MOST_ATOMIC, BASE_SEPOLIA_USDC.address, BASE_SEPOLIA_USDC.network),
            self.seller.address,
            BASE_SEPOLIA_USDC,
        )
        headers = {"payment-signature": encode_header(self.sign(asked))}
        return await client.post("/v1/chat/completions", json=body, headers=headers)

    def earned(self) -> int:
        return self.chain.balance(self.seller.address)

    async def drain(self) -> None:
        """Take all that the seller has by a cheque of its own, which uses up none of its account nonces."""
        cashier = self.opened[-1]
        value = str(self.earned())
        asked = requirements_for(
            Amount(int(value), BASE_SEPOLIA_USDC.address, BASE_SEPOLIA_USDC.network),
            self.payer.address,
            BASE_SEPOLIA_USDC,
        )
        await cashier.desk.facilitator.settle(self.sign(asked, self.seller).document(), asked)
        assert self.earned() == 0

    @property
    def account(self) -> str:
        return self.payer.address.lower()

    async def give(self, door: PaidDoor, atomic: int, name: str | None = None) -> str:
        """Return a key whose account has so much credit."""
        key, book = "lv_" + secrets.token_urlsafe(32), door.billing.book
        name = name or self.account
        if atomic:
            deposit = Deposit(payment_id=f"gift:{secrets.token_hex(4)}", account=name, amount_atomic=atomic)
            await book.deposit(deposit, self.clock_s)
        else:
            await book.open_account(CreditAccount(name=name))
        digest = hashlib.sha256(key.encode()).hexdigest()
        assert digest == digest_of(key)
        await book.add_key(Key(id=f"key_{secrets.token_hex(4)}", sha256=digest, account=name, made_s=1))
        return key


def asked_in(reply: httpx.Response) -> PaymentRequirements:
    return decode_header(PaymentRequired, reply.headers[PAYMENT_REQUIRED]).accepts[0]


def error_of(reply: httpx.Response) -> dict[str, Any]:
    error: dict[str, Any] = reply.json()["error"]
    return error


async def until(look: Callable[[], Awaitable[Any]], holds: Callable[[Any], bool]) -> Any:
    """Return what `look` finds once `holds` does of it."""
    async with asyncio.timeout(20):
        while True:
            if holds(found := await look()):
                return found
            await asyncio.sleep(0)
