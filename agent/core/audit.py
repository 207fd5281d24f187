"""
The books against the chain and the vendors: facts in, differences out. Nothing is believed for being written down.

What is still open in the books (a payment of unknown outcome, a job that runs) is no difference, whatever the world
says of it by now: a tick will learn it.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from agent.core import invariants
from agent.core.audit_log import Account as Account
from agent.core.audit_log import Difference, judged
from agent.core.cheque import payment_nonce
from agent.core.invariants import Settlement, VendorJob
from agent.core.model import Job, Payment, Run
from agent.core.onchain import History, Move
from agent.core.states import JOB_ENDS, OPEN_PAYMENTS
from wire.money import MoneyError, to_atomic, to_atomic_up, to_decimal
from wire.vendor import JobFound, JobStatus

# Payments that a run may have made and that neither its record nor its log knows of are looked for up to here.
LOST_PAYMENTS_MAX = 16


@dataclass(frozen=True, slots=True)
class Unchecked:
    """Something that could not be asked: it neither agrees nor differs. `subject` is a payment, a job or an account."""

    run_id: str
    subject: str
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Wallet:
    """One payer: what it held in block `since` (None: forgotten) and in the newest one, and what it did since."""

    address: str
    since: int
    before_atomic: int | None
    after_atomic: int
    history: History


@dataclass(frozen=True, slots=True)
class Answer:
    """What a vendor says of the job that a payment bought; `found` is None where it knows of none."""

    found: JobFound | None
    status: JobStatus | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """What was asked outside: wallets by address in lower case, answers by payment id, and each vendor's live jobs."""

    wallets: Mapping[str, Wallet] = field(default_factory=dict)
    answers: Mapping[str, Answer] = field(default_factory=dict)
    live: Sequence[tuple[str, JobFound]] = ()
    unchecked: tuple[Unchecked, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """`spent_atomic` is what the payments come to, refunds taken off. It agrees where both lists are empty."""

    runs: int
    payments: int
    spent_atomic: int
    differences: tuple[Difference, ...]
    unchecked: tuple[Unchecked, ...]


def books_of(accounts: Iterable[Account]) -> list[tuple[Run, list[Difference]]]:
    """Return each account's run as it is to be held against the world, and where its log and record differ."""
    return [judged(account) for account in accounts]


def audit(books: Sequence[tuple[Run, list[Difference]]], world: World, *, whole: bool) -> Report:
    """
    Return how the runs and the world differ.

    Args:
        whole: these are all runs of their wallets, so that what no payment explains is a difference.
    """
    runs = [run for run, _ in books]
    found = [one for _, differences in books for one in differences]
    spent_refunds: set[tuple[str, int]] = set()
    for run in runs:
        found += [_broken(run.run_id, one.invariant, one.detail) for one in invariants.of_run(run)]
        for payment in run.payments:
            if (wallet := world.wallets.get(payment.payer.lower())) is not None:
                found += _on_chain(run, payment, wallet, spent_refunds)
            if (answer := world.answers.get(payment.payment_id)) is not None:
                found += _at_vendor(run, payment, answer)
    if whole:
        for wallet in world.wallets.values():
            found += _unexplained(runs, wallet, spent_refunds, world.answers)
            found += _balance(wallet)
    found += _of_world(runs, world, found)
    paid = [payment for run in runs for payment in run.payments]
    return Report(
        runs=len(runs),
        payments=len(paid),
        spent_atomic=sum(one.amount_atomic - one.refunded_atomic for one in paid if one.status in _SETTLED),
        differences=tuple(found),
        unchecked=world.unchecked,
    )


def _on_chain(run: Run, payment: Payment, wallet: Wallet, taken: set[tuple[str, int]]) -> Iterator[Difference]:
    money, name = _money(run, payment.amount_atomic), payment.payment_id
    move = next((move for move in wallet.history.moves if move.nonce == payment.nonce.lower()), None)
    if payment.status in OPEN_PAYMENTS:
        return
    if payment.status == "failed":
        if move is not None:
            world = f"{_money(run, move.value_atomic)} went to {move.receiver} in {move.transaction}"
            yield _of(run, "paid_after_all", name, f"{money} was never paid", world, move.value_atomic)
        return
    paid = f"{money} was paid in {payment.transaction}"
    if move is None:
        yield _of(run, "not_on_chain", name, paid, "its cheque was never settled", payment.amount_atomic)
    elif (move.receiver, move.value_atomic) != (payment.pay_to.lower(), payment.amount_atomic):
        world = f"{_money(run, move.value_atomic)} went to {move.receiver}"
        by = abs(move.value_atomic - payment.amount_atomic) or move.value_atomic
        yield _of(run, "other_amount", name, f"{money} was paid to {payment.pay_to}", world, by)
    elif move.transaction != payment.transaction:
        yield _of(run, "other_transaction", name, paid, f"it was settled in {move.transaction}", 0)
    if payment.status == "refunded" and not _took_refund(payment, wallet, taken):
        back = f"{_money(run, payment.refunded_atomic)} came back"
        yield _of(run, "refund_not_on_chain", name, back, "no such transfer came in", payment.refunded_atomic)


def _took_refund(payment: Payment, wallet: Wallet, taken: set[tuple[str, int]]) -> bool:
    """Return whether the chain shows the payment's refund; no transfer is the refund of two payments."""
    for move in wallet.history.moves:
        place = (move.transaction, move.index)
        is_it = payment.refund is not None and move.transaction == payment.refund.transaction
        if is_it and place not in taken and _comes_from(payment, move, payment.refunded_atomic):
            taken.add(place)
            return True
    return False


def _comes_from(payment: Payment, move: Move, amount_atomic: int) -> bool:
    ways = (move.sender, move.receiver, move.value_atomic)
    return ways == (payment.pay_to.lower(), payment.payer.lower(), amount_atomic)


def _unexplained(
    runs: Sequence[Run], wallet: Wallet, taken: set[tuple[str, int]], answers: Mapping[str, Answer]
) -> Iterator[Difference]:
    paid = [(run, one) for run in runs for one in run.payments if one.payer.lower() == wallet.address]
    nonces = {one.nonce.lower() for _, one in paid}
    payees = {one.pay_to.lower(): run for run, one in paid}
    coming = {transaction for run, one in paid for transaction in _coming(run, one, answers.get(one.payment_id))}
    for move in wallet.history.moves:
        run = payees.get(move.receiver if move.sender == wallet.address else move.sender, runs[0])
        money = _money(run, move.value_atomic)
        if move.sender == wallet.address and move.nonce is not None:
            if move.nonce not in nonces:
                owner = _owner(runs, move.nonce)
                world = f"a cheque of {money} to {move.receiver} was settled in {move.transaction}"
                yield _moved(owner, "payment_unknown", move, "no payment of ours", world)
        elif move.sender == wallet.address:
            world = f"{money} went to {move.receiver} in {move.transaction}, by no cheque"
            yield _moved("", "moved_out", move, "no payment of ours", world)
        elif move.sender in payees and (move.transaction, move.index) not in taken and move.transaction not in coming:
            world = f"{money} came from {move.sender} in {move.transaction}"
            yield _moved("", "moved_in", move, "no refund of ours", world)


def _coming(run: Run, payment: Payment, answer: Answer | None) -> Iterator[str]:
    """Yield the transactions of refunds that a tick or the sweep will count when it next looks at the run."""
    if payment.status != "completed" or run.next_tick_at is None:
        return
    if payment.refund is not None:
        yield payment.refund.transaction
    if answer is not None and answer.status is not None and answer.status.refund is not None:
        yield answer.status.refund.transaction.lower()


def _moved(run_id: str, code: str, move: Move, books: str, world: str) -> Difference:
    return Difference(
        code=code, run_id=run_id, subject=move.transaction, books=books, world=world, by_atomic=move.value_atomic
    )


def _owner(runs: Sequence[Run], nonce: str) -> str:
    """Return the run that would have made this nonce, though it does not know the payment; empty where none would."""
    for run in runs:
        numbers = range(1, len(run.payments) + LOST_PAYMENTS_MAX + 1)
        if any(payment_nonce(run.run_id, number) == nonce for number in numbers):
            return run.run_id
    return ""


def _balance(wallet: Wallet) -> Iterator[Difference]:
    if wallet.before_atomic is None:
        return
    moves = [move for move in wallet.history.moves if move.block > wallet.since and move.sender != move.receiver]
    come = sum(move.value_atomic for move in moves if move.receiver == wallet.address)
    gone = sum(move.value_atomic for move in moves if move.sender == wallet.address)
    ought = wallet.before_atomic + come - gone
    if ought != wallet.after_atomic:
        yield Difference(
            code="balance",
            run_id="",
            subject=wallet.address,
            books=f"{wallet.before_atomic} + {come} - {gone} atomic units since block {wallet.since}",
            world=f"it holds {wallet.after_atomic}",
            by_atomic=abs(ought - wallet.after_atomic),
        )


def _at_vendor(run: Run, payment: Payment, answer: Answer) -> Iterator[Difference]:
    job = next((job for job in run.jobs if job.job_id == payment.job_id), None)
    found = answer.found
    if job is None:
        return
    if found is None:
        if job.vendor_job_id is not None:
            books = f"{job.vendor_id} took it as {job.vendor_job_id}"
            yield _of(run, "job_gone", job.job_id, books, "the vendor knows of no job for this payment")
        return
    if payment.status == "failed":
        yield _of(run, "job_unpaid", job.job_id, "nothing was paid for it", f"the vendor has {found.vendor_job_id}")
    elif job.vendor_job_id is None and job.status in JOB_ENDS:
        books, world = f"paid, and {job.status} without having begun", f"the vendor has {found.vendor_job_id}"
        yield _of(run, "job_unclaimed", job.job_id, books, world, payment.amount_atomic)
    elif job.vendor_job_id is not None and found.vendor_job_id != job.vendor_job_id:
        yield _of(run, "other_job", job.job_id, f"it is {job.vendor_job_id}", f"it is {found.vendor_job_id}")
    elif answer.status is not None and job.status in JOB_ENDS:
        yield from _ended_otherwise(run, job, payment, answer.status)


def _ended_otherwise(run: Run, job: Job, payment: Payment, said: JobStatus) -> Iterator[Difference]:
    if said.status not in JOB_ENDS:
        return  # a job that nobody wants and that goes on is I3's
    if said.status != job.status:
        yield _of(run, "job_status", job.job_id, f"{job.status}: {job.error_message or 'as it was told'}", said.status)
        return
    if job.actual_cost_atomic is not None:
        cost = _atomic_or_none(said, run)
        if cost != job.actual_cost_atomic:
            by = None if cost is None else abs(cost - job.actual_cost_atomic)
            books, world = f"it cost {_money(run, job.actual_cost_atomic)}", f"it cost {said.cost_so_far}"
            yield _of(run, "job_cost", job.job_id, books, world, by)
    if job.final_metrics is not None and dict(said.final_metrics or {}) != job.final_metrics:
        yield _of(run, "job_metrics", job.job_id, str(job.final_metrics), str(said.final_metrics))
    if payment.status == "refunded":
        try:
            back = to_atomic(said.refund.amount, run.asset) if said.refund else 0
        except MoneyError:
            back = 0
        if back != payment.refunded_atomic:
            books, world = f"{_money(run, payment.refunded_atomic)} came back", f"{_money(run, back)} was sent back"
            yield _of(run, "refund_amount", payment.payment_id, books, world, abs(back - payment.refunded_atomic))


def _atomic_or_none(said: JobStatus, run: Run) -> int | None:
    try:
        return to_atomic_up(said.cost_so_far, run.asset)
    except MoneyError:
        return None


def _of_world(runs: Sequence[Run], world: World, known: Sequence[Difference]) -> list[Difference]:
    """Return what is broken of I3 and I6 and was not told in other words already."""
    ids = {payment.payment_id for run in runs for payment in run.payments}
    nonces = {payment.nonce.lower() for run in runs for payment in run.payments}
    settlements = [
        Settlement(payer=wallet.address, nonce=move.nonce, pay_to=move.receiver, amount_atomic=move.value_atomic)
        for wallet in world.wallets.values()
        for move in wallet.history.moves
        if move.nonce in nonces and move.nonce is not None
    ]
    vendors = {payment.payment_id: payment.vendor_id for run in runs for payment in run.payments}
    jobs = {
        (vendors[payment_id], answer.found.vendor_job_id): _vendor_job(vendors[payment_id], payment_id, answer.found)
        for payment_id, answer in world.answers.items()
        if answer.found is not None and payment_id in ids
    }
    for vendor_id, live in world.live:
        if live.payment_id is not None:
            jobs.setdefault((vendor_id, live.vendor_job_id), _vendor_job(vendor_id, live.payment_id, live))
    broken = invariants.of_world(runs, settlements, jobs.values())
    told = {(one.run_id, _SAME.get(one.code)) for one in known}
    return [_broken(one.run_id, one.invariant, one.detail) for one in broken if (one.run_id, one.invariant) not in told]


def _vendor_job(vendor_id: str, payment_id: str, found: JobFound) -> VendorJob:
    return VendorJob(vendor_id=vendor_id, vendor_job_id=found.vendor_job_id, payment_id=payment_id, status=found.status)


def _broken(run_id: str, invariant: str, detail: str) -> Difference:
    return Difference(code=invariant, run_id=run_id, subject=invariant, books=detail, world="")


def _of(run: Run, code: str, subject: str, books: str, world: str, by_atomic: int | None = None) -> Difference:
    return Difference(code=code, run_id=run.run_id, subject=subject, books=books, world=world, by_atomic=by_atomic)


def _money(run: Run, atomic: int) -> str:
    return f"{to_decimal(atomic, run.asset)} {run.asset.symbol}"


_SETTLED = frozenset({"completed", "refunded"})
# The invariant that a difference breaks, where both would be told of one cause.
_SAME = {"other_amount": "I6", "job_unpaid": "I3"}
