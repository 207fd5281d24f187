"""Jobs that generate, bought of a worker whose own model answers them, from the quote to the last line."""

import asyncio
import hashlib
import json
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gpu_worker.drain import begin_drain
from tests.fixtures.tiny_gguf import TinyGguf
from tests.gpu_worker.world import Place, WorkerBuyer, until, until_async
from tests.vendor_mock.world import code, new_payment_id, read
from wire import decimal_json

pytestmark = pytest.mark.slow

DATASET = "http://data/prompts.jsonl"
TOKENS = 12
WORDS = ("def ", "class ", "import ", "return ", "raise ", "if ")


def serve(place: Place, prompts: tuple[str, ...]) -> None:
    """Let the dataset be had: a prompt a record."""
    lines = "".join(json.dumps({"prompt": prompt, "id": number}) + "\n" for number, prompt in enumerate(prompts))

    async def dataset(request: Request) -> Response:
        return Response(lines)

    place.hosts.serve("data", Starlette(routes=[Route("/prompts.jsonl", dataset, methods=["GET", "HEAD"])]))
    place.has_own_programs = True


def work(model: str, **params: Any) -> dict[str, Any]:
    return {"model": model, "dataset": DATASET, "params": {"maxNewTokens": TOKENS, "batchSize": 2, **params}}


async def quoted(buyer: WorkerBuyer, kind: str, job: dict[str, Any]) -> Any:
    asked = {"jobType": kind, "gpuType": "CPU", "maxHours": Decimal(1), "jobMetadata": job, "hasFiles": True}
    return await buyer.post("/quote", asked)


async def bought(buyer: WorkerBuyer, job: dict[str, Any]) -> str:
    reply = await quoted(buyer, "generate", job)
    assert reply.status_code == 200, reply.text
    template = read(reply)["vendorJobTemplateId"]
    order = decimal_json.dumps({"vendorJobTemplateId": template, "jobParams": job, "files": buyer.store.grant()})
    headers = buyer.sign(await buyer.challenge(order), new_payment_id())
    reply = await buyer.post("/submit-job", order, **headers)
    assert reply.status_code == 200, reply.text
    return str(read(reply)["vendorJobId"])


async def lines_of(place: Place, job_id: str) -> list[str]:
    assert place.worker is not None
    path = await place.worker.folders.path(job_id) / "result" / "completions.jsonl"
    found = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert [line["id"] for line in found] == list(range(len(found)))
    return [line["completion"] for line in found]


async def said(buyer: WorkerBuyer, prompt: str) -> str:
    """Return what the model says to whoever asks at the worker's door."""
    asked = {"prompt": prompt, "max_tokens": TOKENS, "temperature": 0}
    reply = await buyer.client.post("/v1/completions", json=asked)
    assert reply.status_code == 200, reply.text
    return str(reply.json()["choices"][0]["text"])


def serving(path: Path, **more: Any) -> dict[str, Any]:
    return {
        "kinds": "generate,fine_tune",
        "model": str(path),
        "grpc_port": 0,
        "capability_port": 0,
        "threads": 1,
        "max_concurrent_jobs": 2,
        "context": 512,
        **more,
    }


async def test_a_job_is_answered_by_the_gguf_model_that_is_served(place: Place, tiny_gguf: TinyGguf) -> None:
    serve(place, WORDS)
    path = tiny_gguf.gguf("f32")
    async with place.lives(**serving(path)) as buyer:
        model = path.name.removesuffix(".gguf")
        quote = await quoted(buyer, "generate", work(model))
        trained = await quoted(buyer, "fine_tune", {"model": model})
        job_id = await bought(buyer, work(model))
        listed = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "cli", "worker", "models", "--json"),
            stdout=asyncio.subprocess.PIPE,
            env={"PATH": "", "HOME": str(place.folder), "LIVERY_WORKER_DATA": str(place.folder / "worker")},
        )
        out, _ = await listed.communicate()
        job = await place.ended(job_id)
        answers = [await said(buyer, word) for word in WORDS]
        lines = await lines_of(place, job_id)

    assert (job.status, job.step, job.steps) == ("completed", 3, 3)
    assert lines == answers
    assert job.model_hash == hashlib.sha256(path.read_bytes()).hexdigest()
    # Nobody knows how long it takes: that depends on who else asks.
    assert read(quote)["etaMinutes"] == 60
    assert code(trained) == "model_unknown"
    assert "generate with it" in read(trained)["detail"]
    rows = {row["name"]: row for row in json.loads(out)}
    assert rows[model] == {
        "name": model,
        "bytes": path.stat().st_size,
        "modelHash": job.model_hash,
        "problem": None,
        "served": True,
    }
    assert not rows["tiny"]["served"]


