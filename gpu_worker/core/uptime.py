"""How long the services of a worker were up, as somebody who looks at them now and then knows it."""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

WINDOW_S = 60.0
# What a payer asks of the window, in per cent.
UPTIME_MIN = 80.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Up:
    """Shares between 0 and 1: of the window, and since the first look. `is_up`: at the last look."""

    is_up: bool
    window: float
    always: float


class UptimeRecord:
    """
    Looks at services, by their names; seconds are of a clock that never goes back.

    A look holds until the next one, and not longer than `gap_s`: of a time in which nobody looked, because the machine
    slept or the loop hung, it is not said that a service was up.
    """

    def __init__(self, *, window_s: float = WINDOW_S, gap_s: float = 5.0) -> None:
        self.window_s = window_s
        self._gap_s = gap_s
        self._looks: deque[tuple[float, Mapping[str, bool]]] = deque()
        self._up_s: dict[str, float] = {}
        self._since_s: dict[str, float] = {}

    def saw(self, now_s: float, states: Mapping[str, bool]) -> None:
        """Take one look; what is not among `states` is down from now on."""
        if self._looks:
            at_s, before = self._looks[-1]
            held_s = min(now_s - at_s, self._gap_s)
            for name, is_up in before.items():
                self._up_s[name] += held_s if is_up else 0.0
        known = {**dict.fromkeys(self._since_s, False), **states}
        for name in states:
            self._since_s.setdefault(name, now_s)
            self._up_s.setdefault(name, 0.0)
        self._looks.append((now_s, known))
        # One look from before the window stays: it holds into it.
        while len(self._looks) > 1 and self._looks[1][0] <= now_s - self.window_s:
            self._looks.popleft()

    def tell(self, now_s: float) -> dict[str, Up]:
        """Return every service that was ever seen. A service that began within the window is judged from then on."""
        if not self._looks:
            return {}
        at_s, last = self._looks[-1]
        pending_s = min(now_s - at_s, self._gap_s)
        return {
            name: Up(
                is_up=last[name] and now_s - at_s <= self._gap_s,
                window=_share(self._within_s(name, now_s), min(self.window_s, now_s - since_s), last[name]),
                always=_share(self._up_s[name] + (pending_s if last[name] else 0.0), now_s - since_s, last[name]),
            )
            for name, since_s in self._since_s.items()
        }

    def _within_s(self, name: str, now_s: float) -> float:
        """Return the seconds of the window in which it was up."""
        start_s, up_s = now_s - self.window_s, 0.0
        looks = [*self._looks]
        ends_s = [at_s for at_s, _ in looks[1:]] + [now_s]
        for (at_s, states), end_s in zip(looks, ends_s, strict=True):
            if states.get(name):
                up_s += max(0.0, min(end_s, at_s + self._gap_s) - max(at_s, start_s))
        return up_s


def _share(up_s: float, of_s: float, is_up: bool) -> float:
    return min(1.0, up_s / of_s) if of_s > 0 else float(is_up)
