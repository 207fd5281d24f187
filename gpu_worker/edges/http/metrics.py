"""
What the serving of inference counts, in the text that Prometheus reads.

A metric that means the same as one of vLLM has its name; the others begin with livery_. prometheus_client is imported
when somebody looks, and has no registry of ours before: counting costs a request nothing of it.

Source: vLLM, v1/metrics/loggers.py.
"""

from collections.abc import Iterator
from itertools import accumulate
from typing import TYPE_CHECKING

from gpu_worker.inference.text.figures import Histogram
from gpu_worker.inference.text.service import Service

if TYPE_CHECKING:
    from prometheus_client import Metric

_ENDS = ("stop", "length", "abort", "error")
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


def metrics_text(service: Service) -> bytes:
    """Return the metrics; a stage that is not the head has those of its cache alone."""
    from prometheus_client import CollectorRegistry
    from prometheus_client.exposition import generate_latest

    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(service))
    text: bytes = generate_latest(registry)
    return text


class _Collector:
    """What a registry asks for its metrics; made for one look."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def collect(self) -> Iterator["Metric"]:
        yield from _requests(self._service)
        yield from _cache(self._service)
        yield from _pipeline(self._service)


def _requests(service: Service) -> Iterator["Metric"]:
    from prometheus_client.core import HistogramMetricFamily

    figures, labels = service.figures, _values(service)
    yield _counter("vllm:prompt_tokens", "Tokens of prompts.", figures.prompt_tokens, service)
    yield _counter("vllm:generation_tokens", "Tokens that were made.", figures.tokens, service)
    ended = _family("counter", "vllm:request_success", "Requests that have ended, by how.", "finished_reason")
    for how in _ENDS:
        ended.add_metric((*labels, how), figures.ended[how])
    yield ended
    for name, says, field in _HISTOGRAMS:
        histogram: Histogram = getattr(figures, field)
        metric = HistogramMetricFamily(name, says, labels=_LABELS)
        bounds = (*(str(float(bound)) for bound in histogram.bounds), "+Inf")
        metric.add_metric(labels, list(zip(bounds, accumulate(histogram.counts), strict=True)), histogram.total)
        yield metric


def _cache(service: Service) -> Iterator["Metric"]:
    use = service.cache()
    if use is None:
        return
    share = use.positions / use.positions_max if use.positions_max else 0.0
    yield _gauge("vllm:kv_cache_usage_perc", "Share of the KV cache that is reserved; 1 is all of it.", share, service)
    yield _gauge("livery_kv_sessions", "Sessions with a KV cache on this stage.", use.sessions, service)
    yield _gauge("livery_kv_positions", "Positions that sessions have reserved here.", use.positions, service)
    yield _gauge("livery_kv_positions_max", "Positions that this stage has room for.", use.positions_max, service)
    yield _gauge("livery_kv_bytes_max", "Bytes that this stage gives to its KV cache.", use.bytes_max, service)


def _pipeline(service: Service) -> Iterator["Metric"]:
    if service.generator is None:
        return
    status = service.generator.status()
    stats = status.stats
    yield _gauge("vllm:num_requests_running", "Sessions in work.", stats.running, service)
    yield _gauge("vllm:num_requests_waiting", "Sessions that wait to be taken in.", stats.waiting, service)
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
