"""
What can go wrong with a request to another machine, split by whose fault it is.

    OutboundError            `sent`: False proves that no byte of the request left; `retryable`
    ├── BadAddress           ours: a URL or header that cannot be sent
    ├── Unreachable          the world's, retryable: no connection, nothing sent
    ├── TimedOut             the world's, retryable with the same bytes: sent, no whole answer, outcome unknown
    │   └── Broken           the same, and not for want of time: the connection broke, or it was not HTTP
    ├── TooLarge             theirs: an answer beyond its limit
    └── NotServed            theirs: a download answered with another status than 200
"""


class OutboundError(Exception):
    """The root. `sent` False proves that no byte left; `retryable` says whether trying again can help."""

    sent = True
    retryable = False


class BadAddress(OutboundError):
    sent = False


class Unreachable(OutboundError):
    sent = False
    retryable = True


class TimedOut(OutboundError):
    """Time ran out, the connection broke, or what came back was not HTTP: the request may have been served."""

    retryable = True


class Broken(TimedOut):
    pass


class TooLarge(OutboundError):
    pass


class NotServed(OutboundError):
    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
