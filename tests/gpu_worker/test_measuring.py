"""A model that was loaded is timed once, by one answer, and /health tells how fast it was."""

import asyncio
from dataclasses import replace

import httpx
import pytest

from gpu_worker.core.inference.codes import InferenceError
from gpu_worker.inference.text.engine import ModelCard
from gpu_worker.inference.text.measuring import TOKENS, WARMING_TOKENS, measure
from gpu_worker.inference.text.service import Service
from gpu_worker.inference.text.token_engine import TokenEngine
from tests.fixtures.talker import MODEL, ByteText, Talker, served, service_of


def timed(talker: Talker) -> Service:
    """Return a service whose clock goes on by a tenth of a second for each token that the talker has told."""
    return service_of(talker, monotonic=lambda: 0.1 * talker.told)


@pytest.mark.row(87)
async def test_the_figure_is_tokens_a_second_of_the_second_answer() -> None:
    talker = Talker(says=b"abcdefgh" * 20)
    service = timed(talker)
    assert await measure(service) == pytest.approx(10.0)
    assert [request.tokens_max for request in talker.requests] == [WARMING_TOKENS, TOKENS]
    assert all(request.sampling.temperature == 0 for request in talker.requests)
    # A model that would rather say nothing is measured as well.
    assert all(request.sampling.ignore_eos for request in talker.requests)
    # Nobody asked: no request is counted, and none is left open.
    assert (service.figures.tokens, sum(service.figures.ended.values()), talker.stats.running) == (0, 0, 0)


async def test_an_answer_that_ends_early_is_timed_as_far_as_it_goes() -> None:
    assert await measure(timed(Talker(says=b"abcd"))) == pytest.approx(10.0)


async def test_what_cannot_be_measured_is_nothing_and_no_fault() -> None:
    assert await measure(service_of(None)) == 0.0
    assert await measure(service_of(Talker(refuses=InferenceError("upstream_error", "it is gone")))) == 0.0
    broken = Talker(says=b"abc", fails_after=1)
    assert await measure(service_of(broken)) == 0.0
    assert broken.stats.running == 0


class Asleep(TokenEngine):
    """Its model is loaded when it is first asked for."""

    def cards(self) -> tuple[ModelCard, ...]:
        return tuple(replace(card, is_loaded=False) for card in super().cards())


async def test_a_model_is_not_loaded_for_being_measured() -> None:
    talker = Talker()
    service = service_of(talker)
    service.engine = Asleep(MODEL, talker, ByteText())
    assert await measure(service) == 0.0
    assert talker.requests == []


@pytest.mark.row(87)
async def test_health_and_the_figures_tell_it() -> None:
    talker = Talker(says=b"abcdefgh" * 20)
    service = timed(talker)
    service.tokens_per_s = await measure(service)
    async with served(service) as url, httpx.AsyncClient(base_url=url) as client:
        health = (await client.get("/health")).json()
    assert health["benchmarkTokPerSec"] == pytest.approx(10.0)


async def test_a_measurement_that_is_given_up_leaves_nothing_open() -> None:
    talker = Talker(pace=asyncio.Semaphore(1))
    measuring = asyncio.create_task(measure(service_of(talker)))
    await talker.until(lambda each: each.told == 1)
    measuring.cancel()
    with pytest.raises(asyncio.CancelledError):
        await measuring
    assert talker.stats.running == 0
