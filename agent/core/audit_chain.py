"""
The books against what the chain shows of their wallets: every payment, and every move that no payment explains.

What the books claim was read before the chain, what explains a move also after it: a payment is stored before its
cheque can be cashed, so a cheque that neither reading knows is nobody's.
"""

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from agent.core.audit_log import Difference, Unchecked, differs
from agent.core.cheque import payment_nonce
from agent.core.model import Payment, Run
from agent.core.states import OPEN_PAYMENTS
from agent.core.wording import clock, money
from chain.moves import History, Move
from wire.money import Asset, to_decimal

# Payments that a run may have made and that neither its record nor its log knows of are looked for up to here.
LOST_PAYMENTS_MAX = 16

# A transfer's place on the chain: its transaction and its log's index.
Place = tuple[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wallet:
    """
    One payer: what it held in block `since` (None: forgotten) and in the newest one, and what it did since.

    `finalized_s` is the Unix time of the newest finalised block.
    """

    address: str
    since: int
    before_atomic: int | None
    after_atomic: int
    finalized_s: int
    history: History


def of_payment(run: Run, payment: Payment, wallet: Wallet, taken: set[Place]) -> Iterator[Difference]:
    """Yield how a payment differs from the chain; the transfer that is its refund is added to `taken`."""
    move = _move_of(payment.nonce.lower(), wallet)
    if payment.status in OPEN_PAYMENTS:
        return
    if payment.status == "failed":
        yield from _never_paid(run, payment, wallet, move)
        return
    amount, name = money(run, payment.amount_atomic), payment.payment_id
    paid = f"{amount} was paid in {payment.transaction}"
    if move is None:
        yield differs(run, "not_on_chain", name, paid, "its cheque was never cashed", payment.amount_atomic)
    elif (move.receiver, move.value_atomic) != (payment.pay_to.lower(), payment.amount_atomic):
        world = f"{money(run, move.value_atomic)} went to {move.receiver}"
        by = abs(move.value_atomic - payment.amount_atomic) or move.value_atomic
        yield differs(run, "other_amount", name, f"{amount} was paid to {payment.pay_to}", world, by)
    elif move.transaction != payment.transaction:
        yield differs(run, "other_transaction", name, paid, f"it was cashed in {move.transaction}", 0)
    if payment.status == "refunded" and not _took_refund(payment, wallet, taken):
        back = f"{money(run, payment.refunded_atomic)} came back"
        yield differs(run, "refund_not_on_chain", name, back, "no such transfer came in", payment.refunded_atomic)


def _never_paid(run: Run, payment: Payment, wallet: Wallet, move: Move | None) -> Iterator[Difference]:
    amount, name = money(run, payment.amount_atomic), payment.payment_id
    if move is not None:
        world = f"{money(run, move.value_atomic)} went to {move.receiver} in {move.transaction}"
        yield differs(run, "paid_after_all", name, f"{amount} was never paid", world, move.value_atomic)
    elif payment.nonce.lower() not in wallet.history.cancelled and payment.valid_before_s >= wallet.finalized_s:
        until = datetime.fromtimestamp(payment.valid_before_s, UTC)
        world = f"its cheque can be cashed until {until:%Y-%m-%d} {clock(until)}, and nobody cancelled it"
        yield differs(run, "released_early", name, f"{amount} is free again", world, payment.amount_atomic)


def _move_of(nonce: str, wallet: Wallet) -> Move | None:
    return next((move for move in wallet.history.moves if move.nonce == nonce), None)


def _took_refund(payment: Payment, wallet: Wallet, taken: set[Place]) -> bool:
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


def unexplained(
    runs: Sequence[Run],
    later: Sequence[Run],
    wallet: Wallet,
    asset: Asset,
    taken: Container[Place],
    coming: Container[str],
) -> Iterator[Difference | Unchecked]:
    """
    Yield the moves of a wallet that no payment of its runs explains.

    Args:
        later: the runs of these that were saved, or began, since, as they were after the chain was read.
        taken: the transfers that are refunds which are counted.
        coming: the transactions of refunds that are announced.
    """
    paid = [one for run in (*runs, *later) for one in run.payments if one.payer.lower() == wallet.address]
    nonces, payees = {one.nonce.lower() for one in paid}, {one.pay_to.lower() for one in paid}
    ticked = [one for run in later for one in run.payments if one.status == "completed"]
    for move in wallet.history.moves:
        amount = f"{to_decimal(move.value_atomic, asset)} {asset.symbol}"
        is_ours = move.sender == wallet.address
        if move.nonce in nonces or (move.nonce is None and move.value_atomic == 0):
            # Anybody can write a transfer of nothing into the log of any account.
            continue
        if is_ours and move.nonce is not None:
            world = f"a cheque of {amount} to {move.receiver} was cashed"
            yield _moved(_owner((*runs, *later), move.nonce), "payment_unknown", move, "no payment of ours", world)
        elif is_ours:
            world = f"{amount} went to {move.receiver}, by no cheque"
            yield _moved("", "moved_out", move, "no payment of ours", world)
        elif move.sender in payees and (move.transaction, move.index) not in taken and move.transaction not in coming:
            world = f"{amount} came from {move.sender}"
            if any(_may_return(one, move) for one in ticked):
                why = f"{world} in {move.transaction}, and runs that paid it were ticked: it may be a refund of theirs"
                yield Unchecked("", wallet.address, why)
            else:
                yield _moved("", "moved_in", move, "no refund of ours", world)


def _may_return(payment: Payment, move: Move) -> bool:
    """Return whether a tick may yet count `move` as the refund of `payment`."""
    is_new = move.value_atomic <= payment.amount_atomic and move.block >= payment.from_block
    return is_new and _comes_from(payment, move, move.value_atomic)


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


def next_nonces(run: Run) -> list[str]:
    """Return the nonces of the cheques that the run knows nothing of and would sign: the next, and any left out."""
    known = {payment.nonce.lower() for payment in run.payments}
    made = (payment_nonce(run.run_id, number) for number in range(1, len(run.payments) + 2))
    return [nonce for nonce in made if nonce not in known]


def lost(
    runs: Sequence[Run], later: Iterable[Run], wallets: Mapping[str, Wallet], used: Iterable[tuple[str, str]]
) -> Iterator[Difference]:
    """Yield the cheques of `used` (payer, nonce) that `runs` would sign and that none of them knows."""
    known = {payment.nonce.lower() for run in (*runs, *later) for payment in run.payments}
    owners = {nonce: run for run in runs for nonce in next_nonces(run)}
    for payer, nonce in used:
        run = owners.get(nonce)
        if run is None or nonce in known:
            continue
        move = _move_of(nonce, wallets[payer]) if payer in wallets else None
        if move is None:
            world = f"a cheque of {payer} with nonce {nonce} was cashed or cancelled"
            yield differs(run, "payment_unknown", nonce, "no payment of ours", world)
        else:
            world = f"a cheque of {money(run, move.value_atomic)} to {move.receiver} was cashed"
            yield _moved(run.run_id, "payment_unknown", move, "no payment of ours", world)


def balance(wallet: Wallet, asset: Asset) -> Iterator[Difference]:
    """Yield the difference between what a wallet holds and what its transfers come to."""
    if wallet.before_atomic is None:
        return
    moves = [move for move in wallet.history.moves if move.block > wallet.since and move.sender != move.receiver]
    come = sum(move.value_atomic for move in moves if move.receiver == wallet.address)
    gone = sum(move.value_atomic for move in moves if move.sender == wallet.address)
    ought = wallet.before_atomic + come - gone
    if ought != wallet.after_atomic:
        before, came, went, now = (
            to_decimal(one, asset) for one in (wallet.before_atomic, come, gone, wallet.after_atomic)
        )
        yield Difference(
            code="balance",
            run_id="",
            subject=wallet.address,
            books=f"{before} in block {wallet.since}, {came} came and {went} went since",
            world=f"it holds {now} {asset.symbol}",
            by_atomic=abs(ought - wallet.after_atomic),
        )
