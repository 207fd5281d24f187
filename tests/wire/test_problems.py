"""The table of errors is whole, and its body is the one every door answers."""

import json
import re

import pytest

from wire.problems import PROBLEMS, REFUSALS, ProblemDocument, problem_document

STATUSES = {
    "malformed_json": 422,
    "invalid_field": 422,
    "amount_not_positive": 422,
    "too_many_decimals": 422,
    "amount_too_large": 422,
    "not_json_content": 415,
    "body_too_large": 413,
    "too_large_for_host": 413,
    "range_not_satisfiable": 416,
    "header_too_large": 431,
    "method_not_allowed": 405,
    "unknown_host": 421,
    "foreign_origin": 403,
    "not_found": 404,
    "internal": 500,
    "run_not_found": 404,
    "run_finished": 409,
    "run_busy": 409,
    "idempotency_conflict": 409,
    "no_signer": 503,
    "cannot_revoke": 409,
    "unauthorized": 401,
    "forbidden": 403,
    "no_api_secret": 503,
    "bad_signature": 401,
    "store_unavailable": 503,
    "artifact_not_found": 404,
    "artifacts_unavailable": 503,
    "chain_unavailable": 503,
    "bad_vendor_secret": 401,
    "unknown_vendor": 404,
    "job_not_found": 404,
    "template_not_found": 404,
    "unsupported_gpu": 400,
    "no_capacity": 503,
    "kind_off": 409,
    "job_ended": 409,
    "model_unknown": 404,
    "model_too_large": 409,
    "dataset_unavailable": 409,
    "dataset_too_large": 413,
    "checkpoint_mismatch": 409,
    "not_selling": 503,
    "requester_refused": 403,
    "draining": 503,
    "upload_incomplete": 422,
    "upload_refused": 403,
    "vendor_fault": 500,
    "context_length_exceeded": 400,
    "rate_limited": 429,
    "answer_gone": 410,
    "credit_too_small": 409,
    "invalid_argument": 400,
    "cannot_attest": 503,
    "challenge_busy": 503,
    "challenge_unknown": 404,
    "not_head": 409,
    "not_ready": 503,
    "no_route": 503,
    "lost_stage": 502,
    "deadline": 504,
    "payment_required": 402,
    "payment_invalid": 402,
    "payment_malformed": 400,
    "payment_identifier_required": 400,
    "payment_conflict": 409,
    "settlement_pending": 202,
    "facilitator_unavailable": 503,
    "refund_too_large": 409,
}


def test_every_code_has_the_status_callers_rely_on() -> None:
    assert {code: problem.status for code, problem in PROBLEMS.items()} == STATUSES


@pytest.mark.parametrize("code", PROBLEMS)
def test_a_problem_is_answered_with_its_row(code: str) -> None:
    document = json.loads(problem_document(code, "this very request").to_json())
    row = PROBLEMS[code]
    assert document == {
        "type": f"urn:livery:problem:{code}",
        "title": row.title,
        "status": row.status,
        "code": code,
        "detail": "this very request",
        "hint": row.hint,
    }


def test_waiting_is_told_in_seconds() -> None:
    document = problem_document("run_busy", "another tick holds it", retry_after=7)
    assert json.loads(document.to_json())["retryAfter"] == 7
    assert ProblemDocument.from_json(document.to_json()) == document


def test_an_unknown_code_is_our_bug() -> None:
    with pytest.raises(KeyError):
        problem_document("no_such_code", "")


def test_every_row_says_what_happened_and_what_to_do() -> None:
    for code, row in PROBLEMS.items():
        assert re.fullmatch(r"[a-z]+(_[a-z]+)*", code)
        assert row.title[0].isupper()
        assert not row.title.endswith(".")
        assert row.hint[0].isupper()
        assert row.hint.endswith(".")
    for code, meaning in REFUSALS.items():
        assert re.fullmatch(r"[a-z]+(_[a-z]+)*", code)
        assert meaning[0].isupper()
        assert meaning.endswith(".")


def test_a_code_is_an_error_or_a_refusal() -> None:
    assert not PROBLEMS.keys() & REFUSALS.keys()


def test_rows_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        PROBLEMS["internal"].status = 200  # type: ignore[misc]
