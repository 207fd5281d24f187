"""Completions of a file, a batch at a time: the same as one by one, and as another program's."""

import json

import pytest

from tests.fixtures.tiny import Job
from tests.fixtures.tiny_jobs import NEW_TOKENS, PROMPTS
from tests.gpu_worker.second_opinion import completion

pytestmark = pytest.mark.slow


def completions(job: Job) -> list[dict[str, str]]:
    text = (job.result / "completions.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def test_batched_is_one_by_one_and_what_another_program_says(trained: Job, worked: dict[str, Job]) -> None:
    batched = completions(worked["batched"])
    assert batched == completions(worked["alone"])
    assert [line["completion"] for line in batched] == [
        completion(trained.result, prompt, NEW_TOKENS) for prompt in PROMPTS
    ]


def test_ids_are_given_back_in_their_order(worked: dict[str, Job]) -> None:
    assert [line["id"] for line in completions(worked["batched"])] == [f"no {number}" for number in range(len(PROMPTS))]


def test_drawn_completions_depend_on_the_seed_alone_wherever_the_job_goes_on(worked: dict[str, Job]) -> None:
    drawn = completions(worked["sampled"])
    assert drawn == completions(worked["sampled_resumed"])
    assert worked["sampled_resumed"].exit_code == 0
    assert drawn != completions(worked["batched"])


def test_a_prompt_and_an_answer_that_the_model_cannot_read_are_refused(worked: dict[str, Job]) -> None:
    job = worked["answer_too_long"]
    assert job.exit_code == 65
    assert "params.maxNewTokens" in job.state["message"]
