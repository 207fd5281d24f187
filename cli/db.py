"""`livery db`: the schema of this environment's store."""

import typer

from cli.console import Json, branch, run, show
from cli.local import with_agent

app = branch("db", "The store's schema: migrate, check.")


@app.command("migrate")
def migrate(as_json: Json = False) -> None:
    """Bring the store to this program's version. Doing it again changes nothing."""
    version = run(with_agent(lambda agent: agent.store.migrate()), as_json=as_json)
    show({"version": version}, lambda: f"the store is at version {version}", as_json=as_json)


@app.command("check")
def check(as_json: Json = False) -> None:
    """Say which tables and indexes are missing. Exit code 1 if any is."""
    missing = run(with_agent(lambda agent: agent.store.check()), as_json=as_json)
    show({"missing": missing}, lambda: "\n".join(missing) or "every table and index is there", as_json=as_json)
    if missing:
        raise typer.Exit(1)
