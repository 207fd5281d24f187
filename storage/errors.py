"""
What can go wrong below a store; every driver's exception becomes one of these.

    StorageError
    ├── Unavailable   the world's, retryable: no answer, locked for too long, disk full, no permission, not a database
    ├── TooNew        a newer program has migrated the store: this one must not touch it
    └── Refused       ours: the driver refused what it was given
"""


class StorageError(Exception):
    retryable = False


class Unavailable(StorageError):
    retryable = True


class TooNew(StorageError):
    """The store's version is above the program's."""


class Refused(StorageError):
    """A value, a statement or a document that the driver or the server does not take."""


class ReplicaSetNeeded(Unavailable):
    """A MongoDB server on its own, which has no transactions."""

    retryable = False
