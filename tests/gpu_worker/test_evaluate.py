"""Perplexity and exact match, each equal to what another program finds."""

import json
import math

import pytest

from tests.fixtures.tiny import Job, Tiny
from tests.gpu_worker.second_opinion import mean_loss

pytestmark = pytest.mark.slow


def test_perplexity_is_what_a_loop_written_here_finds(tiny: Tiny, trained: Job, worked: dict[str, Job]) -> None:
    texts = [json.loads(line)["text"] for line in tiny.text.read_text(encoding="utf-8").splitlines()][:3]
    loss = mean_loss(trained.result, texts, length=128, sequences_max=1_000)
    answer = json.loads((worked["perplexity"].result / "evaluation.json").read_text())
    assert answer["eval_loss"] == pytest.approx(loss, abs=1e-5)
    assert answer["perplexity"] == pytest.approx(math.exp(loss), rel=1e-5)
    assert worked["perplexity"].state["finalMetrics"]["perplexity"] == pytest.approx(math.exp(loss), rel=1e-5)


def test_an_evaluation_goes_on_where_it_was_stopped(worked: dict[str, Job]) -> None:
    whole, resumed = (
        json.loads((worked[name].result / "evaluation.json").read_text())
        for name in ("perplexity", "perplexity_resumed")
    )
    assert resumed == whole
    assert worked["perplexity_resumed"].exit_code == 0


def test_exact_match_counts_the_completions_that_the_model_makes(worked: dict[str, Job]) -> None:
    answer = json.loads((worked["exact"].result / "evaluation.json").read_text())
    assert answer == {"exact_match": 0.75, "counted": 4}
    assert worked["exact"].state["artifact"] == "evaluation.json"


def test_exact_match_without_completions_is_refused_by_the_record(worked: dict[str, Job]) -> None:
    assert worked["no_completion"].exit_code == 65
    assert worked["no_completion"].state["message"] == 'record 1 has no "completion"'
