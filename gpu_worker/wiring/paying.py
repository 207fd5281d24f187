"""Joins what sells answers: prices, the book of credit, the paid door."""

from typing import TYPE_CHECKING

from cashier.wiring import Cashier, open_cashier
from gpu_worker.config import WorkerSettings
from gpu_worker.core.inference.prices import Prices
from gpu_worker.core.owner import admits
from gpu_worker.inference.text.paying import Billing, Keys
from gpu_worker.wiring import machine
from wire.money import to_atomic_up

if TYPE_CHECKING:
    from gpu_worker.edges.http.paid_door import PaidDoor
    from gpu_worker.inference.text.service import Service


def open_billing(settings: WorkerSettings, cashier: Cashier) -> Billing | None:
    """Return who charges for answers, None: they cost nothing."""
    if not settings.is_priced:
        return None
    assert settings.price_in is not None
    assert settings.price_out is not None
    prices = Prices(prompt=settings.price_in, answer=settings.price_out, asset=cashier.desk.asset)
    return Billing(cashier.credit, prices, cashier.desk.now_s)


def open_keys(cashier: Cashier) -> Keys:
    return Keys(cashier.credit)


def open_paid(settings: WorkerSettings, service: "Service", cashier: Cashier, pay_to: str) -> "PaidDoor | None":
    """Return what takes payments for answers, None: they are free, or nobody could be paid."""
    if service.billing is None or pay_to.lower() not in cashier.desk.senders:
        return None
    from gpu_worker.edges.http.paid_door import PaidDoor

    least = to_atomic_up(settings.credit_min, cashier.desk.asset)
    limits = machine.limits_of(settings)
    return PaidDoor(service, service.billing, cashier, pay_to, max(1, least), lambda payer: admits(payer, limits))


def open_book(settings: WorkerSettings) -> Cashier:
    """Return a cashier of the worker's, for its book of credit; a worker that runs is not disturbed."""
    return open_cashier(
        asset=machine.asset_of(settings),
        database=settings.database,
        facilitator_url=settings.facilitator_url,
        rpc_url=settings.rpc_url,
    )
