"""How a server is found, what an owner is told when it cannot be used, and how it is looked for while it serves."""

import asyncio
from typing import Any

import pytest

from gpu_worker.core.errors import OwnersFault
from gpu_worker.edges.engines.upstream_openai import OpenAiUpstream
from gpu_worker.inference.text.engine import ModelCard
from outbound.http import HttpClient
from tests.fixtures.openai_upstream import MODEL, FakeUpstream, Reply, models, upstream
from tests.gpu_worker.upstream.asking import answered, ask, opened, refused


def names(engine: OpenAiUpstream) -> list[str]:
    return [card.name for card in engine.cards()]


async def fault(fake: FakeUpstream, **settings: Any) -> str:
    with pytest.raises(OwnersFault) as caught:
        await opened(fake, **{"wait_s": 0.0, **settings})
    assert "hidden" not in str(caught.value)
    return str(caught.value)


async def test_it_serves_what_the_server_lists_and_tells_how_far_it_is(fake: FakeUpstream) -> None:
    fake.listing = models("a", "b", max_model_len=512)
    engine, heard = OpenAiUpstream(fake.url, None, HttpClient()), []
    await engine.open(lambda *what: heard.append(what))
    assert [(card.name, card.context, card.is_loaded) for card in engine.cards()] == [
        ("a", 512, True),
        ("b", 512, True),
    ]
    assert heard == [("asking 127.0.0.1 for its models", 0, 1), ("asking 127.0.0.1 for its models", 1, 1)]


async def test_it_serves_the_models_that_the_owner_names_in_that_order(fake: FakeUpstream) -> None:
    fake.listing = models("a", "b", "c")
    engine = await opened(fake, models=["c", "a"])
    assert names(engine) == ["c", "a"]
    assert (await refused(engine, ask(model="b"))).code == "model_not_found"


async def test_a_model_that_is_called_by_a_path_is_asked_for_by_it_and_shown_without(fake: FakeUpstream) -> None:
    fake.listing = models("/srv/hidden/tiny.gguf")
    engine = await opened(fake)
    assert (names(engine), engine.names) == (["tiny.gguf"], {"/srv/hidden/tiny.gguf": "tiny.gguf"})
    await answered(engine, ask(model="tiny.gguf"))
    assert fake.asked[-1].body["model"] == "/srv/hidden/tiny.gguf"


async def test_what_is_told_of_the_models_comes_before_what_the_server_says(fake: FakeUpstream) -> None:
    engine = await opened(fake, cards=[ModelCard(name="mine", context=64, model_hash="ab", is_loaded=False)])
    assert [(card.name, card.context, card.is_loaded) for card in engine.cards()] == [("mine", 64, True)]
    await answered(engine, ask(model="mine"))
    assert fake.asked[-1].body["model"] == "mine"


async def test_before_it_is_open_its_models_are_not_loaded() -> None:
    engine = OpenAiUpstream("http://127.0.0.1:1", None, HttpClient(), models=["a"])
    assert [(card.name, card.is_loaded) for card in engine.cards()] == [("a", False)]


async def test_a_model_that_the_server_has_not_is_the_owners_to_mend(fake: FakeUpstream) -> None:
    assert await fault(fake, models=[MODEL, "big"]) == "127.0.0.1 has no model big, but small"


@pytest.mark.parametrize(
    ("listing", "why"),
    [
        ({"data": []}, "127.0.0.1 serves no model"),
        ({"models": ["hidden"]}, "127.0.0.1 has no list of models: it does not speak OpenAI's API"),
        (b"<html>hidden</html>", "127.0.0.1 has no list of models: it does not speak OpenAI's API"),
        (b" " * 5_000_000, "nobody answers at 127.0.0.1: the server that computes for this worker sent far more"),
        (404, "127.0.0.1 answers 404 where its list of models should be"),
        (307, "127.0.0.1 answers 307 where its list of models should be"),
        (503, "nobody answers at 127.0.0.1: the server that computes for this worker is not ready"),
    ],
)
async def test_a_server_that_cannot_be_used_is_told_in_a_sentence(fake: FakeUpstream, listing: Any, why: str) -> None:
    async def answer(reply: Reply) -> None:
        if isinstance(listing, bytes):
            await reply.head(kind="text/html")
            await reply.raw(listing)
        else:
            await reply.json({"error": "hidden"}, listing)

    fake.listing = listing if isinstance(listing, dict) else answer
    assert (await fault(fake)).startswith(why)


async def test_a_wrong_key_is_said_at_once(fake: FakeUpstream) -> None:
    fake.key = "right"
    why = await fault(fake, key="wrong", wait_s=60.0)
    assert why == "127.0.0.1 does not admit this worker: set LIVERY_WORKER_UPSTREAM_KEY"


async def test_nobody_there_is_waited_for_and_then_told() -> None:
    async with upstream() as fake:
        pass
    why = "nobody answers at 127.0.0.1: the server that computes for this worker cannot be reached"
    assert await fault(fake, wait_s=0.6) == why


async def test_a_server_that_comes_later_is_found() -> None:
    async with upstream() as fake:
        port = int(fake.url.rpartition(":")[2])
    opening = asyncio.create_task(opened(fake, wait_s=60.0))
    await asyncio.sleep(0)
    async with upstream(port=port):
        assert names(await opening) == [MODEL]


async def test_a_server_that_goes_and_comes_back_is_seen() -> None:
    async with upstream() as fake:
        port = int(fake.url.rpartition(":")[2])
        engine = await opened(fake, watch_s=0.02)
        keeping = asyncio.create_task(engine.keep())
        await fake.until(lambda fake: len(fake.asked) > 2)
        assert engine.cards()[0].is_loaded
    try:
        await until(lambda: not engine.cards()[0].is_loaded)
        assert not engine.load().is_there
        async with upstream(port=port, listing=models(MODEL, max_model_len=77)) as fake:
            await until(lambda: engine.counts.restarts == 1)
            assert [(card.context, card.is_loaded) for card in engine.cards()] == [(77, True)]
            assert engine.load().is_there
            await answered(engine)
    finally:
        keeping.cancel()
    assert not keeping.done()


async def until(is_it: Any) -> None:
    async with asyncio.timeout(20):
        while not is_it():  # noqa: ASYNC110 - what is waited for rings no bell
            await asyncio.sleep(0.01)
