"""
The agent pays a vendor that others wrote: `@x402/express` as a process, our facilitator settling, a whole run.

Its middleware settles after its handler ran and answers a repeat with a fresh 402; the chain decides all the same.
"""

import asyncio
import json
import shutil
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from agent.core.model import Vendor
from agent.wiring import open_agent
from chain.devchain import DevAccount, DevChain
from outbound.http import HttpClient
from tests.contracts.store_values import a_vendor
from tests.fixtures.world import Hosts, WatchedStore, World, agent_settings, balances

HERE = Path(__file__).parent

pytestmark = pytest.mark.slow


@pytest.fixture
def forgetful() -> bool:
    """Whether the vendor finds no job by its key. Override by a parameter."""
    return False


@pytest.fixture
async def vendor(seller: DevAccount, facilitator_url: str, forgetful: bool) -> AsyncIterator[Vendor]:
    node = shutil.which("node")
    assert node, "the foreign vendor needs Node 20 or newer: install it"
    assert (HERE / "node_modules" / "@x402" / "express").is_dir(), "run `npm ci` in tests/foreign"
    variables = {"PAY_TO": seller.address, "FACILITATOR_URL": facilitator_url, "SECRET": "first-secret"}
    program = await asyncio.create_subprocess_exec(
        *(node, str(HERE / "vendor.mjs")),
        env=variables | ({"FORGETFUL": "1"} if forgetful else {}),
        stdout=asyncio.subprocess.PIPE,
    )
    assert program.stdout is not None
    port = int(await asyncio.wait_for(program.stdout.readline(), 60))
    yield a_vendor(endpoint=f"http://127.0.0.1:{port}", pay_to=seller.address)
    program.kill()
    await program.wait()


@pytest.fixture
async def street(tmp_path: Path, chain: DevChain, payer: DevAccount, vendor: Vendor) -> AsyncIterator[World]:
    """A world of one vendor, whose answers can be lost on the way."""
    hosts = Hosts()
    agent = open_agent(agent_settings(f"sqlite:///{tmp_path}/agent.db", chain, payer), HttpClient(hosts))
    store = WatchedStore(agent.store)
    await store.put_vendor(vendor, replace=False)
    agent = replace(agent, store=store)
    yield World(agent, store, chain, payer, hosts, None, (vendor,), balances(chain, payer, (vendor,)))
    await store.close()


def heard(vendor: Vendor) -> Any:
    """Return the payments the vendor was sent, in order, and how many jobs it started."""
    return json.loads(httpx.get(f"{vendor.endpoint}/heard").content)


@pytest.mark.row(15)
async def test_the_agent_pays_x402_express_and_gets_its_job(street: World, vendor: Vendor) -> None:
    run_id = await street.start()
    run = await street.until_ended(run_id)
    (payment,) = run.payments
    assert (run.status, payment.status, payment.dialect) == ("completed", "completed", "x402-v2")
    assert heard(vendor) == {"heard": [payment.header], "jobs": 1}
    assert [artifact.name for artifact in run.jobs[0].artifacts] == ["weights.bin"]
    statuses = [call.headers.get("payment-signature") for call in street.hosts.calls("/submit-job")]
    assert statuses == [None, payment.header]
    await street.check_books()


async def test_an_answer_that_is_lost_after_settling_costs_one_payment_and_one_job(
    street: World, vendor: Vendor
) -> None:
    street.hosts.lose_replies("/submit-job")
    run_id = await street.start()
    run = await street.until_ended(run_id)
    assert (run.status, len(run.payments)) == ("completed", 1)
    assert any(line.startswith("No final word yet") for line in await street.lines(run_id, "payment_event"))
    assert heard(vendor) == {"heard": [run.payments[0].header], "jobs": 1}
    await street.check_books()


@pytest.mark.parametrize("forgetful", [True])
async def test_a_repeat_that_is_asked_to_pay_again_does_not_pay_again(street: World, vendor: Vendor) -> None:
    street.hosts.lose_replies("/submit-job")
    run_id = await street.start()
    for _ in range(4):
        await street.tick(run_id)
    run = await street.agent.store.read_run(run_id)
    (payment,) = run.payments
    # Every repeat was the same bytes, and every answer to one a fresh 402.
    assert heard(vendor) == {"heard": [payment.header] * 4, "jobs": 1}
    assert "x402-v2: 402" in str(payment.error_message)
    assert payment.status == "completed"
    await street.check_books()
