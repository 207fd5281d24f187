"""Starting a run: the document of row 1, exact money, and keys that make it safe to ask twice."""

import asyncio
from typing import Any

import httpx
import pytest

from tests.api.problems import problem

ASKED = b'{"userId": "u1", "goal": "x", "budgetTotal": 5}'


async def started(door: httpx.AsyncClient, body: bytes = ASKED, **headers: str) -> dict[str, Any]:
    response = await door.post("/api/agent-start", content=body, headers=headers)
    assert response.status_code == 200, response.text
    document: dict[str, Any] = response.json()
    return document


@pytest.mark.row(1)
async def test_a_goal_and_a_budget_begin_a_running_run(door: httpx.AsyncClient) -> None:
    run = await started(door)
    assert run["_id"]
    assert (run["userId"], run["goal"], run["status"]) == ("u1", "x", "running")
    assert run["budgetTotal"] == run["budgetRemaining"] == 5
    assert run["budgetSpent"] == run["budgetReserved"] == 0
    assert (run["phase"], run["currency"], run["network"]) == ("planning", "USDC", "eip155:84532")
    assert run["createdAt"].endswith("Z")
    shown = (await door.get("/api/agent-status", params={"runId": run["_id"]})).json()
    assert shown["run"] == run


@pytest.mark.row(1)
@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b"{}", "goal"),
        (b'{"goal": "x"}', "budgetTotal"),
        (b'{"budgetTotal": 5}', "goal"),
        (b'{"goal": "", "budgetTotal": 5}', "goal"),
        (b'{"goal": 7, "budgetTotal": 5}', "goal"),
        (b'{"goal": null, "budgetTotal": 5}', "goal"),
        (b'{"goal": "x", "budgetTotal": "5"}', "budgetTotal"),
        (b'{"goal": "x", "budgetTotal": true}', "budgetTotal"),
        (b'{"goal": "x", "budgetTotal": null}', "budgetTotal"),
        (b'{"goal": "x", "budgetTotal": [5]}', "budgetTotal"),
        (b'{"goal": "x", "budgetTotal": 5, "userId": ""}', "userId"),
        (b'{"goal": "x", "budgetTotal": 5, "deadline": "tomorrow"}', "deadline"),
        (b'{"goal": "x", "budgetTotal": 5, "deadline": "2030-01-01T00:00:00"}', "deadline"),
        (b'{"goal": "x", "budgetTotal": 5, "deadline": 1893456000}', "deadline"),
        (b'{"goal": "x", "budgetTotal": 5, "deadline": 1893456000.5}', "deadline"),
        (b'{"goal": "x", "budgetTotal": 5, "deadline": "9999-12-31T23:59:59-23:00"}', "deadline"),
        (b'{"goal": "x", "budgetTotal": 5, "deadline": "0001-01-01T00:00:00+23:00"}', "deadline"),
        (b'{"goal": "x", "budgetTotal": 5, "job": 5}', "job"),
        (b'{"goal": "x", "budgetTotal": 5, "job": {"count": 0}}', "job.count"),
        (b'{"goal": "x", "budgetTotal": 5, "job": {"count": 101}}', "job.count"),
        (b'{"goal": "x", "budgetTotal": 5, "job": {"count": 1.5}}', "job.count"),
        (b'{"goal": "x", "budgetTotal": 5, "job": {"minVramGb": -1}}', "job.minVramGb"),
        (b'{"goal": "x", "budgetTotal": 5, "job": {"maxHours": 0}}', "job.maxHours"),
        (b'{"goal": "x", "budgetTotal": 5, "job": {"maxHours": "1"}}', "job.maxHours"),
        (b'{"goal": "x", "budgetTotal": 5, "job": {"params": [1]}}', "job.params"),
        (b'{"goal": "x", "budgetTotal": 5, "job": {"params": {"a": 1e399}}}', "job.params"),
        (b'{"goal": "x", "budgetTotal": 5, "job": {"env": {"A": 1}}}', "job.env.A"),
        (b'{"goal": "x", "budgetTotal": 5, "maxPricePerHour": "1"}', "maxPricePerHour"),
        (b"[]", "body"),
        (b'"x"', "body"),
        (b"null", "body"),
    ],
    ids=lambda value: value.decode()[:70] if isinstance(value, bytes) else "",
)
async def test_a_body_that_is_wrong_is_told_which_field(door: httpx.AsyncClient, body: bytes, field: str) -> None:
    response = await door.post("/api/agent-start", content=body)
    assert problem(response, "invalid_field")["detail"].startswith(f"{field}: "), response.text
    assert (await door.get("/api/agent-runs")).json() == {"runs": []}


