"""The command `livery`: the whole tree, one branch a module."""

from typing import Annotated

import typer

from cli import (
    accounts,
    artifacts,
    audit,
    bench,
    chain,
    db,
    demo,
    demo_train,
    hw,
    keys,
    proto,
    quant,
    run,
    seed,
    serve,
    sim,
    up,
    vendors,
    wallet,
    worker,
    worker_start,
)
from livery import __version__

app = typer.Typer(
    name="livery",
    help="Livery rents GPUs on your behalf, pays per job over x402, and keeps its books straight.",
    epilog='Try: livery demo   ·   livery up   ·   livery run start "Fine-tune tiny-llm" --budget 5 --watch',
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)


@app.callback()
def livery(
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.", is_eager=True)] = False,
) -> None:
    if version:
        typer.echo(f"livery {__version__}")
        raise typer.Exit


run.app.command("artifacts")(artifacts.artifacts)
run.app.command("replay")(accounts.replay)
run.app.command("explain")(accounts.explain)
run.app.command("release")(accounts.release)
app.command("audit")(audit.audit)
app.command("demo")(demo.demo)
app.command("demo-train")(demo_train.demo_train)
app.command("up")(up.up)
app.command("serve")(serve.serve)
app.command("vendor-mock")(serve.vendor_mock)
app.command("facilitator")(serve.facilitator)
# The names that the systems before had for them.
app.command("control-plane", hidden=True)(serve.serve)
app.command("mock-vendor", hidden=True)(serve.vendor_mock)
app.command("hw")(hw.hw)
app.command("stats", hidden=True)(hw.stats)
app.command("llm-worker", hidden=True)(worker_start.llm_worker)
for branch in (run, worker, vendors, wallet, chain, db, seed, proto, quant, keys):
    app.add_typer(branch.app)
# Its own --help is that of the benchmark, where one is named.
_BENCH = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
app.command("bench", context_settings=_BENCH)(bench.bench)
app.command("sim")(sim.sim)


def main() -> None:
    """Run the command line."""
    app()
