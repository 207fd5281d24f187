"""
The model that a worker serves, as its lifecycle sees it. `inference.slice.serving` implements it for layers of one,
`inference.whole` for whole models.
"""

from collections.abc import Callable
from typing import Any, Protocol

from gpu_worker.core.model import LocalModel

# Told what is being done, how many parts of it are done, and of how many; from whatever thread.
Tell = Callable[[str, int, int], None]


class Serving(Protocol):
    @property
    def key(self) -> str:
        """Under which name the worker's status has its document: slice or model."""

    async def load(self) -> None:
        """Load it and be ready. Raises OwnersFault: it cannot be; the sentence says why."""

    async def keep(self) -> None:
        """Serve for ever. Raises Bug: the engine is broken."""

    async def leave(self) -> None:
        """Take nothing new, and return once what is open has ended or gone elsewhere. Idempotent; may be given up."""

    async def close(self) -> None:
        """End everything. Idempotent."""

    def document(self) -> dict[str, Any]:
        """Return what the owner is told of it."""


class Answers(Protocol):
    """The whole models that this worker serves: jobs that generate with one of them are answered by it."""

    def find(self, name: str, model_hash: str | None = None) -> LocalModel | None:
        """Return the model that is served as `name`, else the one that has `model_hash`, None: there is none."""

    def names(self) -> tuple[str, ...]: ...
