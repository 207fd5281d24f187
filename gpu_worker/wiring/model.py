"""Which model a worker serves, and by which engine. gRPC and its kind are loaded for this alone."""

import re
from pathlib import Path

from cashier.wiring import Cashier
from gpu_worker.config import WorkerSettings, listed
from gpu_worker.inference.text.service import Service
from gpu_worker.inference.text.turns import Turns
from gpu_worker.model_config import EngineName, alias_table
from gpu_worker.model_port import Serving, Tell
from gpu_worker.ports import Worker
from gpu_worker.wiring.admission import open_admission
from gpu_worker.wiring.paying import open_billing, open_keys
from gpu_worker.wiring.place import found_folder, gguf_place, served, shown_name

_TAGGED = re.compile(r"[\w./-]+:[\w.-]+")


def engine_of(settings: WorkerSettings) -> EngineName:
    """Return what computes: what the owner named, else what the model is."""
    if settings.engine != "auto":
        return settings.engine
    if settings.upstream_url is not None:
        return "openai"
    if settings.asks_for_layers_alone:
        return "slice"
    name = served(settings)
    if found_folder(settings, name) is not None:
        return "slice"
    if gguf_place(settings, name) or settings.gguf_sha256 is not None or ".gguf" in name.lower() or "-GGUF" in name:
        return "gguf"
    # `name:tag` is how Ollama calls its models, and a list of models in use is what its workers are told.
    return "ollama" if _TAGGED.fullmatch(name) or settings.supported_models else "slice"


def open_service(settings: WorkerSettings, address: str, cashier: Cashier) -> Service:
    """Return what the doors of the model stand before. Raises OwnersFault: it is not said which model."""
    kind = engine_of(settings)
    name = (settings.served_model or "") if kind == "openai" else served(settings)
    service = Service(
        model=Path(name).name if kind == "slice" else shown_name(name),
        aliases=alias_table(settings.aliases),
        admission=open_admission(settings, open_keys(cashier)),
        billing=open_billing(settings, cashier),
        origins=listed(settings.cors_origins or ""),
        address=address,
        context_overflow=settings.context_overflow,
    )
    if kind != "slice":
        service.turns = Turns(settings.max_concurrent_jobs or 1, settings.queue_max, float(settings.queue_wait_s))
    elif settings.max_concurrent_jobs is not None:
        service.turns = Turns(settings.max_concurrent_jobs, settings.queue_max, float(settings.queue_wait_s))
    return service


async def open_model(worker: Worker, service: Service, tell: Tell) -> Serving:
    """Return the model that is served, its doors open, nothing loaded yet. Raises OwnersFault."""
    kind = engine_of(worker.settings)
    if kind == "slice":
        from gpu_worker.wiring.slice import open_slice

        return await open_slice(worker, service, tell)
    from gpu_worker.wiring.whole import open_whole

    return await open_whole(worker, service, kind, tell)
