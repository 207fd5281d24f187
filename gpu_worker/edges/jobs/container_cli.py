"""Docker's or podman's client as the worker uses it: which one answers, and how what it runs is ended for good."""

import asyncio
import shutil
from collections.abc import Collection

from gpu_worker.core.container import PREFIX, name_of

RUNTIMES = ("docker", "podman")
ANSWER_S = 10.0
END_S = 30.0


async def find(path: str | None = None) -> str | None:
    """Return the path of the first client whose runtime answers, None where none does; `path` as the shell's PATH."""
    for name in RUNTIMES:
        found = shutil.which(name, path=path)
        if found is not None and (await _asked(found, "version", timeout_s=ANSWER_S))[0] == 0:
            return found
    return None


async def remove(runtime: str, job_id: str) -> None:
    """End and remove the container of a job, where there is one: killing the client leaves it running."""
    await _asked(runtime, "rm", "--force", name_of(job_id), timeout_s=END_S)


async def sweep(runtime: str, job_ids: Collection[str]) -> tuple[str, ...]:
    """Remove the containers of these jobs, and return their names; another worker's are left alone."""
    ours = {name_of(job_id) for job_id in job_ids}
    _, said = await _asked(runtime, "ps", "--all", "--filter", f"name=^{PREFIX}", "--format", "{{.Names}}")
    names = tuple(name for name in said.split() if name in ours)
    if names:
        await _asked(runtime, "rm", "--force", *names, timeout_s=END_S)
    return names


async def _asked(runtime: str, *words: str, timeout_s: float = ANSWER_S) -> tuple[int, str]:
    """Return the client's exit code and what it said, -1 where it did not answer in time or cannot be started."""
    try:
        client = await asyncio.create_subprocess_exec(
            runtime,
            *words,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
    except OSError:
        return -1, ""
    try:
        said, _ = await asyncio.wait_for(client.communicate(), timeout_s)
    except TimeoutError:
        client.kill()
        await client.wait()
        return -1, ""
    return client.returncode or 0, said.decode("utf-8", "replace")
