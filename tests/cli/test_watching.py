"""The picture of a run: its decision, price, transaction, progress and budget, at any width; and the demo's verdict."""

import io
from datetime import UTC, datetime
from decimal import Decimal

from rich.console import Console

from cli.books import Books
from cli.watching import picture, short
from wire.control import JobDocument, JobRequest, ObservationDocument, PaymentDocument, RunDocument, StatusReply

NOW = datetime(2026, 1, 31, 9, 30, tzinfo=UTC)
TRANSACTION = "0x" + "ab" * 32


def _status() -> StatusReply:
    run = RunDocument(
        id="run_1",
        user_id="local",
        goal="Fine-tune tiny-llm",
        budget_total=Decimal(5),
        budget_remaining=Decimal("3.6"),
        budget_reserved=Decimal(0),
        budget_spent=Decimal("1.4"),
        currency="USDC",
        asset="0xasset",
        network="eip155:84532",
        status="running",
        phase="waiting",
        job=JobRequest(),
        created_at=NOW,
        updated_at=NOW,
    )
    job = JobDocument(
        id="run_1-job-1",
        run_id="run_1",
        vendor_id="gpu_vendor_1",
        status="running",
        gpu_type="A10",
        hours=Decimal(1),
        progress=Decimal("0.35"),
        expected_cost=Decimal("1.4"),
        expected_duration_minutes=Decimal(60),
        job_params={},
        created_at=NOW,
        updated_at=NOW,
    )
    payment = PaymentDocument(
        id="run_1-payment-1",
        run_id="run_1",
        job_id="run_1-job-1",
        vendor_id="gpu_vendor_1",
        amount=Decimal("1.4"),
        currency="USDC",
        asset="0xasset",
        network="eip155:84532",
        payer="0xpayer",
        pay_to="0xvendor",
        dialect="x402-v2",
        status="completed",
        x402_tx_id=TRANSACTION,
        refunded=Decimal(0),
        created_at=NOW,
        updated_at=NOW,
    )
    line = ObservationDocument(
        run_id="run_1", seq=1, type="agent_reasoning", content="mode: stub · [start_job] at gpu_vendor_1", timestamp=NOW
    )
    return StatusReply(run=run, jobs=(job,), payments=(payment,), observations=(line,))


def test_the_picture_shows_decision_price_transaction_progress_and_budget() -> None:
    console = Console(width=140, record=True, file=io.StringIO())
    console.print(picture(_status()))
    shown = console.export_text()
    for words in ("mode: stub · [start_job] at", "1.4 USDC", short(TRANSACTION), "35 %", "3.6 USDC left of 5"):
        assert words in shown


def test_a_vendors_words_neither_style_nor_steer_the_terminal() -> None:
    from cli.console import words

    hostile = "[/bold] [red]x[/red] \x1b[2J\x07 done"
    console = Console(width=140, record=True, file=io.StringIO())
    status = _status()
    job = status.jobs[0].model_copy(update={"error_message": hostile})
    console.print(picture(status.model_copy(update={"jobs": (job,)})))
    shown = console.export_text()
    assert "[/bold] [red]x[/red]" in shown
    assert "\x1b" not in shown
    assert words("\x1b[2J").plain == "\N{REPLACEMENT CHARACTER}[2J"


def test_what_is_shortened_keeps_both_ends() -> None:
    assert short("0123456789abcdefghij", 9) == "0123…ghij"
    assert short("short") == "short"
    assert short(None) == ""


def test_books_agree_only_when_chain_and_ledger_tell_the_same_change() -> None:
    assert Books("the wallet", "0x", 100, 60, -40).agree
    assert not Books("the wallet", "0x", 100, 61, -40).agree
