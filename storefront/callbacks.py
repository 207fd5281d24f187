"""
Calling buyers back when their jobs have ended: signed, again while they do not accept it, given up after a while.

What is still to be called stands with the job, so a vendor that is started again goes on. How a call is signed and
what a buyer makes of it is in `docs/vendor-api.md`.
"""

import asyncio
import logging
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime

from outbound.http import HttpClient, OutboundError
from outbound.webhooks import signed_headers
from storefront.model import TERMINAL, Vendor, is_owed
from storefront.ports import JobT
from storefront.shop import Shop
from wire import decimal_json
from wire.vendor import VENDOR_ID_HEADER

LOOK_S = 0.25
CALL_S = 30.0
ANSWER_BYTES_MAX = 64 * 1024
# What is waited after each call that was not accepted; then it is given up.
RETRIES_S = (1, 2, 4, 8, 16, 32)

logger = logging.getLogger("livery.storefront")


async def call_back(
    shop: Shop[JobT], http: HttpClient, *, look_s: float = LOOK_S, retries_s: Sequence[float] = RETRIES_S
) -> None:
    """
    Call the buyers that want it when their jobs have ended and what they owe is paid back; it goes on for ever.

    While no buyer waits for a call nothing is read: the book wakes it. A job that runs is looked at each `look_s`.
    """
    calling: dict[str, asyncio.Task[None]] = {}
    with shop.store.listen() as rung:
        async with asyncio.TaskGroup() as group:
            while True:
                rung.clear()
                is_one_running = False
                for job in await shop.store.to_call_back():
                    vendor = shop.vendors.get(job.vendor_id)
                    if vendor is None or job.job_id in calling:
                        continue
                    job = await _watched(shop, vendor, job)
                    is_one_running |= job.status not in TERMINAL
                    # What is owed comes first: the book rings again when it is paid.
                    if job.status in TERMINAL and not is_owed(job):
                        calling[job.job_id] = group.create_task(_call(shop, http, vendor, job, retries_s))
                with suppress(TimeoutError):
                    async with asyncio.timeout(look_s if is_one_running else None):
                        await rung.wait()


async def _watched(shop: Shop[JobT], vendor: Vendor, job: JobT) -> JobT:
    try:
        return await shop.watch(vendor, job.job_id)
    except Exception:
        # A refund that the chain does not take now: the job is looked at again.
        logger.warning("the job %s cannot be moved now", job.job_id, exc_info=True)
        return job


async def _call(shop: Shop[JobT], http: HttpClient, vendor: Vendor, job: JobT, retries_s: Sequence[float]) -> None:
    assert job.callback_url is not None
    body = decimal_json.dumps(
        {
            "type": f"job.{job.status}",
            "timestamp": datetime.now(UTC).isoformat().replace("+00:00", "Z"),
            "data": {"vendorJobId": job.job_id, "status": job.status},
        }
    )
    for wait_s in (*retries_s, 0):
        if await _is_accepted(http, vendor, job.callback_url, f"msg_{job.job_id}", body):
            break
        await asyncio.sleep(wait_s)
    else:
        logger.warning("the buyer of %s cannot be called, given up", job.job_id)
    await shop.store.update_job(job.job_id, lambda stored: replace(stored, is_callback_done=True))


async def _is_accepted(http: HttpClient, vendor: Vendor, url: str, message_id: str, body: bytes) -> bool:
    headers = signed_headers([vendor.secret.get_secret_value()], message_id, int(time.time()), body)
    try:
        reply = await http.request(
            "POST",
            url,
            headers={**headers, VENDOR_ID_HEADER: vendor.vendor_id},
            content=body,
            timeout_s=CALL_S,
            body_bytes_max=ANSWER_BYTES_MAX,
        )
    except OutboundError as error:
        logger.info("no answer to a callback: %s", error)
        return False
    # 404, 410: there is no such run there; calling again does not make one.
    return 200 <= reply.status < 300 or reply.status in (404, 410)
