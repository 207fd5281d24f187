"""A worker that serves a model and sells jobs at once: neither waits for the other, nor takes its memory."""

import asyncio
import re
from decimal import Decimal
from pathlib import Path

import pytest

from gpu_worker.core.errors import OwnersFault
from gpu_worker.core.hardware import Device, Gpu, Machine
from gpu_worker.core.inference.layers import Layers
from gpu_worker.core.inference.room import CACHE_LEAST, MIB, Room, beside, free_bytes, room_of, weights_bytes
from gpu_worker.preparing import memory_of, ram_bytes
from tests.gpu_worker.world import Place
from tests.vendor_mock.world import code, read

ASKED = {"model": "tiny-words", "prompt": "w5 w9", "max_tokens": 8, "temperature": 0}


async def test_a_job_runs_while_the_model_answers(place: Place, tiny_words: Path) -> None:
    place.script(hold_at=15)
    async with place.lives(model=str(tiny_words), grpc_port=0, threads=1, kv_max_mb=64) as buyer:
        job_id = await buyer.buy("1", steps=20)
        await place.at_step(job_id, 14)
        answers = await asyncio.gather(*(buyer.client.post("/v1/completions", json=ASKED) for _ in range(3)))
        assert {each.status_code for each in answers} == {200}
        status = (await buyer.client.get("/api/v1/status", headers={"host": "127.0.0.1"})).json()
        place.script()
        assert (await place.ended(job_id)).status == "completed"

    assert len({each.json()["choices"][0]["text"] for each in answers}) == 1
    assert (status["slice"]["state"], status["slice"]["requests"]) == ("ready", 3)
    assert [job["jobId"] for job in status["jobs"]] == [job_id]
    assert place.report is not None
    assert place.report.jobs == 1


async def test_what_the_model_has_is_not_sold_and_a_quote_says_what_is_missing(place: Place, tiny_words: Path) -> None:
    async with place.lives(model=str(tiny_words), grpc_port=0, threads=1, ram_mb=2_000, kv_max_mb=1_900) as buyer:
        worker = place.worker
        assert worker is not None
        assert worker.now.device is not None
        room = worker.now.model_room
        assert room is not None
        refused = await buyer.post("/quote", buyer.asked("1", 20))
        left = memory_of(worker, worker.now.device)
        bound = ram_bytes(worker)

    assert left == 2_000 * MIB - room.weights - 1_900 * MIB
    assert bound < 100 * MIB
    assert code(refused) == "model_too_large"
    needed, missing = map(int, re.findall(r"(\d+) (?:bytes|are)", read(refused)["detail"]))
    assert needed - missing == left


def test_a_slice_and_its_caches_have_their_memory_for_themselves() -> None:
    gib = 1024 * MIB
    cpu = Device(kind="cpu", name="cpu", gpu_type="CPU", memory_bytes=16 * gib)
    card = Gpu(index=0, uuid="g", name="A", driver="1", vram_total_bytes=24 * gib, vram_free_bytes=20 * gib)
    cuda = Device(kind="cuda", name="cuda:0", gpu_type="A", memory_bytes=24 * gib, visible="g")
    machine = Machine(
        ram_total_bytes=16 * gib,
        ram_free_bytes=8 * gib,
        cpu_count=2,
        cpu_percent=Decimal(0),
        disk_free_bytes=gib,
        gpus=(card,),
    )
    assert (free_bytes(machine, cpu), free_bytes(machine, cuda)) == (8 * gib, 20 * gib)
    room = room_of(8 * gib, 2 * gib, None)
    assert room == Room(weights=2 * gib, cache=3 * gib, free=8 * gib - CACHE_LEAST)
    near, device = beside(room, machine, cpu)
    assert (near.ram_free_bytes, device.memory_bytes) == (5 * gib, 11 * gib)
    near, device = beside(room, machine, cuda)
    assert (near.ram_free_bytes, device.memory_bytes) == (8 * gib, 19 * gib)
    assert beside(None, machine, cpu) == (machine, cpu)
    # Weights that leave nothing: the engine says what they lack, as it knows them better.
    assert room_of(MIB, gib, None).free == 0
    with pytest.raises(OwnersFault, match=r"caches 7168 MiB, 8192 are free: 1024 MiB are missing"):
        room_of(8 * gib, 2 * gib, 7 * gib)


def test_weights_take_what_they_are_served_as() -> None:
    sizes = {
        "hidden_size": 8,
        "vocab_size": 50,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "model_type": "llama",
    }
    half, config = Layers(0, 2, 4), {"torch_dtype": "bfloat16", **sizes}
    # Two ends of 400 numbers, 3 200 between them, two bytes each.
    taken = {
        (dtype, quant): weights_bytes(8_000, config, half, dtype, quant)
        for dtype, quant in (("auto", "none"), ("fp32", "none"), ("bf16", "none"), ("fp32", "int8"), ("auto", "int4"))
    }
    assert [*taken.values()] == [4_000, 8_000, 4_000, 3_360, 1_920]
    assert weights_bytes(16_000, sizes, half, "fp16", "none") == 4_000
    # The middle has no end; ends that are tied are in the files once, and in a slice that has both twice.
    assert weights_bytes(8_000, config, Layers(1, 2, 4), "auto", "none") == 1_600
    tied = {**config, "tie_word_embeddings": True}
    assert weights_bytes(7_200, tied, Layers(0, 4, 4), "auto", "none") == 8_000
    assert weights_bytes(7_200, tied, Layers(2, 4, 4), "auto", "int4") == int(1_600 * 0.7 + 400 * 1.1)
