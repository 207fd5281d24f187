"""The models of an Ollama: which variant is used, how a missing one gets there, and what is told of them."""

import asyncio
from typing import Any

import pytest

from gpu_worker.core.errors import OwnersFault
from gpu_worker.core.inference.codes import InferenceError
from gpu_worker.edges.engines.ollama_client import url_of
from gpu_worker.edges.engines.upstream_ollama import OllamaEngine
from gpu_worker.edges.grpc.grpc_door import DoorOptions, GrpcDoor
from gpu_worker.inference.text.engine import Ask
from gpu_worker.inference.text.measuring import measure
from gpu_worker.inference.text.service import Service
from gpu_worker.inference.whole.serving import WholeParts, WholeServing
from outbound.http import HttpClient
from tests.fixtures.ollama import MIB, fake_ollama, model
from tests.fixtures.talker import client_of, served
from tests.gpu_worker.test_ollama import USER, engine_at
from wire.ollama import Version, is_same, is_variant, split_name
from wire.openai import ChatRequest

BIG, SMALL = "llama3.1:8b-instruct-q8_0", "llama3.1:8b-instruct-q4_K_M"
QWEN = "qwen3:4b"
GIB = 1024 * MIB


def asked(name: str) -> Ask:
    return Ask(request=ChatRequest.model_validate({"messages": USER}), model=name, session="s")


async def said(engine: OllamaEngine, name: str) -> str:
    answer = await engine.begin(asked(name))
    try:
        return "".join([piece.text async for piece in answer.pieces()])
    finally:
        await answer.close()


@pytest.mark.row(63)
async def test_two_requests_at_once_are_one_pull_and_both_are_answered() -> None:
    async with fake_ollama(model(SMALL), library={QWEN: model(QWEN)}) as fake, engine_at(fake, SMALL, QWEN) as engine:
        service = Service(model=SMALL, engine=engine, aliases=engine.names)
        async with served(service) as url, client_of(f"{url}/v1") as client:
            service.turns.resize(4)
            ask = client.chat.completions.create
            fake.pulling.clear()
            both = asyncio.gather(*(ask(model=QWEN, messages=USER) for _ in range(2)))
            while service.turns.running < 2 or not fake.of("/api/pull"):
                await client.models.list()
            fake.pulling.set()
            answers = await both
        assert [card.is_loaded for card in engine.cards()] == [True, True]
    assert fake.of("/api/pull") == [{"model": QWEN, "stream": True}]
    assert [each.choices[0].message.content for each in answers] == ["It is a good day today ."] * 2


@pytest.mark.row(63)
async def test_what_is_preloaded_is_pulled_once_and_loaded_before_the_worker_is_online() -> None:
    told: list[tuple[str, int, int]] = []
    async with fake_ollama(model(SMALL), library={QWEN: model(QWEN, size=8 * MIB)}) as fake:
        names = (SMALL, QWEN, "mistral:7b")
        engine = OllamaEngine(fake.base_url, HttpClient(), names, preload=[QWEN], wait_s=0)
        await engine.open(lambda *step: told.append(step))
        cards = {card.name: card for card in engine.cards()}
        await engine.close()
    assert [body["model"] for body in fake.of("/api/pull")] == [QWEN]
    assert list(fake.loaded) == [SMALL, QWEN]
    assert {name: card.is_loaded for name, card in cards.items()} == {SMALL: True, QWEN: True, "mistral:7b": False}
    assert (f"fetching {QWEN}", 4 * MIB, 8 * MIB) in told


@pytest.mark.row(63)
@pytest.mark.parametrize("name", ["llama3.1", "llama3.1:latest", "llama3.1:8b", BIG, "gpt-4o"])
async def test_a_model_is_asked_for_by_its_base_its_variant_and_the_owners_aliases(name: str) -> None:
    async with fake_ollama(model(BIG)) as fake, engine_at(fake, "llama3.1:8b") as engine:
        service = Service(model="llama3.1:8b", engine=engine, aliases={**engine.names, "gpt-4o": "llama3.1:8b"})
        async with served(service) as url, client_of(f"{url}/v1") as client:
            made = await client.chat.completions.create(model=name, messages=USER)
    assert made.choices[0].message.content
    assert fake.made[0]["model"] == BIG
    assert fake.of("/api/pull") == []


@pytest.mark.row(66)
@pytest.mark.parametrize(("memory_gib", "chosen"), [(None, BIG), (100, BIG), (30, SMALL), (15, SMALL), (8, None)])
async def test_an_installed_quantisation_is_used_again_if_it_fits(memory_gib: int | None, chosen: str | None) -> None:
    """
    0.6 quality + 0.4 share left of the memory, by the files' sizes: Q8_0 is worth 0.95 at 20 GiB, Q4_K_M 0.80 at 10.

    Of 80 GiB that may be used: 0.57 + 0.30 against 0.48 + 0.35. Of 24: 0.57 + 0.07 against 0.48 + 0.23.
    """
    memory = None if memory_gib is None else memory_gib * GIB
    others = (model("llama3.1:70b-instruct-q2_K", 5 * GIB, "Q2_K"), model("llama3.1:8b-text-q8_0", GIB, "Q8_0"))
    installed = (model(SMALL, 10 * GIB), model(BIG, 20 * GIB, "Q8_0"), *others)
    library = {"llama3.1:8b": model("llama3.1:8b")}
    async with (
        fake_ollama(*installed, library=library) as fake,
        engine_at(fake, "llama3.1:8b", memory_bytes=lambda: memory) as engine,
    ):
        assert await said(engine, "llama3.1:8b")
        assert bool(fake.installed.get("llama3.1:8b")) is (chosen is None)
    assert fake.made[0]["model"] == (chosen or "llama3.1:8b")


