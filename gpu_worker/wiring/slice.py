"""Joining what serves layers of a model, from the worker's settings. torch is imported when a slice is loaded."""

import asyncio
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from gpu_worker.config import WorkerSettings, listed, see_only
from gpu_worker.core.errors import OwnersFault, WorkerError
from gpu_worker.core.estimate import ModelShape
from gpu_worker.core.hardware import Device
from gpu_worker.core.inference.integrity import check_hash
from gpu_worker.core.inference.layers import Layers
from gpu_worker.core.inference.room import Room, free_bytes, room_of, weights_bytes
from gpu_worker.core.inference.topology import endpoint_of
from gpu_worker.core.model import LocalModel
from gpu_worker.edges.engines.engine_thread import SyncEngine, start_engine
from gpu_worker.edges.grpc.grpc_forward import ForwardRpcs, GrpcOnward
from gpu_worker.edges.grpc.grpc_pipeline import PipelineOptions, PipelineRpcs
from gpu_worker.edges.grpc.links_grpc import GrpcLinks
from gpu_worker.edges.grpc.topology_file import ChainTopology, FileTopology
from gpu_worker.inference.head.desk import HeadLimits
from gpu_worker.inference.head.head import Head
from gpu_worker.inference.ports import Engine, Registry, Text
from gpu_worker.inference.slice.parts import Loader, SliceParts
from gpu_worker.inference.slice.serving import Serving
from gpu_worker.inference.stage.forward import ForwardService
from gpu_worker.inference.stage.pipelines import StageLimits
from gpu_worker.inference.stage.service import StageService
from gpu_worker.inference.stage.sessions import Passes
from gpu_worker.inference.text.service import Service
from gpu_worker.model_port import Tell
from gpu_worker.ports import Worker
from gpu_worker.wiring.door import grpc_tls, open_agent, open_grpc
from gpu_worker.wiring.place import (
    Address,
    Assignment,
    check_model,
    found_model,
    head_url,
    must_be_closed,
    open_passes,
    served,
)

if TYPE_CHECKING:
    from gpu_worker.engine.slice.slice_engine import EngineOptions

_LOG = logging.getLogger("livery.gpu_worker")
_MIB = 1024 * 1024
WIRE = {"same": "same", "bf16": "bfloat16", "int8": "int8"}


async def open_slice(worker: Worker, service: Service, tell: Tell) -> Serving:
    """
    Return the worker's slice, its gRPC door open, nothing loaded yet.

    Raises:
        OwnersFault: the model is another than was asked for, the topology does not know this worker, the port is taken,
            or the door would stand open to strangers.
    """
    settings = worker.settings
    name = served(settings)
    file = None if settings.topology is None else FileTopology(settings.topology)
    model = await asyncio.to_thread(found_model, settings, name)
    check_hash(model, settings.model_hash)
    check_model(file, model)
    shape = ModelShape.from_config(model.config.get("text_config") or model.config)
    tls = grpc_tls(settings)
    address = Address(settings)
    passes = open_passes(file, model, address)
    must_be_closed(settings, tls, has_passes=passes is not None)
    links = GrpcLinks(tls, insecure=settings.grpc_insecure, width=shape.width)
    nexts = tuple(endpoint_of(each) for each in listed(settings.next or ""))
    registry: Registry = file or ChainTopology(lambda: serving.own_hop(), nexts, links)
    parts = SliceParts(
        model=model.name,
        model_hash=model.model_hash,
        hidden_size=shape.width,
        endpoint=address,
        next=",".join(nexts),
        http_url=worker.door.url,
        registry=registry,
        links=links,
        load=loader(worker, model),
        head=lambda engine: Head(
            engine=engine, links=links, registry=registry, endpoint=address(), limits=head_limits(settings)
        ),
        stage=lambda engine: StageService(
            engine=engine,
            links=links,
            registry=registry,
            endpoint=address(),
            passes=passes,
            limits=stage_limits(settings),
        ),
        forward=lambda engine, text: ForwardService(
            engine=engine,
            registry=registry,
            onward=GrpcOnward(tls, insecure=settings.grpc_insecure, width=shape.width),
            text=text,
        ),
        layers=Assignment(settings=settings, topology=file, total=shape.layers, endpoint=address),
        head_url=lambda: head_url(file),
        service=service,
        drain_s=float(settings.drain_s),
    )
    serving = Serving(parts, tell)
    door = await open_grpc(settings, tls, [_pipeline(serving, passes), open_agent(worker, service)])
    address.port = door.port
    serving.door = door
    _LOG.info("stages reach it", extra={"endpoint": address()})
    return serving


