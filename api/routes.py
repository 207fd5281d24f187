"""The control plane's routes: each reads a body, calls one use case, shows the result."""

from typing import Annotated

from fastapi import APIRouter, Depends, Header, Query, Request
from starlette.background import BackgroundTask

from agent.cancel import cancel
from agent.core.states import RUN_MOVES
from agent.core.views import action_document, run_document
from agent.notify import notify
from agent.ports import Agent
from agent.start import start
from agent.status import runs, status
from agent.sweep import RUNS_PER_SWEEP_MAX, sweep, sweep_reply
from agent.tick import tick
from api.config import ApiSettings
from inbound import streaming
from inbound.web import ExactRoute, JsonReply
from livery import __version__
from wire.control import (
    HealthReply,
    RunDocument,
    RunIdRequest,
    RunsReply,
    StartRequest,
    StatusReply,
    SweepReply,
    TickReply,
    TickRequest,
)

# One of a run's states; empty is any.
_STATUS = f"^({'|'.join(RUN_MOVES)})?$"

router = APIRouter(route_class=ExactRoute)


def _agent(request: Request) -> Agent:
    agent: Agent = request.app.state.agent()
    return agent


TheAgent = Annotated[Agent, Depends(_agent)]
Limit = Annotated[int, Query(ge=1, le=RUNS_PER_SWEEP_MAX)]
Key = Annotated[str | None, Header(alias="Idempotency-Key", min_length=1, max_length=255)]


@router.post("/agent-start", response_model=RunDocument)
async def agent_start(agent: TheAgent, body: StartRequest, key: Key = None) -> JsonReply:
    """Start a run. The same Idempotency-Key with the same body answers the same run."""
    return JsonReply(run_document(await start(agent, body, key)))


@router.post("/agent-tick", response_model=TickReply)
async def agent_tick(
    agent: TheAgent, body: TickRequest | None = None, run_id: Annotated[str | None, Query(alias="runId")] = None
) -> JsonReply:
    """Advance a run by one step. The run is named in the body or in the query."""
    ticked = await tick(agent, _named(body, run_id))
    reply = TickReply(message=ticked.message, action=action_document(ticked.action), next_tick_at=ticked.next_tick_at)
    return JsonReply(reply, background=BackgroundTask(notify, agent))


@router.get("/agent-status", response_model=StatusReply)
async def agent_status(agent: TheAgent, run_id: Annotated[str, Query(alias="runId")]) -> JsonReply:
    """Return a run with its jobs, its payments and its 50 newest observations, newest first."""
    return JsonReply(await status(agent, run_id))


@router.get("/agent-runs", response_model=RunsReply)
async def agent_runs(
    agent: TheAgent,
    state: Annotated[str, Query(alias="status", pattern=_STATUS)] = "",
    cursor: Annotated[str | None, Query(max_length=1_000)] = None,
) -> JsonReply:
    """Return runs, newest first, a page at a time."""
    page = await runs(agent, state or None, cursor)
    return JsonReply(RunsReply(runs=tuple(run_document(run) for run in page.runs), cursor=page.cursor))


@router.post("/agent-cancel", response_model=RunDocument)
async def agent_cancel(agent: TheAgent, body: RunIdRequest) -> JsonReply:
    """Record that a run is to end. Ticks cancel its jobs; it ends once no payment is open."""
    return JsonReply(run_document(await cancel(agent, body.run_id)))


@router.get("/agent-sweep", response_model=SweepReply)
async def agent_sweep_by_cron(request: Request, agent: TheAgent, limit: Limit = RUNS_PER_SWEEP_MAX) -> JsonReply:
    """Tick the runs that are due, for crons that send GET. Asks for a secret always: it changes runs."""
    return await _swept(request, agent, limit)


@router.post("/agent-sweep", response_model=SweepReply)
async def agent_sweep(request: Request, agent: TheAgent, limit: Limit = RUNS_PER_SWEEP_MAX) -> JsonReply:
    """Tick the runs that are due, the longest due first; `more` says whether some were left."""
    return await _swept(request, agent, limit)


@router.get("/health", response_model=HealthReply)
async def health(agent: TheAgent) -> JsonReply:
    """Say whether the store answers, whether there is a key to pay with, and who plans."""
    await agent.store.now()
    return JsonReply(
        HealthReply(
            version=__version__,
            store=type(agent.store).__name__.removesuffix("Store").lower(),
            payments="on" if agent.wallet is not None else "off",
            planner=agent.planner.mode,
        )
    )


async def _swept(request: Request, agent: Agent, limit: int) -> JsonReply:
    done = await sweep(agent, limit=limit, seconds_left=seconds_left(request))
    return JsonReply(sweep_reply(done), headers={"cache-control": "no-store"})


def seconds_left(request: Request) -> float | None:
    """Return how long the host lets this request go on, None where it may take its time."""
    if (context := request.scope.get("aws.context")) is not None:
        return float(context.get_remaining_time_in_millis()) / 1_000
    settings: ApiSettings = request.app.state.settings
    return settings.vercel_request_s if settings.vercel else None


def can_stream(request: Request) -> bool:
    """Return whether the host passes an answer on as it comes, of any length."""
    settings: ApiSettings = request.app.state.settings
    return settings.stream and streaming.can_stream(request.scope)


def _named(body: TickRequest | None, run_id: str | None) -> str:
    from fastapi.exceptions import RequestValidationError

    if body is not None and body.run_id is not None:
        return body.run_id
    if run_id is not None:
        return run_id
    raise RequestValidationError(
        [{"type": "missing", "loc": ("body", "runId"), "msg": "Field required", "input": None}]
    )
