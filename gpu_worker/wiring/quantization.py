"""A model to plan for, found by what an owner calls it; and the memory and its speed that this machine plans with."""

import platform
from pathlib import Path

from gpu_worker.config import WorkerSettings
from gpu_worker.core.errors import OwnersFault
from gpu_worker.core.hardware import Device, Machine
from gpu_worker.core.quantization.catalogue import is_arm, quant_called, quant_in
from gpu_worker.core.quantization.choice import offered
from gpu_worker.core.quantization.estimate import Memory, memory_of
from gpu_worker.core.quantization.speed import Rates
from gpu_worker.core.quantization.weights import Weights, weights_named, weights_of_config
from gpu_worker.edges.engines.gguf_file import models_in, read_model
from gpu_worker.edges.machine.models_folder import read_config
from gpu_worker.wiring.machine import device, limits_of, open_measure
from gpu_worker.wiring.place import looked_for


def weights_for(model: str, settings: WorkerSettings, *, quant: str | None = None) -> tuple[Weights, ...]:
    """
    Return what a model may be served as: its files, or before a download every quantisation of the catalogue.

    `model` is a .gguf file, a folder with some or with a config.json, a name in the models' folder, or a name or a size
    (`llama3.1:8b`, `70B`); `quant` leaves one quantisation.

    Raises:
        OwnersFault: a file is none that can be served, or there is no such quantisation of it.
        BadInput: the model is not known, and its name tells no size.
    """
    wanted = None if quant is None else quant_called(quant)
    if quant is not None and wanted is None:
        raise OwnersFault(f"{quant[:40]} is no quantisation that is known; Q4_K_M is one")
    with looked_for(model):
        for path in (Path(model).expanduser(), settings.models_folder / model):
            if path.is_file():
                return _of((read_model(path).weights,), wanted)
            if path.is_dir() and (files := models_in(path)):
                return _of(tuple(read_model(file).weights for file in files), wanted)
            if (path / "config.json").is_file():
                config = read_config(path / "config.json", path.name)
                return tuple(weights_of_config(config, path.name, each) for each in _names(wanted))
    return tuple(weights_named(model, each) for each in _names(wanted or quant_in(model)))


def _of(found: tuple[Weights, ...], wanted: str | None) -> tuple[Weights, ...]:
    some = tuple(weights for weights in found if wanted in (None, weights.quant))
    if not some:
        there = ", ".join(sorted({weights.quant or weights.name for weights in found}))
        raise OwnersFault(f"there is no {wanted} of it here, but {there}")
    return some


def _names(wanted: str | None) -> tuple[str, ...]:
    return offered(on_arm=is_arm(platform.machine())) if wanted is None else (wanted,)


def memory_for(
    settings: WorkerSettings, machine: Machine, *, vram_bytes: int | None = None, ram_bytes: int | None = None
) -> Memory:
    """Return the memory that is free here, or what is given instead of it; `vram_bytes` 0: as without a GPU."""
    here, limits = device(settings, machine), limits_of(settings)
    found = memory_of(machine, here, vram_max=limits.vram_max_bytes, ram_max=limits.memory_max_bytes)
    if vram_bytes is None and ram_bytes is None:
        return found
    vram = found.vram_bytes if vram_bytes is None else vram_bytes
    ram = found.ram_bytes if ram_bytes is None else ram_bytes
    return Memory(vram_bytes=vram, ram_bytes=ram, total_bytes=vram_bytes or (found.total_bytes if vram else ram))


async def rates_for(settings: WorkerSettings, machine: Machine, *, measure: bool = False) -> Rates:
    """
    Return how fast this machine's memories were measured to be.

    `measure`: what was not measured yet is measured now, which takes half a minute. Raises OwnersFault: it cannot be.
    """
    measuring, here = open_measure(settings, machine), device(settings, machine)
    host = Device(kind="cpu", name="cpu", gpu_type="CPU", memory_bytes=machine.ram_total_bytes)

    async def rate(of: Device) -> int | None:
        speed = await measuring.speed(of) if measure else measuring.kept(of)
        return None if speed is None else speed.memory_bytes_per_s

    return Rates(await rate(here) if here.kind != "cpu" else None, await rate(host))
