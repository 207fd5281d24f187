"""Signed calls: what we sign the standard's own library accepts, and nothing is accepted that it would not."""

import base64
import time
from datetime import UTC, datetime

import pytest
from standardwebhooks import Webhook, WebhookVerificationError

from outbound.webhooks import are_keys, is_signed, signed_headers

SECRET = "whsec_" + base64.b64encode(b"k" * 32).decode()
OTHER = "whsec_" + base64.b64encode(b"o" * 32).decode()
BODY = b'{"type":"job.completed"}'


def now_s() -> int:
    return int(time.time())


def test_what_is_signed_is_accepted_by_the_standards_own_library() -> None:
    headers = signed_headers([SECRET], "msg_1", now_s(), BODY)
    assert Webhook(SECRET).verify(BODY, headers) == {"type": "job.completed"}
    with pytest.raises(WebhookVerificationError):
        Webhook(OTHER).verify(BODY, headers)


def test_while_secrets_change_either_side_may_be_the_first() -> None:
    both = signed_headers([SECRET, OTHER], "msg_1", now_s(), BODY)
    assert Webhook(SECRET).verify(BODY, both)
    assert Webhook(OTHER).verify(BODY, both)
    assert is_signed([OTHER, SECRET], signed_headers([SECRET], "msg_1", now_s(), BODY), BODY)


def test_what_the_standards_own_library_signs_is_accepted() -> None:
    at = datetime.now(UTC)
    signature = Webhook(SECRET).sign("msg_1", at, BODY.decode())
    headers = {
        "webhook-id": "msg_1",
        "webhook-timestamp": str(int(at.timestamp())),
        "webhook-signature": f"v1a,unknown {signature}",
    }
    assert is_signed([SECRET], headers, BODY)


def test_a_secret_without_the_prefix_is_the_key_itself() -> None:
    headers = signed_headers(["the-secret-of-every-vendor"], "msg_1", now_s(), BODY)
    assert is_signed(["the-secret-of-every-vendor"], headers, BODY)
    assert Webhook(b"the-secret-of-every-vendor").verify(BODY, headers)


@pytest.mark.parametrize("age_s", [-400, 400])
def test_a_signature_of_another_time_is_refused(age_s: int) -> None:
    assert not is_signed([SECRET], signed_headers([SECRET], "msg_1", now_s() - age_s, BODY), BODY)


@pytest.mark.parametrize(
    "changed",
    [
        {"webhook-id": "msg_2"},
        {"webhook-timestamp": str(now_s() - 1)},
        {"webhook-timestamp": "nan"},
        {"webhook-timestamp": "9" * 400},
        {"webhook-timestamp": ""},
        {"webhook-signature": ""},
        {"webhook-signature": "v1"},
        {"webhook-signature": "v1,!"},
        {"webhook-signature": "v1,é"},
        {"webhook-signature": "v2," + "A" * 44},
        {"webhook-signature": ",,, ,v1"},
    ],
    ids=lambda changed: next((f"{name}: {len(value)}" for name, value in changed.items()), "none"),
)
def test_headers_that_are_changed_or_no_headers_at_all_are_refused(changed: dict[str, str]) -> None:
    headers = signed_headers([SECRET], "msg_1", now_s() - 60, BODY)
    assert is_signed([SECRET], headers, BODY)
    assert not is_signed([SECRET], headers | changed, BODY)


@pytest.mark.parametrize("body", [b"", b"\xff", BODY + b" "])
def test_another_body_is_refused(body: bytes) -> None:
    assert not is_signed([SECRET], signed_headers([SECRET], "msg_1", now_s(), BODY), body)


@pytest.mark.parametrize("secret", ["whsec_", "whsec_!", "whsec_a", ""])
def test_a_secret_that_is_none_accepts_nothing(secret: str) -> None:
    assert not is_signed([secret], signed_headers([SECRET], "msg_1", now_s(), BODY), BODY)


def test_a_key_has_the_length_that_the_standard_asks_for() -> None:
    assert are_keys(SECRET)
    assert are_keys(f"{SECRET}, {OTHER}")
    short = "whsec_" + base64.b64encode(b"k" * 23).decode()
    for wrong in ("", ",", "secret", short, f"{SECRET},{short}", "whsec_a", "whsec_é"):
        assert not are_keys(wrong), wrong
