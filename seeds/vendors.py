"""The vendors that `livery vendor-mock` serves, as an agent registers them."""

from datetime import timedelta
from decimal import Decimal

from agent.core.model import GpuPrice, Vendor
from agent.ports import Store
from chain.devchain import dev_account
from wire.money import Asset, to_atomic

# id, name, USDC per hour, reliability, and which of the dev chain's accounts it is paid at.
SEEDS = (
    ("gpu_vendor_1", "FastGPU", "1.4", "0.9", 5),
    ("gpu_vendor_2", "ReliableGPU", "1.8", "0.95", 6),
)
GPU_TYPES = ("A10", "A100")


async def seed_vendors(store: Store, asset: Asset, endpoint: str, *, replace: bool = False) -> list[str]:
    """
    Register the vendors that are not there yet, in order; return the ids of those that were written.

    Args:
        replace: overwrite those that are there (the mock moved to another port).
    """
    now = await store.now()
    added = []
    for place, (vendor_id, name, price, reliability, account) in enumerate(SEEDS):
        at = now + timedelta(microseconds=place)
        per_hour_atomic = to_atomic(Decimal(price), asset)
        vendor = Vendor(
            vendor_id=vendor_id,
            name=name,
            endpoint=endpoint.rstrip("/"),
            pay_to=dev_account(account).address,
            asset=asset.address,
            network=asset.network,
            base_price_per_hour_atomic=per_hour_atomic,
            reliability_score=Decimal(reliability),
            supported_gpu_types=GPU_TYPES,
            created_at=at,
            updated_at=at,
            prices=tuple(GpuPrice(gpu_type=gpu_type, per_hour_atomic=per_hour_atomic) for gpu_type in GPU_TYPES),
        )
        if await store.put_vendor(vendor, replace=replace):
            added.append(vendor_id)
    return added


async def remove_seeds(store: Store) -> None:
    """Take the mock's vendors off the register: nothing serves them any more. Their past jobs and payments stay."""
    for vendor_id, *_ in SEEDS:
        await store.remove_vendor(vendor_id)
