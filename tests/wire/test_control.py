"""The control plane's bodies: what may be asked, and that answers keep their shape."""

import json
from datetime import UTC, datetime
from decimal import Decimal

import pytest
from pydantic import ValidationError

from wire.control import (
    ActionDocument,
    CostDocument,
    HealthReply,
    JobRequest,
    RunIdRequest,
    RunsReply,
    StartRequest,
    TickReply,
    callback_url,
)


def test_a_goal_and_a_budget_are_enough() -> None:
    request = StartRequest.from_json('{"goal": "Fine-tune tiny-llm", "budgetTotal": 5}')
    assert (request.goal, request.budget_total, request.user_id) == ("Fine-tune tiny-llm", Decimal(5), "local")
    assert request.job == JobRequest(kind="fine_tune", count=1, params={}, env={})
    assert request.deadline is None
    assert request.max_price_per_hour is None


def test_everything_that_may_be_asked_is_read() -> None:
    request = StartRequest.from_json(
        b'{"goal": "g", "budgetTotal": 0.10, "userId": "u", "deadline": "2026-12-01T00:00:00Z", "maxPricePerHour": 2,'
        b'"job": {"kind": "train", "gpuType": "A100", "minVramGb": 40, "maxHours": 2.5, "count": 3, "model": "m",'
        b'"dataset": "d", "params": {"lr": 0.001, "epochs": 3}, "env": {"A": "b"}}}'
    )
    assert str(request.budget_total) == "0.10"
    assert request.deadline == datetime(2026, 12, 1, tzinfo=UTC)
    assert request.max_price_per_hour == 2
    job = request.job
    assert (job.kind, job.gpu_type, job.min_vram_gb, job.max_hours, job.count) == (
        "train",
        "A100",
        40,
        Decimal("2.5"),
        3,
    )
    assert (job.model, job.dataset, job.params, job.env) == ("m", "d", {"lr": 0.001, "epochs": 3}, {"A": "b"})


@pytest.mark.parametrize(
    ("job", "field"),
    [
        ('{"maxHours": 0.0099}', "maxHours"),
        ('{"maxHours": 10000.01}', "maxHours"),
        ('{"count": 0}', "count"),
        ('{"count": 101}', "count"),
        ('{"minVramGb": 0}', "minVramGb"),
        ('{"minVramGb": 10001}', "minVramGb"),
        ('{"kind": ""}', "kind"),
        ('{"kind": "' + "k" * 201 + '"}', "kind"),
        ('{"env": {"A": 1}}', "env"),
        ('{"params": []}', "params"),
        ('{"params": {"a": 1e400}}', "params"),
    ],
)
def test_a_job_beyond_its_limits_is_refused_by_name(job: str, field: str) -> None:
    with pytest.raises(ValueError, match=field):
        JobRequest.from_json(job)


@pytest.mark.parametrize(
    "job",
    [
        '{"maxHours": 0.01}',
        '{"maxHours": 10000}',
        '{"count": 1}',
        '{"count": 100}',
        '{"minVramGb": 1}',
        '{"minVramGb": 10000}',
        '{"kind": "' + "k" * 200 + '"}',
    ],
)
def test_a_job_at_its_limits_is_accepted(job: str) -> None:
    assert JobRequest.from_json(job)


@pytest.mark.parametrize(("goal", "accepted"), [("", False), ("g", True), ("g" * 4_000, True), ("g" * 4_001, False)])
def test_a_goal_is_some_text_of_at_most_4000_characters(goal: str, accepted: bool) -> None:
    text = json.dumps({"goal": goal, "budgetTotal": 5})
    if accepted:
        assert StartRequest.from_json(text).goal == goal
    else:
        with pytest.raises(ValueError, match="goal"):
            StartRequest.from_json(text)


@pytest.mark.parametrize("deadline", ["2026-12-01T00:00:00", "tomorrow", "", 1893456000, "9999-12-31T23:59:59-23:00"])
def test_a_deadline_is_a_time_with_its_offset_that_utc_has(deadline: object) -> None:
    with pytest.raises(ValueError, match="deadline"):
        StartRequest.from_json(json.dumps({"goal": "g", "budgetTotal": 5, "deadline": deadline}))


@pytest.mark.parametrize("budget", ['"5"', "true", "null", "[]", "NaN", "1e401"])
def test_a_budget_is_a_json_number(budget: str) -> None:
    with pytest.raises(ValueError, match=r"JSON number|not JSON|a number has"):
        StartRequest.from_json(f'{{"goal": "g", "budgetTotal": {budget}}}')


def test_a_tick_that_decided_nothing_says_so_with_null() -> None:
    assert TickReply(message="Waiting").to_json() == b'{"action":null,"message":"Waiting"}'
    decided = TickReply(message="m", action=ActionDocument(action="wait", reason="r"))
    assert json.loads(decided.to_json()) == {"message": "m", "action": {"action": "wait", "reason": "r"}}


def test_small_answers_keep_their_shape() -> None:
    assert RunIdRequest.from_json('{"runId": "r"}').run_id == "r"
    assert RunsReply(runs=()).document() == {"runs": ()}
    health = HealthReply(version="0.1.0", store="sqlite", payments="off", planner="stub")
    assert health.document()["status"] == "ok"


def test_what_a_job_cost_says_which_steps_it_paid_for() -> None:
    cost = {
        "slot": 0,
        "jobId": "job_2",
        "vendorId": "w2",
        "paid": Decimal("0.38"),
        "refunded": Decimal("0.1"),
        "step": 120,
        "toStep": 200,
    }
    read = CostDocument.from_json(CostDocument.model_validate(cost).to_json())
    assert read.document() == cost


def test_a_dataset_may_be_a_long_url() -> None:
    url = "https://data.example/" + "x" * 2_000
    assert JobRequest(dataset=url).dataset == url
    with pytest.raises(ValidationError):
        JobRequest(dataset=url + "x" * 100)


def test_vendors_call_at_a_name_of_the_run() -> None:
    assert callback_url("https://host", "run_1&x") == "https://host/api/vendor-callback?runId=run_1%26x"
