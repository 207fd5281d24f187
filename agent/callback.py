"""
A vendor calls back: the run is ticked at once, and the tick asks the vendor how its job stands.

The call says when to look, never what is there: its body is not read beyond its signature. So a call that comes twice,
late or in another order does no harm, and one that comes never is made good by the next tick.
"""

from collections.abc import Mapping
from datetime import datetime, timedelta

from agent.core.decide import active_jobs, open_artifacts
from agent.core.errors import BadSignature, RunBusy, RunFinished
from agent.core.model import Run
from agent.ports import Agent, Limits
from agent.tick import Ticked, tick

# From the claim of one tick to a call that makes the next: a vendor that calls without end is polled as often.
PAUSE_S = 1

_REQUIRED = ("webhook-id", "webhook-timestamp", "webhook-signature")


async def called_back(
    agent: Agent, run_id: str, vendor_id: str | None, headers: Mapping[str, str], body: bytes
) -> Ticked | None:
    """
    Tick the run, if one of its vendors signed the call; None where that vendor can have no news of it any more.

    Args:
        vendor_id: who says to be calling; None leaves it to the signature.
        headers: names in lower case.

    Raises:
        BadSignature: none, a wrong one, an old one, or one of a vendor that the run buys nothing of.
        UnknownRun: there is no such run.
        RunBusy: a tick is at it, or was a moment ago, and may have asked before there was news: call again.
        and what `tick` raises besides: the vendor calls again, and the next tick takes up where this one stopped.
    """
    if any(name not in headers for name in _REQUIRED):
        raise BadSignature(f"a call is signed in {', '.join(_REQUIRED)}")
    run = await agent.store.read_run(run_id)
    sellers = {job.vendor_id for job in run.jobs if vendor_id in (None, job.vendor_id)}
    callbacks = agent.callbacks
    signers = {seller for seller in sellers if callbacks is not None and callbacks.is_signed(seller, headers, body)}
    if not signers:
        raise BadSignature("no vendor of the run signed this in the last five minutes")
    now = await agent.store.now()
    if not signers & _awaited(run, agent.limits, now):
        return None
    # A tick sets this to the time of its claim. What is refused here is asked for by the next tick at the latest.
    if now < run.updated_at + timedelta(seconds=PAUSE_S):
        raise RunBusy(PAUSE_S)
    try:
        return await tick(agent, run_id)
    except RunFinished:
        return None


def _awaited(run: Run, limits: Limits, now: datetime) -> set[str]:
    """Return the vendors that the run still awaits something of: a job's end, its files, a refund on its way."""
    patience = timedelta(seconds=limits.refund_wait_s)
    jobs = (*active_jobs(run), *open_artifacts(run))
    refunded = (
        paid
        for paid in run.payments
        if paid.refund and paid.status == "completed" and now < paid.refund.announced_at + patience
    )
    return {job.vendor_id for job in jobs} | {paid.vendor_id for paid in refunded}
