"""
How many requests a client without a key or a payment has free in an hour.

A client is an IPv4 address, or the network of an IPv6 one: whoever has one of those has 2^64 addresses.
"""

import ipaddress
import math
from collections import deque
from dataclasses import dataclass, field

from gpu_worker.core.inference.callers import Quota

HOUR_S = 3_600.0
CLIENTS_MAX = 65_536
SWEEP_S = 60.0


@dataclass(slots=True)
class FreeTier:
    """The free requests of the last hour, `limit` for each client; the times are a clock's that only goes on."""

    limit: int
    clients_max: int = CLIENTS_MAX
    _taken: dict[str, deque[tuple[float, str]]] = field(default_factory=dict)
    _swept_s: float = -math.inf

    def quota(self, client: str, now_s: float) -> Quota:
        """Return what `client` has left."""
        known = client_of(client)
        taken = self._fresh(known, now_s)
        is_new = not taken and known not in self._taken
        left = 0 if is_new and self._is_full(now_s) else max(0, self.limit - len(taken))
        oldest_s = taken[0][0] if taken else now_s
        return Quota(self.limit, left, math.ceil(oldest_s + HOUR_S - now_s) if taken or not left else 0)

    def take(self, client: str, session: str, now_s: float) -> bool:
        """Return whether `session` is a free request of `client`, which is then counted."""
        if self.quota(client, now_s).left == 0:
            return False
        self._taken.setdefault(client_of(client), deque()).append((now_s, session))
        return True

    def give_back(self, client: str, session: str) -> None:
        """Count the request `session` no longer, where it was."""
        known = client_of(client)
        if (taken := self._taken.get(known)) is not None:
            self._taken[known] = deque(each for each in taken if each[1] != session)

    def _fresh(self, known: str, now_s: float) -> deque[tuple[float, str]]:
        taken = self._taken.get(known, deque())
        while taken and taken[0][0] + HOUR_S <= now_s:
            taken.popleft()
        return taken

    def _is_full(self, now_s: float) -> bool:
        """Return whether there is no room for another client, having forgotten those of an hour ago."""
        if len(self._taken) >= self.clients_max and now_s >= self._swept_s + SWEEP_S:
            self._swept_s = now_s
            self._taken = {key: each for key, each in self._taken.items() if each and each[-1][0] + HOUR_S > now_s}
        return len(self._taken) >= self.clients_max


def client_of(address: str) -> str:
    """Return what `address` is counted as; what is no address is counted as itself."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(found, ipaddress.IPv4Address):
        return str(found)
    mapped = found.ipv4_mapped
    return str(mapped) if mapped else str(ipaddress.IPv6Network((found, 64), strict=False))
