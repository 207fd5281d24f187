"""
Orphans: jobs that a vendor works on, and bills, while no run of ours wants them. They are found in the vendor's own
list and cancelled; how long each went on is told.

Which job is an orphan? The vendor's list is read first and our store after it, so that what bought a listed job is
stored by then: a payment is stored before its job can exist. Of a listed job and the payment id that bought it:

    the id names no run of this store          not ours to judge: another control plane may share the secret. Told, kept
    its run has no such payment                an orphan: the books were lost, or the vendor made it up
    the payment was made to another vendor     an orphan: nobody bought it here
    its job, or its run, has ended             an orphan, once that is `orphan_grace_s` ago: vendors need a moment too
    its job is another one in the same list    an orphan: the vendor began two jobs for one payment
    anything else                              wanted, or being bought right now

What has ended stays ended, so no lease is needed and no race is lost: a job that is an orphan once is one for ever.
"""

import asyncio
import hashlib
import logging
import re
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from agent.core.decide import ended_at
from agent.core.errors import NoVendorSecret, UnknownRun, VendorDenied, VendorError, VendorUnreachable, is_bug
from agent.core.model import Run, Vendor
from agent.core.states import JOB_ENDS, RUN_ENDS
from agent.ports import Agent, Claim
from wire.vendor import JobFound

# The most that is cancelled at one vendor in one round, and the most that it is asked to; the rest waits for the next.
CANCELS_MAX = 50
ASKS_MAX = 500
VENDORS_AT_ONCE = 4
# What says nothing of the one job that was asked for: the next would get the same answer.
_ABOUT_ALL = (VendorUnreachable, VendorDenied, NoVendorSecret)

_PAYMENT_ID = re.compile(r"(.+)-payment-[0-9]+", re.DOTALL)

logger = logging.getLogger("livery.orphans")


@dataclass(frozen=True, slots=True, kw_only=True)
class Orphan:
    """A job that was cancelled, why, and how long it went on after its intent's end, by the vendor's books."""

    vendor_id: str
    vendor_job_id: str
    run_id: str
    why: str
    orphan_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Orphans:
    """
    What one round found. `unknown`: jobs of runs that this store does not know; `left`: orphans that go on; `bugs`: a
    line for each error of ours.
    """

    cancelled: tuple[Orphan, ...] = ()
    unknown: int = 0
    left: int = 0
    bugs: tuple[str, ...] = ()

    def __add__(self, other: "Orphans") -> "Orphans":
        return Orphans(
            cancelled=self.cancelled + other.cancelled,
            unknown=self.unknown + other.unknown,
            left=self.left + other.left,
            bugs=self.bugs + other.bugs,
        )


async def cancel_orphans(agent: Agent, seconds_left: float | None = None) -> Orphans:
    """
    Ask every vendor for its jobs and cancel those that nobody wants; one vendor's trouble does not stop the others, and
    what was done is told whatever came after it.

    Args:
        seconds_left: how long this may take; None is as long as it does.

    Raises:
        StoreUnavailable: nobody can say which vendors there are.
    """
    vendors = await agent.store.list_vendors()
    room = asyncio.Semaphore(VENDORS_AT_ONCE)
    found: list[Orphans] = []

    async def one(vendor: Vendor) -> None:
        elsewhere = frozenset(other.vendor_id for other in vendors if _door(other) != _door(vendor))
        try:
            async with room:
                async for more in _cancel_at(agent, vendor, elsewhere):
                    found.append(more)
        except Exception as error:
            if is_bug(error):
                logger.exception("a bug in the search for orphans", extra={"vendor": vendor.vendor_id})
                found.append(Orphans(bugs=(f"orphans at {vendor.vendor_id}: {error!r}",)))
            else:
                logger.warning("orphans not looked for", extra={"vendor": vendor.vendor_id, "detail": str(error)})

    try:
        async with asyncio.timeout(seconds_left), asyncio.TaskGroup() as group:
            for vendor in vendors:
                group.create_task(one(vendor))
    except TimeoutError:
        logger.warning("orphans were not all looked for: out of time")
    return sum(found, Orphans())


def _door(vendor: Vendor) -> str:
    return vendor.endpoint.rstrip("/")


def _lot(now: datetime, job: JobFound) -> bytes:
    return hashlib.sha256(f"{now.timestamp()}:{job.vendor_job_id}".encode("utf-8", "replace")).digest()


