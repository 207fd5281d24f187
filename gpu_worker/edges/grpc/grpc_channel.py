"""What servers and clients of the pipeline's gRPC have in common: limits, keepalive, names of errors."""

from typing import Any

import grpc
import grpc.aio

from gpu_worker.core.errors import Unavailable
from gpu_worker.core.inference.codes import CODES, InferenceError
from gpu_worker.core.inference.limits import MESSAGE_BYTES_MAX
from gpu_worker.core.inference.tensor import message_bytes
from gpu_worker.edges.grpc.tls import Tls, host_of, must_be_safe
from wire.proto.inference_pb2_grpc import InferencePipelineStub

SERVICE = "plumise.inference.InferencePipeline"
CODE_KEY = "livery-code"
# Seconds after which who was refused may ask again, where asking again is of use.
RETRY_KEY, RETRY_AFTER_S = "retry-after", 1
# What a stage that takes a `Steps` stream says at once, before the first message.
STEPS_ARE_SERVED = ("livery-steps", "1")
# A pass and what gRPC adds itself.
HEADER_BYTES_MAX = 64 * 1024
# What a sender may be ahead of its reader.
WINDOW_BYTES = 4 * 1024 * 1024

_ALIVE = [
    ("grpc.keepalive_time_ms", 2_000),
    ("grpc.keepalive_timeout_ms", 2_000),
    # What a ping waits for; keepalive's own limit has no say in it.
    ("grpc.http2.ping_timeout_ms", 2_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    # The window is fixed, not measured with pings that busy rows would delay.
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", WINDOW_BYTES),
]
_SIZES = [
    ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_metadata_size", HEADER_BYTES_MAX),
    ("grpc.absolute_max_metadata_size", HEADER_BYTES_MAX),
]
_CLIENT_OPTIONS = [
    *_ALIVE,
    *_SIZES,
    # A connection of one link is not another's: each sees for itself that its neighbour is gone.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_retries", 0),
    ("grpc.enable_http_proxy", 0),
]
_SERVER_OPTIONS = [
    *_ALIVE,
    *_SIZES,
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 500),
    ("grpc.http2.max_ping_strikes", 0),
    # Two workers on one port would each get half of the calls.
    ("grpc.so_reuseport", 0),
]

_OF_STATUS = {
    grpc.StatusCode.INVALID_ARGUMENT: "invalid_argument",
    grpc.StatusCode.UNAUTHENTICATED: "unauthenticated",
    grpc.StatusCode.PERMISSION_DENIED: "forbidden",
    grpc.StatusCode.RESOURCE_EXHAUSTED: "no_capacity",
    grpc.StatusCode.DEADLINE_EXCEEDED: "deadline",
}


class LinkLost(Unavailable):
    """A stage cannot be reached, does not answer or refuses. `code` is a key of `core.inference.codes.CODES`."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code


def server_options(width: int) -> list[tuple[str, int]]:
    """Return the options of a server to which rows of `width` numbers are sent, 0: none; no larger ones are read."""
    return [*_SERVER_OPTIONS, ("grpc.max_receive_message_length", message_bytes(width))]


def open_channel(endpoint: str, tls: Tls | None, insecure: bool, width: int) -> Any:
    """
    Return a channel to `endpoint`, whose answers may have rows of `width` numbers, 0: none. Nothing is sent yet.

    Raises OwnersFault: it would be without TLS.
    """
    must_be_safe(host_of(endpoint), tls, insecure)
    options = [*_CLIENT_OPTIONS, ("grpc.max_receive_message_length", message_bytes(width))]
    if tls is None:
        return grpc.aio.insecure_channel(endpoint, options=options)
    return grpc.aio.secure_channel(endpoint, tls.client(), options=options)


def bearer_of(token: str) -> tuple[tuple[str, str], ...]:
    """Return the metadata of a call that shows `token`, none where it is empty."""
    return (("authorization", f"Bearer {token}"),) if token else ()


def shown_bearer(context: Any) -> str:
    """Return the token that a call shows, empty where it shows none, or more than one."""
    values = [value for key, value in context.invocation_metadata() or () if key == "authorization"]
    kind, _, token = values[0].partition(" ") if len(values) == 1 else ("", "", "")
    return token.strip() if kind.lower() == "bearer" else ""


def stub_of(channel: Any) -> Any:
    """Return the client of the service; it has one attribute for each RPC."""
    return InferencePipelineStub(channel)  # type: ignore[no-untyped-call]


def lost(endpoint: str, error: Exception) -> LinkLost:
    """Return what an error of a call to `endpoint` means: the code that it names, else that of its status."""
    if isinstance(error, grpc.aio.AioRpcError):
        code = named_code(error.trailing_metadata()) or _OF_STATUS.get(error.code(), "lost_stage")
        return LinkLost(code, f"{endpoint}: {error.details() or error.code().name}")
    return LinkLost("lost_stage", f"{endpoint}: the stream has ended")


def named_code(metadata: Any) -> str | None:
    """Return the code that a server named in its trailing metadata, None where it named none of ours."""
    return next((value for key, value in metadata or () if key == CODE_KEY and value in CODES), None)


async def abort(context: Any, error: InferenceError) -> None:
    """End the call with the status of `error` and its code in the trailing metadata. Raises: always, gRPC's own."""
    code = CODES[error.code]
    later = ((RETRY_KEY, str(RETRY_AFTER_S)),) if code.retryable and code.http in (429, 503) else ()
    status = getattr(grpc.StatusCode, code.grpc)
    await context.abort(status, str(error)[:1024], trailing_metadata=((CODE_KEY, error.code), *later))
