"""Jobs' programs are processes: killed with all that they started, known again by what they are, bounded."""

import asyncio
import os
import signal
from decimal import Decimal
from pathlib import Path

import psutil
import pytest

from gpu_worker.core.folder import EXIT_COMPLETED, EXIT_STOPPED, Spec
from gpu_worker.core.model import Job
from gpu_worker.edges.jobs.job_folder import DiskFolders
from gpu_worker.edges.jobs.job_process import JobProcess, JobProcesses
from tests.gpu_worker.world import scripted_programs, until

pytestmark = pytest.mark.slow


class Bench:
    """A folder, and what runs programs in it."""

    def __init__(self, root: Path) -> None:
        self.script_path = root / "script.json"
        self.folders = DiskFolders(root / "jobs")
        self.programs = scripted_programs(self.script_path)

    def script(self, text: str) -> None:
        self.script_path.write_text(text)

    async def start(self, job_id: str = "job_1", steps: int = 5) -> tuple[JobProcess, Path]:
        spec = Spec(
            job_id=job_id,
            kind="fine_tune",
            params={"steps": steps},
            device="cpu",
            threads=1,
            checkpoint_steps=2,
            file_bytes_max=10**9,
        )
        folder = await self.folders.make(job_id, spec)
        return await self.programs.start(job(job_id), folder, threads=1, visible=None), folder

    async def at_step(self, job_id: str, step: int) -> None:
        async with asyncio.timeout(30):
            while True:
                state = await self.folders.state(job_id)
                if state is not None and state.step >= step:
                    return
                await asyncio.sleep(0.02)


def job(job_id: str) -> Job:
    return Job(
        job_id=job_id,
        vendor_id="worker",
        payment_id=f"pay_{job_id}",
        gpu_type="CPU",
        hours=Decimal(1),
        price_atomic=1,
        started_at_s=0,
        kind="fine_tune",
    )


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


async def test_a_program_ends_by_itself_with_its_result(bench: Bench) -> None:
    running, _ = await bench.start()
    code = await running.wait()

    assert code == EXIT_COMPLETED
    assert await running.sample() is None
    assert [file.name for file in await bench.folders.files("job_1")] == ["model.safetensors"]
    newest = await bench.folders.checkpoint("job_1")
    assert newest is not None
    assert newest[0].step == 4


async def test_asked_to_stop_it_makes_its_checkpoint(bench: Bench) -> None:
    bench.script('{"hold_at": 4}')
    running, _ = await bench.start()
    await bench.at_step("job_1", 3)
    running.ask_to_stop()
    running.ask_to_stop()

    assert await running.wait() == EXIT_STOPPED
    newest = await bench.folders.checkpoint("job_1")
    assert newest is not None
    assert newest[0].step == 3


async def test_killed_it_takes_with_it_what_it_started(bench: Bench) -> None:
    bench.script('{"child": true, "hold_at": 3}')
    running, folder = await bench.start()
    await bench.at_step("job_1", 2)
    child = psutil.Process(int((folder / "child.pid").read_text()))
    assert os.getsid(child.pid) != os.getsid(running.pid)
    await running.kill()
    await running.kill()
    gone, alive = await asyncio.to_thread(psutil.wait_procs, [child], 10)

    assert await running.wait() == -signal.SIGKILL
    assert (len(gone), alive) == (1, [])


async def test_what_a_program_left_behind_is_killed_too(bench: Bench) -> None:
    bench.script('{"child": true, "hold_at": 3}')
    running, folder = await bench.start()
    await bench.at_step("job_1", 2)
    child = psutil.Process(int((folder / "child.pid").read_text()))
    assert await running.sample() is not None
    os.kill(running.pid, signal.SIGKILL)
    await running.wait()
    await running.kill()
    gone, alive = await asyncio.to_thread(psutil.wait_procs, [child], 10)

    assert (len(gone), alive) == (1, [])


async def test_a_frozen_program_is_killed_all_the_same(bench: Bench) -> None:
    bench.script('{"hold_at": 3}')
    running, _ = await bench.start()
    await bench.at_step("job_1", 2)
    os.kill(running.pid, signal.SIGSTOP)
    await running.kill()

    assert await running.wait() == -signal.SIGKILL


async def test_a_sample_counts_all_of_its_processes_and_its_folder(bench: Bench) -> None:
    bench.script('{"child": true, "hold_at": 4, "memory_mb": 100, "disk_mb": 30}')
    running, _ = await bench.start()
    await bench.at_step("job_1", 3)
    sample = await running.sample()
    await running.kill()

    assert sample is not None
    assert sample.memory_bytes > 100 * 1024 * 1024
    assert sample.disk_bytes > 30 * 1024 * 1024


async def test_one_that_an_earlier_worker_left_is_found_by_its_lock_and_ended(bench: Bench) -> None:
    bench.script('{"hold_at": 3, "deaf": true}')
    running, folder = await bench.start()
    await bench.at_step("job_1", 2)
    found = await bench.programs.find(job("job_1"), folder)
    assert found is not None
    assert found.pid == running.pid
    ending = asyncio.create_task(found.kill())
    # It is its starter's to wait for.
    assert await running.wait() == -signal.SIGKILL
    await ending

    assert await bench.programs.find(job("job_1"), folder) is None


async def test_a_number_that_is_another_process_s_now_is_not_killed(bench: Bench) -> None:
    bench.script('{"hold_at": 3}')
    running, folder = await bench.start()
    await bench.at_step("job_1", 2)
    state = await bench.folders.state("job_1")
    assert state is not None
    other, _ = await bench.start("job_2")
    await until(lambda: other.pid != running.pid)
    # The state of a process that is long gone, whose number another one has.
    (folder / "state.json").write_bytes(state.model_copy(update={"pid": other.pid}).to_json())
    found = await bench.programs.find(job("job_1"), folder)
    assert found is not None
    assert found.pid == 0
    running.ask_to_stop()
    other_code = other.wait()
    await found.wait()
    await running.wait()
    bench.script("{}")

    assert await other_code == EXIT_COMPLETED


async def test_a_program_that_cannot_be_started_is_the_owner_s_fault(tmp_path: Path, bench: Bench) -> None:
    from gpu_worker.core.errors import OwnersFault

    programs = JobProcesses((str(tmp_path / "nothing"),))
    with pytest.raises(OwnersFault, match="cannot be started"):
        await programs.start(job("job_1"), await bench.folders.path("job_1"), threads=1, visible=None)


async def test_a_checkpoint_is_believed_by_its_hashes_alone(bench: Bench) -> None:
    running, folder = await bench.start()
    await running.wait()
    newest = folder / "checkpoints" / "4" / "model.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1] + b"?")
    (folder / "checkpoints" / "9").mkdir()
    found = await bench.folders.checkpoint("job_1")

    assert found is not None
    assert found[0].step == 2


async def test_a_result_is_files_and_no_way_out_of_the_folder(bench: Bench, tmp_path: Path) -> None:
    running, folder = await bench.start()
    await running.wait()
    (tmp_path / "secret").write_text("not for sale")
    (folder / "result" / "link").symlink_to(tmp_path / "secret")

    assert [file.name for file in await bench.folders.files("job_1")] == ["model.safetensors"]
    for name in ("link", "../spec.json", "..", "", "nothing"):
        with pytest.raises(KeyError):
            await anext(bench.folders.read("job_1", name))
    with pytest.raises(KeyError):
        await bench.folders.files("../jobs/job_1")
