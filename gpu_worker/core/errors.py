"""
The worker's errors, split by whose fault it is: the fault decides what is paid back.

    WorkerError
    ├── BadInput         the buyer's: a dataset, model or checkpoint that cannot be used; the job's time was used
    ├── OwnersFault      the owner's: disk full, a program that cannot be started; all is paid back
    ├── Unavailable      the world's, retryable: an address that does not answer
    └── Bug              ours
"""

from typing import Literal

# Who pays for a job that ends before its work is done.
Fault = Literal["buyer", "owner", "world"]


class WorkerError(Exception):
    """The root. `code` is a key of `wire.problems`; `retryable` says whether trying again can help."""

    code = "internal"
    retryable = False
    fault: Fault = "owner"


class BadInput(WorkerError):
    """The message says in one sentence what is wrong with what the buyer gave; `code` says it to programs."""

    fault: Fault = "buyer"

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code


class OwnersFault(WorkerError):
    pass


class Unavailable(WorkerError):
    retryable = True
    fault: Fault = "world"


class Bug(WorkerError):
    pass
