"""Whether a request carries the bearer secret that a door asks for, and who may ask where there is none."""

import hmac
from collections.abc import Iterable
from typing import Literal

from starlette.types import Scope

from inbound.stranger import stranger


def bearer_fault(headers: Iterable[tuple[bytes, bytes]], secret: str) -> Literal["missing", "wrong"] | None:
    """Return what is wrong with the bearer among a request's headers, None where nothing is or none is asked for."""
    if not secret:
        return None
    sent = [value.partition(b" ") for name, value in headers if name == b"authorization"]
    if len(sent) != 1 or sent[0][0].lower() != b"bearer" or not sent[0][2].strip():
        return "missing"
    # Compared to the end: how long that takes tells nothing of how much was right.
    return None if hmac.compare_digest(sent[0][2].strip(), secret.encode()) else "wrong"


def page_fault(scope: Scope, secret: str) -> tuple[str, str] | None:
    """
    Return the code and the detail of the refusal of another site's web page, None for who may pass.

    Without a secret the page that a browser shows must be one of this machine: it may reach what its owner alone can.
    Programs tell of no origin, and a page that knows the secret was given it.
    """
    if secret or not any(name == b"origin" for name, _ in scope["headers"]):
        return None
    return stranger(scope["scheme"], scope["headers"], ())
