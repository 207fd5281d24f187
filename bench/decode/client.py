"""A client of streamed completions that takes next to nothing of the processors which it measures."""

import asyncio
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

ANSWER_S = 600
# In each chunk but the last: of the models of the benchmark each token is a chunk, and its text is never empty.
_MARK = b'"finish_reason":null'


@dataclass(frozen=True)
class Turn:
    """
    What one turn took: `seconds` for `tokens`, the first token of each session excluded.

    Of several sessions those tokens count that came while all of them decoded. `wall_s` is the whole turn, with its
    prompts; `wall_tokens` are all of it. `first_s` is the time to the first token, the median of the sessions.
    """

    tokens: int
    seconds: float
    wall_tokens: int = 0
    wall_s: float = 0.0
    first_s: float = 0.0

    @property
    def per_second(self) -> float:
        return self.tokens / self.seconds


def turn_of(times: Sequence[Sequence[float]], began_s: float) -> Turn:
    """Return the turn in which each session's tokens came at `times`."""
    begin, end = max(each[0] for each in times), min(each[-1] for each in times)
    if end <= begin:
        raise RuntimeError("the sessions did not decode together: ask for more tokens")
    inside = sum(1 for each in times for time_s in each if begin < time_s <= end)
    last, first = max(each[-1] for each in times), statistics.median(each[0] for each in times)
    return Turn(inside, end - begin, sum(map(len, times)), last - began_s, first - began_s)


def ask(url: str, prompts: Sequence[Sequence[int]], count: int, more: Mapping[str, Any], key: str = "") -> Turn:
    """Ask for `count` tokens behind each prompt, all at once. Raises RuntimeError: one was refused."""
    return turn_of(*asyncio.run(streamed(url, prompts, count, more, key=key)))


async def streamed(
    url: str,
    prompts: Sequence[Sequence[int]],
    count: int,
    more: Mapping[str, Any],
    came: Callable[[int], None] | None = None,
    key: str = "",
) -> tuple[list[list[float]], float]:
    """Return when each session's tokens came and when all began; `came` is told how many of the first one are there."""
    body = {"max_tokens": count, "temperature": 0, "stream": True, **more}
    began_s = time.perf_counter()
    async with asyncio.timeout(ANSWER_S):
        sessions = [
            _times(url, {**body, "prompt": list(prompt)}, came if index == 0 else None, key)
            for index, prompt in enumerate(prompts)
        ]
        return [*await asyncio.gather(*sessions)], began_s


async def _times(url: str, body: Mapping[str, Any], came: Callable[[int], None] | None, key: str) -> list[float]:
    parts = urlsplit(url)
    data = json.dumps(body).encode()
    head = (
        f"POST /v1/completions HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Type: application/json\r\n"
        f"Authorization: Bearer {key}\r\nContent-Length: {len(data)}\r\nConnection: close\r\n\r\n"
    )
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port, limit=2**24)
    try:
        writer.write(head.encode() + data)
        status = await reader.readline()
        times: list[float] = []
        rest = b""
        while piece := await reader.read(65_536):
            text = rest + piece
            if b" 200 " not in status:
                rest = text
                continue
            found = text.count(_MARK)
            times += [time.perf_counter()] * found
            # What is left may be the beginning of a mark, never a whole one.
            rest = text[-(len(_MARK) - 1) :]
            if found and came is not None:
                came(len(times))
    finally:
        writer.close()
    if not times:
        raise RuntimeError(f"{status!r} {rest[-500:]!r}")
    return times
