"""Joining the door for GPU checks from the worker's parts."""

import secrets
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from chain.signed import signed
from gpu_worker.attesting import Attestor
from gpu_worker.capability import Capability
from gpu_worker.config import program_environment
from gpu_worker.core.hardware import Device
from gpu_worker.core.inference.room import free_bytes
from gpu_worker.edges.http.metrics import metrics_text
from gpu_worker.edges.machine.attest_process import AttestProcess
from gpu_worker.inference.text.admission import Admission
from gpu_worker.inference.text.engine import ModelCard
from gpu_worker.inference.text.service import Service
from gpu_worker.ports import Worker

if TYPE_CHECKING:
    from eth_account.signers.base import BaseAccount


def open_capability(worker: Worker, service: Service | None, account: "BaseAccount | None") -> Capability:
    """Return what the door tells of `worker` and of the model that it serves; without a key it proves nothing."""
    settings = worker.settings
    secret = settings.api_secret.get_secret_value() if settings.api_secret else ""
    made = Capability(
        read=worker.hardware.read,
        names=worker.models.names,
        cards=lambda: _cards(service),
        source=lambda: "" if service is None or service.engine is None else service.engine.kind,
        states=lambda: _states(worker, service),
        metrics=lambda machine: metrics_text(service, machine),
        admission=Admission(secret=secret) if service is None else service.admission,
        clock=worker.clock,
        monotonic=time.monotonic,
    )
    if account is not None:
        made.attestor = Attestor(
            _prover(worker),
            made.gpu_check,
            address=str(account.address),
            sign=lambda text: signed(account, text),
            new_id=lambda: secrets.token_hex(16),
        )
    return made


def _cards(service: Service | None) -> Sequence[ModelCard]:
    """Return the models that are served; a stage that is not the head has a part of one."""
    if service is None:
        return ()
    cards = service.cards()
    return cards if service.engine is not None else tuple(replace(card, is_loaded=service.is_ready) for card in cards)


def _states(worker: Worker, service: Service | None) -> dict[str, bool]:
    """Return which services are up: the worker, the model that it serves, and the GPU that it found at its start."""
    now = worker.now
    found = {"worker": now.state == "online"}
    if service is not None:
        found["model"] = service.is_served
    if now.device is not None and now.device.kind == "cuda":
        found["gpu"] = now.machine is not None and bool(now.machine.gpus)
    return found


def _prover(worker: Worker) -> AttestProcess:
    settings, now = worker.settings, worker.now

    def threads() -> int:
        return settings.threads_of(1 if now.machine is None else now.machine.cpu_count)

    def device() -> tuple[Device, int] | None:
        # A machine that its owner needs computes nothing for others.
        if now.device is None or now.machine is None or now.yielded is not None:
            return None
        return now.device, free_bytes(now.machine, now.device)

    return AttestProcess(device, lambda chosen: program_environment(threads(), chosen.visible), threads)
