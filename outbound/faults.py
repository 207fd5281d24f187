"""What httpx raises, as errors of ours, and how an address is shown in them."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import httpx

from outbound.errors import BadAddress, Broken, OutboundError, TimedOut, Unreachable

_ORIGIN = re.compile(
    r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]{0,31}://)(?:[^/?#\\\s]*@)?"
    r"(?P<host>(?:\[[0-9A-Fa-f:.]{2,45}\]|[^/?#\\@:\[\]\s]{1,253})(?::[0-9]{1,5}\b)?)"
)

# httpx's exceptions, the narrower before the wider.
_TRANSLATED: tuple[tuple[type[Exception], type[OutboundError]], ...] = (
    (httpx.InvalidURL, BadAddress),
    (httpx.UnsupportedProtocol, BadAddress),
    (httpx.LocalProtocolError, BadAddress),
    (httpx.ConnectError, Unreachable),
    (httpx.ConnectTimeout, Unreachable),
    (httpx.PoolTimeout, Unreachable),
    (httpx.TimeoutException, TimedOut),
    (httpx.TransportError, Broken),
)


@contextmanager
def translated(method: str, url: str, timeout_s: float) -> Iterator[None]:
    """Turn the library's exceptions into ours."""
    try:
        yield
    except TimeoutError:
        raise TimedOut(f"{method} {shown(url)}: no whole answer in {timeout_s:g} s") from None
    except (httpx.TransportError, httpx.InvalidURL) as error:
        kind = next(ours for theirs, ours in _TRANSLATED if isinstance(error, theirs))
        # What the library says of a wrong address or header quotes it.
        said = "" if kind is BadAddress else str(error)
        raise kind(f"{method} {shown(url)}: {said or type(error).__name__}") from error


def shown(url: str) -> str:
    """Return scheme, host and port of `url` for a message: keys travel in paths, queries and user names."""
    found = _ORIGIN.match(url)
    return found["scheme"] + found["host"] if found else "the address"
