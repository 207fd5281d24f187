"""The mock vendors' shop: it asks for other prices, sells one job twice and announces refunds, where it is told to."""

import hashlib
import time

from cashier.core.model import Price
from cashier.wiring import Cashier, open_cashier
from outbound.http import HttpClient
from storefront import model
from storefront.model import Template
from storefront.ports import Book, Clock
from storefront.shop import Shop
from vendor_mock.catalogue import VendorPlan, open_catalogue
from vendor_mock.config import VendorMockSettings
from vendor_mock.faults import FaultBoard
from vendor_mock.selling import MockSeller
from vendor_mock.simulation import Job
from vendor_mock.store import open_book
from wire.money import BASE_SEPOLIA_USDC


class MockShop(Shop[Job]):
    """A shop whose `faults` are scripted."""

    def __init__(self, seller: MockSeller, cashier: Cashier, book: Book[Job], clock: Clock) -> None:
        super().__init__(seller, cashier, book, clock)
        self.faults = seller.faults

    def _asked(self, vendor: model.Vendor, template: Template, price: Price) -> Price:
        before = self.faults.asked_before(vendor.vendor_id, template.template_id)
        return self.faults.of(vendor.vendor_id).falsify(price, before)

    async def _instead(self, vendor: model.Vendor) -> Job | None:
        """Return the vendor's first job where it sells that one again and again."""
        if not self.faults.of(vendor.vendor_id).reuse_job_ids:
            return None
        return next((job for job in await self.store.jobs() if job.vendor_id == vendor.vendor_id), None)

    async def _pay_back(self, job: Job) -> str:
        if self.faults.of(job.vendor_id).false_refunds:
            # The hash of no transaction: announced as any other, and never sent.
            return f"0x{hashlib.sha256(job.job_id.encode()).hexdigest()}"
        return await super()._pay_back(job)


def open_shop(
    settings: VendorMockSettings,
    plans: tuple[VendorPlan, ...] | None,
    facilitator_http: HttpClient | None,
    clock: Clock = time.time,
    files_http: HttpClient | None = None,
) -> MockShop:
    """Return the shop of `settings`; making it does no I/O but reading the vendors file. Raises SetupError."""
    vendors = open_catalogue(settings, plans)
    database = settings.database_path()
    cashier = open_cashier(
        asset=BASE_SEPOLIA_USDC,
        database=database,
        facilitator_url=settings.facilitator_url,
        rpc_url=settings.rpc_url,
        keys=[vendor.key.get_secret_value() for vendor in vendors.values()],
        facilitator_http=facilitator_http,
        now_s=lambda: int(clock()),
    )
    book = open_book(database)
    faults = FaultBoard({vendor.vendor_id: vendor.faults for vendor in vendors.values()})
    seller = MockSeller(settings, vendors, faults, book, clock, files_http or HttpClient())
    return MockShop(seller, cashier, book, clock)
