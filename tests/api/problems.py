"""What every error of the control plane looks like."""

from typing import Any

import httpx

from wire.problems import PROBLEMS


def problem(response: httpx.Response, code: str) -> dict[str, Any]:
    """Return the problem document of `response`, which must be the one of `code`, whole."""
    assert response.headers["content-type"] == "application/problem+json", response.text
    document: dict[str, Any] = response.json()
    known = PROBLEMS[code]
    assert document["code"] == code, document
    assert document["type"] == f"urn:livery:problem:{code}"
    assert document["status"] == response.status_code == known.status
    assert (document["title"], document["hint"]) == (known.title, known.hint)
    assert document["detail"]
    assert set(document) <= {"type", "title", "status", "code", "detail", "hint", "retryAfter"}
    assert ("retryAfter" in document) == ("retry-after" in response.headers)
    return document
