"""`livery vendors`: the registry of this environment's store."""

from decimal import Decimal
from typing import TYPE_CHECKING, Annotated, Any

import typer

from agent.ports import Agent
from cli.console import Json, branch, fail, out, run, show, table
from cli.local import with_agent
from wire.money import to_decimal

if TYPE_CHECKING:
    from agent.core.model import Vendor
    from agent.vendors import Reliability

app = branch("vendors", "Who may be paid: list, add, remove, seed, offers.")


@app.command("list")
def list_vendors(as_json: Json = False) -> None:
    """
    List registered vendors in the order they came, and how surely each finishes a job.

    Reliability is the mean of what is known, with the interval that holds 90 % of it; jobs count less as they age.
    """

    async def read(agent: Agent) -> list[dict[str, Any]]:
        from agent.vendors import reliabilities

        return [
            {
                "vendorId": vendor.vendor_id,
                "name": vendor.name,
                "pricePerHour": to_decimal(vendor.base_price_per_hour_atomic, agent.policy.asset),
                "reliability": vendor.reliability_score,
                "gpus": list(vendor.supported_gpu_types),
                "learned": [_reliability_document(agent, vendor, one) for one in found],
                "payTo": vendor.pay_to,
                "endpoint": vendor.endpoint,
            }
            for vendor, found in await reliabilities(agent)
        ]

    found = run(with_agent(read), as_json=as_json)
    columns = ("vendor", "name", "USDC/h", "GPU", "reliability", "jobs", "rests until", "paid at", "endpoint")
    rows = [cells for vendor in found for cells in _rows(vendor)]
    show(
        found,
        lambda: table(columns, rows) if rows else "no vendors yet: `livery vendors seed` or `livery vendors add`",
        as_json=as_json,
    )


def _reliability_document(agent: Agent, vendor: "Vendor", one: "Reliability") -> dict[str, Any]:
    from agent.core.planning import price_of

    rounded = {
        name: Decimal(f"{value:.3f}") for name, value in (("mean", one.mean), ("low", one.low), ("high", one.high))
    }
    return {
        "gpuType": one.gpu_type,
        "pricePerHour": to_decimal(price_of(vendor, one.gpu_type), agent.policy.asset),
        **rounded,
        "jobsCompleted": one.completed,
        "jobsFailed": one.failed,
        "restsUntil": one.rests_until,
    }


def _rows(vendor: dict[str, Any]) -> list[tuple[object, ...]]:
    """Return one row for each GPU type; what is the vendor's own stands on the first."""
    head = (vendor["vendorId"], vendor["name"])
    tail = (vendor["payTo"], vendor["endpoint"])
    rows: list[tuple[object, ...]] = []
    for gpu in vendor["learned"] or [None]:
        middle: tuple[object, ...] = (vendor["pricePerHour"], "", "", "", "")
        if gpu is not None:
            low, high = gpu["low"], gpu["high"]
            done, count = gpu["jobsCompleted"], gpu["jobsCompleted"] + gpu["jobsFailed"]
            rest = gpu["restsUntil"]
            middle = (
                gpu["pricePerHour"],
                gpu["gpuType"],
                f"{gpu['mean']:.2f} ({low:.2f}-{high:.2f})",
                f"{_rounded(done)} of {_rounded(count)}",
                f"{rest:%H:%M:%S} UTC" if rest else "",
            )
        rows.append((*(head if not rows else ("", "")), *middle, *(tail if not rows else ("", ""))))
    return rows


def _rounded(count: Decimal) -> str:
    # Old jobs count for less than one.
    return f"{count:.1f}".removesuffix(".0")


@app.command("offers")
def offers(as_json: Json = False) -> None:
    """Ask every vendor what it offers now. Spends nothing."""
    from agent.vendors import offers as ask

    found = run(with_agent(ask), as_json=as_json)
    document = [
        {
            "vendorId": one.vendor.vendor_id,
            "offers": [offer.document() for offer in one.offers],
            "problem": one.problem,
        }
        for one in found
    ]
    rows: list[tuple[object, ...]] = []
    for one in found:
        for offer in one.offers:
            rows.append(
                (
                    one.vendor.vendor_id,
                    offer.gpu_type,
                    f"{offer.price_per_hour} {offer.currency}",
                    offer.vram_gb,
                    offer.available,
                    "",
                )
            )
        if one.problem:
            rows.append((one.vendor.vendor_id, "", "", "", "", one.problem))
    show(document, lambda: table(("vendor", "GPU", "per hour", "GB", "free", "problem"), rows), as_json=as_json)


@app.command("add")
def add(
    vendor_id: Annotated[str, typer.Argument(metavar="ID", help="How the vendor calls itself (its x-vendor-id).")],
    endpoint: Annotated[str, typer.Argument(metavar="URL", help="Where its API is.")],
    pay_to: Annotated[
        str | None,
        typer.Option("--pay-to", help="The only address to pay it at (default: as its offers say)."),
    ] = None,
    as_json: Json = False,
) -> None:
    """
    Register a vendor, as its own offers describe it. Its bearer secret goes into GPU_VENDOR_SECRET.

    Example: livery vendors add gpu_vendor_1 http://localhost:4001
    """
    from agent.vendors import register

    vendor = run(with_agent(lambda agent: register(agent, vendor_id, endpoint, pay_to)), as_json=as_json)
    show(
        {"vendorId": vendor.vendor_id, "payTo": vendor.pay_to, "gpus": list(vendor.supported_gpu_types)},
        lambda: f"{vendor.vendor_id} {vendor.name}, paid at {vendor.pay_to}",
        as_json=as_json,
    )


@app.command("remove")
def remove(vendor_id: Annotated[str, typer.Argument(metavar="ID")], as_json: Json = False) -> None:
    """Take a vendor off the register. Past jobs and payments stay."""
    from agent.vendors import remove as take_off

    if not run(with_agent(lambda agent: take_off(agent, vendor_id)), as_json=as_json):
        fail(f"there is no vendor {vendor_id}", "See `livery vendors list`.", as_json=as_json)
    show({"removed": vendor_id}, lambda: f"{vendor_id} is off the register", as_json=as_json)


@app.command("seed")
def seed(
    endpoint: Annotated[str, typer.Option(help="Where the mock vendors are.")] = "http://localhost:4001",
    as_json: Json = False,
) -> None:
    """Register the mock's vendors; those that are there already stay as they are."""
    from seeds.vendors import seed_vendors

    added = run(with_agent(lambda agent: seed_vendors(agent.store, agent.policy.asset, endpoint)), as_json=as_json)
    show(
        {"added": added}, lambda: f"{len(added)} added: {', '.join(added) or 'all were there already'}", as_json=as_json
    )
    if added and not as_json:
        out.print("[dim]their secret: export GPU_VENDOR_SECRET=… as the mock has it[/]")
