"""The registry of vendors: who may be paid, where, what they offer now, and how their jobs have ended."""

from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal

from agent.core.bandit import INTERVAL, record_of
from agent.core.errors import VendorError, VendorGarbled
from agent.core.model import GpuPrice, Standing, Vendor
from agent.core.scoring import beliefs
from agent.core.standing import faded, rests_until
from agent.ports import Agent
from wire.money import Asset, MoneyError, to_atomic_up
from wire.vendor import Offer, OffersReply

NEW_VENDOR_RELIABILITY = Decimal("0.5")


@dataclass(frozen=True, slots=True)
class Offered:
    """A vendor and its catalogue as it answers now; `problem` says why there is none."""

    vendor: Vendor
    offers: tuple[Offer, ...]
    problem: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reliability:
    """
    How surely a vendor finishes a job on `gpu_type`: the mean of what is known, and the bounds of 90 % of it.

    `completed` and `failed` are its jobs there, faded with age; before `rests_until` it is not tried again.
    """

    gpu_type: str
    mean: float
    low: float
    high: float
    completed: Decimal
    failed: Decimal
    rests_until: datetime | None


async def reliabilities(agent: Agent) -> list[tuple[Vendor, tuple[Reliability, ...]]]:
    """
    Return every registered vendor with its reliability on each of its GPU types, now.

    As the bandit reckons it, but among all there is: a run is offered only what it can use, and that may do better or
    worse on the whole.
    """
    now = await agent.store.now()
    vendors = await agent.store.list_vendors()
    standings = [faded(one, now) for one in await agent.store.standings()]
    arms = [(vendor, gpu_type) for vendor in vendors for gpu_type in vendor.supported_gpu_types]
    known = beliefs([record_of(vendor, gpu_type, standings) for vendor, gpu_type in arms])
    found: dict[str, list[Reliability]] = {vendor.vendor_id: [] for vendor in vendors}
    for (vendor, gpu_type), belief in zip(arms, known, strict=True):
        low, high = belief.interval(INTERVAL)
        here = next((one for one in standings if (one.vendor_id, one.gpu_type) == (vendor.vendor_id, gpu_type)), None)
        found[vendor.vendor_id].append(
            Reliability(
                gpu_type=gpu_type,
                mean=belief.mean,
                low=low,
                high=high,
                completed=here.completed if here else Decimal(0),
                failed=here.failed if here else Decimal(0),
                rests_until=_rest(here, now),
            )
        )
    return [(vendor, tuple(found[vendor.vendor_id])) for vendor in vendors]


def _rest(here: Standing | None, now: datetime) -> datetime | None:
    until = None if here is None else rests_until(here.failed_in_a_row, here.last_failed_at)
    return until if until is not None and until > now else None


async def offers(agent: Agent) -> list[Offered]:
    """Ask every registered vendor for its offers; one that fails does not hide the others."""
    found: list[Offered] = []
    for vendor in await agent.store.list_vendors():
        try:
            found.append(Offered(vendor, (await agent.vendors.offers(vendor)).offers))
        except VendorError as error:
            found.append(Offered(vendor, (), str(error)))
    return found


async def register(agent: Agent, vendor_id: str, endpoint: str, pay_to: str | None = None) -> Vendor:
    """
    Register the vendor that answers at `endpoint` as `vendor_id`, as its own offers describe it.

    The payee is fixed here, by its owner's word (`pay_to`) or by the vendor's offers, and never changes with a 402.

    Raises:
        VendorError: it does not answer, or offers nothing in the wallet's asset at one payee.
    """
    now, asset = await agent.store.now(), agent.policy.asset
    draft = Vendor(
        vendor_id=vendor_id,
        name=vendor_id,
        endpoint=endpoint.rstrip("/"),
        pay_to=pay_to or "",
        asset=asset.address,
        network=asset.network,
        base_price_per_hour_atomic=0,
        reliability_score=NEW_VENDOR_RELIABILITY,
        supported_gpu_types=(),
        created_at=now,
        updated_at=now,
    )
    vendor = _described(draft, await agent.vendors.offers(draft), asset)
    await agent.store.put_vendor(vendor, replace=True)
    return vendor


async def remove(agent: Agent, vendor_id: str) -> bool:
    """Take a vendor off the register; its past jobs and payments stay. Return whether it was there."""
    return await agent.store.remove_vendor(vendor_id)


def _described(draft: Vendor, reply: OffersReply, asset: Asset) -> Vendor:
    ours = [
        offer
        for offer in reply.offers
        if (offer.asset.lower(), offer.network) == (asset.address.lower(), asset.network)
    ]
    payees = {offer.pay_to for offer in ours} if not draft.pay_to else {draft.pay_to}
    if not ours or len(payees) != 1:
        raise VendorGarbled(f"{draft.vendor_id} offers nothing in {asset.symbol} on {asset.network} at one payee")
    try:
        asked = [(offer.gpu_type, to_atomic_up(offer.price_per_hour, asset)) for offer in ours]
    except MoneyError as error:
        raise VendorGarbled(f"{draft.vendor_id}: {error}") from None
    if min(price for _, price in asked) <= 0:
        raise VendorGarbled(f"{draft.vendor_id} offers something for nothing")
    # Of two offers of one type it may quote either: the dearer is the price that was seen and accepted.
    prices = {gpu_type: price for gpu_type, price in sorted(asked, key=lambda one: one[1])}
    types = tuple(dict.fromkeys(gpu_type for gpu_type, _ in asked))
    return replace(
        draft,
        name=reply.name,
        pay_to=payees.pop(),
        base_price_per_hour_atomic=min(prices.values()),
        supported_gpu_types=types,
        prices=tuple(GpuPrice(gpu_type=gpu_type, per_hour_atomic=prices[gpu_type]) for gpu_type in types),
    )
