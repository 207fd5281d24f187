"""Training: the loss falls, and what is downloaded shows it to a program that shares nothing with the trainer."""

import json

import pytest

from tests.fixtures.tiny import Job, Tiny
from tests.gpu_worker.second_opinion import held_out_loss, held_out_texts, read_safetensors

pytestmark = pytest.mark.slow


def test_the_held_out_loss_falls_by_a_third_and_a_second_program_finds_the_same(tiny: Tiny, trained: Job) -> None:
    start, end = held_out_loss(tiny.model, tiny.text), held_out_loss(trained.result, tiny.text)
    assert end < 0.7 * start
    told = trained.report["heldOut"]
    assert told["lossStart"] == pytest.approx(start, abs=1e-4)
    assert told["lossEnd"] == pytest.approx(end, abs=1e-4)
    assert trained.state["finalMetrics"]["eval_loss"] == pytest.approx(end, abs=1e-4)


def test_what_is_held_out_is_a_tenth_of_the_records(tiny: Tiny) -> None:
    every = [json.loads(line)["text"] for line in tiny.text.read_text(encoding="utf-8").splitlines()]
    assert len(held_out_texts(tiny.text, "0.1")) == pytest.approx(len(every) / 10, abs=2)


def test_the_program_says_where_it_is_and_how_it_ended(trained: Job) -> None:
    state = trained.state
    assert state["phase"] == "ended"
    assert (state["step"], state["steps"]) == (60, 60)
    assert state["artifact"] == "model.safetensors"
    assert "code" not in state
    assert state["tokens"] == 60 * 4 * 128
    assert 0 < state["workedS"] < 60
    assert "60" in trained.logs()


def test_every_step_has_a_loss_and_a_learning_rate_that_goes_to_nothing(trained: Job) -> None:
    assert [*trained.losses("loss")] == [*range(1, 61)]
    rates = trained.losses("learning_rate")
    assert rates[1] == pytest.approx(0.003)
    assert rates[60] < 0.00001
    assert [*trained.losses("eval_loss")] == [0, 20, 40, 60]


def test_accumulated_batches_are_one_large_batch(worked: dict[str, Job]) -> None:
    assert worked["accumulated"].losses("loss") == pytest.approx(worked["whole"].losses("loss"), abs=1e-5)
    before = read_safetensors(worked["whole"].result / "model.safetensors")
    after = read_safetensors(worked["accumulated"].result / "model.safetensors")
    assert all(abs(before[name] - after[name]).max() < 1e-4 for name in before)


def test_epochs_are_steps_by_the_number_of_sequences(worked: dict[str, Job]) -> None:
    job = worked["epochs"]
    sequences = int(job.logs().split("numbers on ")[1].split()[0])
    assert job.state["steps"] == -(-3 * sequences // 16)
    assert job.exit_code == 0


def test_of_a_chat_the_answers_are_learned(worked: dict[str, Job]) -> None:
    losses = worked["chat"].losses("eval_loss")
    assert worked["chat"].exit_code == 0
    assert losses[5] < losses[0]


def test_a_loss_that_is_no_number_ends_the_job_and_says_what_to_change(worked: dict[str, Job]) -> None:
    job = worked["no_number"]
    assert job.exit_code == 65
    assert "params.learningRate" in job.state["message"]
    assert job.report["outcome"] == "failed"
