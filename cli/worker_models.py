"""`livery worker models, forecast`: which models are here, and what one that is not would do."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.console import Json, fail, run, show, table
from cli.hw import probe, worker_settings

if TYPE_CHECKING:
    from gpu_worker.config import WorkerSettings
    from gpu_worker.core.forecast import Forecast

TIMEOUT_S = 10.0
BODY_BYTES_MAX = 1024 * 1024


def models(as_json: Json = False) -> None:
    """
    List the models on this machine, which jobs may name.

    A model is a folder of its name in LIVERY_WORKER_MODELS, with config.json, tokenizer and safetensors. Jobs that
    generate may name those, too, which the worker that runs here serves.
    """
    from gpu_worker.core.errors import WorkerError
    from gpu_worker.wiring.machine import open_models

    settings = worker_settings(as_json)
    place = open_models(settings)

    async def read() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        for name in await place.names():
            try:
                model = await place.find(name)
            except WorkerError as error:
                found.append(_row(name, problem=str(error)))
                continue
            if model is not None:
                found.append(_row(name, model.bytes, model.model_hash))
        return found

    found = run(read(), as_json=as_json) + _served(as_json)
    rows = [(one["name"], one["bytes"], one["modelHash"] or one["problem"] or "") for one in found]
    show(
        found,
        lambda: (
            table(("model", "bytes", "hash"), rows)
            if rows
            else f"no models yet: they go into {settings.models_folder},\n"
            "a folder each with config.json, tokenizer and safetensors"
        ),
        as_json=as_json,
    )


def _row(name: str, size: int | None = None, model_hash: str | None = None, **more: Any) -> dict[str, Any]:
    return {"name": name, "bytes": size, "modelHash": model_hash, "problem": None, "served": False, **more}


def _served(as_json: bool) -> list[dict[str, Any]]:
    """Return the whole models that this machine's worker serves, none where none runs."""
    from cli.worker_owner import NoWorker, asked

    try:
        found = asked("GET", "/api/v1/status", None, as_json).get("model") or {}
    except NoWorker:
        return []
    return [
        _row(card["name"], card["bytes"] or None, card["model_hash"] or None, served=True)
        for card in found.get("models", ())
    ]


def forecast(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A model here, a folder, or owner/name of the hub.")],
    hub: Annotated[
        bool, typer.Option("--hub", help="Fetch its config.json, some kB, from Hugging Face's hub.")
    ] = False,
    as_json: Json = False,
) -> None:
    """
    Say whether a model fits this machine, how fast it would be and what an hour brings, before it is downloaded.

    Example: livery worker forecast Qwen/Qwen2.5-0.5B --hub
    """
    from gpu_worker.core.errors import WorkerError
    from gpu_worker.core.estimate import ModelShape
    from gpu_worker.core.forecast import forecast as forecast_of
    from gpu_worker.core.forecast import number_bytes_of
    from gpu_worker.core.owner import memory_bytes
    from gpu_worker.wiring.machine import asset_of, device, limits_of, open_measure
    from wire.money import to_atomic

    settings = worker_settings(as_json)
    machine = probe(settings, as_json)
    try:
        config = _config_of(model, settings, hub, as_json)
        shape, chosen = ModelShape.from_config(config), device(settings, machine)
        asset, speed = asset_of(settings), open_measure(settings, machine).kept(chosen)
        found = forecast_of(
            shape,
            chosen,
            memory_bytes(machine, chosen, limits_of(settings)),
            speed,
            to_atomic(settings.price_per_hour, asset),
            asset,
            number_bytes=number_bytes_of(config.get("torch_dtype") or config.get("dtype")),
        )
    except WorkerError as error:
        fail(str(error), code=error.code, as_json=as_json)
    show(asdict(found), lambda: _forecast_page(model, found, chosen.gpu_type), as_json=as_json)


def _forecast_page(model: str, found: "Forecast", where: str) -> Any:
    from rich.console import Group

    from cli.console import words

    columns = ("on this " + where, "needs GiB", "missing GiB", "tokens/s")
    rows = [
        (
            {"full": "training, all of it", "lora": "training, adapters", "generate": "generating"}[row.work],
            _gib(row.memory_bytes),
            _gib(row.missing_bytes) if row.missing_bytes else "fits",
            row.tokens_per_s if row.tokens_per_s is not None else "not measured",
        )
        for row in found.rows
    ]
    head = f"{model}: {found.parameters:,} parameters, a download of about {_gib(found.weights_bytes)} GiB"
    hour = (
        f"an hour of work brings {found.per_hour} {found.currency}" if found.per_hour is not None else "it does not fit"
    )
    measured = [] if rows and rows[0][3] != "not measured" else [words("livery bench worker measures the speed", "dim")]
    return Group(words(head), table(columns, rows), words(hour), *measured)


def _gib(count: int) -> str:
    return f"{count / 1024**3:.2f}"


def _config_of(model: str, settings: "WorkerSettings", hub: bool, as_json: bool) -> dict[str, Any]:
    """Return the config.json of a model by name, folder or hub. Raises WorkerError; says where it cannot be had."""
    from gpu_worker.wiring.machine import read_config

    for place in (Path(model), settings.models_folder / model):
        path = place if place.name == "config.json" else place / "config.json"
        if path.is_file():
            return read_config(path, model)
    if not (hub or settings.hub):
        hint = "Name a folder that has its config.json, or fetch that alone with --hub."
        fail(f"{model} is not on this machine", hint, "model_unknown", as_json=as_json)
    return _from_hub(model, settings, as_json)


def _from_hub(model: str, settings: "WorkerSettings", as_json: bool) -> dict[str, Any]:
    from outbound.errors import OutboundError
    from outbound.http import HttpClient

    url = f"https://huggingface.co/{model}/raw/main/config.json"
    token = settings.hf_token
    headers = {} if token is None else {"authorization": f"Bearer {token.get_secret_value()}"}
    fetch = HttpClient().request(
        "GET", url, headers=headers, content=None, timeout_s=TIMEOUT_S, body_bytes_max=BODY_BYTES_MAX
    )
    try:
        reply = run(fetch, as_json=as_json)
        config = json.loads(reply.content) if reply.status == 200 else None
    except (OutboundError, ValueError):
        config = None
    if not isinstance(config, dict):
        hint = "Check its name, and that this machine reaches huggingface.co; some models ask for a token."
        fail(f"{url} cannot be had", hint, "model_unknown", as_json=as_json)
    return config