async def test_a_variant_in_use_is_kept_when_memory_gets_less() -> None:
    free = [100 * GIB]
    async with (
        fake_ollama(model(SMALL, 10 * GIB), model(BIG, 20 * GIB, "Q8_0")) as fake,
        engine_at(fake, "llama3.1:8b", memory_bytes=lambda: free[0]) as engine,
    ):
        free[0] = 15 * GIB
        assert await engine.look()
        assert await said(engine, "llama3.1:8b")
    assert fake.made[0]["model"] == BIG


async def test_a_pull_takes_longer_than_a_request_waits_and_goes_on_without_it() -> None:
    async with (
        fake_ollama(model(SMALL), library={QWEN: model(QWEN)}) as fake,
        engine_at(fake, SMALL, QWEN, ready_s=0.1) as engine,
    ):
        fake.pulling.clear()
        with pytest.raises(InferenceError, match="0 of 4 MiB are fetched; ask again") as late:
            await engine.begin(asked(QWEN))
        assert late.value.retryable
        with pytest.raises(InferenceError):
            await engine.begin(asked(QWEN))
        fake.pulling.set()
        while (card := engine.cards()[1]).is_loaded is False:
            await engine.look()
        assert await said(engine, QWEN)
    assert (len(fake.of("/api/pull")), card.context) == (1, 4096)


async def test_nobody_but_the_owner_has_a_model_pulled() -> None:
    async with fake_ollama(model(SMALL), library={QWEN: model(QWEN)}) as fake, engine_at(fake) as engine:
        service = Service(model=SMALL, engine=engine, aliases=engine.names)
        async with served(service) as url, client_of(f"{url}/v1") as client:
            with pytest.raises(Exception, match="does not exist"):
                await client.chat.completions.create(model=QWEN, messages=USER)
        with pytest.raises(InferenceError, match="does not exist"):
            await engine.begin(asked(QWEN))
    assert fake.of("/api/pull") == []


async def test_a_model_that_is_not_in_the_registry_is_told_and_the_next_one_served() -> None:
    async with fake_ollama(model(SMALL)) as fake, engine_at(fake, SMALL, "nosuch:1b") as engine:
        for _ in range(2):
            with pytest.raises(InferenceError, match="cannot be loaded now") as refused:
                await engine.begin(asked("nosuch:1b"))
            assert refused.value.code == "not_ready"
        assert len(fake.of("/api/pull")) == 1, "who asks again does not have it looked for again at once"
        assert await said(engine, SMALL)
        other = OllamaEngine(fake.base_url, HttpClient(), ["nosuch:1b"], wait_s=0)
        with pytest.raises(OwnersFault, match="cannot fetch nosuch:1b"):
            await other.open(lambda *step: None)


async def test_a_model_that_was_taken_away_is_fetched_again() -> None:
    async with fake_ollama(model(QWEN), library={QWEN: model(QWEN)}) as fake, engine_at(fake) as engine:
        fake.installed.clear()
        with pytest.raises(InferenceError) as gone:
            await engine.begin(asked(QWEN))
        assert await said(engine, QWEN)
    assert (gone.value.code, len(fake.of("/api/pull"))) == ("not_ready", 1)


async def test_a_model_of_the_hub_is_fetched_in_the_owners_quantisation() -> None:
    wanted = "hf.co/acme/tiny-GGUF:Q5_K_M"
    async with (
        fake_ollama(library={wanted: model(wanted)}) as fake,
        engine_at(fake, "hf.co/acme/tiny-GGUF", quant="Q5_K_M") as engine,
    ):
        assert await said(engine, "hf.co/acme/tiny-GGUF")
    assert fake.made[0]["model"] == wanted


async def test_what_is_loaded_stays_so_and_what_ollama_unloaded_is_seen() -> None:
    async with fake_ollama(model(SMALL, vram=3 * MIB), model(QWEN)) as fake, engine_at(fake, SMALL, QWEN) as engine:
        assert await engine.look()
        (kept,) = fake.of("/api/generate")
        vram = [card.vram_bytes for card in engine.cards()]
        fake.loaded.clear()
        assert await engine.look()
        assert len(fake.of("/api/generate")) == 1, "what another model needed the memory for is not loaded again"
        loaded = [card.is_loaded for card in engine.cards()]
        assert await said(engine, SMALL)
    assert (kept["model"], kept["keep_alive"], kept["options"]) == (SMALL, "10m", {"num_ctx": 4096})
    assert (vram, loaded) == ([3 * MIB, 0], [False, False])