def stage_limits(settings: WorkerSettings) -> StageLimits:
    return StageLimits(
        sessions=settings.sessions_max,
        ring_bytes=settings.ring_max_mb * _MIB,
        idle_s=float(settings.session_idle_s),
    )


def head_limits(settings: WorkerSettings) -> HeadLimits:
    return HeadLimits(
        sessions=settings.sessions_max,
        chunk_rows=settings.chunk_rows,
        ring_bytes=settings.ring_max_mb * _MIB,
    )


def _pipeline(serving: Serving, passes: Passes | None) -> PipelineRpcs:
    service = serving.parts.service
    forward = ForwardRpcs(
        lambda: serving.loaded_info, lambda: serving.hop, serving, passes, serving.speaker, service.admission
    )
    return PipelineRpcs(serving.seen, serving, forward, PipelineOptions(address=service.address))


def loader(worker: Worker, model: LocalModel) -> Loader:
    """Return what loads slices of `model` on the worker's device, torch and all."""
    settings, now = worker.settings, worker.now

    async def load(layers: Layers, tell: Tell) -> tuple[Engine, Text | None]:
        assert now.device is not None
        # Read anew: what another slice had here is free again.
        now.machine = await worker.hardware.read()
        weights = weights_bytes(model.bytes, model.config, layers, settings.dtype, settings.quant)
        cache_max = settings.kv_max_mb and settings.kv_max_mb * _MIB
        room = now.model_room = room_of(free_bytes(now.machine, now.device), weights, cache_max)
        folder, options = Path(model.folder), engine_options(settings, now.device, model, room)
        is_wanted = True

        def progress(done: int, total: int) -> None:
            if not is_wanted:
                raise OwnersFault("the loading was given up")
            tell(f"loading layers {layers} of {model.name}", done, total)

        def opened() -> SyncEngine:
            from gpu_worker.engine.slice.slice_engine import open_engine

            return open_engine(folder, layers, options, progress)

        if now.device.visible is not None:
            see_only(now.device.visible)
        try:
            engine = await start_engine(opened)
        finally:
            is_wanted = False
        try:
            return engine, await asyncio.to_thread(_text, folder, layers)
        except BaseException:
            engine.stop()
            raise

    return load


def _text(folder: Path, layers: Layers) -> Text | None:
    """Return the tokenizer: the first stage needs it, the last one can do without. Raises OwnersFault."""
    from gpu_worker.engine.slice.text import open_text

    if not layers.is_first and not layers.is_last:
        return None
    try:
        return open_text(folder)
    except WorkerError:
        if layers.is_first:
            raise
        return None


def engine_options(settings: WorkerSettings, device: Device, model: LocalModel, room: Room) -> "EngineOptions":
    from gpu_worker.engine.slice.slice_engine import EngineOptions

    return EngineOptions(
        cache_bytes_max=room.cache,
        free_bytes=room.free,
        sessions_max=settings.sessions_max,
        idle_s=float(settings.session_idle_s),
        device=device.kind,
        dtype=settings.dtype,
        quant=settings.quant,
        back_end=settings.back_end,
        wire_dtype=WIRE[settings.wire_dtype],
        model=model.name,
        model_hash=model.model_hash,
        threads=settings.threads,
    )
