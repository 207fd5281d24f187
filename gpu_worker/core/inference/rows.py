"""Rows of several runs that lie one behind the other: what a batch may hold, and how some of them are taken out."""

from collections.abc import Collection, Iterable, Sequence

from gpu_worker.core.inference.batch import Batch
from gpu_worker.core.inference.limits import HOPS_MAX, NAME_CHARS_MAX, PARTS_MAX, ROWS_MAX
from gpu_worker.core.inference.step import Run, SliceInfo, Tensor
from gpu_worker.core.inference.tensor import DTYPES, row_bytes


def flaw(batch: Batch, info: SliceInfo) -> str | None:
    """Return why a batch for a stage behind the first cannot be one, None where all of it fits together."""
    runs, hidden = batch.runs, batch.hidden
    if max(len(runs), len(batch.opens), len(batch.closes), len(batch.refills)) > PARTS_MAX:
        return f"a batch has at most {PARTS_MAX} runs, opens, closes and refills each"
    if batch.route is not None:
        if batch.route.pipeline != batch.pipeline or batch.route.epoch != batch.epoch:
            return "the route is not that of the batch's pipeline and epoch"
        if len(batch.route.hops) > HOPS_MAX:
            return f"a route has at most {HOPS_MAX} hops"
    names = {run.session for run in runs}
    if len(names) < len(runs):
        return "a session has two runs in one batch"
    named = (batch.pipeline, *names, *(each.session for each in batch.opens))
    if any(not 0 < len(name) <= NAME_CHARS_MAX for name in named):
        return f"a name has 1 to {NAME_CHARS_MAX} characters"
    if any(run.count < 1 or run.position < 0 or run.epoch < 0 for run in runs):
        return "a run has at least one row, and its position and epoch are not negative"
    if len(batch.compute_s) > HOPS_MAX:
        return f"at most {HOPS_MAX} stages have computed before this one"
    if any(each.length < 0 for each in batch.refills):
        return "a refill has a length that is negative"
    count = sum(run.count for run in runs)
    if count > ROWS_MAX:
        return f"a batch has at most {ROWS_MAX} rows"
    if hidden is None:
        return None if not runs else "there are runs without rows"
    if hidden.shape != (count, info.hidden_size):
        return f"the rows have the shape {list(hidden.shape)}, the runs need {[count, info.hidden_size]}"
    if hidden.dtype not in DTYPES:
        return f"{hidden.dtype[:32]!r} is no dtype of the wire"
    wanted = count * row_bytes(hidden.dtype, info.hidden_size)
    return None if len(hidden.data) == wanted else f"the rows have {len(hidden.data)} bytes, not {wanted}"


def pick(hidden: Tensor, runs: Sequence[Run], wanted: Collection[Run]) -> Tensor:
    """Return the rows of the `wanted` ones of `runs`, in the order of `runs`; `hidden` itself where all are."""
    if len(wanted) == len(runs):
        return hidden
    size = len(hidden.data) // hidden.shape[0]
    data, at, parts, count = memoryview(hidden.data), 0, [], 0
    for run in runs:
        if run in wanted:
            parts.append(data[at * size : (at + run.count) * size])
            count += run.count
        at += run.count
    return Tensor(hidden.dtype, (count, *hidden.shape[1:]), b"".join(parts))


def join(tensors: Iterable[Tensor | None]) -> Tensor | None:
    """Return the rows of all tensors, of one dtype and width, one behind the other; None where there are none."""
    some = [each for each in tensors if each is not None and each.shape[0]]
    if len(some) < 2:
        return some[0] if some else None
    count = sum(each.shape[0] for each in some)
    return Tensor(some[0].dtype, (count, *some[0].shape[1:]), b"".join(each.data for each in some))
