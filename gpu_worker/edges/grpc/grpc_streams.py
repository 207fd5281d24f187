"""The places of a gRPC door for streams: who has one, and who gives it up when somebody else comes."""

import asyncio
from collections import Counter

from gpu_worker.core.inference.codes import InferenceError


class Place:
    """
    A stream's place. It `is_proven` once a batch came by it that was taken; until then it may be given to another one.

    `first` is how long its first batch may take: who waits for that waits in it, and hears by a TimeoutError.
    """

    def __init__(self, host: str, first_s: float) -> None:
        self.host = host
        self.first = asyncio.timeout(first_s)
        self.is_proven = self.is_given_up = False

    def give_up(self) -> None:
        self.is_given_up = True
        self.first.reschedule(asyncio.get_running_loop().time())


class Streams:
    """At most `most` places, at most `per_peer` of them for one host."""

    def __init__(self, most: int, per_peer: int, first_s: float) -> None:
        self._most, self._per_peer, self._first_s = most, per_peer, first_s
        self._all: list[Place] = []

    def __len__(self) -> int:
        return len(self._all)

    def enter(self, peer: str) -> Place:
        """
        Return a place for a stream of `peer`, gRPC's name of it; its `first` is to be entered at once.

        Where all are taken, the oldest stream that is not proven goes, of the host that has most of those. Raises
        InferenceError no_capacity: all are proven.
        """
        host = peer.rpartition(":")[0]
        crowd = [each for each in self._all if each.host == host]
        if len(crowd) < self._per_peer:
            crowd = self._all if len(self._all) >= self._most else []
        if crowd:
            idle = [each for each in crowd if not each.is_proven]
            if not idle:
                raise InferenceError("no_capacity", f"{len(crowd)} streams are open here already")
            counts = Counter(each.host for each in idle)
            gone = max(idle, key=lambda each: counts[each.host])
            self.leave(gone)
            gone.give_up()
        place = Place(host, self._first_s)
        self._all.append(place)
        return place

    def leave(self, place: Place) -> None:
        """Idempotent."""
        if place in self._all:
            self._all.remove(place)
