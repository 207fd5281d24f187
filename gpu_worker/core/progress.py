"""
What a buyer reads of a job, by cursor: every line and point once, in the order they were written, over restarts too.

The cursor is the offset behind the last line that was given, in a file that only grows.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from pydantic import ValidationError

from gpu_worker.core.folder import LINE_BYTES_MAX, ProgressLine
from wire.vendor import MetricPoint

PREFIX = "byte-"
_DIGITS_MAX = 15
# What one status tells of at most; what is left comes with the next cursor.
LINES_MAX = 500


@dataclass(frozen=True, slots=True)
class Told:
    logs: tuple[str, ...] = ()
    metrics: tuple[MetricPoint, ...] = ()


def parse(data: bytes, offset: int, lines_max: int = LINES_MAX) -> tuple[tuple[ProgressLine, ...], int]:
    """
    Return the whole lines at the beginning of `data`, which stands at `offset` of the file, and the offset behind them.

    A line without an end may still be written, unless it is too long to ever be one; what is no line is left out.
    """
    found: list[ProgressLine] = []
    start = 0
    while len(found) < lines_max:
        end = data.find(b"\n", start)
        if end < 0:
            if len(data) - start > LINE_BYTES_MAX:
                start = len(data)
            break
        line = _line(data[start:end])
        start = end + 1
        if line is not None:
            found.append(line)
    return tuple(found), offset + start


def _line(text: bytes) -> ProgressLine | None:
    try:
        return ProgressLine.from_json(text)
    except (ValueError, ValidationError):
        return None


def told(lines: Iterable[ProgressLine]) -> Told:
    """Return what of the lines is for the buyer."""
    kept = (*lines,)
    return Told(
        logs=tuple(line.text for line in kept if line.kind == "log" and line.text is not None),
        metrics=tuple(
            MetricPoint(step=line.step, values=line.values)
            for line in kept
            if line.kind == "metric" and line.values is not None
        ),
    )


def cursor_of(offset: int) -> str:
    return f"{PREFIX}{offset}"


def offset_of(cursor: str | None) -> int | None:
    """Return the offset that `cursor` names, 0 without one; None for one that was never given."""
    if cursor is None:
        return 0
    number = cursor.removeprefix(PREFIX)
    if number == cursor or not number.isascii() or not number.isdigit() or len(number) > _DIGITS_MAX:
        return None
    return int(number)
