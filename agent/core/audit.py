"""
The books against the chain and the vendors: facts in, differences out. Nothing is believed for being written down.

What is still open in the books (a payment of unknown outcome, a job that runs) is no difference, whatever the world
says of it by now: a tick will learn it.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from agent.core import invariants
from agent.core.audit_chain import Place, balance, lost, of_payment, unexplained
from agent.core.audit_chain import Wallet as Wallet
from agent.core.audit_chain import next_nonces as next_nonces
from agent.core.audit_log import Account as Account
from agent.core.audit_log import Difference, judged
from agent.core.audit_log import Unchecked as Unchecked
from agent.core.audit_vendor import Answer as Answer
from agent.core.audit_vendor import coming, of_job
from agent.core.invariants import Broken, Settlement, VendorJob
from agent.core.model import Payment, Run
from agent.core.states import PAID_PAYMENTS
from wire.money import Asset
from wire.vendor import JobFound

# Known of a run whatever ticks do meanwhile: a payment is stored before its cheque can be cashed, and runs are read
# again after the chain was.
STANDS = frozenset({"payment_unknown"})


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """
    What was asked outside, after the books were read, and what became of the books meanwhile.

    Wallets by address in lower case, answers by payment id, each vendor's live jobs; `used` are those (payer, nonce) of
    `next_nonces` that the token knows as used; `later` the runs that were saved, or began, since the books were read;
    `doors` the addresses that the vendors are reached at.
    """

    wallets: Mapping[str, Wallet] = field(default_factory=dict)
    answers: Mapping[str, Answer] = field(default_factory=dict)
    live: Sequence[tuple[str, JobFound]] = ()
    used: Sequence[tuple[str, str]] = ()
    later: Sequence[Run] = ()
    doors: Mapping[str, str] = field(default_factory=dict)
    unchecked: tuple[Unchecked, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """
    `spent_atomic` is what the payments come to, refunds taken off. Amounts are of the audit's asset: of other runs'
    payments they are left out, and told in words alone.

    It agrees where both lists are empty. `late` are runs that a tick moved on while they were looked at and that seemed
    to differ: nothing of that is among the differences.
    """

    runs: int
    payments: int
    spent_atomic: int
    differences: tuple[Difference, ...]
    unchecked: tuple[Unchecked, ...]
    late: tuple[str, ...] = ()


def books_of(accounts: Iterable[Account]) -> list[tuple[Run, list[Difference]]]:
    """Return each account's run as it is to be held against the world, and where its log and record differ."""
    return [judged(account) for account in accounts]


def audit(books: Sequence[tuple[Run, list[Difference]]], world: World, asset: Asset, *, whole: bool) -> Report:
    """
    Return how the runs and the world differ.

    Args:
        asset: what the wallets in `world` hold.
        whole: these are all runs of their wallets, so that what no payment explains is a difference.
    """
    runs = [run for run, _ in books]
    found: list[Difference | Unchecked] = [one for _, differences in books for one in differences]
    taken: set[Place] = set()
    for run in runs:
        found += [_broken(one) for one in invariants.of_run(run)]
        for payment in run.payments:
            wallet, answer = world.wallets.get(payment.payer.lower()), world.answers.get(payment.payment_id)
            if wallet is not None and run.asset == asset:
                found += of_payment(run, payment, wallet, taken)
            if answer is not None:
                found += of_job(run, payment, answer)
    ours = [run for run in runs if run.asset == asset]
    if whole:
        refunds = _refunds(runs, world)
        for wallet in world.wallets.values():
            found += unexplained(ours, world.later, wallet, asset, taken, refunds)
            found += balance(wallet, asset)
    told = {(one.code, one.subject) for one in found if isinstance(one, Difference)}
    found += [one for one in lost(ours, world.later, world.wallets, world.used) if (one.code, one.subject) not in told]
    found += _of_world(runs, world, found)
    return _report(runs, world, asset, found)


