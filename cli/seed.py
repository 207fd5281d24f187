"""`livery seed`: fills this environment's store for a developer."""

from agent.ports import Agent
from agent.start import start
from cli.console import Json, branch, run, show
from cli.local import with_agent
from wire.control import StartRequest

app = branch("seed", "Fill a database to try things with.")

GOALS = ("Fine-tune tiny-llm", "Evaluate tiny-llm on the test set", "Generate 1,000 answers")


@app.command("demo")
def demo(as_json: Json = False) -> None:
    """Register the mock's vendors and start three runs (once: doing it again changes nothing)."""
    from decimal import Decimal

    from seeds.vendors import seed_vendors

    async def fill(agent: Agent) -> dict[str, list[str]]:
        added = await seed_vendors(agent.store, agent.policy.asset, "http://localhost:4001")
        runs = [
            await start(agent, StartRequest(goal=goal, budget_total=Decimal(5)), key=f"seed-demo-{number}")
            for number, goal in enumerate(GOALS)
        ]
        return {"vendors": added, "runs": [one.run_id for one in runs]}

    filled = run(with_agent(fill), as_json=as_json)
    show(filled, lambda: f"{len(filled['vendors'])} vendors added; runs: {', '.join(filled['runs'])}", as_json=as_json)


@app.callback()
def seed() -> None:
    """Fill a database to try things with."""
