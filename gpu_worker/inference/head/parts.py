"""What outlives a route of a head."""

from collections.abc import Callable
from dataclasses import dataclass

from gpu_worker.core.inference.batch import LinkFault
from gpu_worker.core.inference.deadlines import StepTimes
from gpu_worker.core.inference.ring import Ring
from gpu_worker.inference.head.desk import Desk
from gpu_worker.inference.head.shape import Shape
from gpu_worker.inference.ports import Engine, Links, Registry


@dataclass(slots=True, kw_only=True)
class HeadParts:
    """What outlives a route of a head."""

    name: str
    engine: Engine
    links: Links
    registry: Registry
    desk: Desk
    ring: Ring
    times: StepTimes
    shape: Shape
    clock: Callable[[], float]
    # What the head does when a stage is about to go, and at each answer, with its time.
    leaving: Callable[[LinkFault], None]
    answered: Callable[[float], None]
    # Deadlines are doubled each time that all stages live and a step was late all the same.
    patience: float = 1.0
    number: int = 0
