"""What jobs leave is fetched, held against its hash and kept, whatever vendors and disks do; the books never mind."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from agent.artifacts import FILES_MAX, LEASE_RESERVE, OPEN_S_MAX, TRIES_S, keep_artifacts
from agent.cancel import cancel
from agent.core.model import Artifact, Job, Run
from agent.edges.artifacts_folder import FolderArtifacts
from agent.status import status
from agent.turn import Turn
from tests.fixtures.world import World, replace_agent

SPINE = ["Job started", "Job still running", "Job still running", "Job completed"]
FETCHING = "Fetching artifacts"
OURS = {"vendors", "facilitator", "127.0.0.1", "localhost"}


def is_listing(request: httpx.Request) -> bool:
    return request.url.path.startswith("/artifacts/") and request.url.path.count("/") == 2


def hosts_called(world: World) -> set[str]:
    return {request.url.host for request in world.hosts.seen}


def downloads(world: World) -> list[str]:
    """Return the names of the files that were asked for, in their order."""
    paths = [request.url.path for request in world.hosts.seen if request.url.path.startswith("/artifacts/")]
    return [path.rpartition("/")[2] for path in paths if path.count("/") == 3]


def list_instead(world: World, *files: dict[str, Any]) -> None:
    """Let the vendor list `files`; what is not said of one is right for three bytes, "abc"."""
    right = {"name": "x", "bytes": 3, "sha256": hashlib.sha256(b"abc").hexdigest(), "url": "/abc"}
    listed = {"artifacts": [right | file for file in files]}

    def meddle(request: httpx.Request, response: httpx.Response) -> httpx.Response:
        if is_listing(request):
            return httpx.Response(200, json=listed)
        return httpx.Response(200, content=b"abc") if request.url.path.startswith("/abc") else response

    world.hosts.meddle = meddle


def spoil(world: World, name: str, answer: Callable[[httpx.Response], httpx.Response]) -> None:
    """Answer otherwise than the vendor would where the file `name` is asked for."""
    world.hosts.meddle = lambda request, response: (
        answer(response) if request.url.path.endswith(f"/{name}") else response
    )


async def kept(world: World, job: Job) -> dict[str, bytes]:
    """Return the kept files of a job, each as its record says it is."""
    (run_id,), files = world.run_ids, {}
    for artifact in job.artifacts:
        content = b"".join([chunk async for chunk in world.agent.artifacts.open(run_id, job.job_id, artifact.name)])
        assert artifact == Artifact(name=artifact.name, bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
        files[artifact.name] = content
    return files


async def until_given_up(world: World, run_id: str) -> Run:
    """Tick at each time that the files are asked for again; return the run."""
    run = await world.until(run_id, lambda run: any(job.status == "completed" for job in run.jobs))
    for after, before in zip(TRIES_S[1:], TRIES_S, strict=False):
        assert run.completed_at is None
        asked = len(world.hosts.seen)
        assert (await world.tick(run_id)).message == FETCHING
        assert len(world.hosts.seen) == asked
        world.store.ahead += timedelta(seconds=after - before)
        run = (await world.tick(run_id)).run
    assert run.completed_at is not None
    return run


async def test_the_files_of_a_completed_job_are_kept_in_the_tick_that_sees_it_end(world: World) -> None:
    run_id = await world.start()
    run = await world.until_ended(run_id)
    assert world.messages == SPINE
    files = await kept(world, run.jobs[0])
    assert sorted(files) == ["model.json", "training.log"] == sorted(downloads(world))
    assert files["training.log"].startswith(b"Epoch 1/3 loss=1.5\n")
    assert b'"weights"' in files["model.json"]
    (shown,) = (await status(world.agent, run_id)).jobs
    assert [(file.name, file.bytes) for file in shown.artifacts] == [(name, len(files[name])) for name in files]
    assert shown.artifacts[0].url == (f"/api/agent-artifact?runId={run_id}&jobId={run.jobs[0].job_id}&name=model.json")
    assert shown.artifact_url is not None
    assert shown.artifact_url.startswith("http://vendors/artifacts/")
    assert [line for line in await world.lines(run_id, "metric") if line.startswith("Kept")]
    await world.check_books()


async def test_the_log_of_a_failed_job_is_kept_and_holds_up_nothing(world: World) -> None:
    world.script("gpu_vendor_1", fail_at_epoch=2)
    run = await world.until_ended(await world.start())
    failed, completed = run.jobs
    assert (failed.status, completed.status, run.status) == ("failed", "completed", "completed")
    files = await kept(world, failed)
    assert list(files) == ["training.log"]
    assert files["training.log"].endswith(b"Epoch 2/3 failed: simulated failure\n")
    assert FETCHING not in world.messages
    await world.check_books()


async def test_a_cancelled_jobs_log_is_kept_before_the_run_ends(world: World) -> None:
    run_id = await world.start()
    await world.until(run_id, lambda run: bool(run.jobs) and run.jobs[0].progress > 0)
    await cancel(world.agent, run_id)
    run = await world.until_ended(run_id)
    assert run.status == "cancelled"
    assert (await kept(world, run.jobs[0]))["training.log"].endswith(b"Cancelled by the buyer\n")


@pytest.mark.parametrize("status_code", [200, 404])
async def test_a_vendor_without_artifacts_holds_up_nothing(world: World, status_code: int) -> None:
    world.hosts.meddle = lambda request, response: (
        httpx.Response(status_code, json={"artifacts": []}) if is_listing(request) else response
    )
    run_id = await world.start()
    run = await world.until_ended(run_id)
    assert world.messages == SPINE
    assert (run.jobs[0].artifacts, run.jobs[0].artifact_misses) == ((), 0)
    assert "The job at gpu_vendor_1 left no files" in await world.lines(run_id, "metric")


WRONG: dict[str, tuple[httpx.Response, str]] = {
    "other": (httpx.Response(200, content=b"abd"), "'other': hash mismatch"),
    "short": (httpx.Response(200, content=b"ab"), "'short': 2 bytes came, 3 were listed"),
    "long": (httpx.Response(200, content=b"abcd"), "the body exceeds 3 bytes"),
    "moved": (httpx.Response(302, headers={"location": "http://169.254.169.254/"}), "answered 302"),
    "broken": (httpx.Response(500), "answered 500"),
}


async def test_bytes_that_are_not_the_listed_ones_are_never_kept(world: World) -> None:
    list_instead(world, {"name": "right"}, *({"name": name, "url": f"/wrong/{name}"} for name in WRONG))
    listed = world.hosts.meddle
    world.hosts.meddle = lambda request, response: (
        WRONG[request.url.path.removeprefix("/wrong/")][0]
        if request.url.path.startswith("/wrong/")
        else listed(request, response)
    )
    run_id = await world.start()
    run = await until_given_up(world, run_id)
    job = run.jobs[0]
    assert (run.status, run.reason, job.status) == ("completed", None, "completed")
    assert await kept(world, job) == {"right": b"abc"}
    assert [await world.agent.artifacts.size(run_id, job.job_id, name) for name in WRONG] == [None] * len(WRONG)
    told = [line for line in await world.lines(run_id, "error") if "Files of the job" in line]
    assert len(told) == len(TRIES_S) == job.artifact_misses
    assert all(reason in line for line in told for _, reason in WRONG.values())
    assert ["given up" in line for line in told] == [False] * (len(TRIES_S) - 1) + [True]
    # What is kept already is not fetched again, and nobody is sent elsewhere.
    assert len(world.hosts.calls("/abc")) == 1
    assert hosts_called(world) <= OURS
    await world.check_books()


async def test_what_failed_once_is_fetched_a_little_later(world: World) -> None:
    spoil(world, "training.log", lambda response: httpx.Response(503))
    run_id = await world.start()
    await world.until(run_id, lambda run: bool(run.jobs) and run.jobs[0].status == "completed")
    world.hosts.meddle = None
    world.store.ahead += timedelta(seconds=TRIES_S[1])
    ticked = await world.tick(run_id)
    assert ticked.message == "Job completed"
    assert sorted(await kept(world, ticked.run.jobs[0])) == ["model.json", "training.log"]
    await world.check_books()


FOREIGN = [
    "http://evil.test/abc",
    "http://169.254.169.254/latest/meta-data/",
    "http://vendors:81/abc",
    "https://vendors/abc",
    "//evil.test/abc",
    "http://me:pw@evil.test/abc",
    "http://vendors@evil.test/abc",
    "http://vendors\\@evil.test/abc",
    "file:///etc/passwd",
    "http://[::1/abc",
    "http://vendors.evil.test/abc",
    "http://vendors/" + "a" * 3_000,
]


async def test_a_file_anywhere_else_is_not_asked_for(world: World) -> None:
    list_instead(
        world,
        {"name": "here", "url": "abc"},
        {"name": "absolute", "url": "http://VENDORS:80/abc"},
        *({"name": f"x{number}", "url": url} for number, url in enumerate(FOREIGN)),
    )
    run_id = await world.start()
    run = await world.until_ended(run_id)
    # They are refused once and for all: nobody waits for them.
    assert world.messages == SPINE
    assert await kept(world, run.jobs[0]) == {"absolute": b"abc", "here": b"abc"}
    (told,) = [line for line in await world.lines(run_id, "error") if "given up" in line]
    assert all(f"'x{number}': " in told for number in range(len(FOREIGN)))
    assert hosts_called(world) <= OURS
    asked = world.hosts.calls("/abc")
    assert [request.headers["authorization"] for request in asked] == ["Bearer first-secret"] * 2


class Memory:
    """A place for artifacts that is quicker than a disk."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}

    async def put(self, run_id: str, job_id: str, name: str, chunks: AsyncIterator[bytes]) -> None:
        self.files[name] = b"".join([chunk async for chunk in chunks])

    async def sweep(self, run_id: str, job_id: str, stays: Callable[[str], bool], *, closing: bool = False) -> None:
        """Nothing ever goes."""


