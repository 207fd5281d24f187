"""Buyers that others wrote, unmodified and as processes, against the mock vendors over real sockets."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import httpx
import pytest
from mpp import Receipt

from chain.devchain import DevAccount, DevChain
from tests.fixtures.chain import serving
from tests.foreign.buying import (
    HEADERS,
    HERE,
    PRICE,
    SECRET,
    legacy_x402_fetch,
    node_program,
    order,
    pay,
    pympp,
    x402_fetch,
)
from vendor_mock.app import create_app
from vendor_mock.config import VendorMockSettings
from wire.vendor import SubmitReply
from wire.x402 import SettleResponse, decode_header
from wire.x402_v1 import SettleResponseV1

pytestmark = pytest.mark.slow


@pytest.fixture
def vendor_url(chain: DevChain, facilitator_url: str, tmp_path: Path) -> Iterator[str]:
    settings = VendorMockSettings(
        secret=SECRET, rpc_url=chain.url, facilitator_url=facilitator_url, database=tmp_path / "vendor.db"
    )
    with serving(create_app(settings)) as url:
        yield url


def _v2(text: str) -> str:
    return decode_header(SettleResponse, text).transaction


def _v1(text: str) -> str:
    return decode_header(SettleResponseV1, text).transaction


def _receipt(text: str) -> str:
    return Receipt.from_payment_receipt(text).reference


@pytest.mark.row(15)
@pytest.mark.parametrize(
    ("program", "header", "transaction_in"),
    [
        (x402_fetch, "payment-response", _v2),
        (legacy_x402_fetch, "x-payment-response", _v1),
        (pympp, "payment-receipt", _receipt),
    ],
    ids=["x402 v2", "x402 v1", "mpp"],
)
async def test_a_foreign_client_pays_the_mock_vendor_and_gets_its_job(
    chain: DevChain,
    payer: DevAccount,
    vendor_url: str,
    program: Callable[[], tuple[str, ...]],
    header: str,
    transaction_in: Callable[[str], str],
) -> None:
    before = chain.balance(payer.address)

    answer = await pay(program(), payer, f"{vendor_url}/submit-job", await order(vendor_url), HEADERS)

    assert answer["status"] == 200, answer
    reply = SubmitReply.from_json(answer["body"])
    transaction = transaction_in(answer["headers"][header])
    assert reply.payment_tx_id == transaction
    assert chain.rpc("eth_getTransactionReceipt", transaction)["status"] == "0x1"
    assert before - chain.balance(payer.address) == PRICE


async def test_a_foreign_client_without_the_vendors_secret_pays_nothing(
    chain: DevChain, payer: DevAccount, vendor_url: str
) -> None:
    before = chain.balance(payer.address)
    bare = {"content-type": "application/json"}
    answer = await pay(x402_fetch(), payer, f"{vendor_url}/submit-job", await order(vendor_url), bare)
    assert answer["status"] == 401
    assert chain.balance(payer.address) == before


@pytest.fixture
async def npm_facilitator_url(chain: DevChain, facilitator_account: DevAccount) -> AsyncIterator[str]:
    process = await asyncio.create_subprocess_exec(
        *node_program(HERE / "facilitator.mjs", "@x402/core"),
        env={"PATH": os.environ["PATH"], "FACILITATOR_KEY": facilitator_account.key, "RPC_URL": chain.url},
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    yield f"http://127.0.0.1:{int(await asyncio.wait_for(process.stdout.readline(), 60))}"
    process.kill()
    await process.wait()


@pytest.mark.row(15)
async def test_npms_facilitator_settles_for_us_whatever_the_client_speaks(
    chain: DevChain, payer: DevAccount, npm_facilitator_url: str, tmp_path: Path
) -> None:
    settings = VendorMockSettings(
        secret=SECRET, rpc_url=chain.url, facilitator_url=npm_facilitator_url, database=tmp_path / "vendor.db"
    )
    before = chain.balance(payer.address)
    with serving(create_app(settings)) as vendor_url:
        for program in (x402_fetch, legacy_x402_fetch):
            answer = await pay(program(), payer, f"{vendor_url}/submit-job", await order(vendor_url), HEADERS)
            assert answer["status"] == 200, answer
    assert before - chain.balance(payer.address) == 2 * PRICE
    async with httpx.AsyncClient() as client:
        assert (await client.get(f"{npm_facilitator_url}/asked")).json() == ["verify", "settle"] * 2
