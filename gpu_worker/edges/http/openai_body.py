"""The body of a request to the OpenAI API: JSON, called so, and no larger than it may be."""

from starlette.requests import Request

from gpu_worker.edges.http.openai_errors import RefusedRequest
from wire.generate import PROMPT_BODY_BYTES_MAX
from wire.openai import Refused


async def read_body(request: Request, bytes_max: int = PROMPT_BODY_BYTES_MAX) -> bytes:
    """Return the body. Raises RefusedRequest."""
    sent = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    # A web page may send anything else to another site without asking it first.
    if sent != "application/json":
        raise RefusedRequest(Refused("send the body with `Content-Type: application/json`"), 415)
    too_large = RefusedRequest(Refused(f"the body is larger than {bytes_max} bytes"), 413)
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > bytes_max:
        raise too_large
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > bytes_max:
            raise too_large
    return bytes(body)
