"""
Whether an address that a stranger named may be called: only what the whole internet reaches, never our own network.

A name is resolved once, and the connection goes to the address that was checked: a name server that answers otherwise
the second time (DNS rebinding) changes nothing. Redirects are not followed by the client at all.

Source: IANA's IPv4 and IPv6 Special-Purpose Address Registries (RFC 6890), as `ipaddress` has them.
"""

import asyncio
import ipaddress
import socket
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from outbound.errors import BadAddress, Unreachable

ADDRESSES_MAX = 64

# Threads of their own: a name server of a stranger's that never answers holds one for long, and no work of ours waits.
_RESOLVERS = ThreadPoolExecutor(max_workers=8, thread_name_prefix="resolver")

# What stands for an IPv4 address: that one is checked instead. ::ffff:0:0/96 is known to `ipaddress` by itself.
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
# Of IPv6 this alone is handed out to the public; the rest of it is for special purposes.
_UNICAST = ipaddress.IPv6Network("2000::/3")
# What `ipaddress` calls global, in one Python or another, and is not: IETF's own, 6to4 and its relays, documentation;
# and the address at which one large host gives its machines their secrets.
_NOT_PUBLIC = tuple(
    ipaddress.ip_network(text)
    for text in ("192.0.0.0/24", "192.88.99.0/24", "168.63.129.16/32", "2001::/23", "2002::/16", "3fff::/20")
)


# Returns the addresses of a host, as text. Raises OSError where it has none.
Resolve = Callable[[str, int], Awaitable[list[str]]]
# Returns the one address at which a host and port are called. Raises BadAddress, Unreachable.
Guard = Callable[[str, int], Awaitable[str]]


async def resolved(host: str, port: int) -> list[str]:
    """Return the addresses that this machine's resolver has for `host`. Raises OSError."""
    ask = partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
    found = await asyncio.get_running_loop().run_in_executor(_RESOLVERS, ask)
    return [str(address[0]) for *_, address in found]


async def public_address(host: str, port: int, *, resolve: Resolve = resolved) -> str:
    """
    Return the address at which `host` is to be called, whatever it resolves to from now on.

    Every address that the name has must be public: a name that has one of ours beside a public one is a trap.

    Args:
        resolve: asked once.

    Raises:
        BadAddress: an address is not the public internet's.
        Unreachable: the name has no address.
    """
    try:
        addresses = await resolve(host, port)
    except (OSError, UnicodeError) as error:
        raise Unreachable(f"{host} has no address: {error}") from None
    if not addresses:
        raise Unreachable(f"{host} has no address")
    for address in addresses[:ADDRESSES_MAX]:
        if (why := _why_not(address)) is not None:
            raise BadAddress(f"{host} is {why}: only public addresses are called")
    return addresses[0]


def guard(*, allow_private: bool, resolve: Resolve = resolved) -> Guard | None:
    """
    Return the guard of an `HttpClient` that calls what strangers name.

    Args:
        allow_private: any address will do, one's own network's too: no guard.
    """
    return None if allow_private else partial(public_address, resolve=resolve)


def _why_not(text: str) -> str | None:
    """Return what kind of address `text` is, None for a public one."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return "no IP address"
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        elif address in _NAT64:
            address = ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
    if address.is_loopback:
        return "this machine"
    if address.is_link_local:
        return "a link-local address"
    is_unicast = address.version == 4 or address in _UNICAST
    is_public = address.is_global and not address.is_multicast and not address.is_reserved
    if not is_unicast or not is_public or any(address in network for network in _NOT_PUBLIC):
        return "no address of the public internet"
    return None
