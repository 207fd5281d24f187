"""What this machine earned, read from its book."""

from gpu_worker.core import earnings as core
from gpu_worker.core.earnings import Earned
from gpu_worker.core.model import Job
from storefront.ports import Book


async def earned(book: Book[Job], since_s: int = 0) -> tuple[Earned, ...]:
    """Return the jobs that ended at `since_s` (Unix seconds) or later, the oldest end first."""
    return core.rows(await book.jobs(), since_s)
