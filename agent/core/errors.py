"""
The agent's errors, split by whose fault it is.

    AgentError
    ├── Asked            the caller's: UnknownRun, UnknownArtifact, RunFinished, RunBusy, KeyConflict, BadSignature,
    │                    CannotRevoke, UploadRefused, UploadIncomplete, UploadTooLarge, JobOver
    ├── VendorError      the vendor's: VendorUnreachable (retryable), VendorGarbled, VendorRefused,
    │                    ForeignAddress, VendorUnpayable; ours in asking it: VendorDenied, NoVendorSecret
    ├── Unavailable      the world's, retryable: StoreUnavailable, ArtifactsUnavailable, ChainUnavailable, WalletError,
    │                    NoSigner
    ├── StaleClaim       nobody's: another tick was faster; drop what you have and stop
    └── Bug              ours: IllegalMove, StoreTooNew

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


class UnknownArtifact(Asked):
    code = "artifact_not_found"


class RunFinished(Asked):
    code = "run_finished"


class KeyConflict(Asked):
    code = "idempotency_conflict"


class BadSignature(Asked):
    code = "bad_signature"


class CannotRevoke(Asked):
    code = "cannot_revoke"


class UploadRefused(Asked):
    """The token is of no job that may read or write this file."""

    code = "upload_refused"


class UploadIncomplete(Asked):
    """The bytes that came are not those that were announced; nothing of them is kept."""

    code = "upload_incomplete"


class UploadTooLarge(Asked):
    code = "body_too_large"


class JobOver(Asked):
    """The job ended too long ago to leave anything more."""

    code = "job_ended"


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


class VendorUnpayable(VendorGarbled):
    """A 402 that wants something which is not given: money moved before the job is bound to it."""


class VendorRefused(VendorError):
    """`problem` is the code of its problem document, empty where it sent none."""

    def __init__(self, status: int, detail: str, problem: str = "") -> None:
        super().__init__(detail)
        self.status = status
        self.problem = problem


class VendorDenied(VendorRefused):
    """401 or 403: our secret is not the one that the vendor knows."""


class NoVendorSecret(VendorError):
    """No bearer secret is configured for the vendor: nothing was sent."""

    refusal = "no_vendor_secret"


class ForeignAddress(VendorError):
    """A file that is not at the vendor's own scheme, host and port: it is not asked for."""


class Unavailable(AgentError):
    retryable = True


class StoreUnavailable(Unavailable):
    code = "store_unavailable"


class ArtifactsUnavailable(Unavailable):
    """The place that keeps artifacts cannot be written or read now: a full disk, a database that is away."""

    code = "artifacts_unavailable"


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


def is_bug(error: BaseException) -> bool:
    """Return whether `error` is ours: none that is foreseen, or one that says so."""
    return isinstance(error, Bug) or not isinstance(error, AgentError)
