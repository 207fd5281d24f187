"""A run as a live picture: the decision, the jobs with their progress, the payments, the budget, the newest lines."""

from decimal import Decimal

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from cli.console import words
from wire.control import JobDocument, ObservationDocument, PaymentDocument, RunDocument, StatusReply

STATE_STYLES = {
    "completed": "green",
    "running": "cyan",
    "submitted": "cyan",
    "quoted": "yellow",
    "pending": "yellow",
    "unknown": "yellow",
    "refunded": "magenta",
    "failed": "red",
    "cancelled": "dim",
}
LINES_MAX = 8


def picture(status: StatusReply, *, payments: bool = True, lines_max: int = LINES_MAX) -> Group:
    """Return the whole of a run for a terminal, with its newest lines."""
    parts: list[RenderableType] = [_head(status)]
    if status.jobs:
        parts.append(_jobs(status.run, status.jobs))
    if any(job.artifacts for job in status.jobs):
        parts.append(_artifacts(status.jobs))
    if status.payments and payments:
        parts.append(_payments(status.payments))
    if lines_max:
        parts.append(_lines(status.observations[:lines_max]))
    return Group(*parts)


def state(name: str) -> Text:
    return Text(name, style=STATE_STYLES.get(name, ""))


def short(identifier: str | None, width: int = 18) -> str:
    """Return the two ends of a long id."""
    if identifier is None or len(identifier) <= width:
        return identifier or ""
    half = (width - 1) // 2
    return f"{identifier[:half]}…{identifier[-half:]}"


def _head(status: StatusReply) -> Panel:
    run = status.run
    left = Table.grid(padding=(0, 2))
    left.add_row(Text("goal", style="dim"), words(run.goal))
    left.add_row(Text("state", style="dim"), Text.assemble(state(run.status), f" · {run.phase}", _reason(run)))
    decision = next((line.content for line in status.observations if line.type == "agent_reasoning"), None)
    if decision is not None:
        left.add_row(Text("decision", style="dim"), words(decision))
    bar = _bar(run.budget_spent + run.budget_reserved, run.budget_total, 24, "yellow")
    amounts = (
        f"{run.budget_remaining} {run.currency} left of {run.budget_total}"
        f" · {run.budget_spent} spent · {run.budget_reserved} reserved"
    )
    money = Table.grid(padding=(0, 2))
    money.add_row(bar, amounts)
    left.add_row(Text("budget", style="dim"), money)
    return Panel(left, title=run.id, title_align="left", border_style=STATE_STYLES.get(run.status, ""))


def _bar(done: Decimal, total: Decimal, width: int, style: str) -> ProgressBar:
    return ProgressBar(
        total=float(total), completed=float(done), width=width, complete_style=style, finished_style=style
    )


def _reason(run: RunDocument) -> str:
    return f" · {run.reason}" if run.reason else ""


def _jobs(run: RunDocument, jobs: tuple[JobDocument, ...]) -> Table:
    made = Table(
        "vendor", "state", "progress", "", "price", "cost", "why", box=None, header_style="bold", pad_edge=False
    )
    for job in reversed(jobs):
        made.add_row(
            words(job.vendor_id),
            state(job.status),
            _bar(job.progress, Decimal(1), 20, STATE_STYLES.get(job.status, "cyan")),
            f"{job.progress * 100:.0f} %",
            f"{job.expected_cost} {run.currency}" if job.expected_cost else "",
            "" if job.actual_cost is None else f"{job.actual_cost} {run.currency}",
            words(job.error_message or _metrics(job.final_metrics or _losses(job))),
        )
    return made


def _artifacts(jobs: tuple[JobDocument, ...]) -> Table:
    made = Table("kept file", "of", "bytes", "sha256", box=None, header_style="bold", pad_edge=False)
    for job in reversed(jobs):
        for artifact in job.artifacts:
            row = (words(artifact.name), words(job.vendor_id), f"{artifact.bytes}", short(artifact.sha256))
            made.add_row(*row)
    return made


def _losses(job: JobDocument) -> dict[str, Decimal]:
    """Return what was measured last of a job that goes on, of all there is only how well it learns."""
    return {name: value for name, value in (job.latest_metrics or {}).items() if name in ("loss", "eval_loss")}


def _metrics(metrics: dict[str, Decimal]) -> str:
    return ", ".join(f"{name} {float(value):.6g}" for name, value in metrics.items())


def _payments(payments: tuple[PaymentDocument, ...]) -> Table:
    made = Table("paid to", "amount", "state", "transaction", "refund", box=None, header_style="bold", pad_edge=False)
    for payment in reversed(payments):
        refund = (
            f"{payment.refunded} {payment.currency} in {short(payment.refund_tx_id)}" if payment.refund_tx_id else ""
        )
        made.add_row(
            words(payment.vendor_id),
            f"{payment.amount} {payment.currency}",
            state(payment.status),
            short(payment.x402_tx_id),
            refund,
        )
    return made


def _lines(observations: tuple[ObservationDocument, ...]) -> Table:
    made = Table.grid(padding=(0, 1))
    for line in reversed(observations):
        made.add_row(
            Text(f"{line.timestamp:%H:%M:%S}", style="dim"),
            Text(line.type, style="dim"),
            _one_line(line.content),
        )
    return made


def _one_line(text: str) -> Text:
    line = words(text.replace("\n", " "))
    line.no_wrap, line.overflow = True, "ellipsis"
    return line
