"""Joining what serves GGUF models: which files, which quantisation of them, how many at once, what on the GPU."""

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from gpu_worker.config import WorkerSettings, program_environment
from gpu_worker.core.errors import OwnersFault
from gpu_worker.core.hub import source_of
from gpu_worker.core.inference.llama import Package
from gpu_worker.core.inference.room import Room
from gpu_worker.core.quantization.choice import ranked
from gpu_worker.core.quantization.estimate import Memory, Plan
from gpu_worker.core.quantization.slots import Wanted, planned, settle
from gpu_worker.edges.engines.gguf_engine import GgufEngine, package_of
from gpu_worker.edges.engines.gguf_file import GgufModel, models_in, read_model
from gpu_worker.edges.engines.gguf_setup import GgufSetup
from gpu_worker.edges.engines.llama_process import offloads
from gpu_worker.edges.engines.model_download import ModelDownloads
from gpu_worker.model_config import words
from gpu_worker.model_port import Tell
from gpu_worker.ports import Worker
from gpu_worker.wiring.place import gguf_place, shown_name
from gpu_worker.wiring.quantization import memory_for
from outbound.guard import guard
from outbound.http import HttpClient

_LOG = logging.getLogger("livery.gpu_worker")
_MIB = 1024 * 1024
_MEND: Mapping[Package, str] = {
    "xllamacpp": "its project has wheels for CUDA, ROCm and Vulkan in an index of its own",
    "llama-cpp-python": "build it with CMAKE_ARGS=-DGGML_CUDA=on",
}


async def open_gguf(worker: Worker, names: tuple[str, ...], tell: Tell) -> tuple[GgufEngine, int]:
    """
    Return the engine of these models, nothing loaded yet, and how many answers it makes at once.

    Raises:
        OwnersFault: a model is not here, is none, or does not fit; the sentence says what would.
    """
    settings, now = worker.settings, worker.now
    assert now.machine is not None
    assert now.device is not None
    package = package_of(settings.gguf_package)
    memory = memory_for(settings, now.machine)
    if memory.has_gpu and not await offloads(package, program_environment(1)):
        now.notes += (f"this {package} computes on the processor alone: {_MEND[package]}",)
        memory = memory_for(settings, now.machine, vram_bytes=0)
    # That one computes one answer at a time.
    slots = 1 if package == "llama-cpp-python" else settings.max_concurrent_jobs
    at_start = frozenset((names[0], *words(settings.preload_models)))
    setups, plans = [], []
    for name in _distinct(names):
        # Its hash and its adapters are those of the default model alone.
        is_first = name == names[0]
        sha256 = settings.gguf_sha256 if is_first else None
        models = await _models(worker, name, memory, sha256, tell)
        settled, model = chosen(settings, models, memory, slots)
        setup = _setup(worker, name, model, settled, is_preloaded=name in at_start)
        setups.append(replace(setup, sha256=sha256, lora=settings.lora_files if is_first else ()))
        plans.append(settled)
        if name in at_start:
            # What is loaded beside it has what it leaves.
            memory = _less(memory, settled)
        _LOG.info("%s: %s", shown_name(name), said(settled))
    now.model_room = Room(
        weights=sum(each.gpu.weights + each.host.weights for each in plans),
        cache=sum(each.gpu.cache + each.host.cache for each in plans),
        free=memory.vram_bytes or memory.ram_bytes,
    )
    engine = GgufEngine(setups, HttpClient(), package=package)
    return engine, slots or sum(each.slots for each in setups if each.preload)