async def _cancel_at(agent: Agent, vendor: Vendor, elsewhere: frozenset[str]) -> AsyncGenerator[Orphans, None]:
    """Yield what is found at `vendor`, to be added up: all that goes on first, then each that was ended."""
    now = await agent.store.now()
    try:
        listed = await agent.vendors.live_jobs(vendor)
    except VendorError as error:
        # It is away, or keeps no list: asked again in the next round, not before.
        logger.info("no list of jobs", extra={"vendor": vendor.vendor_id, "why": str(error)})
        return
    found, unknown = await _judged(agent, vendor.vendor_id, listed, elsewhere, now)
    if unknown:
        logger.warning("jobs of no run that is known here", extra={"vendor": vendor.vendor_id, "count": unknown})
    yield Orphans(unknown=unknown, left=len(found))
    # In another order each time: those that are refused for ever do not keep the others from their turn.
    found.sort(key=lambda one: _lot(now, one[0]))
    cancelled = 0
    for job, run, why, since in found[:ASKS_MAX]:
        if cancelled == CANCELS_MAX:
            return
        try:
            status = await agent.vendors.cancel(vendor, job.vendor_job_id, None)
        except VendorError as error:
            logger.warning("an orphan goes on", extra=_told(vendor, job, run, why) | {"detail": str(error)})
            if isinstance(error, _ABOUT_ALL):
                return
            continue
        if status.vendor_job_id != job.vendor_job_id or status.status not in JOB_ENDS:
            logger.warning("an orphan goes on", extra=_told(vendor, job, run, why) | {"detail": status.status})
            continue
        ended = status.ended_at or await agent.store.now()
        orphan_s = max(0.0, (ended - since).total_seconds())
        logger.warning("cancelled an orphan", extra=_told(vendor, job, run, why) | {"orphan_s": orphan_s})
        ended_one = Orphan(
            vendor_id=vendor.vendor_id,
            vendor_job_id=job.vendor_job_id,
            run_id=run.run_id,
            why=why,
            orphan_s=orphan_s,
        )
        cancelled += 1
        yield Orphans(cancelled=(ended_one,), left=-1)
        await _look_for_refund(agent, run, now)


async def _judged(
    agent: Agent, vendor_id: str, listed: Sequence[JobFound], elsewhere: frozenset[str], now: datetime
) -> tuple[list[tuple[JobFound, Run, str, datetime]], int]:
    """Return the orphans among the listed jobs, each with why and since when, and how many nobody here can judge."""
    runs: dict[str, Run | None] = {}
    found, unknown = [], 0
    listed_ids = frozenset(job.vendor_job_id for job in listed)
    for job in listed:
        named = _PAYMENT_ID.fullmatch(job.payment_id or "")
        run_id = "" if named is None else named[1]
        if run_id not in runs:
            runs[run_id] = await _read(agent, run_id)
        run = runs[run_id]
        if run is None:
            unknown += 1
        elif (end := unwanted_since(run, job, vendor_id, listed_ids, elsewhere, now)) is not None:
            why, since = end
            if now >= since + timedelta(seconds=agent.limits.orphan_grace_s):
                found.append((job, run, why, since))
    return found, unknown


async def _read(agent: Agent, run_id: str) -> Run | None:
    try:
        return await agent.store.read_run(run_id)
    except UnknownRun:
        return None


def unwanted_since(
    run: Run, job: JobFound, vendor_id: str, listed_ids: frozenset[str], elsewhere: frozenset[str], now: datetime
) -> tuple[str, datetime] | None:
    """
    Return why and since when `run` does not want a vendor's `job` that was bought in its name; None where it may.

    Args:
        run: read after the vendor said what it runs.
        vendor_id: who runs it.
        listed_ids: all that the vendor runs.
        elsewhere: the vendors that are reached at another address than this one. At the same there may be one seller
            under two names, who lists the job that we bought under both.
    """
    started = min(job.started_at or run.created_at, now)
    payment = next((payment for payment in run.payments if payment.payment_id == job.payment_id), None)
    if payment is None:
        return "no_payment", started
    ours = next(ours for ours in run.jobs if ours.job_id == payment.job_id)
    may_be_ours = payment.vendor_id not in elsewhere and ours.vendor_job_id in (None, job.vendor_job_id)
    if payment.vendor_id != vendor_id and not may_be_ours:
        return "other_vendor", started
    if ours.status in JOB_ENDS:
        return f"job_{ours.status}", ended_at(ours)
    if run.status in RUN_ENDS:
        return f"run_{run.status}", run.completed_at or run.updated_at
    if ours.vendor_job_id != job.vendor_job_id and ours.vendor_job_id in listed_ids:
        return "second_job", started
    return None


async def _look_for_refund(agent: Agent, run: Run, now: datetime) -> None:
    """Make an ended run due: its vendor may have given money back. A run that goes on is looked at anyway."""
    if run.status not in RUN_ENDS:
        return
    claim = await agent.store.claim(run.run_id, agent.limits.lease_s)
    if isinstance(claim, Claim):
        await agent.store.release(run.run_id, claim.token, now)


def _told(vendor: Vendor, job: JobFound, run: Run, why: str) -> dict[str, object]:
    return {"vendor": vendor.vendor_id, "vendor_job": job.vendor_job_id, "run": run.run_id, "why": why}
