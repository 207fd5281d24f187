"""A worker's model that is served whole, and jobs that generate with it: real programs, in folders of their own."""

import hashlib
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

from gpu_worker.core.folder import EXIT_COMPLETED, INPUT, Spec, State
from gpu_worker.core.model import Job
from gpu_worker.edges.jobs.job_answers import JobAnswers
from gpu_worker.edges.jobs.job_folder import DiskFolders
from gpu_worker.edges.jobs.job_process import JobProcess, JobProcesses
from gpu_worker.inference.text.service import Service
from gpu_worker.inference.text.turns import Turns
from tests.gpu_worker.gguf.engines import chat, serving
from tests.gpu_worker.world import until
from wire.jobs import params_of, spec_hash

DATASET = "https://data.example/records.jsonl"
CONTEXT, SLOTS, TOKENS = 512, 2, 16
WORDS = ("def ", "class ", "import ", "return ", "The worker ", "raise ", "    if ", '"""', "async ", "assert ")
RECORDS = [{"id": f"no {number}", "prompt": f"{word}{number}"} for number, word in enumerate(WORDS)]
CHATS = [{"messages": chat(word), "id": number} for number, word in enumerate(WORDS[:3])]
GREEDY = {"maxNewTokens": TOKENS, "batchSize": 2}
DRAWN = {**GREEDY, "temperature": 1, "topP": Decimal("0.9"), "seed": 7}


class Bench:
    """A worker's model, and jobs that ask it."""

    def __init__(self, root: Path, engine: Any) -> None:
        self.engine = engine
        self.model = engine.cards()[0].name
        self.service = Service(model=self.model, engine=engine, turns=Turns(SLOTS, 4, 30.0))
        self.answers = JobAnswers(self.service, pauses_s=(0.01, 0.01))
        self.folders = DiskFolders(root / "jobs")
        self.programs = JobProcesses(answers=self.answers)

    async def start(
        self, job_id: str, records: Sequence[Mapping[str, Any]], params: Mapping[str, Any], **spec: Any
    ) -> JobProcess:
        data = b"".join(json.dumps(record).encode() + b"\n" for record in records)
        sha256 = hashlib.sha256(data).hexdigest()
        asked, found = {"dataset": DATASET, **params}, self.answers.find(self.model)
        assert found is not None
        fields = {
            "job_id": job_id,
            "kind": "generate",
            "params": asked,
            "device": "cpu",
            "threads": 1,
            "checkpoint_steps": 2,
            "served": found.served,
            "model_hash": found.model_hash,
            "spec_hash": spec_hash("generate", params_of("generate", {"params": asked}), sha256, 0),
            "input": {"name": "d.jsonl", "sha256": sha256, "form": "prompt", "records": 1, "bytes": len(data)},
            "file_bytes_max": 10**9,
        }
        folder = await self.folders.make(job_id, Spec.model_validate({**fields, **spec}))
        (folder / INPUT).mkdir(exist_ok=True)
        (folder / INPUT / "d.jsonl").write_bytes(data)
        return await self.programs.start(job(job_id), folder, threads=1, visible=None, served=found.served)

    async def resume(self, job_id: str, records: Sequence[Mapping[str, Any]], params: Mapping[str, Any]) -> JobProcess:
        """Start the job's program again, from its newest checkpoint on."""
        newest = await self.folders.checkpoint(job_id)
        assert newest is not None
        return await self.start(job_id, records, params, resume_step=newest[0].step)

    async def state(self, job_id: str) -> State:
        found = await self.folders.state(job_id)
        assert found is not None
        return found

    async def lines(self, job_id: str) -> list[dict[str, Any]]:
        path = await self.folders.path(job_id) / "result" / "completions.jsonl"
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]

    async def done(self, job_id: str, records: Sequence[Mapping[str, Any]], params: Mapping[str, Any]) -> list[Any]:
        """Return what a job makes that nothing happens to."""
        running = await self.start(job_id, records, params)
        assert await running.wait() == EXIT_COMPLETED, (await self.folders.path(job_id) / "stderr.log").read_text()
        return await self.lines(job_id)


def job(job_id: str) -> Job:
    return Job(
        job_id=job_id,
        vendor_id="worker",
        payment_id=f"pay_{job_id}",
        gpu_type="CPU",
        hours=Decimal(1),
        price_atomic=1,
        started_at_s=0,
        kind="generate",
    )


@asynccontextmanager
async def opened(root: Path, path: Path, **more: Any) -> AsyncIterator[Bench]:
    async with serving(path, slots=SLOTS, **more) as engine:
        bench = Bench(root, engine)
        yield bench
        # Whatever became of the jobs, nothing of the model is theirs any more.
        await until(lambda: bench.service.turns.running == 0 and engine.load().running == 0)
