"""A client that others wrote, in another language, unmodified, against the mock vendors over real sockets."""

import asyncio
import json
import shutil
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from chain.devchain import DevAccount, DevChain
from outbound.http import HttpClient
from tests.fixtures.chain import serving
from vendor_mock.app import create_app
from vendor_mock.config import VendorMockSettings
from wire import decimal_json
from wire.vendor import Quote, QuoteRequest, SubmitReply, SubmitRequest
from wire.x402 import SettleResponse, decode_header

HERE = Path(__file__).parent
SECRET = "a secret of tests"
# Half an hour at 1.4: below the dollar that @x402/fetch pays without being told to.
PRICE = 700_000

pytestmark = pytest.mark.slow


@pytest.fixture
def vendor_url(chain: DevChain, facilitator_url: str, tmp_path: Path) -> Iterator[str]:
    settings = VendorMockSettings(
        secret=SECRET, rpc_url=chain.url, facilitator_url=facilitator_url, database=tmp_path / "vendor.db"
    )
    with serving(create_app(settings)) as url:
        yield url


async def quote(vendor_url: str) -> str:
    """Return the template id of a quote of PRICE."""
    asked = QuoteRequest(job_type="fine_tune", gpu_type="A10", max_hours=Decimal("0.5"))
    reply = await HttpClient().request(
        "POST",
        f"{vendor_url}/quote",
        headers={"authorization": f"Bearer {SECRET}", "content-type": "application/json"},
        content=asked.to_json(),
        timeout_s=10,
        body_bytes_max=10_000,
    )
    return Quote.from_json(reply.content).vendor_job_template_id


async def pay(payer: DevAccount, url: str, body: bytes, headers: dict[str, str]) -> dict[str, Any]:
    """Return what pay.mjs printed."""
    node = shutil.which("node")
    assert node, "the foreign clients need Node 20 or newer: install it"
    assert (HERE / "node_modules" / "@x402" / "fetch").is_dir(), "run `npm ci` in tests/foreign"
    program = await asyncio.create_subprocess_exec(
        *(node, str(HERE / "pay.mjs"), url, "POST", body.decode(), json.dumps(headers)),
        env={"PAYER_KEY": payer.key},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    printed, complaints = await asyncio.wait_for(program.communicate(), 60)
    assert program.returncode == 0, complaints.decode()
    answer: dict[str, Any] = decimal_json.loads(printed)
    return answer


async def test_x402_fetch_pays_the_mock_vendor_and_gets_its_job(
    chain: DevChain, payer: DevAccount, vendor_url: str
) -> None:
    before = chain.balance(payer.address)
    body = SubmitRequest(vendor_job_template_id=await quote(vendor_url)).to_json()
    headers = {"authorization": f"Bearer {SECRET}", "content-type": "application/json"}
    answer = await pay(payer, f"{vendor_url}/submit-job", body, headers)
    assert answer["status"] == 200, answer
    reply = SubmitReply.from_json(answer["body"])
    settled = decode_header(SettleResponse, answer["headers"]["payment-response"])
    assert settled.success
    assert reply.payment_tx_id == settled.transaction
    assert chain.rpc("eth_getTransactionReceipt", settled.transaction)["status"] == "0x1"
    assert before - chain.balance(payer.address) == PRICE


async def test_x402_fetch_without_the_vendors_secret_pays_nothing(
    chain: DevChain, payer: DevAccount, vendor_url: str
) -> None:
    before = chain.balance(payer.address)
    body = SubmitRequest(vendor_job_template_id=await quote(vendor_url)).to_json()
    answer = await pay(payer, f"{vendor_url}/submit-job", body, {"content-type": "application/json"})
    assert answer["status"] == 401
    assert chain.balance(payer.address) == before
