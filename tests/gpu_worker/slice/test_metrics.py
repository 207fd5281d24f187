"""What Prometheus reads: vLLM's names where the meaning is the same, and values that are those of the requests."""

import subprocess
import sys

import httpx
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from gpu_worker.core.inference.codes import InferenceError
from gpu_worker.core.inference.layers import Layers
from gpu_worker.core.inference.step import CacheUse
from gpu_worker.inference.text.figures import Histogram
from tests.fixtures.talker import MODEL, Talker, served, service_of

VLLM = {
    "vllm:num_requests_running": "gauge",
    "vllm:num_requests_waiting": "gauge",
    "vllm:kv_cache_usage_perc": "gauge",
    "vllm:prompt_tokens": "counter",
    "vllm:generation_tokens": "counter",
    "vllm:request_success": "counter",
    "vllm:time_to_first_token_seconds": "histogram",
    "vllm:inter_token_latency_seconds": "histogram",
    "vllm:time_per_output_token_seconds": "histogram",
    "vllm:e2e_request_latency_seconds": "histogram",
    "vllm:request_queue_time_seconds": "histogram",
    "vllm:request_prefill_time_seconds": "histogram",
    "vllm:request_decode_time_seconds": "histogram",
    "vllm:request_inference_time_seconds": "histogram",
    "vllm:request_prompt_tokens": "histogram",
    "vllm:request_generation_tokens": "histogram",
    "vllm:request_params_max_tokens": "histogram",
}
OURS = {
    "livery_engine_info": "gauge",
    "livery_kv_sessions": "gauge",
    "livery_kv_positions": "gauge",
    "livery_kv_positions_max": "gauge",
    "livery_kv_bytes_max": "gauge",
    "livery_micro_batches": "gauge",
    "livery_pipeline_stages": "gauge",
    "livery_pipeline_epoch": "gauge",
    "livery_pipeline_step_seconds": "gauge",
    "livery_failover_gap_seconds": "gauge",
    "livery_failovers": "counter",
    "livery_sessions_refilled": "counter",
    "livery_sessions_replayed": "counter",
    "livery_sessions_changed_kinds": "counter",
    "livery_sessions_refused": "counter",
    "livery_route_moves": "counter",
    "livery_pipeline_steps": "counter",
    "livery_pipeline_rows": "counter",
    "livery_stage_compute_seconds": "counter",
}
CACHE = CacheUse(sessions=2, positions=25, positions_max=100, bytes_max=4_096)


def value(samples: list[Sample], name: str, **labels: str) -> float:
    """Return the one sample of that name that has these labels."""
    (found,) = [each.value for each in samples if each.name == name and labels.items() <= each.labels.items()]
    return found


async def test_prometheus_reads_vllms_names_and_ours() -> None:
    talker = Talker(says=b"abc")
    talker.stats.failovers, talker.stats.steps, talker.stats.waiting = 1, 40, 3
    talker.stats.changed_kinds, talker.stats.refused = 5, 6
    async with served(service_of(talker, cache=lambda: CACHE)) as url, httpx.AsyncClient(base_url=url) as client:
        for tokens in (2, 100):
            await client.post("/v1/completions", json={"prompt": "12345", "max_tokens": tokens})
        talker.fails_after, talker.fails_with = 1, InferenceError("lost_stage", "gone")
        await client.post("/v1/completions", json={"prompt": "12345"})
        reply = await client.get("/metrics")
    assert reply.headers["content-type"].startswith("text/plain; version=0.0.4")
    families = {family.name: family for family in text_string_to_metric_families(reply.text)}
    assert {name: family.type for name, family in families.items()} == VLLM | OURS
    samples = [sample for family in families.values() for sample in family.samples]
    assert all((each.labels["model_name"], each.labels["engine"]) == (MODEL, "0") for each in samples)
    assert value(samples, "vllm:prompt_tokens_total") == 15
    assert value(samples, "vllm:generation_tokens_total") == 2 + 4 + 1
    for how, count in (("length", 1), ("stop", 1), ("error", 1), ("abort", 0)):
        assert value(samples, "vllm:request_success_total", finished_reason=how) == count
    assert value(samples, "vllm:time_to_first_token_seconds_count") == 3
    assert value(samples, "vllm:inter_token_latency_seconds_count") == 1 + 3
    assert value(samples, "vllm:request_generation_tokens_bucket", le="2.0") == 2
    assert value(samples, "vllm:request_generation_tokens_bucket", le="+Inf") == 3
    assert value(samples, "vllm:request_generation_tokens_sum") == 7
    assert value(samples, "vllm:request_params_max_tokens_sum") == 2 + 100 + 16
    assert value(samples, "vllm:kv_cache_usage_perc") == 0.25
    assert value(samples, "vllm:num_requests_waiting") == 3
    assert value(samples, "vllm:num_requests_running") == 0
    assert value(samples, "livery_failovers_total") == 1
    assert value(samples, "livery_sessions_changed_kinds_total") == 5
    assert value(samples, "livery_sessions_refused_total") == 6
    assert value(samples, "livery_micro_batches") == 2
    assert value(samples, "livery_pipeline_step_seconds", quantile="0.99") == 0.004
    assert value(samples, "livery_stage_compute_seconds_total", stage="1") == 2.5


async def test_a_stage_that_is_not_the_head_tells_of_its_cache() -> None:
    service = service_of(None, layers=Layers(2, 4, 4), cache=lambda: CACHE)
    async with served(service) as url, httpx.AsyncClient(base_url=url) as client:
        text = (await client.get("/metrics")).text
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    assert value(samples, "livery_kv_positions") == 25
    assert not any(sample.name.startswith("livery_pipeline") for sample in samples)


def test_a_value_on_a_bound_is_counted_below_it() -> None:
    histogram = Histogram((1, 2))
    for each in (0.5, 1, 1.5, 2, 3):
        histogram.add(each)
    assert (histogram.counts, histogram.total, histogram.count) == ([2, 2, 1], 8.0, 5)


def test_the_doors_are_loaded_without_prometheus_and_torch() -> None:
    code = (
        "import sys; import gpu_worker.edges.http.inference_doors; "
        "print(*(name for name in ('prometheus_client', 'torch', 'grpc', 'transformers') if name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
