"""What the vendors of a world give back: promised when it is first told, sent or not, late, too small, or another's."""

from bench.sim.books import Job, Order, Promise, Seller
from bench.sim.chain import BLOCK_S, MemoryChain
from bench.sim.faults import Faults
from wire.money import Asset, to_decimal
from wire.vendor import Refund

REFUNDS = ("refund_late", "refund_never_sent", "refund_of_another", "refund_too_small")


def owed_atomic(job: Job, faults: Faults) -> int:
    """Return what comes back of a job that has ended: of one that is done what it did not use."""
    if job.cancelled_s is None and job.end == "completed":
        return job.amount_atomic - job.cost_atomic
    return max(2, job.amount_atomic * faults.chance.choice((50, 100)) // 100)


def refund_of(
    chain: MemoryChain, faults: Faults, asset: Asset, seller: Seller, job: Job, order: Order
) -> Refund | None:
    """Return what is said of a job's refund, None where none is owed: then nothing was paid, or all of it was used."""
    if order.transfer is None:
        return None
    if job.refund is None:
        amount_atomic = owed_atomic(job, faults)
        if amount_atomic <= 0:
            return None
        job.refund = _promise(chain, faults, seller, job, order.cheque.from_, amount_atomic)
    return Refund(
        amount=to_decimal(job.refund.amount_atomic, asset),
        asset=asset.address,
        network=asset.network,
        transaction=job.refund.transaction,
    )


def _promise(chain: MemoryChain, faults: Faults, seller: Seller, job: Job, payer: str, amount_atomic: int) -> Promise:
    others = [one.refund for one in seller.jobs.values() if one.refund is not None and one.refund.transfer]
    # A refund of one unit cannot be too small.
    able = {"refund_of_another": bool(others), "refund_too_small": amount_atomic > 1}
    plan = faults.one_of(tuple(plan for plan in REFUNDS if able.get(plan, True)))
    if plan is not None:
        faults.count(plan)
    if plan == "refund_never_sent":
        return Promise(amount_atomic, "0x" + f"{faults.chance.getrandbits(256):064x}", None)
    if plan == "refund_of_another":
        other = faults.chance.choice(others)
        return Promise(min(other.amount_atomic, job.amount_atomic), other.transaction, None)
    if plan == "refund_too_small":
        sent = chain.pay(seller.pay_to, payer, amount_atomic - 1)
        sent.known = False
        return Promise(amount_atomic, sent.transaction, None)
    sent = chain.pay(seller.pay_to, payer, amount_atomic)
    if plan == "refund_late":
        sent.block += int(faults.chance.uniform(100, 5_000)) // BLOCK_S
    return Promise(amount_atomic, sent.transaction, sent)
