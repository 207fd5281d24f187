"""What the scenes of the benchmark find: a table of figures beside their goals, and the same as one document."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.table import Table

from bench.decode.client import Turn


@dataclass(frozen=True)
class Row:
    """
    One figure. `least` and `most` are its goal, None: it has none; `figure` None: it could not be had, `note` says why.
    """

    what: str
    figure: float | None
    unit: str = ""
    least: float | None = None
    most: float | None = None
    note: str = ""

    @property
    def is_met(self) -> bool | None:
        """Whether the goal is met; None where there is no goal, or no figure."""
        if self.figure is None or (self.least is None and self.most is None):
            return None
        return (self.least is None or self.figure >= self.least) and (self.most is None or self.figure <= self.most)

    @property
    def goal(self) -> str:
        parts = [f">= {self.least:g}"] if self.least is not None else []
        return ", ".join([*parts, *([f"<= {self.most:g}"] if self.most is not None else [])])


@dataclass(frozen=True)
class Grid:
    """A table of text beside the figures; the first column names its rows."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass
class Scene:
    """
    A table of figures, and `grids` below it. `about` are the lines at the end: processes with pids and threads, bytes
    of a step, what was asked.
    """

    name: str
    title: str
    rows: list[Row] = field(default_factory=list)
    grids: list[Grid] = field(default_factory=list)
    about: dict[str, Any] = field(default_factory=dict)

    def add(self, what: str, figure: float | None, unit: str = "", **goal: Any) -> None:
        self.rows.append(Row(what, figure, unit, **goal))

    @property
    def missed(self) -> list[str]:
        return [row.what for row in self.rows if row.is_met is False]

    def document(self) -> dict[str, Any]:
        figures = {
            row.what: {
                "figure": None if row.figure is None else round(row.figure, 4),
                **({"unit": row.unit} if row.unit else {}),
                **({"goal": row.goal, "met": row.is_met} if row.goal else {}),
                **({"note": row.note} if row.note else {}),
            }
            for row in self.rows
        }
        grids = {grid.title: [list(grid.columns), *map(list, grid.rows)] for grid in self.grids}
        return {"figures": figures, **({"tables": grids} if grids else {}), **self.about}


def show(scene: Scene, console: Console) -> None:
    words = {True: "[green]met[/]", False: "[red]missed[/]", None: ""}
    made = Table("figure", "value", "goal", "", "note", title=scene.title)
    for row in scene.rows:
        value = "-" if row.figure is None else f"{row.figure:,{_form(row.figure)}} {row.unit}".strip()
        made.add_row(row.what, value, row.goal, words[row.is_met], row.note)
    console.print(made)
    for grid in scene.grids:
        made = Table(*grid.columns, title=grid.title, pad_edge=False)
        made.columns[0].min_width = min(36, max(len(cells[0]) for cells in grid.rows))
        for each in made.columns[1:]:
            each.justify = "right"
        for cells in grid.rows:
            made.add_row(*cells)
        console.print(made)
    for name, value in scene.about.items():
        console.print(Padding(f"{name}: {_flat(value)}", (0, 0, 0, 2)), highlight=False, markup=False)


def _form(figure: float) -> str:
    return "d" if isinstance(figure, int) else ".3f"


def _flat(value: Any) -> str:
    if isinstance(value, Mapping):
        return "; ".join(f"{name} {_flat(each)}" for name, each in value.items())
    return ", ".join(map(_flat, value)) if isinstance(value, list | tuple) else str(value)


def median_rate(turns: Iterable[Turn]) -> float:
    """Return tokens a second, the median of the turns."""
    return statistics.median(turn.per_second for turn in turns)


def ratio(turns: Sequence[Turn], others: Sequence[Turn]) -> float:
    """Return how often faster `turns` are than `others` of the same moments: the median of the pairs."""
    return statistics.median(one.per_second / other.per_second for one, other in zip(turns, others, strict=True))
