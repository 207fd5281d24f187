"""What the doors tell of the model that is served: its figures, its slices, its health."""

from decimal import Decimal

from gpu_worker.inference.text.service import Service
from wire.generate import Assignment, MetricsReply, PipelineNode, PipelineStatus, PipelineTopology
from wire.vendor import ServedLayers, WorkerHealth


def metrics_reply(service: Service) -> MetricsReply:
    figures = service.figures
    ended, latency_s, up_s = sum(figures.ended.values()), figures.request_s.total, service.uptime_s
    return MetricsReply(
        total_tokens_processed=figures.tokens,
        total_requests=ended,
        total_latency_ms=round(latency_s * 1_000, 3),
        avg_latency_ms=round(latency_s * 1_000 / ended, 3) if ended else 0.0,
        uptime_seconds=int(up_s),
        tokens_per_second=round(figures.tokens / up_s, 3) if up_s else 0.0,
    )


async def pipeline_status(service: Service) -> PipelineStatus:
    """Return the slices that are known, first layer first; without any the topology is none."""
    layers = service.layers
    assignment = None
    if layers is not None:
        is_full = layers.is_first and layers.is_last
        assignment = Assignment(start=layers.start, end=layers.end, total=layers.total, is_full=is_full)
    return PipelineStatus(
        model=service.model, address=service.address, assignment=assignment, topology=await _topology(service)
    )


async def _topology(service: Service) -> PipelineTopology | None:
    known = () if service.place is None else await service.place.stages()
    stages = sorted(known, key=lambda stage: (stage.layers, stage.hop.endpoint))
    if not stages:
        return None
    slices = sorted({stage.layers for stage in stages})
    nodes = tuple(
        PipelineNode(
            address=getattr(stage, "address", ""),
            grpc_endpoint=stage.hop.endpoint,
            http_endpoint=stage.http_url,
            layer_start=stage.layers.start,
            layer_end=stage.layers.end,
            pipeline_order=slices.index(stage.layers),
            ready=stage.is_ready,
        )
        for stage in stages
    )
    return PipelineTopology(model=service.model, total_layers=slices[0].total, nodes=nodes)


def with_inference(health: WorkerHealth, service: Service) -> WorkerHealth:
    """Return the worker's health with what it serves; `status` is `loading` until it can do its part."""
    layers = service.layers
    served = None if layers is None else ServedLayers(start=layers.start, end=layers.end, total=layers.total)
    return health.model_copy(
        update={
            "status": "ok" if service.is_ready or service.is_draining else "loading",
            "mode": service.mode,
            "model": service.model,
            "uptime": Decimal(int(health.uptime)),
            "layers": served,
            **_benchmark(service),
        }
    )


def _benchmark(service: Service) -> dict[str, Decimal]:
    """Return how fast the model was at the start; where that is not known, what jobs were measured with stands."""
    return {"benchmark_tok_per_sec": Decimal(f"{service.tokens_per_s:.2f}")} if service.tokens_per_s else {}
