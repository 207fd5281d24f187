"""
What the vendor API refuses, and the problem document that each error becomes.

    VendorApiError      a request that cannot be served; `code` is a key of `wire.problems.PROBLEMS`
"""

import logging

from cashier.core.errors import CashierError
from storage.errors import StorageError
from wire.problems import ProblemDocument, problem_document

RETRY_AFTER_S = 1

# What a buyer is told of the cashier's errors, by their code; what happened inside is for the log.
_SAID = {
    "chain_unavailable": "the chain does not answer, or a transfer is not mined yet; ask again",
    "facilitator_unavailable": "the facilitator does not answer; ask again",
    "refund_too_large": "the refund is not above zero, or more than is left of the payment",
}
_LOG = logging.getLogger("livery.storefront")


class VendorApiError(Exception):
    """Nothing was charged. The message is one sentence for the buyer."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code


# Everything that `problem_of` knows; whatever else is raised is a bug, and 500.
ERRORS: tuple[type[Exception], ...] = (VendorApiError, CashierError, StorageError)


def problem_of(error: Exception) -> ProblemDocument:
    """Return the body of the answer to a request that met one of ERRORS."""
    match error:
        case VendorApiError():
            return problem_document(error.code, str(error))
        case CashierError():
            _LOG.warning("%s: %s", type(error).__name__, error)
            said = _SAID.get(error.code, "the refund cannot be made here")
            return problem_document(error.code, said, RETRY_AFTER_S if error.retryable else None)
        case StorageError():
            return problem_document("store_unavailable", "the vendors' own database does not answer", RETRY_AFTER_S)
    return problem_document("internal", type(error).__name__)
