"""Which addresses only this machine can reach: whoever listens there, and whoever calls there, needs no secret."""

import ipaddress


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach `host`."""
    if host == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    # What a socket of both families calls a caller over IPv4.
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback


def is_address(host: str) -> bool:
    """Return whether `host` is an IP address, not a name or a path."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
