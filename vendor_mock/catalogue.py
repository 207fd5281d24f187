"""Who sells what: the vendors of this process, each with its own price, GPUs, secret, key and faults."""

from dataclasses import dataclass
from decimal import Decimal

from pydantic import Field, SecretStr, TypeAdapter, ValidationError

import storefront.model
from chain.devchain import dev_account
from vendor_mock.config import VendorMockSettings
from vendor_mock.faults import Faults
from vendor_mock.simulation import EPOCHS
from wire import decimal_json
from wire.decimal_json import DecimalNumber
from wire.model import Body
from wire.money import BASE_SEPOLIA_USDC, MoneyError, to_atomic
from wire.vendor import Id, Text, secret_for

# The test accounts that the vendors are paid at, in the order of the catalogue; the first ones of the
# mnemonic are left to buyers and the facilitator.
FIRST_DEV_ACCOUNT = 5
DEV_ACCOUNTS = 3


class SetupError(ValueError):
    """The vendors cannot be set up; the message is one sentence for their owner."""


class Gpu(Body):
    """`count` jobs run beside each other on this type."""

    gpu_type: Id
    vram_gb: int | None = Field(None, gt=0)
    count: int = Field(64, gt=0, le=100_000)


class VendorPlan(Body):
    """
    One vendor as its owner writes it down. `reliability`: the share of its jobs that do not fail.

    `checkpoints_every` so many epochs a checkpoint goes to the buyer's store; None: its jobs cannot move.
    """

    vendor_id: Id
    name: Text
    price_per_hour: DecimalNumber | None = Field(None, gt=0, le=10_000)
    gpus: tuple[Gpu, ...] = (Gpu(gpu_type="A10", vram_gb=24), Gpu(gpu_type="A100", vram_gb=80))
    reliability: DecimalNumber = Field(Decimal(1), ge=0, le=1)
    checkpoints_every: int | None = Field(None, ge=1, le=EPOCHS)
    faults: Faults = Faults()


DEFAULT_PLANS = (
    VendorPlan(vendor_id="gpu_vendor_1", name="FastGPU"),
    VendorPlan(vendor_id="gpu_vendor_2", name="ReliableGPU", price_per_hour=Decimal("1.8")),
    VendorPlan(vendor_id="gpu_vendor_3", name="SteadyGPU", price_per_hour=Decimal("2.2")),
)

_PLANS = TypeAdapter(tuple[VendorPlan, ...])


@dataclass(frozen=True, slots=True, kw_only=True)
class Vendor(storefront.model.Vendor):
    """One vendor, ready to sell: `key` signs its refunds, `fail_rate` is the share of its jobs that fail."""

    per_hour_atomic: int
    gpus: tuple[Gpu, ...]
    key: SecretStr
    fail_rate: Decimal
    checkpoints_every: int | None
    faults: Faults

    def gpu(self, gpu_type: str) -> Gpu | None:
        return next((gpu for gpu in self.gpus if gpu.gpu_type == gpu_type), None)


def read_plans(settings: VendorMockSettings) -> tuple[VendorPlan, ...]:
    """
    Return the vendors file's entries, the default three where there is none.

    Raises:
        SetupError: the file cannot be read.
    """
    if settings.vendors_file is None:
        return DEFAULT_PLANS
    try:
        plans = _PLANS.validate_python(decimal_json.loads(settings.vendors_file.read_bytes()))
    except OSError as error:
        raise SetupError(f"the vendors file cannot be read: {error}") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise SetupError(f"{settings.vendors_file}: {where}: {first['msg']}") from None
    except ValueError as error:
        raise SetupError(f"{settings.vendors_file} is not JSON: {error}") from None
    if not plans or len({plan.vendor_id for plan in plans}) != len(plans):
        raise SetupError(f"{settings.vendors_file} must name at least one vendor, and none twice")
    return plans


def open_catalogue(settings: VendorMockSettings, plans: tuple[VendorPlan, ...] | None = None) -> dict[str, Vendor]:
    """
    Return the vendors by id, in the order of `plans`.

    Raises:
        SetupError: a vendor has no secret, no key or no price.
    """
    chosen = read_plans(settings) if plans is None else plans
    vendors = [_vendor(settings, plan, index) for index, plan in enumerate(chosen)]
    return {vendor.vendor_id: vendor for vendor in vendors}


def _vendor(settings: VendorMockSettings, plan: VendorPlan, index: int) -> Vendor:
    from eth_account import Account

    secret = secret_for(plan.vendor_id, settings.secret.get_secret_value())
    if secret is None:
        raise SetupError(f"GPU_VENDOR_SECRET has no secret for {plan.vendor_id}: add `{plan.vendor_id}=<secret>`")
    try:
        key = _key(settings, plan.vendor_id, index)
        pay_to = Account.from_key(key).address
    except ValueError:
        raise SetupError(f"LIVERY_VENDOR_MOCK_KEYS has no readable key for {plan.vendor_id}") from None
    try:
        per_hour_atomic = to_atomic(plan.price_per_hour or settings.base_price_per_hour, BASE_SEPOLIA_USDC)
    except MoneyError as error:
        raise SetupError(f"the price of {plan.vendor_id}: {error}") from None
    faults = plan.faults
    if plan.vendor_id == settings.fail_vendor_id:
        faults = faults.model_copy(update={"fail_at_epoch": 3})
    return Vendor(
        vendor_id=plan.vendor_id,
        name=plan.name,
        per_hour_atomic=per_hour_atomic,
        gpus=plan.gpus,
        secret=SecretStr(secret),
        key=SecretStr(key),
        pay_to=pay_to,
        asset=BASE_SEPOLIA_USDC,
        fail_rate=Decimal(str(settings.fail_rate)) if settings.fail_rate_is_chosen else 1 - plan.reliability,
        faults=faults,
        checkpoints_every=plan.checkpoints_every,
    )


def _key(settings: VendorMockSettings, vendor_id: str, index: int) -> str:
    """Return the vendor's private key; without any configured, a test account that the whole world knows."""
    if settings.keys is None:
        if index >= DEV_ACCOUNTS:
            raise ValueError("there are test accounts for three vendors only")
        return dev_account(FIRST_DEV_ACCOUNT + index).key
    return secret_for(vendor_id, settings.keys.get_secret_value()) or ""
