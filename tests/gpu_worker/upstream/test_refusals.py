"""What servers refuse, in refusals of ours that say nothing of what they said."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_worker.core.inference.codes import CODES
from gpu_worker.inference.upstream.refusals import event_refusal, refusal

SECRET = "sk-hidden at /srv/owner/model.gguf"


def told(**error: Any) -> bytes:
    return json.dumps({"error": {"message": SECRET, **error}}).encode()


@pytest.mark.parametrize(
    ("status", "code", "http"),
    [
        (400, "invalid_argument", 400),
        (401, "upstream_error", 502),
        (402, "upstream_error", 502),
        (403, "upstream_error", 502),
        (404, "model_not_found", 404),
        (405, "invalid_argument", 400),
        (413, "too_large", 413),
        (422, "invalid_argument", 400),
        (429, "no_capacity", 429),
        (301, "upstream_error", 502),
        (204, "upstream_error", 502),
        (500, "upstream_error", 502),
        (501, "invalid_argument", 400),
        (502, "upstream_error", 502),
        (503, "not_ready", 503),
        (504, "upstream_timeout", 504),
    ],
)
def test_a_status_is_a_refusal_of_ours(status: int, code: str, http: int) -> None:
    error = refusal(status, told())
    assert (error.code, CODES[error.code].http) == (code, http)
    assert "hidden" not in str(error)


# As they were answered by the servers named.
TOO_LONG = {
    "llama.cpp": {
        "error": {
            "code": 400,
            "message": "request (12050 tokens) exceeds the available context size (512 tokens), try increasing it",
            "type": "exceed_context_size_error",
            "n_prompt_tokens": 12050,
            "n_ctx": 512,
        }
    },
    "vLLM": {
        "object": "error",
        "message": "This model's maximum context length is 512 tokens. However, you requested 600 tokens.",
        "type": "BadRequestError",
        "param": None,
        "code": 400,
    },
    "OpenAI": {
        "error": {
            "message": "too long",
            "type": "invalid_request_error",
            "param": "messages",
            "code": "context_length_exceeded",
        }
    },
    "SGLang": {"detail": "The input (600 tokens) is longer than the model's context length (512 tokens)."},
}


@pytest.mark.parametrize("server", TOO_LONG)
def test_a_prompt_that_is_too_long_is_known_by_what_each_server_says(server: str) -> None:
    error = refusal(400, json.dumps(TOO_LONG[server]).encode(), context=512)
    assert error.code == "context_length_exceeded"
    assert str(error) == "the prompt is longer than this model has room for: 512 tokens"


def test_the_field_to_blame_is_named_where_it_is_a_field_of_ours() -> None:
    assert refusal(400, told(param="top_p")).param == "top_p"
    assert refusal(400, told(param=SECRET)).param is None
    assert refusal(500, told(param="top_p")).param is None


@pytest.mark.parametrize(
    ("error", "code"),
    [
        ({"code": 400, "message": "exceeds the available context size"}, "context_length_exceeded"),
        ({"code": 503, "message": "Loading model"}, "not_ready"),
        ({"code": "bad", "message": SECRET}, "upstream_error"),
        ({"code": 200}, "upstream_error"),
        ({"code": True}, "upstream_error"),
        (SECRET, "upstream_error"),
        (7, "upstream_error"),
    ],
)
def test_an_error_in_the_middle_of_a_stream_is_one_too(error: Any, code: str) -> None:
    found = event_refusal(error)
    assert found.code == code
    assert "hidden" not in str(found)


@given(
    st.integers(100, 599), st.binary(max_size=60) | st.text(max_size=30).map(lambda text: told(code=text, type=text))
)
def test_whatever_is_answered_it_is_a_refusal(status: int, body: bytes) -> None:
    assert refusal(status, body).code
