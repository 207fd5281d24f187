"""
What the serving of inference counts, in the text that Prometheus reads.

A metric that means the same as one of vLLM has its name; the others begin with livery_. prometheus_client is imported
when somebody looks, and has no registry of ours before: counting costs a request nothing of it.

Source: vLLM, v1/metrics/loggers.py.
"""

from collections.abc import Callable, Iterator
from itertools import accumulate
from typing import TYPE_CHECKING

from gpu_worker.core.hardware import Gpu, Machine
from gpu_worker.inference.text.figures import Histogram
from gpu_worker.inference.text.service import Service

if TYPE_CHECKING:
    from prometheus_client import Metric

# What is told of a request's end, and the ends that are told so: to vLLM a call of a tool is a stop.
_ENDS = {
    "stop": ("stop", "tool_calls", "content_filter"),
    "length": ("length",),
    "abort": ("abort",),
    "error": ("error",),
}
_LABELS = ("model_name", "engine")

# Name, what it says, the field of `Figures`.
_HISTOGRAMS = (
    ("vllm:time_to_first_token_seconds", "Time to the first token.", "first_s"),
    ("vllm:inter_token_latency_seconds", "Time between two tokens of a request.", "between_s"),
    (
        "vllm:time_per_output_token_seconds",
        "Mean time between the tokens of a request, first one excluded.",
        "per_token_s",
    ),
    ("vllm:e2e_request_latency_seconds", "Time from a request's arrival to its end.", "request_s"),
    ("vllm:request_queue_time_seconds", "Time until a request was admitted.", "queue_s"),
    ("vllm:request_prefill_time_seconds", "Time from admission to the first token.", "prefill_s"),
    ("vllm:request_decode_time_seconds", "Time from the first token to the last.", "decode_s"),
    ("vllm:request_inference_time_seconds", "Time from admission to the last token.", "inference_s"),
    ("vllm:request_prompt_tokens", "Tokens of a request's prompt.", "prompt_lengths"),
    ("vllm:request_generation_tokens", "Tokens of a request's answer.", "lengths"),
    ("vllm:request_params_max_tokens", "The most tokens that a request could get.", "lengths_max"),
)


def _used(gpu: Gpu) -> float | None:
    return None if gpu.utilisation is None else gpu.utilisation / 100


# Name, what it says, what it is of a GPU; None: that one does not tell.
_GPUS: tuple[tuple[str, str, Callable[[Gpu], float | None]], ...] = (
    ("livery_gpu_memory_total_bytes", "Memory of the GPU.", lambda gpu: gpu.vram_total_bytes),
    ("livery_gpu_memory_free_bytes", "What of it nobody has.", lambda gpu: gpu.vram_free_bytes),
    ("livery_gpu_temperature_celsius", "Temperature of the GPU.", lambda gpu: gpu.temperature_c),
    ("livery_gpu_power_watts", "What the GPU draws.", lambda gpu: None if gpu.power_w is None else float(gpu.power_w)),
    ("livery_gpu_utilization_perc", "Share of the time that it computed lately; 1 is all of it.", _used),
)


def metrics_text(service: Service | None, machine: Machine | None = None) -> bytes:
    """
    Return the metrics: of the model that is served, if one is, and of the machine, where it was looked at.

    A stage that is not the head has those of its cache alone.
    """
    from prometheus_client import CollectorRegistry
    from prometheus_client.exposition import generate_latest

    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(service, machine))
    text: bytes = generate_latest(registry)
    return text


class _Collector:
    """What a registry asks for its metrics; made for one look."""

    def __init__(self, service: Service | None, machine: Machine | None) -> None:
        self._service = service
        self._machine = machine

    def collect(self) -> Iterator["Metric"]:
        if self._service is not None:
            yield from _requests(self._service)
            yield from _engine(self._service)
            yield from _cache(self._service)
            yield from _pipeline(self._service)
        if self._machine is not None:
            yield from _of_machine(self._machine)


def _requests(service: Service) -> Iterator["Metric"]:
    from prometheus_client.core import HistogramMetricFamily

    figures, labels = service.figures, _values(service)
    yield _counter("vllm:prompt_tokens", "Tokens of prompts.", figures.prompt_tokens, service)
    yield _counter("vllm:generation_tokens", "Tokens that were made.", figures.tokens, service)
    ended = _family("counter", "vllm:request_success", "Requests that have ended, by how.", "finished_reason")
    for how, ends in _ENDS.items():
        ended.add_metric((*labels, how), sum(figures.ended[end] for end in ends))
    yield ended
    for name, says, field in _HISTOGRAMS:
        histogram: Histogram = getattr(figures, field)
        metric = HistogramMetricFamily(name, says, labels=_LABELS)
        bounds = (*(str(float(bound)) for bound in histogram.bounds), "+Inf")
        metric.add_metric(labels, list(zip(bounds, accumulate(histogram.counts), strict=True)), histogram.total)
        yield metric


