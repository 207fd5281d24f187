"""What the owner of a worker is told of its layer slice, as one document."""

from collections.abc import Sequence
from typing import Any

from gpu_worker.core.inference.batch import Hop
from gpu_worker.core.inference.seen import Seen
from gpu_worker.core.inference.step import SliceInfo
from gpu_worker.inference.ports import HeadStatus
from gpu_worker.inference.slice.parts import SliceParts
from gpu_worker.inference.text.report import metrics_reply


def document(
    parts: SliceParts,
    seen: Seen,
    *,
    state: str,
    progress: tuple[int, int],
    info: SliceInfo | None,
    head: HeadStatus,
    known: Sequence[Hop],
    hole: str | None,
) -> dict[str, Any]:
    """Return the document; times are milliseconds. `known` are the stages of the topology, replicas among them."""
    service, place, layers = parts.service, parts.place, seen.layers
    figures, cache = metrics_reply(service), place.cache()
    used = {hop.endpoint for hop in head.hops}
    return {
        "model": parts.model,
        "modelHash": parts.model_hash,
        "mode": service.mode,
        "layers": {"start": layers.start, "end": layers.end, "total": layers.total},
        "state": state,
        "progress": {"done": progress[0], "total": progress[1]},
        "endpoint": seen.endpoint,
        "next": seen.next or None,
        "isHead": layers.is_first,
        "head": None if layers.is_first else place.head_url(),
        "problem": hole,
        "cache": cache
        and {
            "sessions": cache.sessions,
            "positions": cache.positions,
            "positionsMax": cache.positions_max,
            "bytesMax": cache.bytes_max,
        },
        "route": [
            {"endpoint": hop.endpoint, "start": hop.start, "end": hop.end, "isUsed": hop.endpoint in used}
            for hop in sorted(known, key=lambda hop: (hop.start, hop.end, hop.endpoint))
        ],
        "requests": figures.total_requests,
        "running": head.stats.running,
        "waiting": head.stats.waiting,
        "tokens": figures.total_tokens_processed,
        "avgLatencyMs": figures.avg_latency_ms,
        "tokensPerS": figures.tokens_per_second,
        "failovers": head.stats.failovers,
        "changedKinds": head.stats.changed_kinds,
        "stepMs": round(head.step_p50_s * 1_000, 3),
        "steps": head.stats.steps,
        "computeMs": [round(seconds * 1_000, 3) for seconds in head.compute_s],
        **({} if info is None else _of(info)),
    }


def _of(info: SliceInfo) -> dict[str, Any]:
    return {
        "family": info.family,
        "dtype": info.dtype,
        "device": info.device,
        "backEnd": info.back_end,
        "batching": info.batching,
        "context": info.context,
        "costMs": {str(rows): round(seconds * 1_000, 3) for rows, seconds in info.cost_s.items()},
        "notes": list(info.notes),
    }
