"""The registry of vendors: who may be paid, where, and what they offer now."""

from dataclasses import dataclass, replace
from decimal import Decimal

from agent.core.errors import VendorError, VendorGarbled
from agent.core.model import Vendor
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
        prices = [to_atomic_up(offer.price_per_hour, asset) for offer in ours]
    except MoneyError as error:
        raise VendorGarbled(f"{draft.vendor_id}: {error}") from None
    if min(prices) <= 0:
        raise VendorGarbled(f"{draft.vendor_id} offers something for nothing")
    return replace(
        draft,
        name=reply.name,
        pay_to=payees.pop(),
        base_price_per_hour_atomic=min(prices),
        supported_gpu_types=tuple(dict.fromkeys(offer.gpu_type for offer in ours)),
    )