def _engine(service: Service) -> Iterator["Metric"]:
    """What every engine tells, whichever it is; of whole models their memory besides."""
    from prometheus_client.core import InfoMetricFamily

    engine, turns = service.engine, service.turns
    if engine is None:
        return
    load, counts = engine.load(), engine.counts
    kind = InfoMetricFamily("livery_engine", "What computes.", labels=_LABELS)
    kind.add_metric(_values(service), {"kind": engine.kind})
    yield kind
    yield _gauge("vllm:num_requests_running", "Requests in work.", load.running, service)
    yield _gauge("vllm:num_requests_waiting", "Requests that wait.", turns.waiting + load.waiting, service)
    if service.place is not None:
        return
    if load.cache_max:
        share = load.cache_used / load.cache_max
        yield _gauge("vllm:kv_cache_usage_perc", "Share of the KV cache that is used; 1 is all of it.", share, service)
    yield _counter(
        "vllm:prefix_cache_queries", "Tokens looked for among known prefixes.", counts.prefix_queries, service
    )
    yield _counter("vllm:prefix_cache_hits", "Tokens found there.", counts.prefix_hits, service)
    yield _gauge("livery_slots", "Answers that are made at once.", turns.slots, service)
    yield _counter("livery_engine_restarts", "Times that the engine was started again.", counts.restarts, service)
    yield _gauge(
        "livery_benchmark_tokens_per_second",
        "Of one answer, at the start; 0: not measured.",
        service.tokens_per_s,
        service,
    )


def _cache(service: Service) -> Iterator["Metric"]:
    use = None if service.place is None else service.place.cache()
    if use is None:
        return
    share = use.positions / use.positions_max if use.positions_max else 0.0
    yield _gauge("vllm:kv_cache_usage_perc", "Share of the KV cache that is reserved; 1 is all of it.", share, service)
    yield _gauge("livery_kv_sessions", "Sessions with a KV cache on this stage.", use.sessions, service)
    yield _gauge("livery_kv_positions", "Positions that sessions have reserved here.", use.positions, service)
    yield _gauge("livery_kv_positions_max", "Positions that this stage has room for.", use.positions_max, service)
    yield _gauge("livery_kv_bytes_max", "Bytes that this stage gives to its KV cache.", use.bytes_max, service)


def _pipeline(service: Service) -> Iterator["Metric"]:
    status = None if service.place is None else service.place.head()
    if status is None:
        return
    stats = status.stats
    yield _gauge("livery_micro_batches", "Micro-batches in flight.", status.groups, service)
    yield _gauge("livery_pipeline_stages", "Stages on the route, 0: there is none now.", len(status.hops), service)
    yield _gauge("livery_pipeline_epoch", "Routes so far.", status.epoch, service)
    steps = _family("gauge", "livery_pipeline_step_seconds", "Time of a step through all stages, lately.", "quantile")
    for quantile, took_s in (("0.5", status.step_p50_s), ("0.99", status.step_p99_s)):
        steps.add_metric((*_values(service), quantile), took_s)
    yield steps
    yield _gauge(
        "livery_failover_gap_seconds", "How long the last failover kept streams waiting.", status.gap_s, service
    )
    yield _counter("livery_failovers", "Stages lost while sessions ran.", stats.failovers, service)
    yield _counter(
        "livery_sessions_refilled", "Sessions that a failover went on from kept rows.", stats.refilled_sessions, service
    )
    yield _counter(
        "livery_sessions_replayed", "Sessions whose tokens went through again.", stats.replayed_sessions, service
    )
    yield _counter(
        "livery_sessions_changed_kinds",
        "Sessions that went on over stages which compute in another way, maybe to other tokens.",
        stats.changed_kinds,
        service,
    )
    yield _counter("livery_sessions_refused", "Sessions that were not taken in.", stats.refused, service)
    yield _counter("livery_route_moves", "Changes of the route, planned ones too.", stats.moves, service)
    yield _counter("livery_pipeline_steps", "Steps through all stages.", stats.steps, service)
    yield _counter("livery_pipeline_rows", "Rows of those steps.", stats.rows, service)
    compute = _family("counter", "livery_stage_compute_seconds", "Time that each stage has computed.", "stage")
    for index, computed_s in enumerate(status.compute_s):
        compute.add_metric((*_values(service), str(index)), computed_s)
    yield compute


def _of_machine(machine: Machine) -> Iterator["Metric"]:
    from prometheus_client.core import GaugeMetricFamily

    yield GaugeMetricFamily("livery_memory_total_bytes", "Memory of the machine.", machine.ram_total_bytes)
    yield GaugeMetricFamily("livery_memory_free_bytes", "What of it nobody has.", machine.ram_free_bytes)
    for name, says, told in _GPUS:
        metric = GaugeMetricFamily(name, says, labels=("gpu", "name"))
        for gpu in machine.gpus:
            value = told(gpu)
            if value is not None:
                metric.add_metric((str(gpu.index), gpu.name), value)
        if metric.samples:
            yield metric


def _values(service: Service) -> tuple[str, ...]:
    return (service.model, "0")


def _family(kind: str, name: str, says: str, *labels: str) -> "Metric":
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    family = {"counter": CounterMetricFamily, "gauge": GaugeMetricFamily}[kind]
    return family(name, says, labels=(*_LABELS, *labels))


def _counter(name: str, says: str, value: float, service: Service) -> "Metric":
    metric = _family("counter", name, says)
    metric.add_metric(_values(service), value)
    return metric


def _gauge(name: str, says: str, value: float, service: Service) -> "Metric":
    metric = _family("gauge", name, says)
    metric.add_metric(_values(service), value)
    return metric
