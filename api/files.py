"""The files that jobs left, streamed from where they are kept. What a vendor made is never shown as a page."""

from typing import Annotated, Any

from fastapi import APIRouter, Query
from starlette.responses import StreamingResponse

from agent.status import artifact
from api.routes import TheAgent
from inbound.web import ExactRoute
from wire.file_name import shown_file_name

router = APIRouter(route_class=ExactRoute)

_BYTES: dict[int | str, dict[str, Any]] = {
    200: {"content": {"application/octet-stream": {}}, "description": "The file's bytes."}
}


@router.get("/agent-artifact", response_class=StreamingResponse, responses=_BYTES)
async def agent_artifact(
    agent: TheAgent,
    run_id: Annotated[str, Query(alias="runId")],
    job_id: Annotated[str, Query(alias="jobId")],
    name: Annotated[str, Query()],
) -> StreamingResponse:
    """Return one of a job's `artifacts`, as it was fetched and hash-checked. The ETag is its SHA-256."""
    found = await artifact(agent, run_id, job_id, name)
    return StreamingResponse(
        agent.artifacts.open(run_id, job_id, name),
        media_type="application/octet-stream",
        headers={
            "content-length": str(found.bytes),
            "content-disposition": f'attachment; filename="{shown_file_name(name)}"',
            "content-security-policy": "sandbox",
            "etag": f'"{found.sha256}"',
            "x-content-type-options": "nosniff",
        },
    )
