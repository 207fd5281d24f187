"""`livery quant plan`: which quantisation of a model fits a machine, and where each part of it goes."""

import asyncio
import re
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from cli.console import Json, branch, fail, show, table, words
from cli.hw import facts, probe, worker_settings

if TYPE_CHECKING:
    from rich.console import Group

    from gpu_worker.core.quantization.estimate import Memory, Part, Plan
    from gpu_worker.core.quantization.speed import Rates

app = branch("quant", "Which quantisation of a model fits a machine.")

_SIZE = re.compile(r"(\d{1,9}(?:\.\d{1,3})?)\s*(|[kmgt]i?b?)", re.IGNORECASE)
KvType = Literal["f16", "q8_0", "q4_0"]
_UNITS = {"": 1024**2, "k": 1024, "m": 1024**2, "g": 1024**3, "t": 1024**4}
_MIB = 1024**2


def size(text: str) -> int:
    """Return the bytes of `8GiB`, `8g`, `8192` (MiB); GB is read as GiB, as cards are called. Raises BadParameter."""
    found = _SIZE.fullmatch(text.strip())
    if found is None:
        raise typer.BadParameter(f"write a size as 8GiB or 8192MiB, not {text!r}")
    return int(Decimal(found.group(1)) * _UNITS[found.group(2)[:1].lower()])


Model = Annotated[str, typer.Argument(help="A .gguf file, a folder, a name in the models' folder, or a size.")]
Vram = Annotated[int | None, typer.Option(parser=size, metavar="SIZE", help="GPU memory; 0: none. Unset: the free.")]
Ram = Annotated[int | None, typer.Option(parser=size, metavar="SIZE", help="Memory. Unset: the free.")]
Ctx = Annotated[int | None, typer.Option(min=256, max=2**27, help="Tokens of an answer with its prompt. Unset: 8192.")]
Slots = Annotated[int | None, typer.Option(min=1, max=256, help="Answers at once. Unset: what fits.")]
Kv = Annotated[KvType, typer.Option(help="What the cache is kept in.")]
Quant = Annotated[str | None, typer.Option(help="This quantisation alone, as Q4_K_M.")]
Measure = Annotated[bool, typer.Option("--measure", help="Measure this machine first, where it was not yet.")]


@app.command("plan")
def plan(
    model: Model,
    vram: Vram = None,
    ram: Ram = None,
    ctx: Ctx = None,
    slots: Slots = None,
    kv: Kv = "f16",
    quant: Quant = None,
    measure: Measure = False,
    as_json: Json = False,
) -> None:
    """
    Show which quantisation of a model is best here, whether it fits, where each part goes and how fast it would be.

    Ends with 1 where nothing fits.

    Example: livery quant plan llama3.1:8b --vram 8GiB --ctx 8192 --slots 4
    """
    from gpu_worker.core.errors import WorkerError
    from gpu_worker.core.quantization.choice import ranked
    from gpu_worker.core.quantization.slots import Wanted, planned, refusal
    from gpu_worker.wiring.quantization import memory_for, rates_for, weights_for

    settings = worker_settings(as_json)
    machine = probe(settings, as_json)
    wanted = Wanted(context=ctx, slots=slots, kv=kv)
    try:
        memory = memory_for(settings, machine, vram_bytes=vram, ram_bytes=ram)
        rates = asyncio.run(rates_for(settings, machine, measure=measure))
        plans = ranked([planned(each, memory, wanted) for each in weights_for(model, settings, quant=quant)])
    except WorkerError as error:
        fail(str(error), code="no_plan", as_json=as_json)
    best = plans[0]
    why = None if best.fits else refusal(best, memory, wanted)
    document = _document(model, memory, plans, rates)
    show({**document, "refusal": why}, lambda: _page(document, why), as_json=as_json)
    if why is not None:
        raise typer.Exit(1)


