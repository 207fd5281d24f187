"""The worker's own inference API, over a real connection: generate, its figures, its pipeline, whether it is ready."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import httpx
import pytest

from gpu_worker.core.inference.codes import InferenceError
from gpu_worker.core.inference.layers import Layers
from gpu_worker.core.inference.seen import Seen
from gpu_worker.inference.ports import HeadStatus
from tests.fixtures.talker import EOS, GREETING, MODEL, Talker, engine_of, served, service_of

PATH = "/api/v1/generate"


@asynccontextmanager
async def client_of(talker: Talker, **fields: Any) -> AsyncIterator[httpx.AsyncClient]:
    async with served(service_of(talker, **fields)) as url, httpx.AsyncClient(base_url=url) as client:
        yield client


async def test_a_text_is_continued_whole() -> None:
    talker = Talker()
    async with client_of(talker) as client:
        reply = await client.post(PATH, json={"inputs": "Hello"})
    assert reply.status_code == 200
    assert set(reply.json()) == {"generated_text", "num_tokens", "latency_ms"}
    assert (reply.json()["generated_text"], reply.json()["num_tokens"]) == (GREETING, len(GREETING.encode()) + 1)
    assert reply.json()["latency_ms"] > 0
    asked = talker.requests[0]
    assert (asked.prompt, asked.tokens_max, asked.sampling.eos) == (tuple(b"Hello"), 128, (EOS,))
    sampling = asked.sampling
    assert (sampling.temperature, sampling.top_p, sampling.repetition_penalty) == (0.7, 0.9, 1.2)


async def test_what_is_asked_reaches_the_sampler_and_a_zero_is_a_zero() -> None:
    talker = Talker()
    async with client_of(talker) as client:
        for parameters in (
            {"max_new_tokens": 3, "temperature": 0, "top_p": 0, "repetition_penalty": 1, "seed": 7, "top_k": 5},
            {"do_sample": False},
            {"stop": ["世界"]},
        ):
            reply = await client.post(PATH, json={"inputs": "x", "parameters": parameters})
    first, second, _ = (request.sampling for request in talker.requests)
    assert (first.temperature, first.top_p, first.repetition_penalty, first.seed, first.top_k) == (0.0, 0.0, 1.0, 7, 5)
    assert talker.requests[0].tokens_max == 3
    assert second.temperature == 0.0
    assert reply.json()["generated_text"] == "Grüße, "


@pytest.mark.row(54)
async def test_a_stream_tells_each_token_as_it_is_made_and_ends_with_done() -> None:
    talker = Talker(says=b"abc", pace=asyncio.Semaphore(0))
    async with served(service_of(talker)) as url:
        reader, writer = await _posted(url, {"inputs": "x", "stream": True})
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        assert head.startswith("http/1.1 200")
        assert "content-type: text/event-stream" in head
        assert "cache-control: no-cache" in head
        assert "x-accel-buffering: no" in head
        assert await _line(reader) == ": keep-alive"
        assert talker.pace is not None
        for letter in "abc":
            talker.pace.release()
            assert json.loads((await _line(reader)).removeprefix("data: ")) == {"token": letter}
        talker.pace.release()
        assert await _line(reader) == "data: [DONE]"
        writer.close()


@pytest.mark.row(54)
async def test_a_client_that_goes_away_ends_its_session_within_a_step() -> None:
    talker = Talker(says=b"x" * 100, pace=asyncio.Semaphore(2))
    async with served(service_of(talker)) as url:
        for stream in (True, False):
            talker.cancelled.clear()
            told = talker.told
            _, writer = await _posted(url, {"inputs": "x", "stream": stream})
            await talker.until(lambda it, told=told: it.told == told + 2)
            writer.close()
            await asyncio.wait_for(talker.cancelled.wait(), 5)
            assert (talker.told, talker.stats.running) == (told + 2, 0)
            talker.pace = asyncio.Semaphore(2)


@pytest.mark.row(54)
@pytest.mark.parametrize(
    ("wrong", "place"),
    [
        ({"inputs": ""}, "inputs"),
        ({"inputs": None}, "inputs"),
        ({"parameters": {"max_new_tokens": 0}}, "parameters.max_new_tokens"),
        ({"parameters": {"max_new_tokens": 4_097}}, "parameters.max_new_tokens"),
        ({"parameters": {"temperature": 2.1}}, "parameters.temperature"),
        ({"parameters": {"temperature": -0.1}}, "parameters.temperature"),
        ({"parameters": {"top_p": 1.1}}, "parameters.top_p"),
        ({"parameters": {"repetition_penalty": 0.9}}, "parameters.repetition_penalty"),
        ({"parameters": {"repetition_penalty": 2.1}}, "parameters.repetition_penalty"),
    ],
    ids=range(9),
)
async def test_what_is_outside_the_limits_is_refused(wrong: dict[str, Any], place: str) -> None:
    talker = Talker()
    async with client_of(talker) as client:
        reply = await client.post(PATH, json={"inputs": "x", **wrong})
    assert (reply.status_code, reply.json()["code"]) == (422, "invalid_field")
    assert reply.json()["detail"].startswith(f"{place}:")
    assert talker.requests == []


@pytest.mark.row(54)
async def test_the_limits_themselves_are_allowed() -> None:
    low = {"max_new_tokens": 1, "temperature": 0, "top_p": 0, "repetition_penalty": 1}
    high = {"max_new_tokens": 4_096, "temperature": 2, "top_p": 1, "repetition_penalty": 2}
    async with client_of(Talker(context=8_192)) as client:
        replies = [await client.post(PATH, json={"inputs": "x", "parameters": each}) for each in (low, high)]
    assert [reply.status_code for reply in replies] == [200, 200]


@pytest.mark.row(54)
@pytest.mark.parametrize(
    ("code", "status", "told"),
    [
        ("no_route", 503, "no_route"),
        ("no_capacity", 503, "no_capacity"),
        ("draining", 503, "draining"),
        ("lost_stage", 502, "lost_stage"),
        ("internal", 500, "internal"),
    ],
)
async def test_each_refusal_has_its_status(code: str, status: int, told: str) -> None:
    async with client_of(Talker(refuses=InferenceError(code, "not now"))) as client:
        reply = await client.post(PATH, json={"inputs": "x", "stream": True})
    assert (reply.status_code, reply.json()["code"]) == (status, told)
    assert ("retry-after" in reply.headers) == (status == 503)


async def test_a_prompt_over_the_context_is_refused_before_anything_is_computed() -> None:
    talker = Talker(context=100)
    async with client_of(talker) as client:
        reply = await client.post(PATH, json={"inputs": "x" * 99, "parameters": {"max_new_tokens": 2}})
    assert (reply.status_code, reply.json()["code"]) == (400, "context_length_exceeded")
    assert talker.requests == []


class Lost(Talker):
    """A head that has found no way through all layers."""

    def status(self) -> HeadStatus:
        return replace(super().status(), hops=())


async def test_a_head_without_a_route_is_not_ready() -> None:
    async with served(service_of(Lost(), layers=Layers(0, 4, 4))) as url, httpx.AsyncClient(base_url=url) as client:
        waiting = await client.get("/readyz")
    assert (waiting.status_code, waiting.json(), waiting.headers["retry-after"]) == (503, {"status": "no_route"}, "1")


async def test_a_model_that_is_loading_is_503() -> None:
    service = service_of(None)
    async with served(service) as url, httpx.AsyncClient(base_url=url) as client:
        reply = await client.post(PATH, json={"inputs": "x"})
        loading = await client.get("/readyz")
        service.engine = engine_of(Talker())
        ready = await client.get("/readyz")
        service.is_draining = True
        draining = await client.get("/readyz")
    assert (reply.status_code, reply.json()["code"]) == (503, "not_ready")
    assert (loading.status_code, loading.json(), loading.headers["retry-after"]) == (503, {"status": "loading"}, "1")
    assert (ready.status_code, ready.json()) == (200, {"status": "ready"})
    assert (draining.status_code, draining.json()) == (503, {"status": "draining"})


@pytest.mark.parametrize("broken", [InferenceError("lost_stage", "layers 2:4 are gone"), ZeroDivisionError("secret")])
async def test_a_stream_that_breaks_off_says_so_and_nothing_of_the_inside(broken: Exception) -> None:
    talker = Talker(says=b"abc", fails_after=1, fails_with=broken)
    async with client_of(talker) as client:
        reply = await client.post(PATH, json={"inputs": "x", "stream": True})
    told = [json.loads(line[6:]) for line in reply.text.splitlines() if line.startswith("data: ")]
    assert told[0] == {"token": "a"}
    known = isinstance(broken, InferenceError)
    assert told[1:] == [
        {"error": "layers 2:4 are gone", "code": "lost_stage"}
        if known
        else {"error": "the server failed; its log says why", "code": "internal"}
    ]
    assert "secret" not in reply.text


@pytest.mark.row(54)
async def test_the_secret_is_asked_for_where_there_is_one() -> None:
    async with client_of(Talker(), secret="s3cret") as client:
        for path in ("/api/v1/metrics", "/api/v1/pipeline/status", "/metrics"):
            missing = await client.get(path)
            basic = await client.get(path, headers={"authorization": "Basic s3cret"})
            wrong = await client.get(path, headers={"authorization": "Bearer s3cre"})
            right = await client.get(path, headers={"authorization": "Bearer s3cret"})
            assert [each.status_code for each in (missing, basic, wrong, right)] == [401, 401, 403, 200]
            assert missing.headers["www-authenticate"] == "Bearer"
        unread = await client.post(PATH, json={"inputs": "x"})
        open_to_all = await client.get("/readyz")
    assert (unread.status_code, unread.json()["code"], open_to_all.status_code) == (401, "unauthorized", 200)


async def test_without_a_secret_the_page_of_another_site_is_refused() -> None:
    talker = Talker()
    body = {"inputs": "x"}
    async with client_of(talker) as client:
        foreign = await client.post(PATH, json=body, headers={"origin": "https://elsewhere.example"})
        renamed = await client.post(
            PATH, json=body, headers={"origin": "http://elsewhere.example", "host": "elsewhere.example"}
        )
        form = await client.post(PATH, content=json.dumps(body), headers={"content-type": "text/plain"})
        own = await client.post(PATH, json=body, headers={"origin": str(client.base_url).rstrip("/")})
    assert [each.status_code for each in (foreign, renamed, form, own)] == [403, 421, 415, 200]
    assert len(talker.requests) == 1


@pytest.mark.row(55)
async def test_the_pipelines_status_names_every_stage_in_order() -> None:
    async def stages() -> tuple[Seen, ...]:
        return tuple(
            Seen(
                endpoint=f"10.0.0.{number}:50051",
                layers=Layers(start, end, 4),
                model=MODEL,
                model_hash="",
                is_ready=number != 3,
                http_url=f"http://10.0.0.{number}:31331",
            )
            for number, start, end in ((3, 2, 4), (1, 0, 2), (2, 2, 4))
        )

    async with client_of(Talker(), layers=Layers(0, 2, 4), address="0xabc", stages=stages) as client:
        status = (await client.get("/api/v1/pipeline/status")).json()
    assert (status["model"], status["address"]) == (MODEL, "0xabc")
    assert status["assignment"] == {"start": 0, "end": 2, "total": 4, "is_full": False}
    assert (status["topology"]["model"], status["topology"]["totalLayers"]) == (MODEL, 4)
    nodes = status["topology"]["nodes"]
    assert [(node["pipelineOrder"], node["grpcEndpoint"], node["ready"]) for node in nodes] == [
        (0, "10.0.0.1:50051", True),
        (1, "10.0.0.2:50051", True),
        (1, "10.0.0.3:50051", False),
    ]
    assert set(nodes[0]) == {
        "address", "grpcEndpoint", "httpEndpoint", "layerStart", "layerEnd", "pipelineOrder", "ready"
    }  # fmt: skip
    async with client_of(Talker()) as client:
        alone = (await client.get("/api/v1/pipeline/status")).json()
    assert (alone["topology"], alone["assignment"]) == (None, None)


@pytest.mark.row(55)
async def test_the_health_is_told_to_everybody_with_what_is_served() -> None:
    async with client_of(Talker(), layers=Layers(0, 2, 4), secret="s3cret") as client:
        part = (await client.get("/health")).json()
    service = service_of(None)
    async with served(service) as url, httpx.AsyncClient(base_url=url) as client:
        loading = (await client.get("/health")).json()
    told = {"status": "ok", "mode": "pipeline", "layers": {"start": 0, "end": 2, "total": 4}}
    assert part == {**part, **told, "model": MODEL, "address": "0xabc", "uptime": 12, "state": "online"}
    assert (loading["status"], loading["mode"]) == ("loading", "single")


async def test_a_long_prompt_is_no_large_body() -> None:
    talker = Talker(context=1_000_000)
    async with client_of(talker) as client:
        reply = await client.post(PATH, json={"inputs": "x" * 900_000})
    assert (reply.status_code, len(talker.requests[0].prompt)) == (200, 900_000)


async def test_the_figures_are_those_of_the_requests() -> None:
    talker = Talker(says=b"abc")
    async with client_of(talker) as client:
        none = (await client.get("/api/v1/metrics")).json()
        for _ in range(2):
            await client.post(PATH, json={"inputs": "x"})
        figures = (await client.get("/api/v1/metrics")).json()
    assert (none["total_requests"], none["avg_latency_ms"]) == (0, 0)
    assert (figures["total_requests"], figures["total_tokens_processed"]) == (2, 8)
    assert figures["avg_latency_ms"] == pytest.approx(figures["total_latency_ms"] / 2, abs=0.002)
    assert figures["tokens_per_second"] > 0
    assert set(figures) == {
        "total_tokens_processed", "total_requests", "total_latency_ms", "avg_latency_ms", "uptime_seconds",
        "tokens_per_second",
    }  # fmt: skip


async def _posted(url: str, body: dict[str, Any]) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Send a request as a client that knows nothing of HTTP but its lines."""
    content = json.dumps(body).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
    head = f"POST {PATH} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
    writer.write(f"{head}content-length: {len(content)}\r\n\r\n".encode() + content)
    return reader, writer


async def _line(reader: asyncio.StreamReader) -> str:
    """Return the next line of the answer that is neither empty nor the length of a chunk."""
    while True:
        line = (await asyncio.wait_for(reader.readline(), 10)).decode().strip()
        if line.startswith((":", "data: ")):
            return line