@pytest.mark.parametrize(
    ("budget", "code"),
    [
        ("0", "amount_not_positive"),
        ("-1", "amount_not_positive"),
        ("-0.0", "amount_not_positive"),
        ("1e30", "amount_too_large"),
        ("99999999999999999999999999", "amount_too_large"),
        ("0.0000001", "too_many_decimals"),
        ("0.30000000000000004", "too_many_decimals"),
        ("5.1234567", "too_many_decimals"),
        ("1e-300", "too_many_decimals"),
        ("NaN", "malformed_json"),
        ("Infinity", "malformed_json"),
        ("-Infinity", "malformed_json"),
        ("1e999999999", "malformed_json"),
        ("9" * 10_000, "malformed_json"),
        ("05", "malformed_json"),
        ("0x5", "malformed_json"),
    ],
    ids=lambda value: value[:30],
)
async def test_a_budget_that_is_no_amount_is_refused(door: httpx.AsyncClient, budget: str, code: str) -> None:
    body = f'{{"goal": "x", "budgetTotal": {budget}}}'
    problem(await door.post("/api/agent-start", content=body), code)
    if code != "malformed_json":
        body = f'{{"goal": "x", "budgetTotal": 5, "maxPricePerHour": {budget}}}'
        problem(await door.post("/api/agent-start", content=body), code)


@pytest.mark.parametrize("budget", ["0.3", "0.1", "5.000000", "0.000001", "1e2", "999999999.999999", "4.35", "1.10"])
async def test_a_budget_is_kept_to_the_last_digit(door: httpx.AsyncClient, budget: str) -> None:
    from decimal import Decimal

    from wire import decimal_json

    response = await door.post("/api/agent-start", content=f'{{"goal": "x", "budgetTotal": {budget}}}')
    shown = decimal_json.loads(response.content)
    assert Decimal(shown["budgetTotal"]) == Decimal(shown["budgetRemaining"]) == Decimal(budget)


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"not json", b'{"goal": "x", "budgetTotal": 5', b"\xff\xfe", b"[" * 100_000, b'{"goal": "\\ud800"}'],
)
async def test_what_is_not_json_is_malformed(door: httpx.AsyncClient, body: bytes) -> None:
    response = await door.post("/api/agent-start", content=body, headers={"content-type": "application/json"})
    problem(response, "malformed_json" if body else "invalid_field")


async def test_everything_that_can_be_asked_for_is_kept(door: httpx.AsyncClient) -> None:
    job = (
        b'{"kind": "train", "gpuType": "A100", "minVramGb": 80, "maxHours": 2.5, "count": 2, "model": "tiny-llm",'
        b' "dataset": "s3://d", "params": {"rate": 0.1, "$x.y": [1, {"z": null}]}, "env": {"TOKEN": "hush"}}'
    )
    body = (
        b'{"goal": "x", "budgetTotal": 5, "job": %b, "deadline": "2100-01-01T12:00:00+02:00", "maxPricePerHour": 1.5}'
        % job
    )
    run = await started(door, body)
    assert run["userId"] == "local"
    assert run["deadline"] == "2100-01-01T10:00:00Z"
    assert run["maxPricePerHour"] == 1.5
    assert run["job"] == {
        "kind": "train",
        "gpuType": "A100",
        "minVramGb": 80,
        "maxHours": 2.5,
        "count": 2,
        "model": "tiny-llm",
        "dataset": "s3://d",
        "params": {"rate": 0.1, "$x.y": [1, {"z": None}]},
        "env": {"TOKEN": "***"},
    }
    assert (await started(door))["job"]["kind"] == "fine_tune"


async def test_the_same_key_and_body_answer_the_same_run(door: httpx.AsyncClient) -> None:
    key = {"Idempotency-Key": "monday"}
    runs = await asyncio.gather(*[started(door, **key) for _ in range(5)])
    assert len({run["_id"] for run in runs}) == 1
    # Another spelling of the same body is the same body.
    assert await started(door, b'{"budgetTotal":5,"goal":"x","userId":"u1"}', **key) == runs[0]
    assert (await started(door, **{"Idempotency-Key": "tuesday"}))["_id"] != runs[0]["_id"]
    assert (await started(door))["_id"] != (await started(door))["_id"]


@pytest.mark.parametrize(
    "body", [b'{"userId": "u1", "goal": "x", "budgetTotal": 6}', b'{"goal": "x", "budgetTotal": 5}']
)
async def test_the_same_key_with_another_body_is_a_conflict(door: httpx.AsyncClient, body: bytes) -> None:
    key = {"Idempotency-Key": "monday"}
    await started(door, **key)
    problem(await door.post("/api/agent-start", content=body, headers=key), "idempotency_conflict")
    assert len((await door.get("/api/agent-runs")).json()["runs"]) == 1


@pytest.mark.parametrize("key", ["", "k" * 256])
async def test_a_key_that_is_no_key_is_named(door: httpx.AsyncClient, key: str) -> None:
    response = await door.post("/api/agent-start", content=ASKED, headers={"Idempotency-Key": key})
    assert "Idempotency-Key" in problem(response, "invalid_field")["detail"]
