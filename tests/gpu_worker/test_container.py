"""Containers: how they are bound, what is left of them, how they end. The runtime here is a fake one on the PATH."""

import json
import os
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from gpu_worker.config import WorkerSettings
from gpu_worker.core.container import Bounds, run_argv
from gpu_worker.core.errors import BadInput
from gpu_worker.edges.jobs.container_cli import find, remove, sweep
from gpu_worker.ports import Worker
from gpu_worker.preparing import model_of
from tests.fixtures import fake_docker
from tests.fixtures.fake_docker import calls
from tests.fixtures.tiny import Job
from wire.jobs import Container, params_of

BOUNDS = Bounds(memory_bytes=1_000_000, cpus=2, file_bytes_max=5_000)


def container(path: Path, *command: str, image: str = "trainer:1", **params: Any) -> tuple[Job, Path]:
    """Make the folder of a job that runs a container, and a runtime."""
    client = fake_docker.install(path / "bin")
    job = Job(path / "job")
    (job.path / "input").mkdir(parents=True)
    (job.path / "input" / "data.jsonl").write_text('{"text": "x"}\n')
    job.specify(
        jobId="job-1",
        kind="container",
        params={"image": image, "command": command, **params},
        device="cpu",
        threads=1,
        checkpointSteps=1,
        input={"name": "data.jsonl", "sha256": "c" * 64, "form": "text", "records": 1, "bytes": 14},
        fileBytesMax=50_000_000,
        container={"runtime": str(client), "memoryBytes": 1_000_000, "cpus": 2},
    )
    return job, client.parent


def argv(runtime: str = "/usr/bin/docker", visible: str | None = None, **params: Any) -> tuple[str, ...]:
    asked = params_of("container", {"params": {"image": "trainer:1", **params}})
    assert isinstance(asked, Container)
    return run_argv(
        runtime,
        "job-1",
        asked,
        BOUNDS,
        user=(1000, 1000),
        visible=visible,
        input_folder="/data/in",
        output_folder="/data/out",
    )


def test_a_container_has_no_network_no_rights_and_bounds_on_all_it_takes() -> None:
    words = argv(command=["train", "--network=host"], env={"A": "1"})
    at = words.index("trainer:1")
    options = {option: value for option, value in pairwise(words[:at]) if option.startswith("--")}
    assert words[:3] == ("/usr/bin/docker", "run", "--rm")
    assert "--read-only" in words[:at]
    assert {
        "--name": "livery-job-1",
        "--network": "none",
        "--pull": "never",
        "--log-driver": "none",
        "--user": "1000:1000",
        "--cap-drop": "ALL",
        "--security-opt": "no-new-privileges",
        "--memory": "1000000b",
        "--memory-swap": "1000000b",
        "--cpus": "2",
        "--pids-limit": "512",
        "--ulimit": "fsize=5000",
    }.items() <= options.items()
    mounts = [words[place + 1] for place, word in enumerate(words[:at]) if word == "--mount"]
    assert mounts == ["type=bind,src=/data/out,dst=/output", "type=bind,src=/data/in,dst=/input,readonly"]
    assert words[at:] == ("trainer:1", "train", "--network=host")
    assert "--gpus" not in words


def test_a_gpu_is_given_where_it_is_asked_for_in_each_runtimes_words() -> None:
    assert ("--gpus", "all") == argv(gpu=True)[-3:-1]
    assert ("--device", "nvidia.com/gpu=all") == argv("/usr/bin/podman", gpu=True)[-3:-1]
    # Of several GPUs the job's alone: the others are the owner's.
    assert ("--gpus", "device=GPU-1") == argv(visible="GPU-1", gpu=True)[-3:-1]
    assert ("--device", "nvidia.com/gpu=GPU-1") == argv("/usr/bin/podman", "GPU-1", gpu=True)[-3:-1]


def test_a_container_has_the_gpu_that_the_job_was_given(tmp_path: Path) -> None:
    job, folder = container(tmp_path, "say", gpu=True)
    terms = {"runtime": str(folder / "docker"), "memoryBytes": 1_000_000, "cpus": 2, "visible": "GPU-1"}
    job.specify(device="cuda:0", container=terms)
    assert job.run() == 0
    ran = next(call for call in calls(folder) if call[0] == "run")
    assert ran[ran.index("--gpus") + 1] == "device=GPU-1"


def test_where_jobs_have_no_gpu_a_container_has_none(tmp_path: Path) -> None:
    job, folder = container(tmp_path, "say", gpu=True)
    assert (job.run(), job.state["fault"]) == (65, "buyer")
    assert calls(folder) == []


@pytest.mark.parametrize("params", [{"command": ["a\0b"]}, {"env": {"A=B": "1"}}, {"env": {"": "1"}}])
def test_words_that_a_runtime_would_read_otherwise_are_refused(params: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="zero byte"):
        argv(**params)


