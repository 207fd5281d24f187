"""Training: the loss falls, and what is downloaded shows it to a program that shares nothing with the trainer."""

import json

import pytest

from tests.fixtures.tiny import Job, Tiny
from tests.fixtures.tiny_jobs import CHAT
from tests.gpu_worker.second_opinion import (
    answers_loss,
    digest,
    held_out_loss,
    held_out_texts,
    read_safetensors,
    tokenizer,
)

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
    # The last sequence of the text is shorter, where a step has taken it.
    assert 60 * 4 * 128 - 128 < state["tokens"] <= 60 * 4 * 128
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


def test_a_step_gives_a_sign_of_life_after_each_of_its_parts(worked: dict[str, Job]) -> None:
    beats = json.loads((worked["accumulated"].path / "beats").read_text())
    # The end of the step before, and two parts.
    assert [beats[step] for step in ("1", "2", "3")] == [3, 3, 3]


def test_every_weight_decays_by_its_rate_beside_what_is_learned(tiny: Tiny, worked: dict[str, Job]) -> None:
    began = read_safetensors(tiny.model / "model.safetensors")
    plain, decayed = (read_safetensors(worked[name].result / "model.safetensors") for name in ("once", "decayed"))
    assert any("norm" in name for name in began)
    for name, weight in began.items():
        assert abs(plain[name] - decayed[name] - 0.01 * weight).max() < 1e-6
        # AdamW's first step is as large as the rate, whatever the gradient.
        assert abs(plain[name] - weight).max() == pytest.approx(0.01, rel=0.01)


def test_a_gradient_is_clipped_to_its_length(tiny: Tiny, worked: dict[str, Job]) -> None:
    began, after = (read_safetensors(path / "model.safetensors") for path in (tiny.model, worked["clipped"].result))
    # Of so little of a gradient AdamW's own epsilon leaves nothing.
    assert all(abs(after[name] - began[name]).max() < 0.0005 for name in began)


def test_epochs_are_steps_by_the_number_of_sequences(worked: dict[str, Job]) -> None:
    job = worked["epochs"]
    sequences = int(job.logs().split("numbers on ")[1].split()[0])
    assert job.state["steps"] == -(-3 * sequences // 16)
    assert job.exit_code == 0


def test_an_epoch_takes_every_sequence_once(tiny: Tiny, worked: dict[str, Job]) -> None:
    encode, _ = tokenizer(json.loads((tiny.model / "tokenizer.json").read_text()))
    learned = [[message["content"] for message in chat["messages"]] for chat in sorted(CHAT, key=digest)[2:]]
    lengths = [len(encode(f"<user> {asked}")) + len(encode(f"<assistant> {said}")) + 2 for asked, said in learned]
    assert len(set(lengths)) > 1
    assert worked["epoch"].state["steps"] == 3
    assert worked["epoch"].state["tokens"] == sum(lengths)


def test_of_a_chat_the_answers_alone_are_learned(tiny: Tiny, worked: dict[str, Job]) -> None:
    losses = worked["chat"].losses("eval_loss")
    assert worked["chat"].exit_code == 0
    assert losses[5] < losses[0]
    lowest = sorted(CHAT, key=digest)[:2]
    asked = [(chat["messages"][0]["content"], chat["messages"][1]["content"]) for chat in lowest]
    assert losses[0] == pytest.approx(answers_loss(tiny.model, asked), abs=1e-4)


def test_a_loss_that_is_no_number_ends_the_job_and_says_what_to_change(worked: dict[str, Job]) -> None:
    job = worked["blown_up"]
    assert job.exit_code == 65
    assert job.state["message"].startswith("params.learningRate: the loss is no number any more at step 11")
    assert job.report["outcome"] == "failed"
    # What was measured before it was taken up here is in its report all the same.
    assert [point["step"] for point in job.report["history"]] == [*range(11)]
    assert (job.result / "curve.png").exists()


@pytest.mark.parametrize("name", ["no_number", "no_number_evaluated"])
def test_a_model_whose_loss_is_no_number_is_the_owners_fault(worked: dict[str, Job], name: str) -> None:
    job = worked[name]
    assert (job.exit_code, job.state["fault"]) == (1, "owner")
    assert "the model's loss is no number" in job.state["message"]
    assert job.report["outcome"] == "failed"


def test_a_dataset_smaller_than_a_batch_trains_and_half_of_it_is_held_out(worked: dict[str, Job]) -> None:
    assert (worked["small"].exit_code, worked["small"].state["step"]) == (0, 2)
    assert "on 1 sequences, 1 held out" in worked["small"].logs()


def test_a_giant_line_is_no_larger_a_load_than_many_small_ones(worked: dict[str, Job]) -> None:
    assert worked["giant"].exit_code == 0
    assert "preparing 2 records" in worked["giant"].logs()


def test_what_it_does_is_told_from_the_first_moment(trained: Job, worked: dict[str, Job]) -> None:
    for job in (trained, worked["whole"]):
        told = [text for text in job.logs().splitlines() if not text.endswith(" s so far")]
        assert told[:2] == ["loading what a fine_tune needs", "loading tiny-llm on cpu"]
        assert told[2].startswith("preparing ")
