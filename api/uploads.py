"""The door of a run's files for vendors' jobs, and of datasets for the owner: parts of 4 MiB, each with its hash."""

import re
from typing import Annotated

from fastapi import APIRouter, Header, Path, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.requests import ClientDisconnect
from starlette.responses import StreamingResponse

from agent.core.errors import UploadIncomplete
from agent.files import INPUT_PREFIX, find_file, keep_file
from agent.inputs import keep_input
from agent.ports import Agent
from api.files import BYTES, file_reply
from api.routes import TheAgent
from inbound.web import ExactRoute, JsonReply
from wire.control import FileReply, InputReply
from wire.problems import ProblemDocument

SHA256 = r"^[0-9a-f]{64}$"
_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,15})-([0-9]{1,15})/([0-9]{1,15})")

router = APIRouter(route_class=ExactRoute)

RunId = Annotated[str, Path(max_length=256)]
JobId = Annotated[str, Path(max_length=300)]
Token = Annotated[str, Header(alias="Authorization", max_length=1_000)]
Hash = Annotated[str, Header(alias="x-content-sha256", pattern=SHA256)]
PartName = Annotated[str, Path(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,119}$")]
Wanted = Annotated[str, Header(alias="Range")]
_BODY = {"requestBody": {"required": True, "content": {"application/octet-stream": {}}}}


@router.put(
    "/agent-files/{run_id}/{job_id}/{name}",
    response_model=FileReply,
    status_code=201,
    responses={413: {"model": ProblemDocument}},
    openapi_extra=_BODY,
)
async def put_agent_file(
    request: Request, agent: TheAgent, run_id: RunId, job_id: JobId, name: PartName, sha256: Hash, token: Token = ""
) -> JsonReply:
    """Keep a part of a job's checkpoint, or, as `checkpoint.json` and last, its manifest. The token is the job's."""
    body = await _body(request)
    kept = await keep_file(agent, run_id, job_id, name, _bearer(token), body, sha256)
    return JsonReply(kept, status_code=201)


@router.get("/agent-files/{run_id}/{job_id}/{name}", response_class=StreamingResponse, responses=BYTES)
async def get_agent_file(
    request: Request,
    agent: TheAgent,
    run_id: RunId,
    job_id: JobId,
    name: str,
    token: Token = "",
    wanted: Wanted = "",
) -> Response:
    """Return what the job pushed, to it or to the job that resumes it."""
    return await _stream(request, agent, run_id, job_id, name, token, wanted)


@router.get("/agent-files/{run_id}/{job_id}/inputs/{sha256}", response_class=StreamingResponse, responses=BYTES)
async def get_agent_input(
    request: Request,
    agent: TheAgent,
    run_id: RunId,
    job_id: JobId,
    sha256: str,
    token: Token = "",
    wanted: Wanted = "",
) -> Response:
    """Return the run's dataset, to its jobs."""
    return await _stream(request, agent, run_id, job_id, f"{INPUT_PREFIX}{sha256}", token, wanted)


@router.put(
    "/agent-input",
    response_model=InputReply,
    status_code=201,
    responses={413: {"model": ProblemDocument}},
    openapi_extra=_BODY,
)
async def put_agent_input(
    request: Request,
    agent: TheAgent,
    sha256: Annotated[str, Query(pattern=SHA256)],
    content_range: Annotated[str, Header(alias="Content-Range", max_length=100)] = "",
) -> JsonReply:
    """Keep a dataset, or the part of it that Content-Range names; a run may then ask for `input:SHA-256`."""
    body = await _body(request)
    start, total = _place(content_range, len(body))
    return JsonReply(await keep_input(agent, sha256, start, total, body), status_code=201)


async def _stream(
    request: Request, agent: Agent, run_id: str, job_id: str, name: str, token: str, wanted: str
) -> Response:
    found = await find_file(agent, run_id, job_id, name, _bearer(token))
    where = (found.run_id, found.folder, found.name)
    return file_reply(request, agent, where, found.bytes, wanted, {"cache-control": "no-store"})


async def _body(request: Request) -> bytes:
    """Return the whole body. Raises UploadIncomplete where it was cut off."""
    try:
        body = await request.body()
    except ClientDisconnect:
        raise UploadIncomplete("the connection ended before the body did") from None
    announced = request.headers.get("content-length", str(len(body)))
    if announced != str(len(body)):
        raise UploadIncomplete(f"{len(body)} bytes came, {announced} were announced")
    return body


def _place(content_range: str, length: int) -> tuple[int, int]:
    """Return where the body begins in the file, and the file's size."""
    if not content_range:
        return 0, length
    found = _CONTENT_RANGE.fullmatch(content_range.strip())
    if found is None:
        message = "must be like `bytes 0-4194303/9000000`"
        raise RequestValidationError([{"type": "value_error", "loc": ("header", "Content-Range"), "msg": message}])
    start, end, total = (int(number) for number in found.groups())
    if end - start + 1 != length or end >= total:
        raise UploadIncomplete(f"{length} bytes came as those from {start} to {end} of {total}")
    return start, total


def _bearer(value: str) -> str:
    kind, _, token = value.partition(" ")
    return token.strip() if kind.lower() == "bearer" else ""
