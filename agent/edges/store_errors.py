"""What the errors below a store mean to the agent: one table for every store."""

from collections.abc import Iterator
from contextlib import contextmanager

from agent.core.errors import AgentError, Bug, StoreTooNew, StoreUnavailable
from agent.ports import Hold
from storage import errors

_TRANSLATIONS: tuple[tuple[type[errors.StorageError], type[AgentError]], ...] = (
    (errors.TooNew, StoreTooNew),
    (errors.Unavailable, StoreUnavailable),
    (errors.StorageError, Bug),
)


class HoldRefused(Exception):
    """Undoes a save whose hold met its cap; `save` returns the hold."""

    def __init__(self, hold: Hold) -> None:
        super().__init__(hold)
        self.hold = hold


@contextmanager
def translated() -> Iterator[None]:
    """Turn a StorageError into the AgentError it is here, its words kept."""
    try:
        yield
    except errors.StorageError as error:
        ours = next(ours for kind, ours in _TRANSLATIONS if isinstance(error, kind))
        raise ours(str(error)) from error
