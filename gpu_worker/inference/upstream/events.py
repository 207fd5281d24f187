"""Server-Sent Events out of bytes that come in any pieces, as the HTML standard has them: their data alone."""

EVENT_BYTES_MAX = 4 * 1024 * 1024


class EventTooLarge(ValueError):
    pass


class Events:
    """A stream of events. What is no event's data (comments, names, ids) is passed over."""

    def __init__(self, event_bytes_max: int = EVENT_BYTES_MAX) -> None:
        self._bytes_max = event_bytes_max
        self._rest = bytearray()
        self._data: list[bytes] = []

    def push(self, chunk: bytes) -> list[bytes]:
        """Return the data of the events that `chunk` ends. Raises EventTooLarge: one is longer than it may be."""
        self._rest += chunk
        # Only what is new is looked through: bytes that drip in cost no more than those that come at once.
        newest = chunk.rfind(b"\n")
        if newest < 0:
            self._check()
            return []
        end = len(self._rest) - len(chunk) + newest
        lines = bytes(self._rest[:end]).split(b"\n")
        del self._rest[: end + 1]
        return self._events(lines)

    def _events(self, lines: list[bytes]) -> list[bytes]:
        found: list[bytes] = []
        data = self._data
        for line in lines:
            if line.endswith(b"\r"):
                line = line[:-1]
            if line.startswith(b"data:"):
                data.append(line[6:] if line.startswith(b"data: ") else line[5:])
            elif not line and data:
                found.append(data[0] if len(data) == 1 else b"\n".join(data))
                data.clear()
        self._check()
        return found

    def _check(self) -> None:
        if len(self._rest) + sum(len(each) + 1 for each in self._data) > self._bytes_max:
            raise EventTooLarge(f"an event has more than {self._bytes_max} bytes")
