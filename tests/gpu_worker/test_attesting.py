"""A worker takes one challenge at a time, gives its memory back, and survives programs that do not answer."""

import asyncio
from dataclasses import replace
from pathlib import Path

import httpx
import psutil
import pytest

from gpu_worker.attesting import CannotAttest
from tests.fixtures.attest import CPU, attestor, prover, proving
from tests.fixtures.capability import capability
from wire.capability import ChallengeRequest, StartRequest

pytestmark = pytest.mark.slow


async def test_a_worker_refuses_what_it_cannot_or_may_not_do(tmp_path: Path) -> None:
    asked = {"seed": "ab" * 32, "size": 256}
    for more, body, code in (
        ({"account": None}, asked, "cannot_attest"),
        ({}, {**asked, "size": 8_192 + 64}, "invalid_argument"),
        ({}, {**asked, "size": 100}, "invalid_argument"),
        ({}, {**asked, "seed": "xy"}, "invalid_field"),
        # The matrix would take more than its part of what is free.
        ({"using": prover(free_bytes=4 * 256 * 256 * 8 - 1)}, asked, "cannot_attest"),
        ({"using": prover(device=replace(CPU, name="cuda:7"))}, asked, "cannot_attest"),
    ):
        async with proving(tmp_path, **more) as url, httpx.AsyncClient(timeout=60) as client:
            reply = await client.post(f"{url}/gpu-check/challenges", json=body)
            assert reply.json()["code"] == code, reply.text
            # And one behind it is taken: nothing is left of the refused one.
            again = await client.post(f"{url}/gpu-check/challenges", json=body)
            assert again.json()["code"] == code


async def test_one_challenge_at_a_time_is_open_and_answered_once(tmp_path: Path) -> None:
    body = {"seed": "ab" * 32, "size": 64}
    start = {"start": "cd" * 32, "rounds": 2, "deadline_s": 30}
    async with proving(tmp_path) as url, httpx.AsyncClient(base_url=f"{url}/gpu-check", timeout=60) as client:
        first = (await client.post("/challenges", json=body)).json()
        busy = await client.post("/challenges", json=body)
        assert (busy.status_code, busy.json()["code"], busy.headers["retry-after"]) == (503, "challenge_busy", "1")
        unknown = await client.post("/challenges/other", json=start)
        assert (unknown.status_code, unknown.json()["code"]) == (404, "challenge_unknown")
        many = await client.post(f"/challenges/{first['challenge']}", json={**start, "rounds": 129})
        assert many.json()["code"] == "invalid_argument"
        assert (await client.post(f"/challenges/{first['challenge']}", json=start)).status_code == 200
        assert (await client.post(f"/challenges/{first['challenge']}", json=start)).status_code == 404
        assert (await client.post("/challenges", json=body)).status_code == 201


def program() -> psutil.Process:
    """Return the program that computes for the challenge that is open."""
    (found,) = [each for each in psutil.Process().children() if "gpu_worker.engine.attest" in each.cmdline()]
    return found


class Watched:
    """Prepares as `prover` does; `gone` is set once what it prepared was ended."""

    def __init__(self) -> None:
        self.gone = asyncio.Event()

    async def prepare(self, seed: bytes, size: int) -> "Watched":
        self._prepared = await prover().prepare(seed, size)
        self.device, self.prove = self._prepared.device, self._prepared.prove
        return self

    async def close(self) -> None:
        await self._prepared.close()
        self.gone.set()


async def test_a_challenge_that_nobody_goes_on_with_gives_its_memory_back(tmp_path: Path) -> None:
    watched = Watched()
    worker = attestor(capability(tmp_path), using=watched, kept_s=0.5)
    ready = await worker.prepare(ChallengeRequest(seed="ab" * 32, size=64))
    first = program()
    async with asyncio.timeout(30):
        await watched.gone.wait()
    assert not first.is_running()
    with pytest.raises(CannotAttest, match="no such challenge"):
        await worker.answer(ready.challenge, StartRequest(start="cd" * 32, rounds=1, deadline_s=1))
    # The next one is taken, and ended with the worker.
    await worker.prepare(ChallengeRequest(seed="ab" * 32, size=64))
    second = program()
    await worker.close()
    assert not second.is_running()


async def test_a_program_that_dies_or_is_too_slow_is_an_error_and_the_next_challenge_is_taken(tmp_path: Path) -> None:
    worker = attestor(capability(tmp_path))
    ready = await worker.prepare(ChallengeRequest(seed="ab" * 32, size=64))
    program().kill()
    with pytest.raises(CannotAttest, match="has ended"):
        await worker.answer(ready.challenge, StartRequest(start="cd" * 32, rounds=1, deadline_s=5))
    ready = await worker.prepare(ChallengeRequest(seed="ab" * 32, size=64))
    program().suspend()
    with pytest.raises(CannotAttest, match="no answer within 1 s"):
        async with asyncio.timeout(5):
            await worker.answer(ready.challenge, StartRequest(start="cd" * 32, rounds=1, deadline_s=1))
    await worker.prepare(ChallengeRequest(seed="ab" * 32, size=64))
    await worker.close()
