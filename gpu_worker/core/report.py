"""The report of a job: what it was, what came of it, how its loss went. Made on failure too, and of a killed job."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from gpu_worker.core.curve import Point, png
from gpu_worker.core.folder import ProgressLine, Spec, State
from wire import decimal_json
from wire.vendor import MetricPoint

REPORT = "report.json"
CURVE = "curve.png"
LOSS, HELD_OUT_LOSS = "loss", "eval_loss"


def history_of(lines: Iterable[ProgressLine]) -> tuple[MetricPoint, ...]:
    """Return what was measured, step by step; what was done again after a resume replaces what was before."""
    points: dict[int, dict[str, Any]] = {}
    for line in lines:
        if line.kind == "metric" and line.values is not None:
            points[line.step] = {**points.get(line.step, {}), **line.values}
    return tuple(MetricPoint(step=step, values=points[step]) for step in sorted(points))


def curve_of(history: Iterable[MetricPoint], name: str) -> list[Point]:
    """Return the points of one metric."""
    return [(point.step, float(point.values[name])) for point in history if name in point.values]


def end_files(
    spec: Spec, state: State | None, history: Sequence[MetricPoint], more: Mapping[str, Any] | None = None
) -> dict[str, bytes]:
    """
    Return the files that every job leaves, by name: the report, and the curve of a training.

    Args:
        state: the last that the program told, None where it told nothing.
        more: what else the report says.
    """
    document = {
        "format": 1,
        "jobId": spec.job_id,
        "kind": spec.kind,
        "params": spec.params,
        "index": spec.index,
        "device": spec.device,
        "threads": spec.threads,
        "modelHash": spec.model_hash,
        "specHash": spec.spec_hash,
        "dataset": None if spec.input is None else spec.input.document(),
        "outcome": "failed" if state is None or state.code is not None else "completed",
        "state": None if state is None else state.document(),
        "history": [point.document() for point in history],
        **(more or {}),
    }
    files = {REPORT: decimal_json.dumps(document) + b"\n"}
    trained, held_out = curve_of(history, LOSS), curve_of(history, HELD_OUT_LOSS)
    if spec.kind == "fine_tune" and (trained or held_out):
        files[CURVE] = png(trained, held_out)
    return files