async def test_what_was_sold_is_done_before_a_drained_worker_goes_and_strangers_are_not_answered(
    place: Place, tiny_gguf: TinyGguf
) -> None:
    serve(place, WORDS * 4)
    path = tiny_gguf.gguf("f32")
    async with place.lives(**serving(path)) as buyer:
        worker = place.worker
        assert worker is not None
        job_id = await bought(buyer, work(path.name.removesuffix(".gguf"), maxNewTokens=100))
        await until(lambda: job_id in worker.now.jobs and worker.now.jobs[job_id].phase == "working")
        begin_drain(worker)
        await until(lambda: worker.now.state == "draining")
        refused = await buyer.client.post("/v1/completions", json={"prompt": "def ", "max_tokens": 1})
        await until(lambda: worker.now.state == "gone", 60)
    assert refused.status_code == 503
    assert place.report is not None
    job = await place.job(job_id)
    assert (job.status, job.step) == ("completed", 12)


async def killed_at_work(place: Place, path: Path) -> str:
    """Return a job that had a checkpoint when its worker was killed."""
    serve(place, WORDS * 4)
    async with place.lives(is_killed=True, checkpoint_steps=1, **serving(path)) as buyer:
        job_id = await bought(buyer, work(path.name.removesuffix(".gguf"), maxNewTokens=200))
        assert place.worker is not None
        folders = place.worker.folders
        await until_async(lambda: folders.checkpoint(job_id))
        assert (await place.job(job_id)).status != "completed"
    return job_id


async def test_the_next_worker_goes_on_with_the_same_model(place: Place, tiny_gguf: TinyGguf) -> None:
    path = tiny_gguf.gguf("f32")
    job_id = await killed_at_work(place, path)
    async with place.lives(checkpoint_steps=1, **serving(path)):
        job = await place.ended(job_id)
        lines = await lines_of(place, job_id)
    assert (job.status, job.step, len(lines)) == ("completed", 12, 24)
    # The same prompts come four times: greedy, they are said the same on both sides of the cut.
    assert lines == lines[:6] * 4


@pytest.mark.parametrize("kind", ["f16", None])
async def test_a_job_whose_model_is_gone_or_another_is_the_owner_s_fault_and_paid_back(
    kind: str | None, place: Place, tiny_gguf: TinyGguf, tmp_path: Path
) -> None:
    before, path = place.paid(), tmp_path / "it.gguf"
    path.symlink_to(tiny_gguf.gguf("f32"))
    job_id = await killed_at_work(place, path)
    path.unlink()
    settings: dict[str, Any] = {"kinds": "generate"}
    if kind is not None:
        path.symlink_to(tiny_gguf.gguf(kind))
        settings = serving(path)
    async with place.lives(**settings):
        job = await place.ended(job_id)
        await until(lambda: place.paid() == before)
    assert (job.status, job.fault) == ("failed", "owner")
    assert job.refund_atomic == job.price_atomic
    assert job.error_message is not None
    assert "the model it, with which the job began, is not served here any more" in job.error_message


async def test_a_job_is_answered_by_the_layers_that_are_served_where_they_are_the_whole_model(
    place: Place, tiny_words: Path
) -> None:
    prompts = ("w5 w9", "w7", "w3 w4 w5", "w200 w1")
    serve(place, prompts)
    async with place.lives(kinds="generate", model=str(tiny_words), grpc_port=0, threads=1, kv_max_mb=64) as buyer:
        worker = place.worker
        assert worker is not None
        job_id = await bought(buyer, work("tiny-words"))
        job = await place.ended(job_id)
        answers = [await said(buyer, prompt) for prompt in prompts]
        spec = await worker.folders.spec(job_id)
        lines = await lines_of(place, job_id)
    assert job.status == "completed"
    assert lines == answers
    assert spec is not None
    assert (spec.served, spec.model_folder) == ("tiny-words", None)
