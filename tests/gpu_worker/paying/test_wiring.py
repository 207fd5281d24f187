"""What the owner's settings make of the paid door, without a model: prices, keys, who is asked to pay."""

from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pytest

from chain.devchain import DevChain
from gpu_worker.config import WorkerSettings
from gpu_worker.edges.http.http_door import HttpDoor
from gpu_worker.ports import Worker
from gpu_worker.wiring.worker import open_worker
from wire.x402 import Authorization, ExactPayload, PaymentPayload, PaymentRequired, decode_header, encode_header

KEY = "0x" + "42" * 32
UPSTREAM = {"model": "acme/big", "engine": "openai", "upstream_url": "http://127.0.0.1:9"}
PRICED = {**UPSTREAM, "price_in": Decimal("0.5"), "price_out": Decimal("1.5")}
CHAT = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 5}


@contextmanager
def worker_of(folder: Path, **told: Any) -> Iterator[Worker]:
    yield open_worker(WorkerSettings(data=folder, port=0, capability_port=0, **told))


async def ask(worker: Worker, method: str, path: str, body: Any = None, **headers: str) -> httpx.Response:
    assert isinstance(worker.door, HttpDoor)
    transport = httpx.ASGITransport(worker.door.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
        return await client.request(method, path, json=body, headers=headers)


async def test_a_priced_worker_tells_its_prices_and_sells_credit(tmp_path: Path) -> None:
    with worker_of(tmp_path, private_key=KEY, **PRICED) as worker:
        listed = await ask(worker, "GET", "/v1/models")
        asked = await ask(worker, "POST", "/v1/credits", {"amount": 1})
        chat = await ask(worker, "POST", "/v1/chat/completions", CHAT)
        await worker.close()

    assert listed.json()["data"][0]["pricing"]["completion_per_million"] == 1.5
    assert (asked.status_code, asked.json()["accepts"][0]["maxAmountRequired"]) == (402, "1000000")
    assert asked.json()["accepts"][0]["payTo"] == worker.vendor.pay_to
    # Nothing is loaded: nothing is asked for it.
    assert (chat.status_code, chat.json()["error"]["code"]) == (503, "server_not_ready")


async def test_without_a_key_of_its_own_a_worker_takes_keys_and_no_payments(tmp_path: Path) -> None:
    with worker_of(tmp_path, **PRICED) as worker:
        credits = await ask(worker, "POST", "/v1/credits", {"amount": 1})
        wrong = await ask(worker, "GET", "/v1/models", authorization="Bearer lv_none")
        await worker.close()

    assert credits.status_code == 404
    assert (wrong.status_code, wrong.json()["error"]["code"]) == (401, "invalid_api_key")


@pytest.mark.parametrize("prices", [{}, {"price_in": Decimal(0), "price_out": Decimal(0)}])
async def test_what_costs_nothing_is_not_sold(tmp_path: Path, prices: dict[str, Decimal]) -> None:
    with worker_of(tmp_path, private_key=KEY, **UPSTREAM, **prices) as worker:
        listed = await ask(worker, "GET", "/v1/models")
        credits = await ask(worker, "POST", "/v1/credits", {"amount": 1})
        await worker.close()

    assert (listed.status_code, "pricing" in listed.json()["data"][0]) == (200, False)
    assert credits.status_code == 404


async def test_the_owners_list_of_buyers_holds_for_answers_as_well(tmp_path: Path, chain: DevChain) -> None:
    # No facilitator is there: who is not named is not even asked about.
    told = {"requesters": "0x" + "11" * 20, "rpc_url": chain.url, "facilitator_url": "http://127.0.0.1:9"}
    with worker_of(tmp_path, private_key=KEY, **told, **PRICED) as worker:
        credits = await ask(worker, "POST", "/v1/credits", {"amount": 1})
        offer = decode_header(PaymentRequired, credits.headers["payment-required"]).accepts[0]
        stranger = Authorization(
            from_="0x" + "22" * 20,
            to=offer.pay_to,
            value=offer.amount,
            valid_after="0",
            valid_before="9999999999",
            nonce="0x" + "33" * 32,
        )
        payment = PaymentPayload(
            accepted=offer, payload=ExactPayload(signature="0x" + "44" * 65, authorization=stranger)
        )
        refused = await ask(
            worker, "POST", "/v1/credits", {"amount": 1}, **{"payment-signature": encode_header(payment)}
        )
        await worker.close()

    assert (refused.status_code, refused.json()["code"]) == (402, "payment_invalid")
    assert "those whom its owner names" in refused.json()["detail"]
