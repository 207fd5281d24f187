"""What comes and goes by itself: a run's events as they happen, and the vendors' calls."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Annotated

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.sse import EventSourceResponse, format_sse_event
from starlette.background import BackgroundTask

from agent.callback import called_back
from agent.core.views import end_of, observation_document
from agent.follow import Pages, Pause, follow
from agent.notify import notify
from api.routes import TheAgent, can_stream, seconds_left
from inbound.streaming import is_stopping
from inbound.web import ExactRoute, JsonReply
from wire.control import CallbackReply
from wire.problems import ProblemDocument
from wire.vendor import VENDOR_ID_HEADER

LOOK_S = 1.0
# Looks in a row that found nothing, after which the client and what is between hear that the stream is alive.
SILENT_LOOKS_MAX = 15
RETRY_MS = 2_000
# What is left of the host's patience when a stream ends by itself; its client comes back.
HOST_ROOM_S = 5.0
# Of an answer that is gathered first; the event that goes beyond it is the last one.
GATHERED_BYTES_MAX = 1_000_000
_SEQ_DIGITS_MAX = 15

_HEADERS = {"cache-control": "no-store", "x-accel-buffering": "no"}

router = APIRouter(route_class=ExactRoute)

LastEventId = Annotated[str, Header(alias="Last-Event-ID", max_length=1_000)]
Since = Annotated[str, Query(max_length=1_000, description="The same as Last-Event-ID, which wins.")]


@router.get(
    "/agent-events",
    response_class=Response,
    responses={
        200: {
            "description": "Each `event` is an observation's type, the last one the run's state; `id` is its seq.",
            "content": {EventSourceResponse.media_type: {"schema": {"type": "string"}}},
        },
        204: {"description": "The run has ended and everything was told: do not ask again."},
    },
)
async def agent_events(
    request: Request,
    agent: TheAgent,
    run_id: Annotated[str, Query(alias="runId")],
    last_event_id: LastEventId = "",
    since: Since = "",
) -> Response:
    """
    Stream what happens to a run (Server-Sent Events), from its beginning or after the event that is named.

    A host that cannot stream answers the events so far; whoever asks again with the last id goes on from there.
    """
    live, is_over = can_stream(request), _end_of(seconds_left(request))
    pages = await follow(agent, run_id, _seq(last_event_id or since), _pause_until(is_over) if live else _no_pause)
    if pages is None:
        return Response(status_code=204, headers=_HEADERS)
    return EventSourceResponse(written(pages, is_over, None if live else GATHERED_BYTES_MAX), headers=_HEADERS)


@router.post("/vendor-callback", response_model=CallbackReply, responses={401: {"model": ProblemDocument}})
async def vendor_callback(
    request: Request,
    agent: TheAgent,
    run_id: Annotated[str, Query(alias="runId")],
    vendor_id: Annotated[str | None, Header(alias=VENDOR_ID_HEADER, max_length=256)] = None,
) -> JsonReply:
    """A vendor says, signed, that there is news of a run: its jobs are polled at once. What it says is not read."""
    await called_back(agent, run_id, vendor_id, request.headers, await request.body())
    return JsonReply(CallbackReply(), background=BackgroundTask(notify, agent))


async def written(
    pages: Pages, is_over: Callable[[], bool] = lambda: False, bytes_max: int | None = None
) -> AsyncIterator[bytes]:
    """
    Yield the pages as a text/event-stream, and now and then a comment where they are empty.

    Whoever asks again goes on where it ended: with the page after which `is_over`, or the event beyond `bytes_max`.
    """
    yield format_sse_event(retry=RETRY_MS)
    silent = told_bytes = 0
    async for page in pages:
        for entry in page:
            event = format_sse_event(
                data_str=observation_document(entry).to_json().decode(),
                event=end_of(entry) or entry.type,
                id=str(entry.seq),
            )
            yield event
            told_bytes += len(event)
            if bytes_max is not None and told_bytes > bytes_max:
                return
        if is_over():
            return
        silent = 0 if page else silent + 1
        if silent == SILENT_LOOKS_MAX:
            silent = 0
            yield format_sse_event(comment="still here")


def _end_of(left_s: float | None) -> Callable[[], bool]:
    """Return what tells whether the server, or the host after `left_s`, would soon cut an answer in the middle."""
    until_s = None if left_s is None else time.monotonic() + left_s - HOST_ROOM_S
    return lambda: is_stopping() or (until_s is not None and time.monotonic() >= until_s)


def _pause_until(is_over: Callable[[], bool]) -> Pause:
    async def pause() -> bool:
        await asyncio.sleep(LOOK_S)
        return not is_over()

    return pause


async def _no_pause() -> bool:
    return False


def _seq(text: str) -> int:
    """Return the event that `text` names, 0 where it names none that we ever sent."""
    known = text.isascii() and text.isdigit() and len(text) <= _SEQ_DIGITS_MAX
    return int(text) if known else 0
