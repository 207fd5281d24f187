"""A worker's life: one state after another, and no way back but out."""

from collections.abc import Mapping

from gpu_worker.core.errors import Bug
from wire.vendor import WorkerState

MOVES: Mapping[WorkerState, tuple[WorkerState, ...]] = {
    "probing": ("registering", "gone"),
    "registering": ("loading", "draining", "gone"),
    "loading": ("measuring", "draining", "gone"),
    "measuring": ("online", "draining", "gone"),
    "online": ("draining", "gone"),
    "draining": ("gone",),
    "gone": (),
}


def move(state: WorkerState, to: WorkerState) -> WorkerState:
    """Return `to`. Raises Bug where `state` does not lead there."""
    if to not in MOVES[state]:
        raise Bug(f"a worker that is {state} does not become {to}")
    return to