def _report(runs: Sequence[Run], world: World, asset: Asset, found: Sequence[Difference | Unchecked]) -> Report:
    moved = {run.run_id for run in world.later}
    foreign = {run.run_id for run in runs if run.asset != asset}
    differences = [
        replace(one, by_atomic=None) if one.run_id in foreign else one for one in found if isinstance(one, Difference)
    ]
    late = {one.run_id for one in differences if one.run_id in moved and one.code not in STANDS}
    paid = [(run, payment) for run in runs for payment in run.payments]
    return Report(
        runs=len(runs),
        payments=len(paid),
        spent_atomic=sum(
            one.amount_atomic - one.refunded_atomic
            for run, one in paid
            if one.status in PAID_PAYMENTS and run.asset == asset
        ),
        differences=tuple(one for one in differences if one.run_id not in moved or one.code in STANDS),
        unchecked=(*world.unchecked, *(one for one in found if isinstance(one, Unchecked))),
        late=tuple(sorted(late)),
    )


def _refunds(runs: Sequence[Run], world: World) -> frozenset[str]:
    """Return the transactions of refunds that are announced, or were counted since the books were read."""
    known = [(run, payment) for run in runs for payment in run.payments]
    announced = [one for run, payment in known for one in coming(run, payment, world.answers.get(payment.payment_id))]
    claims = [payment.refund for run in world.later for payment in run.payments]
    return frozenset([*announced, *(claim.transaction for claim in claims if claim is not None)])


def _of_world(
    runs: Sequence[Run], world: World, known: Sequence[Difference | Unchecked]
) -> list[Difference | Unchecked]:
    """Return what is broken of I3 and I6 and was not told in other words already."""
    newest = {run.run_id: run for run in (*runs, *world.later)}
    payments = {payment.payment_id: payment for run in newest.values() for payment in run.payments}
    nonces = {payment.nonce.lower() for payment in payments.values()}
    settlements = [
        Settlement(payer=wallet.address, nonce=move.nonce, pay_to=move.receiver, amount_atomic=move.value_atomic)
        for wallet in world.wallets.values()
        for move in wallet.history.moves
        if move.nonce in nonces and move.nonce is not None
    ]
    jobs = {
        (vendor_id, payment_id, answer.found.vendor_job_id): _vendor_job(vendor_id, payment_id, answer.found)
        for payment_id, answer in world.answers.items()
        if answer.found is not None and (vendor_id := payments[payment_id].vendor_id)
    }
    found: list[Difference | Unchecked] = []
    for lister, live in world.live:
        if live.payment_id is None:
            continue
        run = newest.get(live.payment_id.rpartition("-payment-")[0])
        if run is None:
            # Not ours to judge: another control plane may share the vendor's secret.
            why = f"{lister} works on it; it was bought by a run that this store does not know"
            found.append(Unchecked("", live.vendor_job_id, why))
            continue
        vendor_id = _seller(run, world, lister, live, payments.get(live.payment_id))
        place = vendor_id, live.payment_id, live.vendor_job_id
        jobs.setdefault(place, _vendor_job(vendor_id, live.payment_id, live))
    told = {(one.run_id, one.subject, _SAME.get(one.code)) for one in known if isinstance(one, Difference)}
    broken = invariants.of_world(newest.values(), settlements, jobs.values())
    return found + [_broken(one) for one in broken if (one.run_id, one.subject, one.invariant) not in told]


def _seller(run: Run, world: World, lister: str, live: JobFound, payment: Payment | None) -> str:
    """Return who has a listed job. At one address there may be one seller under two names, who lists it under both."""
    if payment is None or world.doors.get(lister) != world.doors.get(payment.vendor_id):
        return lister
    names = [job.vendor_job_id for job in run.jobs if job.job_id == payment.job_id]
    return payment.vendor_id if set(names) & {None, live.vendor_job_id} else lister


def _vendor_job(vendor_id: str, payment_id: str, found: JobFound) -> VendorJob:
    return VendorJob(vendor_id=vendor_id, vendor_job_id=found.vendor_job_id, payment_id=payment_id, status=found.status)


def _broken(one: Broken) -> Difference:
    subject = one.subject or one.invariant
    return Difference(code=one.invariant, run_id=one.run_id, subject=subject, books=one.detail, world="")


# The invariant that a difference breaks, where both would be told of one cause.
_SAME = {"other_amount": "I6", "job_unpaid": "I3"}
