"""Runs, jobs, payments, vendors and entries to put into stores, and the stores to put them into."""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from agent.core.model import Budget, Entry, Job, JobSpec, LogHead, Payment, Run, Vendor
from agent.ports import Store
from wire.money import BASE_SEPOLIA_USDC

T0 = datetime(2026, 1, 31, 9, 30, 0, 123_456, tzinfo=UTC)
PAY_TO = "0x" + "11" * 20
PAYER = "0x" + "22" * 20


@dataclass(frozen=True)
class Place:
    """Where a store is, in words another process understands."""

    kind: str
    where: str
    database: str = ""

    def open(self) -> Store:
        if self.kind == "sqlite":
            from agent.edges.store_sqlite import SqliteStore

            return SqliteStore(self.where)
        from agent.edges.store_mongo import MongoStore

        return MongoStore(self.where, self.database)


def new_id(kind: str) -> str:
    return f"{kind}_{uuid.uuid4().hex}"


def a_run(**changes: Any) -> Run:
    values: dict[str, Any] = {
        "run_id": new_id("run"),
        "user_id": "local",
        "goal": "Fine-tune tiny-llm",
        "asset": BASE_SEPOLIA_USDC,
        "budget": Budget(total_atomic=5_000_000, available_atomic=5_000_000),
        "job": JobSpec(params={"epochs": 3, "rate": 1e-7, "a.b": {"$gt": None}}, env={"$HOME": "/"}),
        "status": "pending",
        "phase": "planning",
        "created_at": T0,
        "updated_at": T0,
    }
    return Run(**values | changes)


def a_job(**changes: Any) -> Job:
    values: dict[str, Any] = {
        "job_id": new_id("job"),
        "vendor_id": "gpu_vendor_1",
        "status": "running",
        "gpu_type": "A10",
        "hours": Decimal("1.00"),
        "template_id": "tmpl_A10_1",
        "expected_cost_atomic": 1_400_000,
        "expected_duration_minutes": Decimal(60),
        "job_params": {"goal": "Fine-tune tiny-llm", "nul\0": [1, 1.5, {"$set": {}}]},
        "created_at": T0,
        "updated_at": T0,
    }
    return Job(**values | changes)


def a_payment(**changes: Any) -> Payment:
    values: dict[str, Any] = {
        "payment_id": new_id("pay"),
        "job_id": "job_1",
        "vendor_id": "gpu_vendor_1",
        "amount_atomic": 1_400_000,
        "asset": BASE_SEPOLIA_USDC.address,
        "network": BASE_SEPOLIA_USDC.network,
        "pay_to": PAY_TO,
        "payer": PAYER,
        "nonce": "0x" + "33" * 32,
        "valid_before_s": 1_800_000_000,
        "from_block": 17,
        "request": '{"vendorJobTemplateId":"tmpl_A10_1"}',
        "header": "eyJ4NDAyVmVyc2lvbiI6Mn0=",
        "status": "pending",
        "created_at": T0,
        "updated_at": T0,
    }
    return Payment(**values | changes)


def a_vendor(**changes: Any) -> Vendor:
    values: dict[str, Any] = {
        "vendor_id": "gpu_vendor_1",
        "name": "FastGPU",
        "endpoint": "http://localhost:4001",
        "pay_to": PAY_TO,
        "asset": BASE_SEPOLIA_USDC.address,
        "network": BASE_SEPOLIA_USDC.network,
        "base_price_per_hour_atomic": 1_400_000,
        "reliability_score": Decimal("0.90"),
        "supported_gpu_types": ("A10", "A100"),
        "created_at": T0,
        "updated_at": T0,
    }
    return Vendor(**values | changes)


def an_entry(run_id: str, seq: int, **changes: Any) -> Entry:
    values: dict[str, Any] = {
        "run_id": run_id,
        "seq": seq,
        "type": "job_log",
        "content": f"Epoch {seq}/3",
        "data": {"loss": 0.5, "seq": seq},
        "timestamp": T0 + timedelta(seconds=seq),
        "previous": "0" * 64,
        "hash": f"{seq:064d}",
    }
    return Entry(**values | changes)


def entries_of(run: Run, seqs: Sequence[int]) -> tuple[Entry, ...]:
    return tuple(an_entry(run.run_id, seq) for seq in seqs)


def log_of(seq: int) -> LogHead:
    return LogHead(seq=seq, hash=f"{seq:064d}")


async def stored(store: Store, **changes: Any) -> Run:
    """Return a new run that is in the store."""
    return await store.insert_run(a_run(**changes), (), None, "")
