"""What stands in front of a port of the product and looks at every call: suites freeze, kill, count or note there."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from inspect import iscoroutinefunction
from typing import Any, Literal

PORTS = ("store", "artifacts", "vendors", "chain", "wallet", "planner")
Moment = Literal["before", "after"]


@dataclass(frozen=True, slots=True)
class Call:
    """A call of a port: what it was given, and, after it, what it returned."""

    args: tuple[Any, ...]
    more: Mapping[str, Any]
    result: Any = None


# What is asked before and after a call, with the method's name; it may wait, raise, or end the process.
Look = Callable[[Moment, str, Call], Awaitable[None]]


class Watched:
    """A port, whose calls are looked at before they are made and after they returned."""

    def __init__(self, inner: Any, look: Look) -> None:
        self._inner, self._look = inner, look

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        if not iscoroutinefunction(found):
            return found

        async def watched(*args: Any, **more: Any) -> Any:
            await self._look("before", name, Call(args, more))
            result = await found(*args, **more)
            await self._look("after", name, Call(args, more, result))
            return result

        return watched
