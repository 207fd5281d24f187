"""What Prometheus reads of a worker with whole models, and of its machine; and that nothing is lost in counting."""

import asyncio
import threading
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from gpu_worker.edges.http.metrics import metrics_text
from gpu_worker.inference.text.turns import Turns
from gpu_worker.wiring.machine import open_hardware
from tests.fixtures.capability import capability, own_door, settings
from tests.fixtures.nvml_recorded import NoDriver, RecordedNvml, nvidia_smi
from tests.fixtures.server import WAIT_S
from tests.fixtures.talker import MODEL, Talker, served, service_of

MIB = 1024 * 1024


def samples_of(text: str) -> list[Sample]:
    return [sample for family in text_string_to_metric_families(text) for sample in family.samples]


def value(samples: list[Sample], name: str, **labels: str) -> float:
    """Return the one sample of that name that has these labels."""
    (found,) = [each.value for each in samples if each.name == name and labels.items() <= each.labels.items()]
    return found


@pytest.mark.row(86)
async def test_a_whole_model_tells_first_token_queue_and_what_computes(tmp_path: Path) -> None:
    service = service_of(Talker(says=b"abc"), turns=Turns(2, 8, 5.0), tokens_per_s=12.5)
    turn = await service.turns.enter()
    async with served(service) as url, httpx.AsyncClient(base_url=url) as client:
        await client.post("/v1/completions", json={"prompt": "12345", "max_tokens": 3})
        samples = samples_of((await client.get("/metrics")).text)
    turn.leave()
    assert value(samples, "livery_engine_info", kind="slice", model_name=MODEL) == 1
    assert value(samples, "vllm:time_to_first_token_seconds_count") == 1
    assert value(samples, "vllm:inter_token_latency_seconds_count") == 2
    assert value(samples, "vllm:num_requests_waiting") == 0
    assert value(samples, "vllm:num_requests_running") == 0
    assert value(samples, "livery_slots") == 2
    assert value(samples, "livery_engine_restarts_total") == 0
    assert value(samples, "vllm:prefix_cache_queries_total") == 0
    assert value(samples, "livery_benchmark_tokens_per_second") == 12.5


@pytest.mark.row(86)
async def test_who_waits_for_a_turn_is_told_as_waiting() -> None:
    service = service_of(Talker(), turns=Turns(1, 8, 60.0))
    first = await service.turns.enter()
    entering = [service.turns.enter() for _ in range(3)]
    tasks = [asyncio.create_task(each) for each in entering]
    await asyncio.sleep(0)  # each of them has come to its place in the queue
    assert value(samples_of(metrics_text(service).decode()), "vllm:num_requests_waiting") == 3
    first.leave()
    for task in tasks:
        (await task).leave()
    assert value(samples_of(metrics_text(service).decode()), "vllm:num_requests_waiting") == 0


def test_a_call_of_a_tool_is_a_stop_and_no_request_is_left_out() -> None:
    service = service_of(Talker())
    for how in ("stop", "tool_calls", "content_filter", "length", "abort", "error"):
        service.figures.ended[how] += 1
    samples = samples_of(metrics_text(service).decode())
    told = {each.labels["finished_reason"]: each.value for each in samples if each.name == "vllm:request_success_total"}
    assert told == {"stop": 3, "length": 1, "abort": 1, "error": 1}


@pytest.mark.row(86)
async def test_every_gpu_is_among_the_metrics_as_its_driver_tells_it(tmp_path: Path) -> None:
    machine = await open_hardware(settings(tmp_path), RecordedNvml()).read()
    samples = samples_of(metrics_text(service_of(Talker()), machine).decode())
    for gpu in nvidia_smi():
        label = {"gpu": gpu["index"]}
        assert value(samples, "livery_gpu_memory_total_bytes", **label) // MIB == int(gpu["memory.total"])
        assert value(samples, "livery_gpu_memory_free_bytes", **label) // MIB == int(gpu["memory.free"])
        assert value(samples, "livery_gpu_temperature_celsius", **label) == int(gpu["temperature.gpu"])
        assert value(samples, "livery_gpu_power_watts", **label) == float(gpu["power.draw"])
        busy = [each for each in samples if each.name == "livery_gpu_utilization_perc"]
        used = [each.value for each in busy if each.labels == {**label, "name": gpu["name"]}]
        assert used == ([] if gpu["utilization.gpu"] == "[N/A]" else [int(gpu["utilization.gpu"]) / 100])
    none = await open_hardware(settings(tmp_path), NoDriver()).read()
    alone = samples_of(metrics_text(None, none).decode())
    assert {each.name for each in alone} == {"livery_memory_total_bytes", "livery_memory_free_bytes"}
    assert value(alone, "livery_memory_total_bytes") == none.ram_total_bytes


@pytest.mark.row(86)
async def test_who_only_sells_jobs_has_metrics_at_its_own_port(tmp_path: Path) -> None:
    async with own_door(capability(tmp_path), tmp_path) as url, httpx.AsyncClient() as client:
        reply = await client.get(f"{url}/metrics")
    assert reply.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert value(samples_of(reply.text), "livery_gpu_memory_total_bytes", gpu="0") == 24_564 * MIB


@pytest.mark.slow
@pytest.mark.row(85)
async def test_eight_threads_with_a_hundred_requests_each_are_counted_to_the_last(tmp_path: Path) -> None:
    failures: list[object] = []

    def ask(url: str) -> None:
        with httpx.Client(base_url=url, timeout=WAIT_S) as client:
            for _ in range(100):
                reply = client.post("/api/v1/generate", json={"inputs": "12345", "parameters": {"max_new_tokens": 2}})
                if reply.status_code != 200:
                    failures.append(reply.text)

    async with served(service_of(Talker(says=b"abc"))) as url:
        threads = [threading.Thread(target=ask, args=(url,)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            await asyncio.to_thread(thread.join)
        async with httpx.AsyncClient(base_url=url) as client:
            told = (await client.get("/api/v1/metrics")).json()
            samples = samples_of((await client.get("/metrics")).text)
    assert failures == []
    assert (told["total_requests"], told["total_tokens_processed"]) == (800, 1_600)
    assert told["avg_latency_ms"] == pytest.approx(told["total_latency_ms"] / 800, abs=0.001)
    assert told["tokens_per_second"] > 0
    assert value(samples, "vllm:request_success_total", finished_reason="length") == 800
    assert value(samples, "vllm:prompt_tokens_total") == 800 * 5