def chosen(
    settings: WorkerSettings, models: tuple[GgufModel, ...], memory: Memory, slots: int | None
) -> tuple[Plan, GgufModel]:
    """
    Return how the best of a model's files is served: of those of the quantisation that is set, or of all.

    Raises:
        OwnersFault: none of them is of it, or none fits; the sentence is of the one that lacks least.
    """
    wanted = Wanted(
        context=settings.context,
        slots=slots,
        gpu_layers=settings.gpu_layers,
        kv=settings.kv_dtype,
    )
    quant = settings.gguf_quant.upper()
    of_it = {id(each.weights): each for each in models if quant in ("AUTO", each.weights.quant)}
    if not of_it:
        there = ", ".join(sorted({model.weights.quant or "unknown" for model in models}))
        raise OwnersFault(f"there is no {quant} of {models[0].name}: there is {there}")
    best = ranked(planned(each.weights, memory, wanted) for each in of_it.values())[0]
    return settle(best.weights, memory, wanted), of_it[id(best.weights)]


def said(settled: Plan) -> str:
    """Return a plan in one sentence."""
    where = f", {settled.gpu_layers} of {settled.layers_all} layers on the GPU" if settled.has_gpu else ""
    serving = settled.serving
    return (
        f"{settled.weights.quant or 'its weights'}, {serving.slots} at once with {serving.context:,} tokens each, "
        f"{settled.bytes // _MIB:,} MiB{where}"
    )


def _distinct(names: tuple[str, ...]) -> tuple[str, ...]:
    """Return the models, each once. Raises OwnersFault: two of them would be called the same."""
    found: dict[str, str] = {}
    for name in names:
        other = found.setdefault(shown_name(name), name)
        if Path(other).resolve() != Path(name).resolve():
            raise OwnersFault(f"two models are called {shown_name(name)}: give the file of one of them another name")
    return tuple(found.values())


async def _models(worker: Worker, name: str, memory: Memory, sha256: str | None, tell: Tell) -> tuple[GgufModel, ...]:
    """Return the files that are one model, all read; one that is not here is fetched where its owner lets it."""
    settings = worker.settings
    place = gguf_place(settings, name)
    if place is None and source_of(name) is not None:
        if not settings.hub:
            raise OwnersFault(f"{name} is not here, and is fetched only where LIVERY_WORKER_HUB is true")
        place = await _fetched(settings, name, memory, sha256, tell)
    if place is None:
        raise OwnersFault(f"there is no GGUF model {name}: it is no file, and not in {settings.models_folder}")
    paths = models_in(place) if place.is_dir() else (place,)
    if not paths:
        raise OwnersFault(f"there is no whole GGUF model in {name}")
    return tuple([await asyncio.to_thread(read_model, path) for path in paths])


async def _fetched(settings: WorkerSettings, name: str, memory: Memory, sha256: str | None, tell: Tell) -> Path:
    token = settings.hf_token.get_secret_value() if settings.hf_token else None
    http = HttpClient(guard=guard(allow_private=settings.allow_private_urls))
    reserve = settings.disk_reserve_mb * _MIB
    downloads = ModelDownloads(http, settings.models_folder, token=token, reserve_bytes=reserve)
    room, beside = (memory.vram_bytes, memory.ram_bytes) if memory.has_gpu else (memory.ram_bytes, 0)
    return await downloads.fetch(
        name, tell, quant=settings.gguf_quant, sha256=sha256, memory_bytes=room, beside_bytes=beside
    )


def _setup(worker: Worker, name: str, model: GgufModel, settled: Plan, *, is_preloaded: bool) -> GgufSetup:
    settings, now = worker.settings, worker.now
    assert now.machine is not None
    assert now.device is not None
    return GgufSetup(
        name=shown_name(name),
        path=model.path,
        context=settled.serving.context,
        slots=settled.serving.slots,
        threads=settings.threads_of(now.machine.cpu_count),
        gpu_layers=settled.gpu_layers,
        kv_dtype=settled.serving.kv,
        memory_bytes=settled.host.bytes,
        visible=now.device.visible,
        preload=is_preloaded,
        vram_bytes=settled.gpu.bytes,
    )


def _less(memory: Memory, settled: Plan) -> Memory:
    return replace(
        memory,
        vram_bytes=max(1, memory.vram_bytes - settled.gpu.bytes) if memory.has_gpu else 0,
        ram_bytes=max(0, memory.ram_bytes - settled.host.bytes),
    )
