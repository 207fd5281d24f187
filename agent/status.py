"""Reading: one run with its newest observations, a kept file, many runs, and a run's whole log replayed."""

from dataclasses import replace

from agent.core.errors import UnknownArtifact, UnknownRun
from agent.core.events import RunStarted, event_document
from agent.core.explain import Paragraph, explain
from agent.core.model import OBSERVATION_TYPES, Artifact, Run
from agent.core.replay import Replayed, replay
from agent.core.views import status_reply
from agent.ports import Agent, Page
from wire import decimal_json
from wire.control import StatusReply

OBSERVATIONS_MAX = 50
RUNS_MAX = 50


async def status(agent: Agent, run_id: str) -> StatusReply:
    """Return a run, its jobs, payments and newest observations. Raises UnknownRun."""
    run = await agent.store.read_run(run_id)
    newest = await agent.store.read_log(run_id, types=OBSERVATION_TYPES, newest=OBSERVATIONS_MAX)
    return status_reply(run, newest)


async def artifact(agent: Agent, run_id: str, job_id: str, name: str) -> Artifact:
    """Return the kept file of this name, whole where it is kept. Raises UnknownRun, UnknownArtifact."""
    run = await agent.store.read_run(run_id)
    jobs = (job for job in run.jobs if job.job_id == job_id)
    found = next((artifact for job in jobs for artifact in job.artifacts if artifact.name == name), None)
    if found is None:
        raise UnknownArtifact("this job keeps no file of this name")
    if await agent.artifacts.size(run_id, job_id, name) != found.bytes:
        raise UnknownArtifact("it was kept, and is no longer where it was put")
    return found


async def runs(agent: Agent, state: str | None = None, cursor: str | None = None) -> Page:
    """Return a page of runs, newest first."""
    return await agent.store.list_runs(state, cursor, RUNS_MAX)


async def replayed(agent: Agent, run_id: str) -> tuple[Run, Replayed]:
    """Return the run as stored and as its log folds to. Raises UnknownRun."""
    return await agent.store.read_run(run_id), replay(await agent.store.read_log(run_id))


def is_same(stored: Run, folded: Run) -> bool:
    """Return whether two runs are one to the bit, but for what the store keeps beside the log."""
    return _bits(stored) == _bits(folded)


def _bits(run: Run) -> bytes:
    bare = replace(run, next_tick_at=None, cancel_requested_at=None)
    return decimal_json.dumps(event_document(RunStarted(at=bare.created_at, run=bare)), sort_keys=True)


async def explained(agent: Agent, run_id: str) -> tuple[Paragraph, ...]:
    """Return why the run did what it did, from its log. Raises UnknownRun."""
    entries = await agent.store.read_log(run_id)
    if not entries:
        raise UnknownRun(f"there is no run {run_id}")
    return explain(entries)
