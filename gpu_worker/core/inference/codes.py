"""What a step or a request can be refused for, and what each refusal is in gRPC and in HTTP."""

from typing import NamedTuple

from gpu_worker.core.errors import Fault, WorkerError


class Code(NamedTuple):
    """`grpc` names a status code; `http` and `openai` are the status and the `error.type` of the OpenAI API."""

    grpc: str
    http: int
    openai: str
    retryable: bool


CODES: dict[str, Code] = {
    "invalid_tensor": Code("INVALID_ARGUMENT", 400, "invalid_request_error", False),
    "invalid_argument": Code("INVALID_ARGUMENT", 400, "invalid_request_error", False),
    "too_large": Code("INVALID_ARGUMENT", 413, "invalid_request_error", False),
    "context_length_exceeded": Code("INVALID_ARGUMENT", 400, "invalid_request_error", False),
    "unknown_session": Code("FAILED_PRECONDITION", 409, "invalid_request_error", True),
    "position_gap": Code("FAILED_PRECONDITION", 409, "invalid_request_error", True),
    "stale_epoch": Code("FAILED_PRECONDITION", 409, "invalid_request_error", False),
    "not_head": Code("FAILED_PRECONDITION", 409, "invalid_request_error", False),
    "no_capacity": Code("RESOURCE_EXHAUSTED", 429, "rate_limit_exceeded", True),
    "rate_limited": Code("RESOURCE_EXHAUSTED", 429, "rate_limit_exceeded", False),
    "unauthenticated": Code("UNAUTHENTICATED", 401, "invalid_request_error", False),
    "forbidden": Code("PERMISSION_DENIED", 403, "invalid_request_error", False),
    "no_route": Code("UNAVAILABLE", 503, "server_error", True),
    "not_ready": Code("UNAVAILABLE", 503, "server_error", True),
    "draining": Code("UNAVAILABLE", 503, "server_error", True),
    "model_not_found": Code("NOT_FOUND", 404, "invalid_request_error", False),
    "payment_required": Code("PERMISSION_DENIED", 402, "invalid_request_error", False),
    "upstream_error": Code("UNAVAILABLE", 502, "server_error", True),
    "upstream_timeout": Code("DEADLINE_EXCEEDED", 504, "server_error", True),
    "lost_stage": Code("UNAVAILABLE", 502, "server_error", True),
    "deadline": Code("DEADLINE_EXCEEDED", 408, "server_error", True),
    "cancelled": Code("CANCELLED", 499, "server_error", False),
    "internal": Code("INTERNAL", 500, "server_error", False),
}


class InferenceError(WorkerError):
    """
    A request or a session is refused; the message says why in one sentence. Raises KeyError: no such code.

    `param` is the field of the request that is to blame, None where none is.
    """

    def __init__(self, code: str, detail: str, param: str | None = None) -> None:
        super().__init__(detail)
        self.code = code
        self.param = param
        self.retryable = CODES[code].retryable
        self.fault: Fault = "buyer" if CODES[code].http < 500 else "world"
