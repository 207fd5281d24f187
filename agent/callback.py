"""
A vendor calls back: the run is ticked at once, and the tick asks the vendor how its job stands.

The call says when to look, never what is there: its body is not read beyond its signature. So a call that comes twice,
late or in another order does no harm, and one that comes never is made good by the next tick.
"""

from collections.abc import Mapping

from agent.core.errors import BadSignature, RunFinished
from agent.ports import Agent
from agent.tick import Ticked, tick

_REQUIRED = ("webhook-id", "webhook-timestamp", "webhook-signature")


async def called_back(
    agent: Agent, run_id: str, vendor_id: str | None, headers: Mapping[str, str], body: bytes
) -> Ticked | None:
    """
    Tick the run, if one of its vendors signed the call; None where the run has ended before.

    Args:
        vendor_id: who says to be calling; None leaves it to the signature.
        headers: names in lower case.

    Raises:
        BadSignature: none, a wrong one, an old one, or one of a vendor that the run buys nothing of.
        UnknownRun: there is no such run.
        RunBusy: a tick is at it, which may have asked the vendor before there was news: call again.
        and what `tick` raises besides: the vendor calls again, and the next tick takes up where this one stopped.
    """
    if any(name not in headers for name in _REQUIRED):
        raise BadSignature(f"a call is signed in {', '.join(_REQUIRED)}")
    run = await agent.store.read_run(run_id)
    sellers = {job.vendor_id for job in run.jobs if vendor_id in (None, job.vendor_id)}
    callbacks = agent.callbacks
    if callbacks is None or not any(callbacks.is_signed(seller, headers, body) for seller in sorted(sellers)):
        raise BadSignature("no vendor of the run signed this in the last five minutes")
    try:
        return await tick(agent, run_id)
    except RunFinished:
        return None
