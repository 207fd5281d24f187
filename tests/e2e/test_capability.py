"""A worker that serves a whole model, as a process: what its door for GPU checks tells of it, and what was measured."""

from collections.abc import Iterator

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.cli.test_worker import Worker
from tests.fixtures.tiny_gguf import TinyGguf

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def worker(tiny_gguf: TinyGguf, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    home = tmp_path_factory.mktemp("serving")
    with Worker(home, "--model", str(tiny_gguf.gguf("q8_0")), LIVERY_WORKER_THREADS="1") as running:
        running.wait_for("worker is online")
        yield running
        assert running.stop() == 0


@pytest.fixture(scope="module")
def door(worker: Worker) -> str:
    """The address of the door for GPU checks, as the log says it."""
    (ready,) = [event for event in worker.events if event["event"] == "capability is ready"]
    return str(ready["url"])


@pytest.mark.row(82)
@pytest.mark.row(84)
def test_the_model_that_is_loaded_is_told_with_its_quantisation(worker: Worker, door: str) -> None:
    found = httpx.post(f"{door}/gpu-check", json={"agent_id": "demo"}).json()
    assert (found["status"], found["agent_id"], found["total_models"]) == ("success", "demo", 1)
    models = httpx.get(f"{door}/models").json()
    assert models["loaded"] == [found["model_name"]]
    (model,) = models["models"]
    assert (model["quant"], model["loaded"]) == ("Q8_0", True)
    assert model["bytes"] > 0
    assert len(model["model_hash"]) == 64


@pytest.mark.row(86)
@pytest.mark.row(87)
def test_how_fast_it_is_was_measured_at_the_start(worker: Worker, door: str) -> None:
    figure = httpx.get(f"{worker.url}/health").json()["benchmarkTokPerSec"]
    # A machine that does less than this is none; one that does more than that does not exist.
    assert 0.5 < figure < 50_000
    reply = httpx.post(f"{worker.url}/v1/completions", json={"prompt": "Livery", "max_tokens": 8}, timeout=60)
    made = reply.json()["usage"]["completion_tokens"]
    for url in (worker.url, door):
        text = httpx.get(f"{url}/metrics").text
        samples = {each.name: each for family in text_string_to_metric_families(text) for each in family.samples}
        assert samples["livery_engine_info"].labels["kind"] == "gguf"
        assert samples["livery_benchmark_tokens_per_second"].value == pytest.approx(figure, abs=0.01)
        # What was measured with is among no client's figures.
        assert samples["vllm:generation_tokens_total"].value == made
        assert samples["vllm:time_to_first_token_seconds_count"].value == 1
        assert samples["vllm:prefix_cache_queries_total"].value > 0
        assert samples["livery_memory_total_bytes"].value > 0


@pytest.mark.row(88)
def test_worker_and_model_are_up(door: str) -> None:
    status = httpx.get(f"{door}/service-status").json()
    assert {each["name"]: each["up"] for each in status["services"]} == {"worker": True, "model": True}
    uptime = httpx.get(f"{door}/service-uptime").json()
    assert (uptime["services_up"], uptime["total_services"]) == (2, 2)
    assert uptime["min_uptime_required"] == 80


@pytest.mark.row(89)
def test_a_worker_without_a_key_proves_nothing(door: str) -> None:
    refused = httpx.post(f"{door}/gpu-check/challenges", json={"seed": "ab" * 32, "size": 64})
    assert (refused.status_code, refused.json()["code"]) == (503, "cannot_attest")
