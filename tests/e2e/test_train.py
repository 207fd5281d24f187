"""
A real training between real processes: two workers on this machine, one of them killed in the middle.

What `livery demo-train` plays is the mechanism; here it is looked at, and a run is cancelled in the same world.
"""

import asyncio
import json
import math
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from decimal import Decimal
from io import StringIO
from pathlib import Path

import psutil
import pytest
from rich.console import Console

from agent.ports import Agent
from chain.devchain import DevChain
from cli import demo_train, training
from cli.books import balances
from cli.training import JOB, KILLED_FROM_STEP, STEPS, Played, World
from livery.client import Client
from tests.fixtures.tiny import Tiny
from tests.fixtures.world import check_log
from tests.gpu_worker.second_opinion import held_out_loss
from wire import decimal_json
from wire.control import JobRequest, StatusReply
from wire.money import BASE_SEPOLIA_USDC, to_atomic

pytestmark = pytest.mark.slow

WAIT_S = 120
VOCABULARY = 258
RECORDS = 200


@dataclass(frozen=True)
class Theatre:
    world: World
    played: Played


@pytest.fixture(scope="module")
def theatre(tmp_path_factory: pytest.TempPathFactory, tiny: Tiny) -> Iterator[Theatre]:
    """A world in which the demo was played; the worker that was killed has come back since."""
    folder = tmp_path_factory.mktemp("training")
    with DevChain.start() as chain, training.open_world(folder, chain, tiny.folder) as world:
        yield Theatre(world, asyncio.run(training.play(world, says=False, restart=True)))


@pytest.mark.row(37)
def test_a_training_goes_on_elsewhere_from_its_checkpoint_when_its_worker_is_killed(theatre: Theatre) -> None:
    played, seen = theatre.played, theatre.played.seen
    second, first = seen.jobs
    assert [(job.vendor_id, job.status) for job in (first, second)] == [("worker", "failed"), ("worker-2", "completed")]
    assert played.killed.worker == "worker"
    assert second.resumes == first.id
    # From the newest checkpoint that was there when it died, or one that was being pushed: none is forgotten.
    assert KILLED_FROM_STEP <= played.killed.checkpoint_step <= played.resumed_step < STEPS
    assert played.resumed_step >= played.killed.at_step - 40
    # One curve: every step once, and the first of the second worker begins where the first one was.
    trained = {point.step: point.loss for point in played.curve if point.loss is not None}
    assert [*trained] == [*range(1, STEPS + 1)]
    assert trained[played.resumed_step + 1] < (trained[1] + trained[played.resumed_step]) / 2
    measured = {point.step: point.held_out_loss for point in played.curve if point.held_out_loss is not None}
    assert [*measured] == [*range(0, STEPS + 1, 20)]
    # Neither the death of the one nor the end of the other left a program behind.
    assert [program for name in theatre.world.workers for program in programs_of(theatre.world, name)] == []


def test_the_loss_fell_by_a_third_and_the_downloaded_artifact_has_it(theatre: Theatre, tiny: Tiny) -> None:
    start, end = theatre.played.held_out
    assert end <= 0.7 * start
    job, to = theatre.played.seen.jobs[0], theatre.world.folder / "downloaded"
    to.mkdir()

    async def download() -> None:
        async with Client(theatre.world.plane) as client:
            for artifact in job.artifacts:
                await client.download(job.run_id, job.id, artifact, to / artifact.name)

    asyncio.run(download())
    assert {"model.safetensors", "config.json", "tokenizer.json", "report.json", "curve.png"} <= set(
        theatre.played.files
    )
    # A second program, from the files and the text alone; and who has learned nothing finds every token as likely.
    assert held_out_loss(to, tiny.text) == pytest.approx(end, rel=1e-4)
    assert start == pytest.approx(math.log(VOCABULARY), rel=0.02)


def test_both_workers_are_paid_for_their_part_and_books_and_chain_agree(theatre: Theatre) -> None:
    played = theatre.played
    for books in (played.books, played.books_after):
        assert [book.holder for book in books] == ["the wallet", "worker", "worker-2"]
        assert all(book.agree for book in books)
        assert sum(book.after_atomic - book.before_atomic for book in books) == 0
    # While it is dead the first worker keeps all; once it is back, only what its program's seconds cost.
    (paid, back, kept), (last_paid, last_back, last_kept) = (
        (cost["paid"], cost["refunded"], cost["charged"]) for cost in demo_train.costs(played)
    )
    assert {payment.vendor_id: payment.refunded for payment in played.seen.payments}["worker"] == 0
    assert paid == Decimal("0.5")
    assert last_paid < paid
    assert 0 < kept < Decimal("0.1")
    assert 0 < last_kept < Decimal("0.1")
    assert (back, last_back) == (paid - kept, last_paid - last_kept)
    assert played.seen_after is not None
    assert played.seen_after.run.budget_spent == kept + last_kept <= training.BUDGET
    assert played.seen.run.budget_spent == paid + last_kept <= training.BUDGET


