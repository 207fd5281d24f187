"""The layers of a model that a worker serves, as its lifecycle sees them. `inference.serving` implements it."""

from collections.abc import Callable
from typing import Any, Protocol

# Told what is being done, how many tensors are there, and of how many; from whatever thread.
Tell = Callable[[str, int, int], None]


class Slice(Protocol):
    async def load(self) -> None:
        """Load the layers and be ready. Raises OwnersFault: they cannot be; the sentence says why."""

    async def keep(self) -> None:
        """Serve for ever. Raises Bug: the engine is broken."""

    async def leave(self) -> None:
        """Take nothing new, and return once what is open has ended or gone elsewhere. Idempotent; may be given up."""

    async def close(self) -> None:
        """End everything. Idempotent."""

    def document(self) -> dict[str, Any]:
        """Return what the owner is told of it."""
