"""What the owner's settings mean for each of several GGUF models, and what is said of wrong ones."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gpu_worker.config import WorkerSettings
from gpu_worker.core.errors import OwnersFault
from gpu_worker.edges.engines.gguf_setup import GgufSetup
from gpu_worker.ports import Worker
from gpu_worker.wiring.gguf import open_gguf
from gpu_worker.wiring.whole import served_names
from gpu_worker.wiring.worker import open_worker
from tests.fixtures.gguf_bytes import Shape, model_bytes, write
from tests.fixtures.hub import fake_hub
from tests.gpu_worker.world import FixedHardware

Told = Callable[..., Worker]


def untold(what: str, done: int, total: int) -> None:
    pass


@pytest.fixture
def worker(tmp_path: Path) -> Told:
    def made(**settings: Any) -> Worker:
        folder = {"data": tmp_path / "data", "port": 0, "capability_port": 0, "rpc_url": "http://127.0.0.1:9"}
        return open_worker(
            WorkerSettings.model_validate({**folder, "engine": "gguf", "context": 256, **settings}),
            hardware=FixedHardware(),
        )

    return made


async def opened(worker: Worker) -> tuple[GgufSetup, ...]:
    worker.now.machine = await worker.hardware.read()
    worker.now.device = worker.choose(worker.now.machine)
    try:
        engine, _ = await open_gguf(worker, served_names(worker.settings), untold)
    finally:
        await worker.close()
    return engine._setups


def written(folder: Path, name: str, kind: str = "Q8_0") -> Path:
    folder.mkdir(exist_ok=True)
    return write(folder / f"{name}.gguf", model_bytes(Shape(kind=kind)))


async def test_the_hash_and_the_adapters_are_those_of_the_first_model(tmp_path: Path, worker: Told) -> None:
    first, data = written(tmp_path, "first"), model_bytes(Shape(kind="Q8_0", layers=3))
    sha256 = hashlib.sha256(first.read_bytes()).hexdigest()
    adapter = str(tmp_path / "adapter.gguf")
    async with fake_hub(files={"second-Q8_0.gguf": data}) as hub:
        setups = await opened(
            worker(
                model=str(first), supported_models=f"{hub.cdn}/second-Q8_0.gguf", lora=f"{adapter}=0.5",
                gguf_sha256=sha256, hub=True, allow_private_urls=True, disk_reserve_mb=0,
            )
        )  # fmt: skip
    assert [(each.name, each.sha256, each.lora) for each in setups] == [
        ("first", sha256, ((Path(adapter), 0.5),)),
        (setups[1].name, None, ()),
    ]


async def test_one_model_under_two_names_is_served_once(tmp_path: Path, worker: Told) -> None:
    first = written(tmp_path, "first")
    setups = await opened(worker(model=str(first), supported_models=f"{tmp_path}/./first.gguf"))
    assert [each.name for each in setups] == ["first"]


async def test_two_models_of_one_name_are_the_owners_to_tell_apart(tmp_path: Path, worker: Told) -> None:
    first, other = written(tmp_path / "a", "first"), written(tmp_path / "b", "first", "F16")
    with pytest.raises(OwnersFault, match="two models are called first"):
        await opened(worker(model=str(first), supported_models=str(other)))


@pytest.mark.parametrize("lora", ["x=abc", "x=nan", "=1", "x.gguf=1e999"])
def test_a_scale_that_is_no_number_is_refused_with_the_settings(worker: Told, lora: str) -> None:
    with pytest.raises(ValueError, match="write an adapter as path=scale"):
        worker(model="m.gguf", lora=lora)


@pytest.mark.parametrize("name", ["a" * 300, f"{'a' * 300}/b.gguf"])
async def test_a_name_that_no_file_can_have_is_one_sentence(worker: Told, name: str) -> None:
    with pytest.raises(OwnersFault, match="File name too long"):
        await opened(worker(model=name))
