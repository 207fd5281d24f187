"""Values are frozen, say nothing that they were not told, and every error knows whose fault it is."""

import dataclasses
import importlib
import inspect
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from agent.core import errors
from agent.core.model import Budget, Entry, JobSpec, LogHead, Payment, RefundClaim
from agent.core.planning import Proposal
from tests.agent.core.values import T0, a_job, a_run
from wire.model import Body
from wire.problems import PROBLEMS

CORE = Path(inspect.getfile(errors)).parent


def classes_of_core() -> list[type]:
    modules = [importlib.import_module(f"agent.core.{path.stem}") for path in sorted(CORE.glob("[a-z]*.py"))]
    return [
        kind
        for module in modules
        for kind in vars(module).values()
        if inspect.isclass(kind) and kind.__module__ == module.__name__ and not issubclass(kind, Exception)
    ]


@pytest.mark.parametrize("kind", classes_of_core(), ids=lambda kind: kind.__name__)
def test_a_value_is_frozen_and_has_no_room_for_more(kind: type) -> None:
    if issubclass(kind, Body):
        assert kind.model_config.get("frozen")
        return
    assert dataclasses.is_dataclass(kind)
    assert kind.__dataclass_params__.frozen
    assert "__slots__" in vars(kind)
    # Named one and all, or given by place one and all.
    assert len({field.kw_only for field in dataclasses.fields(kind)}) == 1


def test_a_fresh_job_has_no_past() -> None:
    job = a_job()
    assert (job.progress, job.polls) == (0, "")
    assert isinstance(job.progress, Decimal)
    told = ("vendor_job_id", "cursor", "actual_cost_atomic", "final_metrics", "artifact_url", "error_message")
    assert {getattr(job, name) for name in (*told, "missed_since", "completed_at")} == {None}


def test_a_fresh_payment_has_no_past() -> None:
    payment = Payment(
        payment_id="p",
        job_id="j",
        vendor_id="v",
        amount_atomic=1,
        asset="a",
        network="n",
        pay_to="t",
        payer="f",
        nonce="0x",
        valid_before_s=1,
        from_block=0,
        request="{}",
        header="",
        status="pending",
        created_at=T0,
        updated_at=T0,
    )
    assert (payment.sends, payment.refunded_atomic) == (0, 0)
    assert {payment.transaction, payment.refund, payment.error_message} == {None}


def test_a_fresh_run_has_no_past() -> None:
    run = a_run()
    assert (run.jobs, run.payments, run.log) == ((), (), LogHead())
    told = ("deadline", "price_per_hour_atomic_max", "reason", "completed_at", "cancel_requested_at", "next_tick_at")
    assert {getattr(run, name) for name in told} == {None}


def test_what_is_wanted_is_one_fine_tuning_unless_somebody_says_otherwise() -> None:
    assert JobSpec() == JobSpec(kind="fine_tune", count=1, params={}, env={})
    told = ("gpu_type", "min_vram_gb", "max_hours", "model", "dataset")
    assert {getattr(JobSpec(), name) for name in told} == {None}
    assert JobSpec().params is not JobSpec().params


def test_what_was_not_reserved_or_spent_is_nothing() -> None:
    budget = Budget(total_atomic=1, available_atomic=1)
    assert (budget.reserved_atomic, budget.spent_atomic) == (0, 0)
    proposal = Proposal(action="wait", reason="r")
    assert (proposal.mode, proposal.prompt, proposal.raw, proposal.fallback) == ("stub", "", "", False)
    assert {proposal.vendor_id, proposal.max_hours, proposal.code} == {None}


def test_an_entry_belongs_to_no_job_unless_it_says_so() -> None:
    entry = Entry(run_id="r", seq=1, type="tick", content="", data={}, timestamp=T0, previous="0", hash="1")
    assert entry.job_id is None
    assert RefundClaim(amount_atomic=1, transaction="0x", announced_at=T0).amount_atomic == 1


ERRORS: list[tuple[type[errors.AgentError], tuple[Any, ...], type[errors.AgentError], str, bool]] = [
    (errors.AgentError, (), errors.AgentError, "internal", False),
    (errors.UnknownRun, (), errors.Asked, "run_not_found", False),
    (errors.UnknownArtifact, (), errors.Asked, "artifact_not_found", False),
    (errors.RunFinished, (), errors.Asked, "run_finished", False),
    (errors.CannotRevoke, (), errors.Asked, "cannot_revoke", False),
    (errors.RunBusy, (7,), errors.Asked, "run_busy", True),
    (errors.KeyConflict, (), errors.Asked, "idempotency_conflict", False),
    (errors.BadSignature, (), errors.Asked, "bad_signature", False),
    (errors.UploadRefused, (), errors.Asked, "upload_refused", False),
    (errors.UploadIncomplete, (), errors.Asked, "upload_incomplete", False),
    (errors.UploadTooLarge, (), errors.Asked, "body_too_large", False),
    (errors.JobOver, (), errors.Asked, "job_ended", False),
    (errors.VendorUnreachable, (), errors.VendorError, "internal", True),
    (errors.VendorGarbled, (), errors.VendorError, "internal", False),
    (errors.VendorUnpayable, (), errors.VendorGarbled, "internal", False),
    (errors.VendorRefused, (404, "no such job"), errors.VendorError, "internal", False),
    (errors.VendorDenied, (401, "who are you"), errors.VendorRefused, "internal", False),
    (errors.NoVendorSecret, (), errors.VendorError, "internal", False),
    (errors.StoreUnavailable, (), errors.Unavailable, "store_unavailable", True),
    (errors.ForeignAddress, (), errors.VendorError, "internal", False),
    (errors.ArtifactsUnavailable, (), errors.Unavailable, "artifacts_unavailable", True),
    (errors.ChainUnavailable, (), errors.Unavailable, "chain_unavailable", True),
    (errors.WalletError, (), errors.Unavailable, "no_signer", True),
    (errors.NoSigner, (), errors.Unavailable, "no_signer", True),
    (errors.StaleClaim, (), errors.AgentError, "run_busy", True),
    (errors.IllegalMove, (), errors.Bug, "internal", False),
    (errors.StoreTooNew, (), errors.Bug, "internal", False),
]


@pytest.mark.parametrize(("kind", "arguments", "parent", "code", "retryable"), ERRORS)
def test_an_error_says_whose_fault_it_is_and_whether_to_try_again(
    kind: type[errors.AgentError], arguments: tuple[Any, ...], parent: type, code: str, retryable: bool
) -> None:
    error = kind(*arguments)
    assert isinstance(error, parent)
    assert (error.code, error.retryable) == (code, retryable)
    assert error.code in PROBLEMS


def test_every_error_of_the_tree_is_told_apart_above() -> None:
    leaves = {kind for kind in vars(errors).values() if inspect.isclass(kind) and not kind.__subclasses__()}
    assert leaves <= {kind for kind, *_ in ERRORS} | {errors.VendorUnreachable}


def test_errors_say_what_happened() -> None:
    busy = errors.RunBusy(7)
    assert (str(busy), busy.retry_after_s) == ("another tick holds the run for at most 7 s more", 7)
    refused = errors.VendorRefused(404, "no such job")
    assert (str(refused), refused.status) == ("no such job", 404)
