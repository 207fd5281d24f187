"""
The table of points: each is a boundary of a call of a port, so nothing in the product knows of it.

A call is met before or after it is made; what it carries, or what came back, says which of several is meant.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random
from typing import Any, Literal

from agent.ports import Submitted
from bench.ports import Call, Moment

Side = Literal["buyer", "seller"]
Scene = Literal["buys", "late", "fails", "cancels"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """
    Where a trial stops a process. `at` is the process that gets there, `victim` the one that is killed then.

    `is_meant` tells the calls that count; which of these is the one is drawn from 1 to `calls_max`. `scenes` are those
    in which it is always reached.
    """

    name: str
    port: str
    method: str
    moment: Moment
    at: Side = "buyer"
    victim: Side = "buyer"
    is_meant: Callable[[Call], bool] = lambda call: True
    calls_max: int = 1
    scenes: tuple[Scene, ...] = ("buys", "late", "fails", "cancels")


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """
    What chance decided of one trial.

    Args:
        call: which of the meant calls is the deadly one.
        fails_at_epoch: when the first vendor's job fails, in the scene `fails`.
        late: how often the facilitator has no final word, in the scene `late`; `is_sent` says whether it settled.
        cancel_at: after how many sweeps the run is cancelled, in the scene `cancels`.
    """

    scene: Scene
    call: int
    fails_at_epoch: int
    late: int
    is_sent: bool
    cancel_at: int


def draw(point: Point, seed: int) -> Draw:
    """Return the same draw for the same point and seed, on every store."""
    chance = Random(f"{point.name} {seed}")
    return Draw(
        scene=chance.choice(point.scenes),
        call=chance.randint(1, point.calls_max),
        fails_at_epoch=chance.randint(1, 3),
        late=chance.randint(1, 2),
        is_sent=chance.random() < 0.5 and "recover" not in point.name,
        cancel_at=chance.randint(1, 2),
    )


def _saves(*kinds: str) -> Callable[[Call], bool]:
    """Return whether a save of the run stores one of these events."""

    def is_meant(call: Call) -> bool:
        return any(entry.data.get("kind") in kinds for entry in (call.args[2] if len(call.args) > 2 else ()))

    return is_meant


def _row(state: str) -> Callable[[Call], bool]:
    """Return whether a save of the till brings its row to `state`."""
    return lambda call: call.args[0].state == state


_REFUNDS: tuple[Scene, ...] = ("fails", "cancels")


def _buyer(name: str, port: str, method: str, moment: Moment, **more: Any) -> Point:
    return Point(name=name, port=port, method=method, moment=moment, **more)


def _seller(name: str, port: str, method: str, moment: Moment, **more: Any) -> Point:
    return Point(name=f"cashier: {name}", port=port, method=method, moment=moment, at="seller", victim="seller", **more)


_TICK = (
    _buyer("sweep: after due", "store", "due_runs", "after", calls_max=3),
    _buyer("sweep: between two ticks", "store", "release", "after", calls_max=2),
    _buyer("before claim", "store", "claim", "before", calls_max=3),
    _buyer("after claim", "store", "claim", "after", calls_max=3),
    _buyer("after read", "store", "list_vendors", "after", calls_max=3),
    _buyer("in recover", "vendors", "find", "after", scenes=("late",)),
    _buyer("after recover", "vendors", "job_status", "before"),
    _buyer("after observe", "vendors", "job_status", "after", calls_max=1),
    _buyer("after plan", "planner", "propose", "after"),
    _buyer("after quote", "vendors", "quote", "after"),
    _buyer("after quote stored", "store", "save", "after", is_meant=_saves("job_quoted")),
    _buyer("after challenge", "vendors", "challenge", "after"),
    _buyer("after sign", "wallet", "sign", "after"),
    _buyer("before reserve", "store", "save", "before", is_meant=_saves("payment_reserved")),
    _buyer("after reserve", "store", "save", "after", is_meant=_saves("payment_reserved")),
    _buyer("before send", "vendors", "submit", "before"),
    # The vendor has the request and has written it down: it will settle, and nobody is there to hear of it.
    _buyer("after send, before answer", "till", "save", "after", at="seller", is_meant=_row("settling")),
    _buyer(
        "after job created, before its id is stored",
        *("vendors", "submit", "after"),
        is_meant=lambda call: isinstance(call.result, Submitted),
    ),
    _buyer("after job id stored", "store", "save", "after", is_meant=_saves("job_submitted")),
    _buyer(
        "after settle, before commit",
        *("chain", "settlement", "after"),
        is_meant=lambda call: call.result is not None,
    ),
    _buyer("after commit, before release", "store", "release", "before", calls_max=3),
    _buyer("after settlement stored", "store", "save", "after", is_meant=_saves("payment_settled")),
    _buyer("after cancel at the vendor", "vendors", "cancel", "after", scenes=("cancels",)),
    _buyer("before refund counted", "store", "save", "before", is_meant=_saves("refund_settled"), scenes=_REFUNDS),
    _buyer("after refund counted", "store", "save", "after", is_meant=_saves("refund_settled"), scenes=_REFUNDS),
    _buyer("before files are listed", "vendors", "artifacts", "before"),
    _buyer("after a file is kept", "artifacts", "put", "after", calls_max=2, scenes=("buys", "late", "fails")),
    _buyer("before files are stored", "store", "save", "before", is_meant=_saves("artifacts_kept")),
    _buyer("after files are stored", "store", "save", "after", is_meant=_saves("artifacts_kept")),
    _buyer("before the end is stored", "store", "save", "before", is_meant=_saves("run_ended")),
)
_CASHIER = (
    _seller("after claim", "till", "claim", "after"),
    _seller("before verify", "facilitator", "verify", "before"),
    _seller("after verify", "facilitator", "verify", "after"),
    _seller("before write-ahead", "till", "save", "before", is_meant=_row("settling")),
    _seller("after write-ahead", "till", "save", "after", is_meant=_row("settling")),
    _seller("after settle", "facilitator", "settle", "after"),
    _seller("after booking", "till", "save", "after", is_meant=_row("settled")),
    _seller("after job start", "shop", "start_job", "after"),
    _seller("after answer stored", "till", "save", "after", is_meant=_row("served")),
    _seller("refund: after it is owed", "till", "ask_refund", "after", scenes=_REFUNDS),
    _seller("refund: before sign is stored", "till", "sign_refund", "before", scenes=_REFUNDS),
    _seller("refund: after sign is stored", "till", "sign_refund", "after", scenes=_REFUNDS),
    _seller("refund: after broadcast", "sender", "broadcast", "after", scenes=_REFUNDS),
    _seller("refund: before end", "till", "end_refund", "before", scenes=_REFUNDS),
    _seller("refund: after end", "till", "end_refund", "after", scenes=_REFUNDS),
)
POINTS: Mapping[str, Point] = {point.name: point for point in (*_TICK, *_CASHIER)}