@pytest.mark.parametrize("image", ["--privileged", "-v/:/x", "", "a b", "image;rm"])
def test_an_image_is_never_an_option(image: str) -> None:
    with pytest.raises(ValueError, match="image"):
        params_of("container", {"params": {"image": image}})


async def test_only_images_that_the_owner_names_are_run() -> None:
    asked = params_of("container", {"params": {"image": "the-owners/private:1"}})
    for named in ("", "trainer:1"):
        worker = SimpleNamespace(settings=WorkerSettings(container_images=named))
        with pytest.raises(BadInput, match="is not run here"):
            await model_of(cast(Worker, worker), asked)
    worker = SimpleNamespace(settings=WorkerSettings(container_images="trainer:1,the-owners/private:1"))
    assert await model_of(cast(Worker, worker), asked) is None


def test_what_it_says_is_the_log_and_what_it_leaves_are_the_artifacts(tmp_path: Path) -> None:
    job, folder = container(tmp_path / "a", "say", "hello")
    assert job.run() == 0
    assert "hello" in job.logs()
    assert "it read 14 bytes" in job.logs()
    ran = next(call for call in calls(folder) if call[0] == "run")
    assert ran[ran.index("--network") + 1] == "none"
    job, _ = container(tmp_path / "b", "write", "model.bin", "deep/er/file.txt")
    assert job.run() == 0
    assert {path.name for path in job.result.iterdir()} == {"model.bin", "deep%2Fer%2Ffile.txt", "report.json"}
    assert (job.result / "deep%2Fer%2Ffile.txt").read_text() == "deep/er/file.txt"
    assert job.state["artifact"] == "deep%2Fer%2Ffile.txt"
    assert job.state["finalMetrics"] == {"files": 2}


def test_links_and_pipes_that_it_leaves_are_not_followed(tmp_path: Path) -> None:
    job, _ = container(tmp_path, "link")
    assert job.run() == 0
    assert {path.name for path in job.result.iterdir()} == {"kept", "report.json"}


def test_a_flood_of_output_is_cut(tmp_path: Path) -> None:
    job, _ = container(tmp_path, "flood")
    assert job.run() == 0
    lines = job.lines()
    assert len(lines) < 10_100
    assert max(len(line["text"]) for line in lines) <= 4_096
    assert "more than 10000 lines" in job.logs()


def test_one_that_fails_is_the_buyers_fault_and_one_that_cannot_begin_the_owners(tmp_path: Path) -> None:
    job, _ = container(tmp_path / "a", "fail", "3")
    assert job.run() == 65
    assert "ended with code 3: what it said last" in job.state["message"]
    # 126 and 127 are a command that the image does not have, or an exit of the container's choosing.
    job, _ = container(tmp_path / "c", "fail", "127")
    assert (job.run(), job.state["fault"]) == (65, "buyer")
    job, _ = container(tmp_path / "b", "fail", "125")
    assert job.run() == 1
    assert job.state["fault"] == "owner"


def test_an_image_that_is_not_on_the_machine_is_not_fetched(tmp_path: Path) -> None:
    job, folder = container(tmp_path, "say", image="stranger:latest")
    assert job.run() == 65
    assert job.state["code"] == "model_unknown"
    assert {call[0] for call in calls(folder)} == {"image"}


def test_asked_to_stop_it_ends_the_container_and_itself(tmp_path: Path) -> None:
    job, folder = container(tmp_path, "wait")
    with job.start() as program:
        job.await_line(lambda line: line.get("text") == "waiting")
        pid = int((folder / "containers" / "livery-job-1").read_text())
        assert program.stdin is not None
        program.stdin.close()
        assert program.wait(30) == 75
    assert not (folder / "containers" / "livery-job-1").exists()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_the_runtime_that_answers_is_found(tmp_path: Path) -> None:
    docker, podman = tmp_path / "docker", tmp_path / "podman"
    fake_docker.install(docker)
    fake_docker.install(podman, "podman")
    path = f"{docker}:{podman}:/usr/bin:/bin"
    assert await find(path) == str(docker / "docker")
    (docker / "no-daemon").touch()
    assert await find(path) == str(podman / "podman")
    assert await find(str(tmp_path)) is None


async def test_what_a_dead_worker_left_is_swept_and_a_killed_job_leaves_nothing(tmp_path: Path) -> None:
    client = fake_docker.install(tmp_path / "bin")
    running = tmp_path / "bin" / "containers"
    for name in ("livery-a", "livery-b", "livery-of-another-worker"):
        (running / name).write_text("-1")
    await remove(str(client), "a")
    assert {path.name for path in running.iterdir()} == {"livery-b", "livery-of-another-worker"}
    assert await sweep(str(client), ["a", "b"]) == ("livery-b",)
    assert {path.name for path in running.iterdir()} == {"livery-of-another-worker"}
    assert json.dumps(calls(tmp_path / "bin")).count("livery-of-another-worker") == 0
