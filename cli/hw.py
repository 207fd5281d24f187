"""`livery hw`, `livery worker stats`: what this machine has, and how busy it is."""

from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from cli.console import Json, fail, run, show, table, words
from wire.model import first_error

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

    from gpu_worker.config import WorkerSettings
    from gpu_worker.core.hardware import Machine


def worker_settings(as_json: bool, **typed: Any) -> "WorkerSettings":
    """Return this environment's settings of the worker, what was typed before them; a wrong one ends the command."""
    from gpu_worker.config import WorkerSettings

    try:
        return WorkerSettings(**{name: value for name, value in typed.items() if value is not None})
    except ValidationError as error:
        fail(first_error(error), "See docs/environment.md.", "invalid_setting", as_json=as_json)


def probe(settings: "WorkerSettings", as_json: bool) -> "Machine":
    from gpu_worker.wiring.machine import open_hardware

    return run(open_hardware(settings).read(), as_json=as_json)


def hw(as_json: Json = False) -> None:
    """
    Show what this machine has and what jobs would run on: memory, disk, every GPU.

    DEVICE (auto, cuda, mps, cpu) chooses, RAM_MB is told instead of the memory that is free.

    Example: livery hw --json
    """
    from gpu_worker.core.errors import OwnersFault
    from gpu_worker.core.hardware import hw_document
    from gpu_worker.wiring.machine import device

    settings = worker_settings(as_json)
    machine = probe(settings, as_json)
    try:
        chosen = device(settings, machine)
    except OwnersFault as error:
        fail(str(error), code="no_device", as_json=as_json)
    document = hw_document(machine, chosen, ram_mb=settings.ram_mb)
    jobs_run_on = f"{chosen.gpu_type} ({chosen.kind})" if chosen.kind != "cpu" else f"CPU, {machine.cpu_count} cores"
    show(document, lambda: _page(document, jobs_run_on), as_json=as_json)


def stats(as_json: Json = False) -> None:
    """
    Show how busy this machine is now: free and total memory, load, temperatures, every GPU.

    Example: livery worker stats --json
    """
    from gpu_worker.core.hardware import stats_document

    document = stats_document(probe(worker_settings(as_json), as_json))
    show(document, lambda: _page(document, None), as_json=as_json)


def _page(document: dict[str, Any], jobs_run_on: str | None) -> "Group":
    from rich.console import Group

    rows: list[tuple[str, object]] = [
        ("memory", f"{_gib(document['free_ram_mb'])} of {_gib(document['total_ram_mb'])} GiB free"),
        ("processor", f"{document['cpu_count']} cores, {document['cpu_percent']} % busy"),
        ("disk", f"{_gib(document['free_disk_mb'])} GiB free"),
        ("battery", {None: "none", True: "runs on it", False: "plugged in"}[document["on_battery"]]),
    ]
    if jobs_run_on is not None:
        rows.insert(0, ("jobs run on", jobs_run_on))
    if not document["gpus"]:
        rows.append(("GPU", "none that NVIDIA's driver knows of"))
    parts: list[Any] = [facts(rows)]
    if document["gpus"]:
        columns = ("GPU", "name", "free GiB", "of", "busy", "°C", "W", "memory errors", "slowed down by", "slices")
        parts.append(table(columns, [_gpu(gpu) for gpu in document["gpus"]]))
    parts.extend(words(f"! {problem}", "yellow") for problem in document["problems"])
    return Group(*parts)


def facts(rows: list[tuple[str, object]]) -> "Table":
    """Return what is known, a line each: its name and it."""
    made = table(("", ""), rows)
    made.show_header = False
    return made


def _gpu(gpu: dict[str, Any]) -> tuple[object, ...]:
    def told(value: object, unit: str = "") -> str:
        return "-" if value is None else f"{value}{unit}"

    return (
        gpu["index"],
        gpu["name"],
        _gib(gpu["free_vram_mb"]),
        _gib(gpu["total_vram_mb"]),
        told(gpu["utilisation_percent"], " %"),
        told(gpu["temperature_c"]),
        told(gpu["power_w"]),
        told(gpu["ecc_errors"]),
        ", ".join(gpu["throttled_by"]) or "-",
        ", ".join(mig["profile"] for mig in gpu["migs"]) or "-",
    )


def _gib(mib: int) -> str:
    return f"{mib / 1024:.1f}"
