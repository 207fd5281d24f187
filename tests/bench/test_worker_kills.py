"""Kills under real training: one of each kind in one run, and what the checks say of what was left lying about."""

import hashlib
from collections import Counter
from contextlib import ExitStack
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from random import Random

import pytest

from agent.core.model import Artifact
from bench.worker_kill.checks import COUNTED, run_files, worker_files
from bench.worker_kill.place import WorkerPart, open_place
from bench.worker_kill.sight import PHASES, PROGRAM_PHASES
from bench.worker_kill.trial import PARAMS, VICTIMS, Hit, Plan, Trial, draw, tried
from bench.worker_kills import figures
from gpu_worker.core.model import Job
from tests.agent.core.values import a_job, a_run, at
from tests.fixtures.tiny import LEARNING, Tiny
from tests.fixtures.tiny import Job as TinyJob
from wire.checkpoint import MANIFEST_NAME, CheckpointFile, Manifest, Part

JOB = Job(
    job_id="job_1",
    vendor_id="worker-1",
    payment_id="run_1-payment-1",
    gpu_type="CPU",
    hours=Decimal(1),
    price_atomic=1,
    started_at_s=0,
    kind="fine_tune",
)


@pytest.mark.slow
async def test_one_of_each_is_killed_in_one_run_and_the_model_is_that_of_an_undisturbed_one(
    tiny: Tiny, trained: TinyJob
) -> None:
    plans = (
        Plan(victim="plane", phase="paying"),
        Plan(victim="program", phase="loading"),
        Plan(victim="worker", phase="training", pause_s=0.2),
    )
    assert {name: PARAMS[name] for name in LEARNING} == LEARNING
    undisturbed = hashlib.sha256((trained.result / "model.safetensors").read_bytes()).hexdigest()
    with ExitStack() as stack:
        place = await open_place(stack, tiny.folder)
        trial = await tried(place, plans, "key", Random(1), {}, undisturbed)

    assert (trial.wrong, trial.missed) == ([], [])
    assert [hit.plan.victim for hit in trial.hits] == ["plane", "program", "worker"]
    assert (trial.status, trial.model_sha256) == ("completed", undisturbed)


def test_every_victim_dies_in_turn_and_every_phase_is_met() -> None:
    plans = [draw(Random(number), number) for number in range(300)]

    assert Counter(plan.victim for plan in plans) == dict.fromkeys(VICTIMS, 100)
    assert {plan.phase for plan in plans if plan.victim == "program"} == set(PROGRAM_PHASES)
    assert {plan.phase for plan in plans if plan.victim == "plane"} == set(PHASES)
    assert {plan.stays_away for plan in plans if plan.victim == "worker"} == {True, False}
    assert not any(plan.stays_away for plan in plans if plan.victim != "worker")


def test_what_belongs_to_nobody_on_a_worker_is_told(tmp_path: Path) -> None:
    worker = WorkerPart("worker-1", "", (), {}, tmp_path, data=tmp_path)
    for name in ("job_1/input/data.jsonl", "job_1/checkpoints/8/model.safetensors", "job_1/result/report.json"):
        _write(tmp_path / "jobs" / name)

    assert list(worker_files(worker, [JOB])) == []
    ended = list(worker_files(worker, [replace(JOB, status="completed")]))
    assert sorted(line.rpartition("/")[2] for line in ended) == ["data.jsonl", "model.safetensors"]
    assert list(worker_files(worker, [])) == ["worker-1: no row knows the folder job_1"]
    _write(tmp_path / "jobs/job_1/.spec.json.77")
    _write(tmp_path / "jobs/job_1/checkpoints/16.new/model.safetensors")
    assert len(list(worker_files(worker, [JOB]))) == 2


def test_what_belongs_to_nobody_in_the_store_is_told(tmp_path: Path) -> None:
    artifact = Artifact(name="model.safetensors", bytes=1, sha256="aa" * 32)
    run = a_run(status="failed", jobs=(a_job(1, status="failed", artifacts=(artifact,)),))
    kept, folder = (tmp_path / run.run_id / f"{run.jobs[0].job_id}{end}" for end in ("", "-files"))
    _write(kept / artifact.name)
    _write(folder / "8-model.0")
    part = Part(name="8-model.0", bytes=1, sha256="aa" * 32)
    file = CheckpointFile(name="model", bytes=1, sha256="aa" * 32, parts=(part,))
    hashes = {"model_hash": "bb" * 32, "spec_hash": "cc" * 32}
    manifest = Manifest(job_id="v-1", step=8, steps=9, created_at=at(0), files=(file,), **hashes)
    (folder / MANIFEST_NAME).write_bytes(manifest.to_json())
    assert list(run_files(tmp_path, run)) == []

    for path in (kept / "unlisted", folder / "12-model.0", folder / "%2Eprevious", folder / ".begun"):
        _write(path)
    told = [line.rpartition("/")[2] for line in run_files(tmp_path, run)]
    assert sorted(told) == [
        "%2Eprevious is of no use to anybody",
        ".begun was never finished",
        "12-model.0 is of no use to anybody",
        "unlisted is of no use to anybody",
    ]
    # Nobody goes on from a checkpoint of work that is done.
    assert len(list(run_files(tmp_path, replace(run, status="completed")))) == 6


def test_figures_count_what_was_hit_and_what_was_wrong() -> None:
    hits = [
        Hit(plan=Plan(victim="worker", phase="paying"), phase="loading", step=0, stayed_away=True, outlived_s=1.23),
        Hit(plan=Plan(victim="plane", phase="training"), phase="training", step=9),
    ]
    trials = [
        Trial(run_id="run_0", status="completed"),
        Trial(run_id="run_1", hits=hits, missed=["a program"], status="completed", moved=True),
        Trial(
            run_id="run_2", status="failed", wrong=[("jobs_lost", "x"), ("orphan_files", "y"), ("orphan_files", "z")]
        ),
    ]

    found = figures(trials)

    assert set(COUNTED) <= found.keys()
    expected: dict[str, float] = {
        "kills": 2,
        "workers": 1,
        "programs": 0,
        "planes": 1,
        "at_loading": 1,
        "at_training": 1,
        "at_paying": 0,
    }
    expected |= {"runs": 3, "completed": 2, "went_on_elsewhere": 1, "stayed_away": 1, "not_killed": 1}
    expected |= {"jobs_lost": 1, "orphan_files": 2, "orphan_processes": 0, "outlived_s_max": 1.2}
    assert {name: found[name] for name in expected} == expected


def _write(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x")
