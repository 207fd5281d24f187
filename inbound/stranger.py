"""
Telling whether a request comes from somebody else's web page.

Any page that a browser on this machine shows may send requests to loopback, and may give its own name our address
(DNS rebinding). So the name in Host must be one of ours, and what a browser tells of the sender must be ourselves.
Programs tell nothing of a sender, and pass.

Source: RFC 9110 section 7.2 (Host), RFC 6454 section 7 (Origin), W3C Fetch Metadata (Sec-Fetch-Site).
"""

import re
from collections.abc import Collection, Iterable

from starlette.types import Scope

from wire.loopback import is_address, is_loopback

_AUTHORITY = re.compile(r"(\[[0-9a-f:.]{2,45}\]|[a-z0-9._-]{1,253})(:[0-9]{1,5})?")
_OWN_SITES = ("same-origin", "none")
_SHOWN_CHARS_MAX = 100
# What proxies add.
_FORWARDED = frozenset({b"forwarded", b"via", b"x-real-ip"})


def is_near(scope: Scope) -> bool:
    """
    Return whether a program of this machine sent the request, over loopback or a Unix socket.

    What Host says proves nothing: whoever sends a request writes it. The server's own address is looked at too, since
    a client that has hung up already has none. A proxy beside us would lend a stranger its address, but tells of him.
    """
    if is_forwarded(name for name, _ in scope["headers"]):
        return False
    client, server = scope.get("client"), scope.get("server")
    return (client is None or is_loopback(client[0])) and (
        server is None or is_loopback(server[0]) or not is_address(server[0])
    )


def is_forwarded(names: Iterable[bytes]) -> bool:
    """Return whether one of a request's headers, in lower case, is a proxy's."""
    return any(name in _FORWARDED or name.startswith(b"x-forwarded-") for name in names)


def stranger(scheme: str, headers: Iterable[tuple[bytes, bytes]], hosts: Collection[str]) -> tuple[str, str] | None:
    """
    Return the code and the detail of the refusal of a request that is not from here, None for one that is.

    Args:
        headers: as ASGI has them, names in lower case.
        hosts: names besides those of loopback under which this server is reached.
    """
    sent: dict[bytes, list[str]] = {b"host": [], b"origin": [], b"sec-fetch-site": []}
    for name, value in headers:
        if name in sent:
            sent[name].append(value.decode("latin-1").lower())
    host = sent[b"host"][0] if len(sent[b"host"]) == 1 else ""
    found = _AUTHORITY.fullmatch(host)
    if found is None or not (is_loopback(found[1].strip("[]")) or found[1] in hosts):
        return "unknown_host", f"no server here is called {host[:_SHOWN_CHARS_MAX]!r}"
    for origin in sent[b"origin"]:
        if origin != f"{scheme}://{host}":
            return "foreign_origin", f"the page that sent this is of {origin[:_SHOWN_CHARS_MAX]!r}"
    for site in sent[b"sec-fetch-site"]:
        if site not in _OWN_SITES:
            return "foreign_origin", f"the browser calls the sender {site[:_SHOWN_CHARS_MAX]!r}"
    return None
