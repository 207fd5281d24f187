"""
The cashier's errors, split by whose fault it is.

    CashierError
    ├── RefundRefused    the caller's: UnknownPayment, RefundTooLarge, RefundConflict, NoRefundKey, CreditTooSmall
    └── Unavailable      the world's, retryable: FacilitatorUnavailable, ChainUnavailable, RefundFailed

What a payer does wrong is never raised: it is an `Answer` (402, 400, 409).
"""


class CashierError(Exception):
    """The root. `code` is a key of `wire.problems.PROBLEMS`; `retryable` says whether trying again can help."""

    code = "internal"
    retryable = False


class RefundRefused(CashierError):
    pass


class UnknownPayment(RefundRefused):
    """No settled payment has this id."""


class RefundTooLarge(RefundRefused):
    """The refunds of a payment would add up to more than was paid, or this one is not above zero."""

    code = "refund_too_large"


class RefundConflict(RefundRefused):
    """This refund key stands for another refund."""


class NoRefundKey(RefundRefused):
    """There is no key for the address that was paid, so nothing can be sent back from it."""


class CreditTooSmall(RefundRefused):
    """The account has less than is to be withdrawn, nothing at all, or nobody's address."""

    code = "credit_too_small"


class Unavailable(CashierError):
    retryable = True


class FacilitatorUnavailable(Unavailable):
    """Unreachable, too slow, or an answer that is none: what became of a settlement is unknown."""

    code = "facilitator_unavailable"


class ChainUnavailable(Unavailable):
    code = "chain_unavailable"


class RefundFailed(Unavailable):
    """The transfer did not happen, or is not known to have happened. Asking again goes on where it stopped."""

    code = "chain_unavailable"
