"""What a job goes on from: after a kill, at another worker, to the bit; and what it refuses to go on from."""

import json
import signal
import subprocess

import pytest

from tests.fixtures.tiny import LEARNING, Job, Tiny
from wire.checkpoint import Manifest, wrong_manifest

pytestmark = pytest.mark.slow


def test_killed_and_stopped_it_goes_on_elsewhere_as_if_nothing_had_been(tiny: Tiny, trained: Job) -> None:
    first = tiny.job("killed", LEARNING)
    with first.start() as program:
        first.await_line(lambda line: line["kind"] == "checkpoint")
        program.send_signal(signal.SIGKILL)
    assert program.returncode == -signal.SIGKILL
    reached = first.checkpoints[-1]
    assert reached in (20, 40)
    second = first.copy("elsewhere", resumeStep=reached)
    with second.start() as program:
        second.await_line(lambda line: line["kind"] == "metric" and "loss" in line["values"])
        assert program.stdin is not None
        program.stdin.close()
        assert program.wait(60) == 75
    assert second.state["phase"] == "ended"
    stopped = second.state["step"]
    assert second.checkpoints[-1] == stopped > reached
    third = second.copy("at-last", resumeStep=stopped)
    assert third.run() == 0
    assert (third.result / "model.safetensors").read_bytes() == (trained.result / "model.safetensors").read_bytes()
    curve = [(point["step"], point["values"].get("loss")) for point in third.report["history"]]
    assert curve == [(point["step"], point["values"].get("loss")) for point in trained.report["history"]]


def test_the_two_newest_are_kept_each_whole_by_its_manifest(trained: Job) -> None:
    assert trained.checkpoints == [20, 40]
    for step in trained.checkpoints:
        folder = trained.path / "checkpoints" / str(step)
        manifest = Manifest.from_json((folder / "manifest.json").read_bytes())
        assert wrong_manifest(manifest, pushed=False) is None
        assert (manifest.step, manifest.steps) == (step, 60)
        assert {file.name for file in manifest.files} | {"manifest.json"} == {path.name for path in folder.iterdir()}
        assert all((folder / file.name).stat().st_size == file.bytes for file in manifest.files)
    told = [line["step"] for line in trained.lines() if line["kind"] == "checkpoint"]
    assert told == [20, 40]


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("other_model", "the checkpoint is of the model aaaaaaaaaaaa, this job trains bbbbbbbbbbbb"),
        ("other_work", "the checkpoint is of the work"),
        ("other_bytes", "the checkpoint's model.safetensors is not what its manifest says"),
        ("cut_checkpoint", "the checkpoint's model.safetensors cannot be read"),
        ("long_checkpoint", "the checkpoint's model.safetensors is larger than the model is"),
        ("no_numbers", "the checkpoint has numbers in it that are none"),
        ("other_steps", "the checkpoint is of step 10 of 20, this job has 30"),
        ("other_tensors", "the checkpoint's tensors are not those of the model"),
    ],
)
def test_a_checkpoint_of_something_else_is_refused(worked: dict[str, Job], name: str, why: str) -> None:
    job = worked[name]
    assert job.exit_code == 65
    assert (job.state["code"], job.state["fault"]) == ("checkpoint_mismatch", "buyer")
    assert job.state["message"].startswith(why)
    assert job.losses("loss") == {}


def test_a_checkpoint_that_is_not_there_is_the_owners_affair(worked: dict[str, Job]) -> None:
    assert worked["no_checkpoint"].exit_code == 1
    assert worked["no_checkpoint"].state["fault"] == "owner"


def test_two_programs_never_work_in_one_folder(tiny: Tiny) -> None:
    job = tiny.job("held", LEARNING)
    holder = subprocess.Popen(
        ["flock", str(job.path / "lock"), "sh", "-c", "echo held; cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with job.start() as program:
            with pytest.raises(subprocess.TimeoutExpired):
                program.wait(1.5)
            assert not (job.path / "state.json").exists()
            assert json.loads((job.path / "spec.json").read_text())["jobId"] == "held"
            program.kill()
