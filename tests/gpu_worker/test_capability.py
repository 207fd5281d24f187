"""The door for GPU checks: what it tells at both addresses, to whom, and what of its services was up."""

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from gpu_worker.capability import NO_MODEL
from gpu_worker.core.errors import OwnersFault
from gpu_worker.core.hardware import Machine
from gpu_worker.edges.http.capability_door import CapabilityDoor
from tests.fixtures.capability import STATE, capability, health, own_door, settings, workers_door
from tests.fixtures.nvml_recorded import NoDriver, RecordedNvml, nvidia_smi
from wire.capability import CAPABILITY

FIELDS = {"status", "agent_id", "model_name", "vram_usage_mb", "total_models", "timestamp", "gpu_count"}
ASK = {"agent_id": "demo"}


async def posted(url: str, path: str, body: Any = ASK, **headers: str) -> httpx.Response:
    async with httpx.AsyncClient() as client:
        return await client.post(f"{url}{path}", json=body, headers=headers)


@pytest.mark.row(82)
async def test_a_check_tells_every_gpu_as_the_driver_does(tmp_path: Path) -> None:
    async with own_door(capability(tmp_path), tmp_path) as url:
        reply = await posted(url, "/gpu-check")
    assert reply.status_code == 200
    found = reply.json()
    assert set(found) - {"loaded_models", "gpus"} == FIELDS
    assert (found["status"], found["agent_id"], found["model_name"]) == ("success", "demo", "acme/eight")
    assert (found["vram_usage_mb"], found["total_models"], found["loaded_models"]) == (6_144, 3, 1)
    assert (found["timestamp"], found["gpu_count"]) == (1_790_000_000.123, 3)
    for ours, theirs in zip(found["gpus"], nvidia_smi(), strict=True):
        assert str(ours["vram_total_mb"]) == theirs["memory.total"]
        assert str(ours["vram_free_mb"]) == theirs["memory.free"]
        assert str(ours["temperature_c"]) == theirs["temperature.gpu"]
        assert ours["power_w"] == float(theirs["power.draw"])
        assert abs(ours["vram_total_mb"] - ours["vram_used_mb"] - ours["vram_free_mb"]) <= 1
    assert json.loads(reply.headers["x-metadata"]) == {
        "capability": CAPABILITY,
        "agent_id": "demo",
        "timestamp": found["timestamp"],
        "source": "gguf",
    }


@pytest.mark.row(83)
async def test_the_alias_tells_the_same_and_so_does_the_workers_own_door(tmp_path: Path) -> None:
    made = capability(tmp_path)
    async with own_door(made, tmp_path) as url, workers_door(made) as other:
        replies = [await posted(where, path) for where in (url, other) for path in ("/gpu-check", "/agent-net")]
    bodies = [{**reply.json(), "timestamp": 0} for reply in replies]
    assert all(body == bodies[0] for body in bodies)
    assert len({reply.headers["x-metadata"] for reply in replies}) == 1


@pytest.mark.row(82)
async def test_a_machine_without_a_gpu_has_none_and_a_model_that_runs_without(tmp_path: Path) -> None:
    made = capability(tmp_path, nvml=NoDriver(), cards=lambda: (), source=lambda: "")
    async with own_door(made, tmp_path) as url:
        reply = await posted(url, "/gpu-check", {})
    found = reply.json()
    assert (found["gpu_count"], found["gpus"], found["vram_usage_mb"]) == (0, [], 0)
    assert (found["model_name"], found["total_models"], found["agent_id"]) == (NO_MODEL, 2, "unnamed")
    assert json.loads(reply.headers["x-metadata"])["source"] == "driver"


async def test_an_engine_that_does_not_say_what_it_takes_leaves_it_to_the_driver(tmp_path: Path) -> None:
    made = capability(tmp_path, cards=lambda: ())
    async with own_door(made, tmp_path) as url:
        found = (await posted(url, "/gpu-check")).json()
    used = sum(int(gpu["memory.total"]) - int(gpu["memory.free"]) for gpu in nvidia_smi())
    assert abs(found["vram_usage_mb"] - used) < 3


