"""
The processes of a crowd: `python -m bench.concurrent.forked SECONDS:DESCRIPTOR,DESCRIPTOR...`, one for each socket that
was handed down, its own clock moved by that many seconds.

What is not ours is imported once, in the process that all are forked from. `time` and `datetime` are moved before
anything of ours is imported, so that none of it can know better. SQLite and MongoDB have their own clock, the machine's
and the server's: the one that leases, caps and cheques are to go by.
"""

import datetime as clock
import os
import sys
import time
from collections.abc import Iterable
from importlib import import_module
from typing import Any

FOREIGN = ("eth_account", "httpx", "pydantic", "pydantic_settings", "pymongo", "tenacity")
OURS = ("bench.concurrent.worker", "agent.edges.store_mongo", "agent.edges.store_sqlite")


def move(seconds: int) -> None:
    """Move this process's wall clock; `time.monotonic` counts on as it did, as it does when a clock is set."""
    real_s, real_ns, real = time.time, time.time_ns, clock.datetime

    class Known(type):
        def __instancecheck__(cls, instance: object) -> bool:
            return isinstance(instance, real)

    class Moved(clock.datetime, metaclass=Known):
        @classmethod
        def now(cls, tz: clock.tzinfo | None = None) -> "Moved":
            return cls.fromtimestamp(time.time(), tz)

        @classmethod
        def utcnow(cls) -> "Moved":
            return cls.fromtimestamp(time.time(), clock.UTC).replace(tzinfo=None)

        @classmethod
        def today(cls) -> "Moved":
            return cls.fromtimestamp(time.time())

        @classmethod
        def __get_pydantic_core_schema__(cls, source: object, handler: Any) -> Any:
            return handler.generate_schema(real)

    time.time = lambda: real_s() + seconds
    time.time_ns = lambda: real_ns() + seconds * 1_000_000_000
    clock.datetime = Moved  # type: ignore[misc]


def main(groups: list[str]) -> None:
    """Fork a process for each group, which forks one for each of its sockets; return when all have ended."""
    for name in FOREIGN:
        import_module(name)
    told = [group.partition(":")[::2] for group in groups]
    descriptors = [[int(one) for one in listed.split(",")] for _, listed in told]
    for (skew_s, _), own in zip(told, descriptors, strict=True):
        if os.fork() == 0:
            _close(one for other in descriptors if other is not own for one in other)
            _group(int(skew_s), own)
    _close(one for own in descriptors for one in own)
    _wait()


def _group(skew_s: int, descriptors: list[int]) -> None:
    if skew_s:
        move(skew_s)
    from multiprocessing.connection import Connection

    worker = {name: import_module(name) for name in OURS}["bench.concurrent.worker"]

    for descriptor in descriptors:
        if os.fork() == 0:
            _close(other for other in descriptors if other != descriptor)
            worker.serve(Connection(descriptor))
            os._exit(0)
    _close(descriptors)
    _wait()
    os._exit(0)


def _close(descriptors: Iterable[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def _wait() -> None:
    while True:
        try:
            os.wait()
        except ChildProcessError:
            return


if __name__ == "__main__":
    main(sys.argv[1:])
