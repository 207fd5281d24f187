"""Joining what serves whole models, from the worker's settings: a table of engines, and the gRPC door before them."""

from collections.abc import Awaitable, Callable

from gpu_worker.config import WorkerSettings
from gpu_worker.core.errors import OwnersFault
from gpu_worker.core.inference.room import free_bytes
from gpu_worker.core.quantization.slots import slots_most
from gpu_worker.edges.engines.upstream_openai import OpenAiUpstream
from gpu_worker.inference.text.engine import WholeEngine
from gpu_worker.inference.text.measuring import measure
from gpu_worker.inference.text.service import Service
from gpu_worker.inference.whole.serving import WholeParts, WholeServing
from gpu_worker.model_config import EngineName, words
from gpu_worker.model_port import Tell
from gpu_worker.ports import Worker
from gpu_worker.wiring.door import grpc_tls, open_agent, open_grpc
from gpu_worker.wiring.place import Address, must_be_closed
from outbound.http import HttpClient

# A server of its own decides how many it computes; so many are handed to it where the owner says nothing.
UPSTREAM_JOBS = 64


async def open_whole(worker: Worker, service: Service, kind: EngineName, tell: Tell) -> WholeServing:
    """
    Return the worker's whole models, its gRPC door open, nothing loaded yet.

    Raises:
        OwnersFault: the engine cannot be, the port is taken, or the door would stand open to strangers.
    """
    settings = worker.settings
    engine = await ENGINES[kind](worker, service, tell)
    tls, address = grpc_tls(settings), Address(settings)
    must_be_closed(settings, tls, has_passes=service.admission.is_guarded)
    door = await open_grpc(settings, tls, [open_agent(worker, service)])
    address.port = door.port
    parts = WholeParts(service=service, engine=engine, door=door, endpoint=address(), measure=measure)
    return WholeServing(parts, tell)


def served_names(settings: WorkerSettings) -> tuple[str, ...]:
    """Return the models that are served, each once, the default one first."""
    first = (settings.served_model,) if settings.served_model else ()
    return tuple(dict.fromkeys((*first, *words(settings.supported_models), *words(settings.preload_models))))


async def _openai(worker: Worker, service: Service, tell: Tell) -> WholeEngine:
    settings = worker.settings
    if settings.upstream_url is None:
        raise OwnersFault("which server? name it with --upstream-url, such as http://localhost:8000")
    service.turns.resize(settings.max_concurrent_jobs or UPSTREAM_JOBS)
    key = settings.upstream_key.get_secret_value() if settings.upstream_key else None
    return OpenAiUpstream(
        settings.upstream_url,
        key,
        HttpClient(),
        models=served_names(settings),
        silence_s=float(settings.upstream_silence_s),
    )


async def _ollama(worker: Worker, service: Service, tell: Tell) -> WholeEngine:
    from gpu_worker.edges.engines.upstream_ollama import OllamaEngine

    settings, now = worker.settings, worker.now
    assert now.machine is not None
    assert now.device is not None
    machine, device = now.machine, now.device
    # Its models are in this machine's memory as a rule: as many at once as that is given here.
    service.turns.resize(settings.max_concurrent_jobs or slots_most(device.memory_bytes))
    return OllamaEngine(
        settings.ollama_url,
        HttpClient(),
        served_names(settings),
        preload=words(settings.preload_models),
        context=settings.context,
        quant=settings.gguf_quant,
        memory_bytes=lambda: free_bytes(machine, device),
        silence_s=float(settings.upstream_silence_s),
    )


async def _gguf(worker: Worker, service: Service, tell: Tell) -> WholeEngine:
    from gpu_worker.wiring.gguf import open_gguf

    engine, slots = await open_gguf(worker, served_names(worker.settings), tell)
    service.turns.resize(slots)
    return engine


# What makes each engine; nothing is loaded yet when it returns.
ENGINES: dict[EngineName, Callable[[Worker, Service, Tell], Awaitable[WholeEngine]]] = {
    "gguf": _gguf,
    "ollama": _ollama,
    "openai": _openai,
}