@pytest.mark.parametrize(
    ("fields", "words"),
    [({"version": "0.11.4"}, "Ollama at .* is 0.11.4: from 0.13 on"), ({"is_closed": True}, "there is no Ollama at")],
)
async def test_an_ollama_that_cannot_be_used_is_named_in_one_sentence(fields: dict[str, Any], words: str) -> None:
    async with fake_ollama(model(SMALL)) as fake:
        fake.version = fields.get("version", "0.0.0")
        url = "127.0.0.1:1" if fields.get("is_closed") else fake.base_url
        engine = OllamaEngine(url, HttpClient(), [SMALL], wait_s=0)
        with pytest.raises(OwnersFault, match=words):
            await engine.open(lambda *step: None)


async def test_an_ollama_that_went_away_is_an_error_of_the_request_alone() -> None:
    async with fake_ollama(model(SMALL)) as fake, engine_at(fake) as engine:
        assert await said(engine, SMALL)
        await fake.close()
        with pytest.raises(InferenceError, match="cannot be reached") as gone:
            await engine.begin(asked(SMALL))
        service = Service(model=SMALL, engine=engine)
        assert service.is_served
        assert not await engine.look()
        assert not service.is_served, "nobody is sent to a worker whose engine is gone"
        assert [card.is_loaded for card in engine.cards()] == [False]
    assert gone.value.code == "upstream_error"


async def test_an_ollama_that_was_started_again_has_loaded_what_is_preloaded() -> None:
    async with fake_ollama(model(SMALL), model(QWEN)) as fake, engine_at(fake, SMALL, QWEN) as engine:
        await fake.close()
        assert not await engine.look()
        fake.loaded.clear()
        port = int(fake.base_url.rpartition(":")[2])
        fake.server = await asyncio.start_server(fake.serve, "127.0.0.1", port)
        assert await engine.look()
        assert list(fake.loaded) == [SMALL]
        assert Service(model=SMALL, engine=engine).is_served


async def test_the_owners_names_are_of_any_name_that_the_model_has(caplog: pytest.LogCaptureFixture) -> None:
    async with fake_ollama(model(BIG)) as fake:
        engine = OllamaEngine(fake.base_url, HttpClient(), ["llama3.1:8b"], wait_s=0)
        service = Service(model="llama3.1:8b", aliases={"gpt-4o": "llama3.1", "gpt-4": "llma"})
        serving = WholeServing(
            WholeParts(service=service, engine=engine, door=GrpcDoor(DoorOptions(), []), endpoint="", measure=measure),
            lambda what, done, total: None,
        )
        await serving.load()
        assert [service.resolve(name) for name in ("gpt-4o", BIG, "llama3.1")] == ["llama3.1:8b"] * 3
        await serving.close()
    assert "gpt-4 stands for llma, which is not served here" in caplog.text
    assert "gpt-4o stands" not in caplog.text


@pytest.mark.parametrize(
    ("name", "wanted", "fits"),
    [
        ("llama3.1:8b-instruct-q4_K_M", "llama3.1:8b", True),
        ("llama3.1:8b-instruct-q4_K_M", "llama3.1:8b-instruct-q4_k_m", True),
        ("llama3.1:8b-instruct-q4_K_M", "llama3.1", True),
        ("llama3.1:70b-instruct-q4_K_M", "llama3.1:8b", False),
        ("llama3.1:8b-text-q4_K_M", "llama3.1:8b", False),
        ("llama3.2:8b", "llama3.1:8b", False),
        ("llama3.1:8b", "llama3.1:8b-instruct-q4_k_m", False),
        ("hf.co/a/x-GGUF:IQ4_XS", "hf.co/a/x-GGUF", True),
        ("localhost:5000/x:q8_0", "localhost:5000/x", True),
    ],
)
def test_a_variant_is_the_same_model_in_another_quantisation(name: str, wanted: str, fits: bool) -> None:
    assert is_variant(name, wanted) is fits


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("http://localhost:11434", "http://localhost:11434"),
        ("https://ollama.test/", "https://ollama.test"),
        ("gpu-box", "http://gpu-box:11434"),
        ("gpu-box:8080", "http://gpu-box:8080"),
        ("[::1]", "http://[::1]:11434"),
        ("", "http://127.0.0.1:11434"),
    ],
)
def test_where_ollama_is_is_read_as_its_own_programs_do(host: str, url: str) -> None:
    assert url_of(host) == url


def test_names_and_versions_are_read_as_ollama_writes_them() -> None:
    assert split_name("localhost:5000/x") == ("localhost:5000/x", "")
    assert is_same("llama3.1", "Llama3.1:latest")
    assert not is_same("llama3.1:8b", "llama3.1")
    told = [Version(version=text).numbers for text in ("0.13.1", "0.14.0-rc1", "0.0.0", "", "x.y")]
    assert told == [(0, 13, 1), (0, 14, 0), None, None, None]