@pytest.mark.row(84)
async def test_all_models_of_the_machine_are_listed_and_which_are_loaded(tmp_path: Path) -> None:
    made = capability(tmp_path)
    async with own_door(made, tmp_path) as url, workers_door(made) as other, httpx.AsyncClient() as client:
        found = (await client.get(f"{url}/models")).json()
        elsewhere = await client.get(f"{other}/models")
    assert [(model["name"], model["loaded"]) for model in found["models"]] == [
        ("acme/eight", True),
        ("acme/one", False),
        ("idle", False),
    ]
    assert (found["loaded"], found["total_models"], found["loaded_models"]) == (["acme/eight"], 3, 1)
    assert found["models"][0]["quant"] == "Q4_K_M"
    # There the path is OpenAI's.
    assert elsewhere.status_code == 404


@pytest.mark.row(88)
async def test_services_are_up_as_long_as_they_were_seen_up(tmp_path: Path) -> None:
    now, states = [0.0], {"worker": True, "model": False}
    made = capability(tmp_path, monotonic=lambda: now[0], states=lambda: dict(states))
    async with own_door(made, tmp_path) as url, httpx.AsyncClient() as client:
        for second in range(61):
            now[0], states["model"] = float(second), second >= 15
            made.look()
        uptime = (await client.get(f"{url}/service-uptime")).json()
        status = (await client.get(f"{url}/service-status")).json()
        states["model"] = False
        for second in range(61, 101):
            now[0] = float(second)
            made.look()
        later = (await client.get(f"{url}/service-uptime")).json()
    assert uptime == {
        "overall_uptime_percentage": 87.5,
        "services_up": 2,
        "services_down": 0,
        "total_services": 2,
        "eligible_for_payment": True,
        "min_uptime_required": 80,
        "window_seconds": 60,
        "uptime_seconds": 60,
    }
    by_name = {each["name"]: each for each in status["services"]}
    assert (by_name["model"]["uptime_percentage"], by_name["worker"]["uptime_percentage"]) == (75, 100)
    assert (later["overall_uptime_percentage"], later["services_down"]) == (67.5, 1)
    assert later["eligible_for_payment"] is False


async def test_the_record_is_kept_while_the_worker_lives(tmp_path: Path) -> None:
    looks, looked = [0], asyncio.Event()

    def states() -> dict[str, bool]:
        looks[0] += 1
        if looks[0] == 2:
            looked.set()
        return STATE

    made = capability(tmp_path, states=states)
    keeping = asyncio.create_task(made.keep_looking())
    async with asyncio.timeout(10):
        await looked.wait()
    keeping.cancel()
    assert {each.name: each.up for each in made.status().services} == {"worker": True, "model": True}


async def test_with_a_secret_only_who_has_it_is_answered(tmp_path: Path) -> None:
    made = capability(tmp_path, secret="s3cret")
    asked = [("POST", "/gpu-check"), ("POST", "/agent-net"), ("POST", "/gpu-check/challenges"), ("GET", "/models")]
    asked += [("GET", "/service-status"), ("GET", "/service-uptime"), ("POST", "/gpu-check/challenges/abc")]
    async with own_door(made, tmp_path) as url, httpx.AsyncClient(base_url=url) as client:
        for method, path in asked:
            assert (await client.request(method, path, json=ASK)).status_code == 401, path
            wrong = await client.request(method, path, json=ASK, headers={"authorization": "Bearer other"})
            assert (wrong.status_code, wrong.json()["code"]) == (403, "forbidden"), path
        right = await client.post("/gpu-check", json=ASK, headers={"authorization": "Bearer s3cret"})
        # Whether it lives is for everybody.
        lives = await client.get("/health")
    assert right.status_code == 200
    assert (lives.status_code, lives.json()["status"], lives.json()["state"]) == (200, "ok", "online")