def _document(model: str, memory: "Memory", plans: "tuple[Plan, ...]", rates: "Rates") -> dict[str, Any]:
    """Return what `--json` prints: the best plan first. Megabytes are MiB, rounded up."""
    from gpu_worker.core.quantization.catalogue import tier_of

    free = memory.vram_bytes if memory.has_gpu else memory.ram_bytes
    return {
        "model": model,
        "device": "gpu" if memory.has_gpu else "cpu",
        "free_vram_mb": memory.vram_bytes // _MIB,
        "free_ram_mb": memory.ram_bytes // _MIB,
        "tier": tier_of(free // _MIB).name,
        "best": plans[0].weights.quant or plans[0].weights.name if plans[0].fits else None,
        "plans": [_plan(each, rates) for each in plans],
    }


def _plan(each: "Plan", rates: "Rates") -> dict[str, Any]:
    from gpu_worker.core.quantization.catalogue import BITS, quality_of, tiers_of
    from gpu_worker.core.quantization.speed import tokens_per_s

    quant = each.weights.quant
    return {
        "name": each.weights.name,
        "quant": quant,
        "bits": BITS.get(quant),
        "quality": quality_of(quant) if quant in BITS else None,
        "tiers": [tier.name for tier in tiers_of(quant)],
        "is_exact": each.weights.is_exact,
        "file_mb": -(-each.weights.bytes // _MIB),
        "context": each.serving.context,
        "slots": each.serving.slots,
        "kv": each.serving.kv,
        "fits": each.fits,
        "is_whole": each.is_whole,
        "gpu_layers": each.gpu_layers,
        "layers": each.layers_all,
        "gpu": _part(each.gpu),
        "host": _part(each.host),
        "missing_mb": -(-each.missing_bytes // _MIB),
        "tokens_per_s": tokens_per_s(each, rates),
    }


def _part(part: "Part") -> dict[str, int]:
    names = ("weights", "cache", "compute", "reserve")
    sizes = {f"{name}_mb": -(-getattr(part, name) // _MIB) for name in names}
    return {**sizes, "free_mb": part.free_bytes // _MIB, "missing_mb": -(-part.missing_bytes // _MIB)}


def _page(document: dict[str, Any], why: str | None) -> "Group":
    from rich.console import Group

    plans = document["plans"]
    best = plans[0]
    where = f"{best['gpu_layers']} of {best['layers']} on the GPU" if document["device"] == "gpu" else "in memory"
    rows: list[tuple[str, object]] = [
        ("best", f"{best['quant'] or best['name']}{'' if best['fits'] else ', which does not fit'}"),
        ("answers at once", f"{best['slots']}, {best['context']} tokens each, cache in {best['kv']}"),
        ("layers", where),
        ("tokens a second", _speed(best["tokens_per_s"])),
        ("memory's tier", document["tier"]),
        ("sizes", "from the file's header" if best["is_exact"] else "about, before a download"),
    ]
    parts: list[Any] = [facts(rows)]
    sides = [("GPU", best["gpu"]), ("memory", best["host"])][document["device"] != "gpu" :]
    columns = ("MiB", "weights", "cache", "compute", "reserve", "free", "missing")
    parts.append(table(columns, [(name, *_sizes(side)) for name, side in sides]))
    if len(plans) > 1:
        names = ("quantisation", "bits", "quality", "file MiB", "fits", "layers on the GPU", "answers", "tokens/s")
        parts.append(table(names, [_row(each, document["device"] == "gpu") for each in plans]))
    if why is not None:
        parts.append(words(f"! {why}", "yellow"))
    return Group(*parts)


def _sizes(side: dict[str, int]) -> tuple[object, ...]:
    return tuple(side[f"{name}_mb"] for name in ("weights", "cache", "compute", "reserve", "free", "missing"))


def _row(each: dict[str, Any], has_gpu: bool) -> tuple[object, ...]:
    fits = "no" if not each["fits"] else "yes" if each["is_whole"] else "in part"
    return (
        each["quant"] or each["name"],
        each["bits"] or "-",
        each["quality"] or "-",
        each["file_mb"],
        fits if each["fits"] else f"{each['missing_mb']} missing",
        f"{each['gpu_layers']}/{each['layers']}" if has_gpu else "-",
        f"{each['slots']} x {each['context']}",
        "-" if each["tokens_per_s"] is None else each["tokens_per_s"],
    )


def _speed(found: Decimal | None) -> str:
    return f"up to {found}" if found is not None else "not measured: add --measure, on the machine that is to serve"