class Quick(httpx.AsyncBaseTransport):
    """Answers /abc without troubling the vendor."""

    def __init__(self, inner: httpx.AsyncBaseTransport) -> None:
        self.inner = inner

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if request.url.path == "/abc":
            return httpx.Response(200, content=b"abc")
        return await self.inner.handle_async_request(request)


async def test_what_is_too_much_is_refused_before_a_byte_of_it_comes(world: World) -> None:
    replace_agent(world, artifacts=Memory())
    world.limit(artifacts_s=120)
    world.hosts.apps["vendors"] = Quick(world.hosts.apps["vendors"])
    few = [{"name": f"file-{number}"} for number in range(FILES_MAX + 1)]
    list_instead(world, {"name": "huge", "bytes": 1024**3 + 1, "url": "/abc?huge"}, {"name": "☃" * 100}, *few)
    run_id = await world.start()
    run = await world.until_ended(run_id)
    assert world.messages == SPINE
    assert [artifact.name for artifact in run.jobs[0].artifacts] == [f"file-{number}" for number in range(FILES_MAX)]
    (told,) = [line for line in await world.lines(run_id, "error") if "given up" in line]
    assert "'huge': 1073741825 bytes are more than the 1073741824" in told
    assert f"'file-{FILES_MAX}': a job keeps {FILES_MAX} files" in told
    assert not any(request.url.query for request in world.hosts.seen if request.url.path == "/abc")


