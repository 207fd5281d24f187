"""
What a facilitator or a vendor does wrong, and how a run of ours is to end: one table, for the tests and the bench.

In every end the books are the chain's, no cheque was signed twice, nobody served unpaid, and what was open was known
soon after its time (`tests.fixtures.hostile`).
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from math import inf
from pathlib import Path
from random import Random
from typing import Any

from agent.core.model import Run
from agent.edges.vendor_http import SUBMIT_S
from cashier.edges.facilitator_http import SETTLE_TIMEOUT_S
from chain.devchain import DevChain, dev_account
from tests.fixtures.chain import PAYER_USDC
from tests.fixtures.hostile import SCALE, HostileWorld, hostile_world
from vendor_mock.catalogue import VendorPlan
from vendor_mock.config import FacilitatorFault
from vendor_mock.hostile import LATE_S

FIRST, SECOND = "gpu_vendor_1", "gpu_vendor_2"
PAYER, GAS = dev_account(1), dev_account(9)
SOMEBODY = "0x" + "ab" * 20

# Jobs that completed and failed by a vendor's fault, by vendor; who is not in it is not spoken of.
Standings = Mapping[str, tuple[int, int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """
    How a run ended. `payments` in their order, `settled` on the chain and `jobs` in the vendors' books.

    `error` is the code that its first failed job ended with, `files` whether every completed job left some.
    """

    status: str = "completed"
    reason: str | None = None
    payments: tuple[str, ...] = ("completed",)
    settled: int = 1
    jobs: int = 1
    error: str | None = None
    files: bool = True
    standings: Standings = field(default_factory=lambda: {FIRST: (1, 0)})


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """
    `fault` is the facilitator's, `faults` are the first vendor's. `honest_runs` go before, with nothing wrong.

    `waits` are the seconds that buyer and seller wait where that matters, `did` what must have happened for the case to
    say anything: the least and the most of what `_happened` counts.
    """

    name: str
    end: Ended
    fault: FacilitatorFault | None = None
    faults: Mapping[str, Any] = field(default_factory=dict)
    count: int = 1
    honest_runs: int = 0
    waits: Mapping[str, float] = field(default_factory=dict)
    epoch_seconds: int | None = None
    poll_s: int = 60
    hours: Decimal | None = None
    did: Mapping[str, tuple[float, float]] = field(default_factory=dict)


# As patient as in earnest, on the scale of what is late.
TIMED = {"submit_s": SUBMIT_S / SCALE, "settle_s": SETTLE_TIMEOUT_S / SCALE}
# What is left of the buyer's patience when a settlement was that late is for our own machine, and not scaled.
JUST_LONG_ENOUGH = {**TIMED, "submit_s": LATE_S / SCALE + SUBMIT_S - LATE_S}
NEVER, ONCE, OFTEN = (0, 0), (1, 1), (1, inf)
LATE = (LATE_S, inf)
# Whatever the facilitator did: the money moved once, the work was done, and nobody is to blame.
SERVED = Ended()
# Nothing moved: three vendors in turn, all behind the one facilitator. None of it is held against them.
NEVER_PAID = Ended(
    status="failed",
    reason="no_vendor_left",
    payments=("failed",) * 3,
    settled=0,
    jobs=0,
    error="payment_refused",
    standings={},
)
# The first vendor's cheque lapsed, the second one served.
LAPSED = Ended(payments=("failed", "completed"), error="terms_changed", standings={FIRST: (0, 1), SECOND: (1, 0)})
# The first vendor took the money and had no job for it.
NOT_SERVED: dict[str, Any] = {"error": "paid_not_served"}
CHANGED = {"honest_asks": 1}

CASES = (
    Case(
        name="settles, then times out", fault="settle_then_hang", end=SERVED, waits=TIMED, did={"buyer gave up": OFTEN}
    ),
    Case(name="settles, then answers 502", fault="settle_then_502", end=SERVED),
    Case(name="two more 402s in a row", fault="refuse_twice", end=SERVED, did={"/submit-job": (4, inf)}),
    Case(
        name=f"settles 28 s late (1:{SCALE})",
        fault="settle_late",
        end=SERVED,
        waits=JUST_LONG_ENOUGH,
        did={"late by s": LATE, "buyer gave up": NEVER},
    ),
    Case(
        name=f"28 s late, the buyer waits 10 (1:{SCALE})",
        fault="settle_late",
        end=SERVED,
        waits={**TIMED, "submit_s": 10 / SCALE},
        did={"late by s": LATE, "buyer gave up": OFTEN},
    ),
    Case(name="never settles", fault="never_settle", end=NEVER_PAID),
    Case(name="settles, names a wrong transaction", fault="wrong_hash", end=SERVED),
    Case(name="settles nothing, names a transaction", fault="made_up_hash", end=NEVER_PAID),
    Case(
        name="settles nothing, shows another's receipt",
        fault="replayed_receipt",
        honest_runs=1,
        end=Ended(
            status="failed",
            reason="no_vendor_left",
            payments=("failed",) * 3,
            settled=0,
            jobs=0,
            error="payment_refused",
            standings={FIRST: (1, 0)},
        ),
    ),
    Case(name="price changed between two 402s", faults={**CHANGED, "price_factor": Decimal(2)}, end=LAPSED),
    Case(name="payTo changed between two 402s", faults={**CHANGED, "pay_to": SOMEBODY}, end=LAPSED),
    Case(name="asset changed between two 402s", faults={**CHANGED, "asset": SOMEBODY}, end=LAPSED),
    Case(
        name="job created, the answer lost",
        faults={"timeouts_after_settling": 1},
        end=SERVED,
        waits=TIMED,
        did={"timeouts": ONCE, "buyer gave up": OFTEN},
    ),
    Case(
        name="a job id sold twice in a run",
        faults={"reuse_job_ids": True},
        count=2,
        end=Ended(
            payments=("completed",) * 3,
            settled=3,
            jobs=2,
            standings={FIRST: (1, 1), SECOND: (1, 0)},
            **NOT_SERVED,
        ),
    ),
    Case(
        name="a job id sold in two runs",
        faults={"reuse_job_ids": True},
        honest_runs=1,
        end=Ended(
            payments=("completed",) * 2,
            settled=2,
            jobs=1,
            standings={FIRST: (1, 1), SECOND: (1, 0)},
            **NOT_SERVED,
        ),
    ),
    Case(
        name="half of all status calls fail, for an hour",
        faults={"error_share": Decimal("0.5"), "routes": ("/job-status",)},
        epoch_seconds=1_200,
        poll_s=20,
        hours=Decimal(1),
        end=SERVED,
        did={"/job-status": (150, inf), "errors": (60, inf), "errors in 100 polls": (35, 65)},
    ),
    Case(name="completed without an artifact", faults={"no_artifacts": True}, end=Ended(files=False)),
    Case(
        name="a refund claimed and not sent",
        faults={"fail_at_epoch": 1, "false_refunds": True},
        end=Ended(
            payments=("completed",) * 2,
            settled=2,
            jobs=2,
            error="simulated failure",
            standings={FIRST: (0, 1), SECOND: (1, 0)},
        ),
    ),
)


def fresh(chain: DevChain) -> str:
    """Give the payer its money on `chain` and return what to go back to."""
    chain.set_clock()
    before = chain.snapshot()
    chain.mint(PAYER.address, PAYER_USDC)
    chain.mine(3)
    return before


@dataclass(frozen=True, slots=True)
class Trial:
    """How a case ended otherwise than it should, in words, and how many cheques paid a job again."""

    differences: tuple[str, ...]
    double_payments: int


async def try_case(case: Case, chain: DevChain, folder: Path, *, seed: int, is_honest: bool = False) -> Trial:
    """
    Return how `case` ended; prices, hours and draws are `seed`'s.

    Args:
        is_honest: nothing is done wrong, and nothing late. Then every case has to end otherwise than its table says.
    """
    chance = Random(f"{case.name} {seed}")
    plans = tuple(
        VendorPlan(
            vendor_id=f"gpu_vendor_{number}",
            name=f"vendor {number}",
            price_per_hour=Decimal(chance.randrange(50, 250)) / 100,
        )
        for number in (1, 2, 3)
    )
    hours = case.hours or Decimal(chance.randrange(25, 200)) / 100
    waits = {**case.waits, "late_s": 0.0} if is_honest else case.waits
    async with hostile_world(
        folder, chain, PAYER, GAS, plans=plans, epoch_seconds=case.epoch_seconds, poll_s=case.poll_s, **waits
    ) as world:
        for _ in range(case.honest_runs):
            await world.drive(await world.start("60", job={"maxHours": hours}))
        settled, sold, calls = len(world.settlements()), len(world.vendor_jobs()), len(world.hosts.seen)
        if not is_honest or case.fault == "settle_late":
            world.facilitator.fault = case.fault
        world.script(FIRST, seed=seed, **({} if is_honest else case.faults))
        run_id = await world.start("60", job={"maxHours": hours, "count": case.count})
        await world.drive(run_id)
        run = await world.watch(run_id)
        end = await _end(world, run, settled, sold)
        found = [
            f"{name}: {getattr(end, name)}, not {wanted}"
            for name, wanted in _fields(case.end)
            if getattr(end, name) != wanted
        ]
        happened = _happened(world, calls)
        expected = {"/submit-job": (2, inf), "facilitator's wrongs": NEVER if case.fault is None else OFTEN, **case.did}
        found += [
            f"{what}: {happened[what]:g}, not {least:g} to {most:g}"
            for what, (least, most) in expected.items()
            if not least <= happened[what] <= most
        ]
        if len(world.cheques()) != sum(len(run.payments) for run in await _runs(world)):
            found.append(f"{len(world.cheques())} cheques were signed")
        return Trial((*found, *await world.broken()), world.double_payments(await _runs(world)))


def _happened(world: HostileWorld, calls: int) -> Counter[str]:
    """Return how often each path was called after so many `calls`, and what was really done wrong."""
    happened = Counter(call.url.path for call in world.hosts.seen[calls:])
    done, polls = world.vendor_app.state.shop.faults.done, happened["/job-status"]
    return happened + Counter(
        {
            "errors": done[FIRST, "errors"],
            "errors in 100 polls": 100 * done[FIRST, "errors"] // max(1, polls),
            "timeouts": done[FIRST, "timeouts"],
            "facilitator's wrongs": world.facilitator.happened,
            "late by s": int(world.facilitator.slowest_s * SCALE),
            "buyer gave up": world.door.given_up["/submit-job"],
        }
    )


async def _end(world: HostileWorld, run: Run, settled: int, sold: int) -> Ended:
    errors = [str(job.error_message).partition(":")[0] for job in run.jobs if job.status != "completed"]
    standings = {
        vendor_id: (
            sum(round(one.completed) for one in known if one.vendor_id == vendor_id),
            sum(round(one.failed) for one in known if one.vendor_id == vendor_id),
        )
        for known in [await world.store.standings()]
        for vendor_id in {one.vendor_id for one in known}
    }
    return Ended(
        status=run.status,
        reason=run.reason,
        payments=tuple(paid.status for paid in run.payments),
        settled=len(world.settlements()) - settled,
        jobs=len(world.vendor_jobs()) - sold,
        error=errors[0] if errors else None,
        files=all(job.artifacts for job in run.jobs if job.status == "completed"),
        standings=standings,
    )


def _fields(end: Ended) -> list[tuple[str, Any]]:
    return [(name, getattr(end, name)) for name in Ended.__dataclass_fields__]


async def _runs(world: HostileWorld) -> list[Run]:
    return [await world.store.read_run(run_id) for run_id in world.run_ids]
