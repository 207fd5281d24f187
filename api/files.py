"""The files that jobs left, streamed from where they are kept. What a vendor made is never shown as a page."""

import re
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request, Response
from starlette.responses import StreamingResponse

from agent.ports import Agent
from agent.status import artifact
from api.routes import TheAgent, can_stream
from inbound.web import ExactRoute, ProblemReply
from wire.file_name import shown_file_name
from wire.problems import ProblemDocument, problem_document

# Lambda gives 6 MB, in base64, and Vercel 4.5 MB, of an answer that is gathered first.
GATHERED_BYTES_MAX = 4 * 1024 * 1024
_RANGE = re.compile(r"bytes=([0-9]{0,15})-([0-9]{0,15})", re.IGNORECASE)

router = APIRouter(route_class=ExactRoute)

BYTES: dict[int | str, dict[str, Any]] = {
    200: {"content": {"application/octet-stream": {}}, "description": "The file's bytes."},
    206: {"content": {"application/octet-stream": {}}, "description": "Those of its bytes that Range asks for."},
    413: {"model": ProblemDocument},
    416: {"model": ProblemDocument},
}


@router.get("/agent-artifact", response_class=StreamingResponse, responses=BYTES)
async def agent_artifact(
    request: Request,
    agent: TheAgent,
    run_id: Annotated[str, Query(alias="runId")],
    job_id: Annotated[str, Query(alias="jobId")],
    name: Annotated[str, Query()],
    wanted: Annotated[str, Header(alias="Range")] = "",
    of: Annotated[str, Header(alias="If-Range")] = "",
) -> Response:
    """
    Return one of a job's `artifacts`, as it was fetched and hash-checked, or one range of it. The ETag is its SHA-256.

    A host that cannot stream gives at most 4 MiB at a time: of a longer range its first ones, of a longer file none.
    """
    found = await artifact(agent, run_id, job_id, name)
    headers = {
        "content-disposition": f'attachment; filename="{shown_file_name(name)}"',
        "content-security-policy": "sandbox",
        "etag": f'"{found.sha256}"',
    }
    wanted = wanted if of in ("", headers["etag"]) else ""
    return file_reply(request, agent, (run_id, job_id, name), found.bytes, wanted, headers)


def file_reply(
    request: Request, agent: Agent, where: tuple[str, str, str], size: int, wanted: str, headers: Mapping[str, str]
) -> Response:
    """Return a kept file of `size` bytes as a reply, or the range of it that is `wanted`, as far as the host can."""
    part = _part(wanted, size)
    if part is not None and not part:
        refused = problem_document("range_not_satisfiable", f"the file has {size} bytes")
        return ProblemReply(refused, {"content-range": f"bytes */{size}"})
    if not can_stream(request):
        if part is None and size > GATHERED_BYTES_MAX:
            return ProblemReply(problem_document("too_large_for_host", f"the file has {size} bytes"))
        part = None if part is None else part[:GATHERED_BYTES_MAX]
    given = range(size) if part is None else part
    sent = {
        "accept-ranges": "bytes",
        "content-length": str(len(given)),
        "x-content-type-options": "nosniff",
        **headers,
    }
    if part is not None:
        sent["content-range"] = f"bytes {part.start}-{part.stop - 1}/{size}"
    return StreamingResponse(
        _bytes(agent, where, given),
        status_code=200 if part is None else 206,
        media_type="application/octet-stream",
        headers=sent,
    )


def _part(wanted: str, size: int) -> range | None:
    """
    Return the bytes that a Range header asks for, an empty range where the file has none of them, None for all of it.

    Several ranges, another unit, and what cannot be read are answered with the whole file. Source: RFC 9110 section 14.
    """
    found = _RANGE.fullmatch(wanted.strip())
    if found is None or not (found[1] or found[2]):
        return None
    if not found[1]:
        return range(max(0, size - int(found[2])), size)
    if found[2] and int(found[2]) < int(found[1]):
        return None
    return range(int(found[1]), min(size, int(found[2]) + 1) if found[2] else size)


async def _bytes(agent: Agent, where: tuple[str, str, str], part: range) -> AsyncIterator[bytes]:
    left = len(part)
    async with aclosing(agent.artifacts.open(*where, part.start)) as chunks:
        async for chunk in chunks:
            yield chunk[:left]
            left -= len(chunk)
            if left <= 0:
                return
