"""`livery run start --dataset FILE`: the file goes to the control plane, and the job that was bought gets it there."""

import asyncio
import hashlib
from pathlib import Path

import httpx
import pytest
from pydantic import SecretStr

from agent.config import AgentSettings
from agent.wiring import open_agent
from api.door import create_app
from tests.cli.conftest import SECRET, Livery
from wire.decimal_json import loads

pytestmark = pytest.mark.slow

TEXT = '{"text": "a horse is boarded, and let out for hire"}\n' * 3


async def _as_the_job(buyer: Livery, run_id: str, home: dict[str, str], sha256: str) -> tuple[str, int, str, int]:
    """Return what the bought job was told, what its grant fetches, and what it fetches of another hash."""
    settings = AgentSettings.model_validate(
        {
            "database_url": SecretStr(buyer.variables["DATABASE_URL"]),
            "artifact_url": SecretStr(home["ARTIFACT_URL"]),
            "vendor_secrets": SecretStr(SECRET),
            "callback_url": home["LIVERY_AGENT_CALLBACK_URL"],
        }
    )
    agent = open_agent(settings)
    try:
        run = await agent.store.read_run(run_id)
        sent = loads(run.payments[0].request)
        transport = httpx.ASGITransport(create_app(lambda: agent, hosts=("plane",)))
        headers = {"authorization": f"Bearer {sent['files']['token']}"}
        async with httpx.AsyncClient(transport=transport, headers=headers) as job:
            got = await job.get(f"{sent['files']['url']}/inputs/{sha256}")
            other = await job.get(f"{sent['files']['url']}/inputs/{'0' * 64}")
    finally:
        await agent.store.close()
    return sent["jobParams"]["dataset"], got.status_code, got.text, other.status_code


def test_a_file_is_uploaded_and_the_vendors_job_reads_it_by_its_hash(buyer: Livery, tmp_path: Path) -> None:
    (tmp_path / "text.jsonl").write_text(TEXT)
    sha256 = hashlib.sha256(TEXT.encode()).hexdigest()
    home = {"LIVERY_AGENT_CALLBACK_URL": "http://plane", "ARTIFACT_URL": str(tmp_path / "artifacts")}
    file = str(tmp_path / "text.jsonl")
    started = buyer("run", "start", "x", "--budget", "5", "--dataset", file, "--local", "--json", **home)
    assert started.code == 0, started.err
    assert started.json["job"]["dataset"] == f"input:{sha256}"
    assert buyer("run", "tick", started.json["_id"], "--local", "--json", **home).json["message"] == "Job started"

    seen = asyncio.run(_as_the_job(buyer, started.json["_id"], home, sha256))
    assert seen == (f"input:{sha256}", 200, TEXT, 404)


def test_a_dataset_that_is_no_file_here_is_handed_on_as_it_is(livery: Livery) -> None:
    """A URL, or what was uploaded before."""
    for dataset in ("https://example.org/text.jsonl", "input:" + "a" * 64):
        started = livery("run", "start", "x", "--budget", "5", "--dataset", dataset, "--local", "--json")
        assert started.json["job"]["dataset"] == dataset