async def test_a_list_without_an_end_is_given_up_within_the_bound(world: World) -> None:
    list_instead(world, *({"name": f"file-{number}"} for number in range(20_000)))
    run_id = await world.start()
    run = await until_given_up(world, run_id)
    assert (run.status, run.jobs[0].artifacts) == ("completed", ())
    assert any("exceeds 1048576 bytes" in line for line in await world.lines(run_id, "error"))


async def test_a_name_that_climbs_stays_in_its_folder(world: World, tmp_path: Path) -> None:
    list_instead(world, {"name": "../../etc/passwd"}, {"name": "\x1b[2J"}, {"name": "a"}, {"name": "a"})
    run = await world.until_ended(await world.start())
    assert list(await kept(world, run.jobs[0])) == ["../../etc/passwd", "\x1b[2J", "a"]
    folder = tmp_path / "artifacts" / run.run_id / run.jobs[0].job_id
    assert {path.name for path in folder.iterdir()} == {"%2E%2E%2F..%2Fetc%2Fpasswd", "%1B%5B2%4A", "a"}


async def test_a_disk_that_fails_is_a_line_in_the_log_and_nothing_more(world: World, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    replace_agent(world, artifacts=FolderArtifacts(tmp_path / "file"))
    run_id = await world.start()
    run = await until_given_up(world, run_id)
    assert (run.status, run.jobs[0].status, run.jobs[0].artifacts) == ("completed", "completed", ())
    assert any("they cannot be kept" in line for line in await world.lines(run_id, "error"))
    await world.check_books()


async def test_a_run_that_is_cancelled_meanwhile_waits_for_no_file(world: World) -> None:
    spoil(world, "training.log", lambda response: httpx.Response(503))
    run_id = await world.start()
    await world.until(run_id, lambda run: bool(run.jobs) and run.jobs[0].status == "completed")
    await cancel(world.agent, run_id)
    assert (await world.tick(run_id)).run.status == "completed"
    await world.check_books()


async def only_one_vendor_that_fails(world: World) -> str:
    """Start a run whose one job fails and leaves a log that the vendor does not give away; return its id."""
    world.script(fail_at_epoch=2)
    world.limit(attempts_max=1, refund_wait_s=0)
    spoil(world, "training.log", lambda response: httpx.Response(503))
    run_id = await world.start()
    await world.until(run_id, lambda run: bool(run.jobs) and run.jobs[0].status == "failed")
    return run_id


async def test_the_log_of_the_last_attempt_is_waited_for_before_the_run_ends(world: World) -> None:
    run_id = await only_one_vendor_that_fails(world)
    ticked = await world.tick(run_id)
    if ticked.message == "Refund received":
        ticked = await world.tick(run_id)
    assert ticked.message == FETCHING
    world.hosts.meddle = None
    world.store.ahead += timedelta(seconds=TRIES_S[1])
    run = (await world.tick(run_id)).run
    assert (run.status, run.reason) == ("failed", "attempts_exhausted")
    assert list(await kept(world, run.jobs[0])) == ["training.log"]
    await world.check_books()


async def test_a_log_that_does_not_come_is_given_up_in_words_when_the_run_ends(world: World) -> None:
    run_id = await only_one_vendor_that_fails(world)
    for after, before in zip(TRIES_S[1:3], TRIES_S, strict=False):
        assert (await world.until(run_id, lambda run: True)).completed_at is None
        world.store.ahead += timedelta(seconds=after - before)
    run = await world.until_ended(run_id, ticks_max=2)
    assert (run.status, run.jobs[0].artifacts_closed_at) == ("failed", run.completed_at)
    assert downloads(world) == ["training.log"] * 3
    (told,) = [line for line in await world.lines(run_id, "error") if "given up" in line]
    assert told.endswith("the run ended before they came")
    await world.check_books()


async def test_files_that_nobody_could_fetch_for_a_day_are_given_up_untried(world: World) -> None:
    spoil(world, "training.log", lambda response: httpx.Response(503))
    run_id = await world.start()
    await world.until(run_id, lambda run: bool(run.jobs) and run.jobs[0].status == "completed")
    asked = downloads(world)
    world.store.ahead += timedelta(seconds=OPEN_S_MAX + 60)
    assert (await world.tick(run_id)).run.status == "completed"
    assert downloads(world) == asked


async def test_a_vendor_that_is_no_longer_registered_is_asked_for_nothing(world: World) -> None:
    spoil(world, "training.log", lambda response: httpx.Response(503))
    run_id = await world.start()
    await world.until(run_id, lambda run: bool(run.jobs) and run.jobs[0].status == "completed")
    for vendor in world.vendors:
        await world.store.remove_vendor(vendor.vendor_id)
    world.store.ahead += timedelta(seconds=TRIES_S[1])
    await world.tick(run_id)
    assert any("no longer registered" in line for line in await world.lines(run_id, "error"))


class Slow(httpx.AsyncBaseTransport):
    """Carries requests on, those for `name` once `gate` is open."""

    def __init__(self, inner: httpx.AsyncBaseTransport, name: str) -> None:
        self.inner, self.name, self.gate = inner, name, asyncio.Event()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith(f"/{self.name}"):
            await self.gate.wait()
        return await self.inner.handle_async_request(request)


async def test_files_are_fetched_for_no_longer_than_the_lease_lasts(world: World) -> None:
    world.limit(artifacts_s=600, lease_s=4)
    world.hosts.apps["vendors"] = Slow(world.hosts.apps["vendors"], "training.log")
    run_id = await world.start()
    run = await world.until(run_id, lambda run: bool(run.jobs) and run.jobs[0].status == "completed")
    assert [artifact.name for artifact in run.jobs[0].artifacts] == ["model.json"]
    # The tick that found no time to fetch in: the vendor is not even asked, and that is no miss.
    claim: Any = await world.store.claim(run_id, 4)
    turn, asked = Turn.of(world.agent, claim), len(world.hosts.seen)
    turn.claimed_s -= 4 * (1 - LEASE_RESERVE)
    await keep_artifacts(turn, {vendor.vendor_id: vendor for vendor in world.vendors})
    assert (len(world.hosts.seen), turn.run) == (asked, claim.run)


async def test_a_tick_fetches_for_so_long_and_the_next_one_goes_on(world: World) -> None:
    world.limit(artifacts_s=1)
    slow = world.hosts.apps["vendors"] = Slow(world.hosts.apps["vendors"], "training.log")
    run_id = await world.start()
    run = await world.until(run_id, lambda run: bool(run.jobs) and run.jobs[0].status == "completed")
    # Something was kept: that the time was over is no miss yet.
    assert ([artifact.name for artifact in run.jobs[0].artifacts], run.jobs[0].artifact_misses) == (["model.json"], 0)
    run = (await world.tick(run_id)).run
    assert run.jobs[0].artifact_misses == 1
    assert any("took longer than 1 s" in line for line in await world.lines(run_id, "error"))
    slow.gate.set()
    world.store.ahead += timedelta(seconds=TRIES_S[1])
    run = (await world.tick(run_id)).run
    assert (run.status, sorted(await kept(world, run.jobs[0]))) == ("completed", ["model.json", "training.log"])
    assert downloads(world).count("model.json") == 1
    await world.check_books()
