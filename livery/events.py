"""
A run's events out of a `text/event-stream`, and where to go on when it breaks off.

Source: WHATWG HTML, "Server-sent events". Lines are cut at line feeds alone: a log line may hold any other letter.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from wire.control import ObservationDocument

EVENT_BYTES_MAX = 256 * 1024


@dataclass(frozen=True, slots=True)
class RunEvent:
    """`name` is the observation's type, or the state that the run ended in: completed, failed or cancelled."""

    name: str
    observation: ObservationDocument

    @property
    def is_end(self) -> bool:
        return self.name in ("completed", "failed", "cancelled")


@dataclass
class EventReader:
    """Reads one stream. `retry_s` is how long the server asks to wait before the next."""

    retry_s: float = 2.0
    _fields: dict[str, list[str]] = field(default_factory=dict)

    async def events(self, chunks: AsyncIterator[bytes]) -> AsyncIterator[RunEvent]:
        """Yield the events in `chunks`, one whole event at a time. Raises ValueError for what is no event of a run."""
        left, self._fields = b"", {}
        async for chunk in chunks:
            *lines, left = (left + chunk).split(b"\n")
            if len(left) > EVENT_BYTES_MAX:
                raise ValueError("a line without an end")
            for line in lines:
                if event := self._take(line.rstrip(b"\r").decode()):
                    yield event

    def _take(self, line: str) -> RunEvent | None:
        if line:
            name, _, value = line.partition(":")
            self._fields.setdefault(name, []).append(value.removeprefix(" "))
            return None
        fields, self._fields = self._fields, {}
        if "retry" in fields:
            self.retry_s = int(fields["retry"][-1]) / 1_000
        if "data" not in fields:
            return None
        document = ObservationDocument.from_json("\n".join(fields["data"]))
        return RunEvent(fields.get("event", ["message"])[-1], document)
