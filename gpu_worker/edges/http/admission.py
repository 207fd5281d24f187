"""What a request shows at the doors, HTTP and gRPC, and how each of them tells that it is refused."""

from collections.abc import Iterable
from urllib.parse import unquote

from starlette.responses import Response
from starlette.types import Scope

from gpu_worker.core.inference.callers import Caller, Quota, Refusal, Visit, Why
from gpu_worker.core.inference.codes import CODES, InferenceError
from gpu_worker.edges.http.openai_errors import refusal as openai_reply
from inbound.stranger import is_forwarded, is_near, stranger
from inbound.web import ProblemReply
from wire.loopback import is_loopback
from wire.openai import Refused
from wire.problems import problem_document

# A payment's header, in every dialect of the paid door.
_PAYMENTS = frozenset({b"payment-signature", b"x-payment", b"payment-authorization"})
_BEARER = b"bearer"
_UNAUTHORIZED = 401
# What gRPC calls the address of a caller on this machine.
_UNIX = "unix:"

_PROBLEMS: dict[Why, str] = {
    "missing": "unauthorized",
    "wrong": "forbidden",
    "unpaid": "payment_required",
    "used_up": "rate_limited",
}
_OPENAI: dict[Why, str] = {
    "missing": "invalid_api_key",
    "wrong": "invalid_api_key",
    "unpaid": "payment_required",
    "used_up": "rate_limit_exceeded",
}


def http_visit(scope: Scope) -> Visit:
    """Return what the request shows. An Authorization that is no bearer, or one of several, is none."""
    sent = [value.partition(b" ") for name, value in scope["headers"] if name == b"authorization"]
    credential, pays = "", any(name in _PAYMENTS for name, _ in scope["headers"])
    if len(sent) == 1:
        kind, value = sent[0][0].lower(), sent[0][2].strip()
        credential = value.decode("utf-8", "replace") if kind == _BEARER else ""
    client = scope.get("client")
    return Visit(credential, client[0] if client else "", is_near(scope), pays)


def grpc_visit(metadata: Iterable[tuple[str, str | bytes]], peer: str, session_token: str = "") -> Visit:
    """
    Return what a call shows: its `session_token`, else its `authorization: Bearer`.

    `peer` is gRPC's `ipv4:127.0.0.1:1`, `ipv6:[::1]:1` or `unix:path`.
    """
    metadata = tuple(metadata)
    sent = [str(value).partition(" ") for name, value in metadata if name.lower() == "authorization"]
    is_bearer = len(sent) == 1 and sent[0][0].lower() == "bearer"
    credential = session_token or (sent[0][2].strip() if is_bearer else "")
    address = unquote(peer).partition(":")[2].rpartition(":")[0].strip("[]")
    is_proxied = is_forwarded(name.lower().encode() for name, _ in metadata)
    return Visit(credential, address, (peer.startswith(_UNIX) or is_loopback(address)) and not is_proxied)


def page_fault(scope: Scope, caller: Caller) -> tuple[str, str] | None:
    """
    Return the code and the detail of the refusal of another site's web page, None for who may pass.

    Who was asked for nothing is let in for being of this machine, and so must the page be that a browser shows here.
    Programs tell of no origin, and a page that shows a credential was given it.
    """
    if caller.kind != "open" or not any(name == b"origin" for name, _ in scope["headers"]):
        return None
    return stranger(scope["scheme"], scope["headers"], ())


def quota_headers(quota: Quota | None) -> dict[str, str]:
    """Return what tells a client of its free requests."""
    if quota is None:
        return {}
    return {
        "x-ratelimit-limit-requests": str(quota.limit),
        "x-ratelimit-remaining-requests": str(quota.left),
        "x-ratelimit-reset-requests": f"{quota.reset_s}s",
    }


def openai_refusal(refusal: Refusal) -> Response:
    """Return the refusal in the words of the OpenAI API."""
    refused = Refused(refusal.detail, code=_OPENAI[refusal.why])
    status = CODES[refusal.error().code].http
    return openai_reply(refused, status, _headers(refusal, status))


def problem_refusal(refusal: Refusal) -> Response:
    """Return the refusal as the problem document of `/api/v1`."""
    problem = problem_document(_PROBLEMS[refusal.why], refusal.detail)
    return ProblemReply(problem, _headers(refusal, problem.status))


def grpc_refusal(refusal: Refusal) -> InferenceError:
    """Return what a call is ended with."""
    return refusal.error()


def _headers(refusal: Refusal, status: int) -> dict[str, str]:
    headers = {"www-authenticate": "Bearer"} if status == _UNAUTHORIZED else {}
    if refusal.quota is not None:
        reset_s = refusal.quota.reset_s
        headers |= {"retry-after": str(reset_s), "retry-after-ms": str(reset_s * 1_000), "x-should-retry": "false"}
    return headers | quota_headers(refusal.quota)
