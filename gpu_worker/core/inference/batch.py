"""
What stages send each other: one message a step with the rows of all sessions in it.

Down the pipeline (towards the last stage) go routes, opens, closes and runs with their rows; up to the head come
tokens, refusals and faults. The last stage answers the head on a stream that the head opened to it, not through
the others.
"""

from dataclasses import dataclass, field

from gpu_worker.core.inference.sampling import Sampled
from gpu_worker.core.inference.step import Open, Refusal, Run, Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Hop:
    """
    A stage on a route: where its gRPC door is, and its layers.

    `takes` are the dtypes of rows that it says it takes, empty where that is not known. It is the same stage whatever
    it takes.
    """

    endpoint: str
    start: int
    end: int
    takes: tuple[str, ...] = field(default=(), compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """
    The way of a pipeline's steps: all its stages, head first. `index` is the place of who receives it.

    A stage sends on to `hops[index + 1]`. The last one answers on the stream by which the head sent it this same route
    with `answers` set.
    """

    pipeline: str
    epoch: int
    hops: tuple[Hop, ...]
    index: int
    answers: bool = False

    @property
    def takes(self) -> tuple[str, ...]:
        """The dtypes of rows that the next stage takes."""
        return self.hops[self.index + 1].takes if self.index + 1 < len(self.hops) else ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Refill:
    """
    Asks the stage at place `index` of the route to fill its next one's cache from its ring; others pass it on.

    Filled are the positions [0, length) of the session, at `epoch`.
    """

    session: str
    epoch: int
    length: int
    index: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkFault:
    """A stage cannot reach its next one, or goes away (`draining`). `endpoint` is the one that is lost or leaves."""

    endpoint: str
    code: str
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """
    One message of a `Steps` stream. `number` counts a pipeline's batches; `group` is its micro-batch.

    `hidden` has the rows of `runs`. `compute_s` is what each stage on the way has computed, head first.
    """

    pipeline: str
    epoch: int
    number: int = 0
    group: int = 0
    route: Route | None = None
    closes: tuple[str, ...] = ()
    opens: tuple[Open, ...] = ()
    runs: tuple[Run, ...] = ()
    hidden: Tensor | None = None
    refills: tuple[Refill, ...] = ()
    tokens: tuple[Sampled, ...] = ()
    refusals: tuple[Refusal, ...] = ()
    faults: tuple[LinkFault, ...] = ()
    opened: tuple[str, ...] = ()
    compute_s: tuple[float, ...] = ()
