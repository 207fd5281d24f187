"""Containers from their sale to their end: the worker whole, the job's real program, a runtime that is a fake."""

import asyncio
from pathlib import Path
from typing import Any

import psutil
import pytest

from gpu_worker.edges.jobs.containers import CliContainers
from gpu_worker.edges.jobs.job_process import JobProcesses
from tests.fixtures import fake_docker
from tests.gpu_worker.world import Place, WorkerBuyer, until
from tests.vendor_mock.world import code, new_payment_id, read
from wire import decimal_json

pytestmark = pytest.mark.slow

PRICE = 10**6


@pytest.fixture
def docker(tmp_path: Path) -> Path:
    """The folder of a client, what it was asked and what it runs."""
    return fake_docker.install(tmp_path / "docker").parent


def with_docker(folder: Path) -> dict[str, Any]:
    given = {"kinds": "container", "container_images": "trainer:1"}
    return {**given, "containers": CliContainers(str(folder)), "programs": JobProcesses()}


async def bought(buyer: WorkerBuyer, *command: str) -> str:
    work = {"goal": "x", "params": {"image": "trainer:1", "command": command}}
    quoted = await buyer.post("/quote", buyer.asked("1", 1, jobType="container", jobMetadata=work))
    assert quoted.status_code == 200, quoted.text
    assert read(quoted)["moves"] is False
    order = decimal_json.dumps({"vendorJobTemplateId": read(quoted)["vendorJobTemplateId"], "jobParams": work})
    reply = await buyer.post("/submit-job", order, **buyer.sign(await buyer.challenge(order), new_payment_id()))
    assert reply.status_code == 200, reply.text
    return str(read(reply)["vendorJobId"])


async def test_a_container_is_sold_runs_and_leaves_its_files(place: Place, docker: Path) -> None:
    before = place.paid()
    async with place.lives(**with_docker(docker)) as buyer:
        job = await place.ended(await bought(buyer, "write", "model.bin"))
        failed = await place.ended(await bought(buyer, "fail", "3"))
        files = {file["name"] for file in read(await buyer.get(f"/artifacts/{job.job_id}"))["artifacts"]}
        said = (await buyer.poll(failed.job_id))["errorMessage"]
        offered = read(await buyer.get("/offers"))["offers"][0]["jobTypes"]

    assert offered == ["container"]
    assert (job.status, job.fault, failed.status, failed.fault) == ("completed", None, "failed", "buyer")
    assert files == {"model.bin", "report.json", "log.txt"}
    assert "ended with code 3: what it said last" in said
    assert 0 < job.refund_atomic < PRICE
    assert place.paid() - before == 2 * PRICE - job.refund_atomic - failed.refund_atomic
    assert list((docker / "containers").iterdir()) == []


@pytest.mark.parametrize("kinds", ["container", ""], ids=["sold", "sold no more"])
async def test_a_container_is_ended_with_its_job_and_one_of_a_dead_worker_by_the_next(
    place: Place, docker: Path, kinds: str
) -> None:
    running = docker / "containers"
    (running / "livery-of-somebody-else").write_text("-1")
    async with place.lives(**with_docker(docker)) as buyer:
        job_id = await bought(buyer, "wait")
        named = running / f"livery-{job_id}"
        await until(lambda: named.exists() and named.read_text() != "")
        client = psutil.Process(int(named.read_text()))
        await buyer.post("/cancel-job", {"vendorJobId": job_id})
        is_left = named.exists()
        _, alive = await asyncio.to_thread(psutil.wait_procs, [client], 10)
    named.write_text("-1")
    async with place.lives(**{**with_docker(docker), "kinds": kinds}):
        left = {path.name for path in running.iterdir()}

    assert (is_left, alive) == (False, [])
    assert left == {"livery-of-somebody-else"}


async def test_without_a_runtime_containers_are_not_sold(place: Place, tmp_path: Path) -> None:
    async with place.lives(kinds="container", containers=CliContainers(str(tmp_path / "nothing"))) as buyer:
        refused = await buyer.post("/quote", buyer.asked("1", 1, jobType="container", jobMetadata={}))
        worker = place.worker
        assert worker is not None

    assert code(refused) == "kind_off"
    assert "neither docker nor podman answers" in " ".join(worker.now.notes)
