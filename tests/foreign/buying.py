"""What the tests of foreign buyers share: a quote, and a program of somebody else's that pays it as a process."""

import asyncio
import json
import os
import shutil
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

from chain.devchain import DevAccount
from outbound.http import HttpClient
from wire import decimal_json
from wire.vendor import Quote, QuoteRequest, SubmitRequest

HERE = Path(__file__).parent
SECRET = "a secret of tests"
# Half an hour at 1.4: below the dollar that foreign clients pay without being told to.
PRICE = 700_000
HEADERS = {"authorization": f"Bearer {SECRET}", "content-type": "application/json"}


def node_program(script: Path, needs: str) -> tuple[str, ...]:
    """Return the command that runs `script`, whose folder has installed the package `needs`."""
    node = shutil.which("node")
    assert node, "the foreign programs need Node 20 or newer: install it"
    assert (script.parent / "node_modules" / needs).is_dir(), f"run `npm ci` in {script.parent}"
    return (node, str(script))


def x402_fetch() -> tuple[str, ...]:
    return node_program(HERE / "pay.mjs", "@x402/fetch")


def legacy_x402_fetch() -> tuple[str, ...]:
    return node_program(HERE.parent / "foreign_legacy" / "pay.mjs", "x402-fetch")


def pympp() -> tuple[str, ...]:
    return (sys.executable, str(HERE / "pay_mpp.py"))


async def order(vendor_url: str) -> bytes:
    """Return the body of a submission that costs PRICE."""
    asked = QuoteRequest(job_type="fine_tune", gpu_type="A10", max_hours=Decimal("0.5"))
    reply = await HttpClient().request(
        "POST", f"{vendor_url}/quote", headers=HEADERS, content=asked.to_json(), timeout_s=10, body_bytes_max=10_000
    )
    return SubmitRequest(vendor_job_template_id=Quote.from_json(reply.content).vendor_job_template_id).to_json()


async def pay(
    program: tuple[str, ...], payer: DevAccount, url: str, body: bytes, headers: dict[str, str]
) -> dict[str, Any]:
    """Return what the paying program printed: {status, headers, body}."""
    process = await asyncio.create_subprocess_exec(
        *(*program, url, "POST", body.decode(), json.dumps(headers)),
        env={"PATH": os.environ["PATH"], "PAYER_KEY": payer.key},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    printed, complaints = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0, complaints.decode()
    answer: dict[str, Any] = decimal_json.loads(printed)
    return answer
