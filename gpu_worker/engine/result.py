"""What a job leaves for its buyer: what it made, and always its report with the curve of its losses."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpu_worker.core.folder import PROGRESS, RESULT, Spec, State
from gpu_worker.core.progress import parse
from gpu_worker.core.report import end_files, history_of
from wire.vendor import MetricPoint


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """
    What a job made: `write` puts its files into a folder, `artifact` is the one that counts.

    `history` None: what the program told in this start is all there is.
    """

    artifact: str
    write: Callable[[Path], None]
    final_metrics: Mapping[str, float] = field(default_factory=dict)
    report: Mapping[str, Any] = field(default_factory=dict)
    history: Sequence[MetricPoint] | None = None


def write_end(
    spec: Spec, folder: Path, state: State, end: End | None = None, *, history: Sequence[MetricPoint] | None = None
) -> None:
    """
    Make `result/`, which appears whole; one of an earlier start is replaced.

    Args:
        history: what was measured, where `end` is not there to tell.
    """
    new, result = folder / f"{RESULT}.new", folder / RESULT
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir()
    history = end.history if end is not None else history
    if history is None:
        lines, _ = parse((folder / PROGRESS).read_bytes(), 0, lines_max=1_000_000)
        history = history_of(lines)
    if end is not None:
        end.write(new)
    for name, data in end_files(spec, state, history, end.report if end is not None else None).items():
        (new / name).write_bytes(data)
    shutil.rmtree(result, ignore_errors=True)
    new.replace(result)