async def test_the_log_of_the_run_holds_and_repeats(theatre: Theatre) -> None:
    async def check(agent: Agent) -> None:
        await check_log(agent, theatre.played.seen.run.id)

    await theatre.world.agent(check)


@pytest.mark.parametrize("columns", [80, 160])
def test_the_demo_tells_of_it_at_any_width(theatre: Theatre, columns: int) -> None:
    document = json.loads(decimal_json.dumps(demo_train.document(theatre.played)))
    assert document["isWell"] is True
    terminal = Console(file=StringIO(), width=columns)
    with terminal.capture() as shown:
        terminal.print(demo_train.story(theatre.played))
    said = " ".join(shown.get().split())
    assert f"worker-2 goes on from step {theatre.played.resumed_step}" in said
    assert "worker was started again, and paid back what it had not used" in said


@asynccontextmanager
async def rented(world: World, job: JobRequest, data: Path) -> AsyncIterator[tuple[Client, str]]:
    async with Client(world.plane) as client:
        of_data = job.model_copy(update={"dataset": await client.upload(data)})
        yield client, (await client.start("Fine-tune tiny-llm", 5, job=of_data)).id


@pytest.mark.row(34)
async def test_a_run_on_an_uploaded_dataset_that_is_cancelled_in_training_pays_for_what_was_used_alone(
    theatre: Theatre, tiny: Tiny
) -> None:
    world = theatre.world
    uploaded = world.folder / "uploaded.jsonl"
    uploaded.write_bytes(b"".join(tiny.text.read_bytes().splitlines(keepends=True)[:RECORDS]))
    before = balances(world.chain, world.holders)
    long = JOB.model_copy(update={"params": {**JOB.params, "steps": 100_000}, "max_hours": Decimal(10)})
    async with rented(world, long, uploaded) as (client, run_id):
        seen = await ticked(client, run_id, lambda seen: bool(seen.jobs) and seen.jobs[0].latest_metrics is not None)
        vendor_id = seen.jobs[0].vendor_id
        # It trains on what was uploaded: so many records, and not the worker's own text.
        assert any(line.content.endswith(f"preparing {RECORDS} records") for line in seen.observations)
        programs = programs_of(world, vendor_id)
        assert len(programs) == 1
        await client.cancel(run_id)
        seen = await ticked(client, run_id, lambda seen: seen.run.status == "cancelled")
    seen = await training.refunded(world, run_id, {vendor_id})
    (job,), (payment,) = seen.jobs, seen.payments
    assert (job.status, payment.status) == ("cancelled", "refunded")
    assert job.actual_cost is not None
    assert 0 < job.actual_cost
    assert job.actual_cost + payment.refunded == payment.amount
    # Its program is gone, and what the chain says is what the books say.
    assert psutil.wait_procs(programs, timeout=0)[1] == []
    used = to_atomic(job.actual_cost, BASE_SEPOLIA_USDC)
    after = balances(world.chain, world.holders)
    changes = {name: after[name] - before[name] for name in after if after[name] != before[name]}
    assert changes == {"the wallet": -used, vendor_id: used}
    assert payment.refund_tx_id is not None
    receipt = world.chain.receipt(payment.refund_tx_id)
    (transfer,) = receipt["logs"]
    assert int(transfer["data"], 16) == to_atomic(payment.refunded, BASE_SEPOLIA_USDC)
    assert seen.run.budget_remaining == seen.run.budget_total - job.actual_cost


async def ticked(client: Client, run_id: str, is_it: Callable[[StatusReply], bool]) -> StatusReply:
    """Tick a run until it stands as wanted."""
    until_s = time.monotonic() + WAIT_S
    while not is_it(seen := await client.status(run_id)):
        assert time.monotonic() < until_s, seen.run
        await client.tick(run_id)
        await asyncio.sleep(0.1)
    return seen


def programs_of(world: World, vendor_id: str) -> list[psutil.Process]:
    """Return the programs that train for a worker: what it has started in a folder of its own."""
    jobs = str(world.workers[vendor_id].folder / "jobs")
    return [one for one in psutil.process_iter() if jobs in " ".join(_words(one))]


def _words(process: psutil.Process) -> list[str]:
    try:
        return list(process.cmdline())
    except psutil.Error:
        return []