async def test_without_a_secret_only_this_machine_is_answered(tmp_path: Path) -> None:
    door = CapabilityDoor(settings(tmp_path), capability(tmp_path), health)
    far = httpx.ASGITransport(door.app, client=("203.0.113.9", 4_000))
    async with httpx.AsyncClient(transport=far, base_url="http://worker") as client:
        refused = await client.post("/gpu-check", json=ASK)
    assert (refused.status_code, refused.json()["code"]) == (401, "unauthorized")
    async with own_door(capability(tmp_path), tmp_path) as url:
        # A page of somebody else, in the owner's browser.
        page = await posted(url, "/gpu-check", origin="https://evil.example")
        renamed = await posted(url, "/gpu-check", host="evil.example")
        through = await posted(url, "/gpu-check", **{"x-forwarded-for": "203.0.113.9"})
    assert (page.status_code, renamed.status_code, through.status_code) == (403, 421, 401)


@pytest.mark.parametrize(
    ("content", "kind", "status"),
    [
        (b"not json", "application/json", 422),
        (b"agent_id=demo", "application/x-www-form-urlencoded", 415),
        (b'{"agent_id": 5}', "application/json", 422),
        (b"[1]", "application/json", 422),
        (b'{"agent_id": "' + b"a" * 300 + b'"}', "application/json", 422),
        (b'{"agent_id": "' + b"a" * 300_000 + b'"}', "application/json", 413),
    ],
    ids=["no-json", "form", "number", "list", "long", "huge"],
)
async def test_a_body_that_is_none_is_refused_with_a_reason(
    tmp_path: Path, content: bytes, kind: str, status: int
) -> None:
    async with own_door(capability(tmp_path), tmp_path) as url, httpx.AsyncClient() as client:
        reply = await client.post(f"{url}/gpu-check", content=content, headers={"content-type": kind})
    assert reply.status_code == status
    assert reply.headers["content-type"] == "application/problem+json"


async def test_nobodys_name_begins_a_header_of_its_own(tmp_path: Path) -> None:
    name = "a\r\nset-cookie: b=c\u2028ü"
    async with own_door(capability(tmp_path), tmp_path) as url:
        reply = await posted(url, "/gpu-check", {"agent_id": name})
    assert reply.status_code == 200
    assert "set-cookie" not in reply.headers
    assert json.loads(reply.headers["x-metadata"])["agent_id"] == reply.json()["agent_id"] == name


async def test_what_goes_wrong_is_told_without_its_words(tmp_path: Path) -> None:
    async def broken() -> Machine:
        raise RuntimeError("the password in /etc/secret is hunter2")

    async def theirs() -> Machine:
        raise OwnersFault("a sentence for the owner")

    for read, detail in ((broken, "RuntimeError"), (theirs, "a sentence for the owner")):
        async with own_door(capability(tmp_path, read=read), tmp_path) as url:
            reply = await posted(url, "/gpu-check")
        assert (reply.status_code, reply.json()["code"], reply.json()["detail"]) == (500, "internal", detail)


async def test_however_many_ask_the_driver_is_asked_once_a_second(tmp_path: Path) -> None:
    now, nvml = [0.0], RecordedNvml()
    reads = 0
    hardware = capability(tmp_path, nvml=nvml).read

    async def counted() -> Machine:
        nonlocal reads
        reads += 1
        return await hardware()

    made = capability(tmp_path, read=counted, monotonic=lambda: now[0])
    async with own_door(made, tmp_path) as url:
        await asyncio.gather(*(posted(url, "/gpu-check") for _ in range(8)))
        assert reads == 1
        now[0] = 1.5
        await posted(url, "/gpu-check")
    assert reads == 2


async def test_a_port_that_was_chosen_and_is_taken_is_said(tmp_path: Path) -> None:
    async with own_door(capability(tmp_path), tmp_path) as url:
        port = int(url.rpartition(":")[2])
        chosen = settings(tmp_path).model_copy(update={"capability_port": port})
        assert chosen.capability_port_is_chosen
        with pytest.raises(OwnersFault, match="cannot be bound"):
            await CapabilityDoor(chosen, capability(tmp_path), health).serve(asyncio.Event())
