"""What a job's processes may take, and what is said of one that takes more."""

from dataclasses import dataclass

from gpu_worker.core.errors import Fault
from gpu_worker.core.model import Sample

_MIB = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """`ends_by_s` is in Unix seconds; `stall_s` is how long a program may show no sign of progress."""

    memory_bytes: int
    disk_bytes: int
    ends_by_s: int | None
    stall_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Breach:
    """
    Why a program is ended. `fault` None: nobody's, its time is over.

    `is_gentle`: it is asked to stop first, so that its checkpoint is not lost. `is_final`: it is not started again.
    """

    reason: str
    fault: Fault | None
    is_gentle: bool = False
    is_final: bool = True


def judge(sample: Sample | None, bounds: Bounds, *, now_s: float, still_s: float) -> Breach | None:
    """
    Return what a program has broken, None where it may go on.

    Args:
        sample: None where it was not taken.
        now_s: Unix seconds.
        still_s: seconds since the program last showed a sign of progress.
    """
    if bounds.ends_by_s is not None and now_s >= bounds.ends_by_s:
        return Breach(reason="its hours are over", fault=None, is_gentle=True)
    if sample is not None and sample.memory_bytes > bounds.memory_bytes:
        return Breach(
            reason=f"it needs more memory than the {bounds.memory_bytes // _MIB} MiB that a job has here", fault="buyer"
        )
    if sample is not None and sample.disk_bytes > bounds.disk_bytes:
        return Breach(
            reason=f"it needs more disk than the {bounds.disk_bytes // _MIB} MiB that a job has here", fault="buyer"
        )
    if still_s > bounds.stall_s:
        return Breach(reason=f"no progress for {bounds.stall_s:g} s", fault="owner", is_final=False)
    return None
