"""What is known of a worker, put together for the question why it earns nothing."""

from collections.abc import Mapping
from typing import Any

from gpu_worker.core.idle import IdleFacts
from gpu_worker.core.owner import Yield


def facts_of(
    status: Mapping[str, Any] | None,
    *,
    missing_packages: tuple[str, ...] = (),
    models: tuple[str, ...] = (),
    disk_room_bytes: int | None = None,
) -> IdleFacts:
    """Return the facts that a worker's own status tells (None: no worker answers), and what this machine tells."""
    if status is None:
        return IdleFacts(state=None, missing_packages=missing_packages, models=models)
    rest = status.get("yielded")
    return IdleFacts(
        state=str(status["state"]),
        missing_packages=missing_packages,
        has_key=status.get("address") is not None,
        refunds=status.get("refunds"),
        kinds=tuple(status.get("kinds") or ()),
        models=models,
        running=len(status.get("jobs") or ()),
        jobs_max=int(status.get("jobsMax") or 1),
        disk_room_bytes=disk_room_bytes,
        yielded=None if rest is None else Yield(cause=rest["cause"], reason=str(rest["reason"])),
        offers=int(status.get("offers") or 0),
        quotes=int(status.get("quotes") or 0),
        sold=int(status.get("sold") or 0),
        refusals={str(code): int(count) for code, count in (status.get("refusals") or {}).items()},
    )
