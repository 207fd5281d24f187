"""
The agent's errors, split by whose fault it is.

    AgentError
    ├── Asked            the caller's: UnknownRun, RunFinished, RunBusy, KeyConflict
    ├── VendorError      the vendor's: VendorUnreachable (retryable), VendorGarbled, VendorRefused
    ├── Unavailable      the world's, retryable: StoreUnavailable, ChainUnavailable, WalletError, NoSigner
    ├── StaleClaim       nobody's: another tick was faster; drop what you have and stop
    └── Bug              ours: IllegalMove, StoreTooNew, RefundTaken

Refusals (a price above the quote, a cap) are values, never errors: `core.policy`.
"""


class AgentError(Exception):
    """The root. `code` is a key of `wire.problems.PROBLEMS`; `retryable` says whether trying again can help."""

    code = "internal"
    retryable = False


class Asked(AgentError):
    pass


class UnknownRun(Asked):
    code = "run_not_found"


class RunFinished(Asked):
    code = "run_finished"


class KeyConflict(Asked):
    code = "idempotency_conflict"


class RunBusy(Asked):
    code = "run_busy"
    retryable = True

    def __init__(self, retry_after_s: int) -> None:
        super().__init__(f"another tick holds the run for at most {retry_after_s} s more")
        self.retry_after_s = retry_after_s


class VendorError(AgentError):
    pass


class VendorUnreachable(VendorError):
    retryable = True


class VendorGarbled(VendorError):
    """An answer that is not the API: HTML, a missing field, an endless body."""


class VendorRefused(VendorError):
    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status = status


class Unavailable(AgentError):
    retryable = True


class StoreUnavailable(Unavailable):
    code = "store_unavailable"


class ChainUnavailable(Unavailable):
    code = "chain_unavailable"


class WalletError(Unavailable):
    code = "no_signer"


class NoSigner(Unavailable):
    code = "no_signer"


class StaleClaim(AgentError):
    code = "run_busy"
    retryable = True


class Bug(AgentError):
    pass


class IllegalMove(Bug):
    pass


class StoreTooNew(Bug):
    pass


class RefundTaken(Bug):
    pass
