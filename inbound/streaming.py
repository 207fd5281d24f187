"""
Answers that go on for long: whether the host passes them on as they come, and whether it is time to end them.
"""

import signal

from starlette.types import Scope


def can_stream(scope: Scope) -> bool:
    """Return whether what is sent reaches the client at once. Mangum gathers the whole answer for Lambda first."""
    return "aws.event" not in scope


def is_stopping() -> bool:
    """
    Return whether the server of this process was told to stop: an answer without an end ends itself then.

    uvicorn waits for the answers first and only then tells the application, so its handler of the signal is asked.
    """
    server = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
    return bool(getattr(server, "should_exit", False))
