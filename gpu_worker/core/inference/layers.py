"""Which layers a stage has, and which layers together are a whole model."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from gpu_worker.core.errors import OwnersFault


@dataclass(frozen=True, slots=True, order=True)
class Layers:
    """The layer slice [start, end) of a model of `total` layers. Raises OwnersFault: it is no slice of that model."""

    start: int
    end: int
    total: int

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.end <= self.total:
            raise OwnersFault(f"{self.start}:{self.end} is no slice of a model with {self.total} layers")

    @classmethod
    def parse(cls, text: str, total: int) -> Self:
        """Return the slice that `text` names, as `0:12`; an end that is left out is the model's. Raises OwnersFault."""
        start, colon, end = text.partition(":")
        try:
            return cls(int(start or 0), int(end or total), total) if colon else cls(int(start), int(start) + 1, total)
        except ValueError:
            raise OwnersFault(f"{text!r} is no layer slice: write it as 0:12, 12 not included") from None

    @property
    def is_first(self) -> bool:
        return self.start == 0

    @property
    def is_last(self) -> bool:
        return self.end == self.total

    @property
    def count(self) -> int:
        return self.end - self.start

    def __str__(self) -> str:
        return f"{self.start}:{self.end}"


def gap(slices: Sequence[Layers]) -> str | None:
    """Return why the slices, in this order, are no whole model, None where they are one."""
    if not slices:
        return "no stage serves any layer"
    at = 0
    for each in slices:
        if each.total != slices[0].total:
            return f"one stage says the model has {slices[0].total} layers, another {each.total}"
        if each.start != at:
            how = "twice" if each.start < at else "by nobody"
            return f"layers {min(at, each.start)} to {max(at, each.start)} are served {how}"
        at = each.end
    return None if at == slices[0].total else f"layers {at} to {slices[0].total} are served by nobody"
