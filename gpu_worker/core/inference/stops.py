"""
Stop strings in a text that arrives in pieces: what may be shown, and whether one of them is in it.

A text ends with the first stop string that is complete, read character by character; of two that are complete at the
same character, with the longer one. So it is the same wherever the pieces were cut.
"""

from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True, slots=True)
class Stops:
    """`strings` are the stop strings, none empty. `held` is the text that may be the beginning of one of them."""

    strings: tuple[str, ...]
    held: str = ""

    def __post_init__(self) -> None:
        if "" in self.strings:
            raise ValueError("a stop string is empty")


class Fed(NamedTuple):
    """`text` may be shown now. `hit` is the stop string that ends it, None where the text goes on."""

    stops: Stops
    text: str
    hit: str | None = None


def feed(stops: Stops, piece: str) -> Fed:
    """Return what may be shown after `piece`. Behind a hit nothing follows, and nothing is held."""
    if not stops.strings:
        return Fed(stops, piece)
    text = stops.held + piece
    # (end, begin): the first to be complete, of those the longest.
    hits = [(at + len(stop), at, stop) for stop in stops.strings if (at := text.find(stop)) >= 0]
    if hits:
        _, begin, stop = min(hits)
        return Fed(Stops(stops.strings), text[:begin], stop)
    keep = max(beginning(text, stop) for stop in stops.strings)
    shown = len(text) - keep
    return Fed(Stops(stops.strings, text[shown:]), text[:shown])


def beginning(text: str, stop: str) -> int:
    """Return how many characters at the end of `text` are the beginning of `stop`, less than all of it."""
    for size in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:size]):
            return size
    return 0
