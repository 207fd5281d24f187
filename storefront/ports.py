"""
What the shop needs of a seller, and of the book that it writes sales into.

The shop sells: quotes, paid submissions, refunds, callbacks. The seller works: what a job costs, how it runs and ends.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Collection, Mapping
from contextlib import AbstractContextManager
from typing import Protocol, TypeVar

from cashier.core.model import Sale
from storefront.model import KeptFile, Sold, StatusView, Template, Terms, Vendor
from wire.vendor import Offer, QuoteRequest, SubmitRequest

JobT = TypeVar("JobT", bound=Sold)
# Unix seconds.
Clock = Callable[[], float]


class Book(Protocol[JobT]):
    """Quotes and jobs, kept over a restart. Every change is one transaction, durable where money hangs on it."""

    async def add_template(self, template: Template, keep: Collection[str] = ()) -> None:
        """Store a quote; of the unsold ones so many are left, the newest, and those whose ids are in `keep`."""

    async def renew_template(self, template_id: str) -> bool:
        """Make a quote the newest; return whether it is still there."""

    async def keep_template(self, template_id: str) -> None:
        """Keep a quote for good: it is sold."""

    async def find_template(self, template_id: str) -> Template | None: ...

    async def start_job(self, payment_id: str, vendor_id: str, make: Callable[[int], JobT]) -> JobT:
        """Return the job of a payment, made by `make(number of the vendor's jobs so far)` if there is none yet."""

    async def update_job(self, job_id: str, change: Callable[[JobT], JobT]) -> JobT | None:
        """Store and return `change(job)`, None where there is no such job."""

    async def find_job(self, job_id: str) -> JobT | None: ...

    async def find_paid(self, payment_id: str) -> JobT | None: ...

    async def jobs(self) -> list[JobT]:
        """Return every job that was ever sold, the oldest first."""

    async def list_active(self, vendor_id: str, after: str, limit: int) -> list[JobT]:
        """Return the vendor's jobs that have not ended, by id, from behind `after` on."""

    async def count_active(self, vendor_id: str, gpu_type: str, now_s: int) -> int:
        """Return how many jobs take up a GPU; one whose hours are over does not, looked at or not."""

    async def to_call_back(self) -> list[JobT]:
        """Return the jobs whose buyers want to be called and were not yet, ended or not."""

    async def to_pay_back(self) -> list[JobT]:
        """Return the ended jobs whose refund is still to be paid."""

    def listen(self) -> AbstractContextManager[asyncio.Event]:
        """
        Return an event that is set whenever a job was started, or changed and left ended, by this book.

        Who waits for it clears it, then reads. It belongs to one event loop, the one the book is used from.
        """

    async def close(self) -> None: ...


class Seller(Protocol[JobT]):
    """Who does the work that the shop sells. VendorApiError is what a buyer is told, nothing charged."""

    @property
    def vendors(self) -> Mapping[str, Vendor]:
        """The vendors of this address; the first is meant where none is named."""

    async def offers(self, vendor: Vendor) -> tuple[Offer, ...]: ...

    async def terms(self, vendor: Vendor, request: QuoteRequest) -> Terms:
        """Return what `request` costs and takes. Raises VendorApiError: it is not sold, and why."""

    def check(self, vendor: Vendor, template: Template, submit: SubmitRequest) -> None:
        """
        Raises VendorApiError: what is submitted is not what `template` was quoted for.

        It goes by its arguments alone: what was paid comes again, after a crash too, and must pass again.
        """

    async def has_room(self, vendor: Vendor, template: Template, reserved: int) -> bool:
        """
        Return whether one more can start, given how many open payments already count on being started.

        Raises:
            VendorApiError: nothing is started here now, and why; nothing is charged. Who has paid is served still.
        """

    def admits(self, vendor: Vendor, payer: str) -> str | None:
        """Return why nothing is sold to the address `payer`, None where it may buy."""

    def make(self, vendor: Vendor, template: Template, submit: SubmitRequest, sale: Sale, number: int) -> JobT:
        """
        Return the job of a settled sale, the vendor's `number`-th; nothing happens yet.

        It is called inside the transaction that stores it, and again after a crash before that one ended.
        """

    async def started(self, job: JobT) -> None:
        """Begin the work of a job whose row is durable. Idempotent: it comes again after a crash."""

    async def look(self, job: JobT, *, is_poll: bool) -> Callable[[JobT], JobT] | None:
        """
        Return the change that brings the stored row to where the work is now, None where nothing has moved.

        The shop makes the change in one transaction, on the row as it is then.

        Args:
            is_poll: the buyer asks; else somebody only wants to know.
        """

    async def cancel(self, job: JobT) -> Callable[[JobT], JobT]:
        """Stop the work and return the change that ends the row; an ended one it leaves as it is. Idempotent."""

    def knows(self, since: str) -> bool:
        """Return whether `since` can be a cursor that this seller gave; asked before anything moves."""

    async def status(self, vendor: Vendor, job: JobT, since: str | None) -> StatusView:
        """Return how the job stands, with what is new since the cursor that `knows` let by."""

    async def files(self, job: JobT) -> tuple[KeptFile, ...]:
        """Return the files of an ended job, a failed one's too; none while it runs."""

    def read(self, job: JobT, name: str) -> AsyncGenerator[bytes, None]:
        """Yield one of the job's files, chunk by chunk. Raises VendorApiError at the first where there is none."""
