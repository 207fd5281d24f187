"""Joining the worker's parts from its settings. The only file that knows them all."""

import asyncio
import logging
import secrets
import socket
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from pydantic import SecretStr

from cashier.wiring import Cashier, open_cashier
from chain.errors import ChainError, KeystoreError
from chain.keystore import account_from_key, account_from_keystore, create_keystore, write_secret
from chain.rpc import Rpc
from chain.token import TokenReader
from gpu_worker.config import WorkerSettings
from gpu_worker.core.dataset import Limits
from gpu_worker.core.model import Job
from gpu_worker.edges.http.http_door import HttpDoor
from gpu_worker.edges.jobs.book_sqlite import open_jobs
from gpu_worker.edges.jobs.checkpoints_http import HttpCheckpoints
from gpu_worker.edges.jobs.containers import CliContainers
from gpu_worker.edges.jobs.inputs_http import HttpInputs
from gpu_worker.edges.jobs.job_folder import DiskFolders
from gpu_worker.edges.jobs.job_process import JobProcesses
from gpu_worker.edges.machine.registry_file import FileRegistry
from gpu_worker.model_port import Serving, Tell
from gpu_worker.ports import Containers, Hardware, Inputs, JobPrograms, Measure, Models, Now, Pace, Worker
from gpu_worker.selling import WorkerSeller
from gpu_worker.wiring import machine
from gpu_worker.wiring.capability import open_capability
from outbound.errors import OutboundError
from outbound.guard import guard
from outbound.http import HttpClient
from storefront.model import Vendor
from storefront.ports import Book, Clock
from storefront.shop import Shop
from storefront.tending import tend

if TYPE_CHECKING:
    from eth_account.signers.base import BaseAccount

    from gpu_worker.edges.http.paid_door import PaidDoor
    from gpu_worker.edges.jobs.job_answers import JobAnswers
    from gpu_worker.inference.text.service import Service

_LOG = logging.getLogger("livery.gpu_worker")
# Who is paid where there is no key: nobody can be.
NOBODY = "0x0000000000000000000000000000000000000000"
# What a transfer of USDC burns at most.
TRANSFER_GAS = 65_000
# Ends of jobs wake the callbacks by themselves.
LOOK_S = 60.0


def open_worker(
    settings: WorkerSettings,
    *,
    server: socket.socket | None = None,
    hardware: Hardware | None = None,
    programs: JobPrograms | None = None,
    containers: Containers | None = None,
    models: Models | None = None,
    measure: Measure | None = None,
    inputs: Inputs | None = None,
    http: HttpClient | None = None,
    clock: Clock = time.time,
    pace: Pace | None = None,
    tell: Tell | None = None,
) -> Worker:
    """
    Return the worker of `settings`: making it reads its key and its secret, and makes the secret where there is none.

    Args:
        server: the socket that it listens at; None binds the settings' when it is first needed.
        http: carries every request; None is the network, strangers' addresses checked.
        hardware, programs, containers, models, measure, inputs, clock, pace: instead of this machine's.
        tell: told how far the loading of layers is.

    Raises:
        OwnersFault: it is not said which model is served, or the topology is wrong.
        KeystoreError: the key cannot be read.
        ValueError: a limit is none.
    """
    _look_at_folder(settings)
    account = account_of(settings)
    vendor = _vendor(settings, account)
    strangers = http or HttpClient(guard=guard(allow_private=settings.allow_private_urls))
    ours = http or HttpClient()
    book = open_jobs(settings.database)
    door = HttpDoor(settings, server)
    cashier = _cashier(settings, account, ours, clock)
    service, opened, paid = _model(settings, vendor, cashier, lambda: worker, tell)
    answers = None if service is None else _answers(service)
    worker = Worker(
        settings=settings,
        vendor=vendor,
        has_key=account is not None,
        limits=machine.limits_of(settings),
        now=Now(),
        book=book,
        folders=DiskFolders(settings.folder / "jobs"),
        programs=programs or JobProcesses(answers=answers),
        containers=containers or CliContainers(),
        checkpoints=HttpCheckpoints(strangers),
        inputs=inputs or _inputs(settings, strangers),
        models=models or machine.open_models(settings),
        hardware=hardware or machine.open_hardware(settings),
        choose=lambda found: machine.device(settings, found),
        measure=lambda found: measure or machine.open_measure(settings, found),
        registry=FileRegistry(settings.folder),
        door=door,
        gas=_gas(Rpc(settings.rpc_url, ours), vendor),
        tend=lambda: _tend(shop, strangers, paid),
        recover=lambda: shop.recover(),
        close=lambda: _close(shop, service),
        local_minute=_local_minute,
        clock=clock,
        pace=pace or Pace(),
        open_model=opened,
        answers=answers,
    )
    shop: Shop[Job] = Shop(WorkerSeller(worker), cashier, book, clock)
    door.open(worker, shop, service, paid, open_capability(worker, service, account))
    return worker


async def _close(shop: Shop[Job], service: "Service | None") -> None:
    await shop.close()
    if service is not None:
        await service.admission.close()


def _look_at_folder(settings: WorkerSettings) -> None:
    """Make the worker's folder, and warn of files in it that others may read."""
    for sentence in machine.loose_files(settings):
        _LOG.warning("%s", sentence)
    settings.folder.mkdir(parents=True, exist_ok=True, mode=0o700)


def _model(
    settings: WorkerSettings, vendor: Vendor, cashier: Cashier, worker: Callable[[], Worker], tell: Tell | None
) -> "tuple[Service | None, Callable[[], Awaitable[Serving]] | None, PaidDoor | None]":
    """Return what serves a model, what opens it, and what takes payments for its answers, each None where none does."""
    if not settings.serves_model:
        return None, None, None
    # gRPC and its kind are loaded for this alone: who only sells jobs stays light.
    from gpu_worker.wiring.model import open_model, open_service
    from gpu_worker.wiring.paying import open_paid

    service = open_service(settings, "" if vendor.pay_to == NOBODY else vendor.pay_to, cashier)
    paid = open_paid(settings, service, cashier, vendor.pay_to)
    return service, lambda: open_model(worker(), service, tell or (lambda what, done, total: None)), paid


def _answers(service: "Service") -> "JobAnswers":
    from gpu_worker.edges.jobs.job_answers import JobAnswers

    return JobAnswers(service)


async def _tend(shop: Shop[Job], strangers: HttpClient, paid: "PaidDoor | None") -> None:
    """Pay back and call back what jobs and answers leave over, for ever."""
    async with asyncio.TaskGroup() as loops:
        loops.create_task(tend(shop, strangers, look_s=LOOK_S))
        if paid is not None:
            loops.create_task(paid.keep())


def _vendor(settings: WorkerSettings, account: "BaseAccount | None") -> Vendor:
    return Vendor(
        vendor_id=settings.vendor_id,
        name=settings.name,
        secret=secret_of(settings),
        pay_to=NOBODY if account is None else str(account.address),
        asset=machine.asset_of(settings),
    )


def _cashier(settings: WorkerSettings, account: "BaseAccount | None", http: HttpClient, clock: Clock) -> Cashier:
    return open_cashier(
        asset=machine.asset_of(settings),
        database=settings.database,
        facilitator_url=settings.facilitator_url,
        rpc_url=settings.rpc_url,
        keys=() if account is None else (f"0x{bytes(account.key).hex()}",),  # type: ignore[attr-defined]
        facilitator_http=http,
        chain_http=http,
        now_s=lambda: int(clock()),
    )


def open_book(settings: WorkerSettings) -> Book[Job]:
    """Return the worker's book, for reading what it sold; a worker that runs is not disturbed."""
    return open_jobs(settings.database)


def account_of(settings: WorkerSettings) -> "BaseAccount | None":
    """Return the account that is paid, None where there is no key. Raises KeystoreError where it cannot be read."""
    if settings.private_key is not None:
        return account_from_key(settings.private_key.get_secret_value())
    if not settings.keystore.exists():
        return None
    return account_from_keystore(settings.keystore, _password(settings))


def create_wallet(settings: WorkerSettings) -> str:
    """
    Make a key in a new keystore and return its address; its password is the settings', or is made and kept in a file.

    Raises:
        KeystoreError: there is a keystore already; nothing is overwritten.
    """
    if settings.keystore.exists():
        raise KeystoreError(f"there is a keystore at {settings.keystore} already; it is never overwritten")
    settings.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    # A password file without a keystore is what an interrupted creation leaves: it is used again.
    if settings.keystore_password is None and not settings.password_file.exists():
        write_secret(settings.password_file, secrets.token_urlsafe(32))
    return create_keystore(settings.keystore, _password(settings))


def secret_of(settings: WorkerSettings) -> SecretStr:
    """Return the buyers' bearer secret; without one in the settings it is made once and kept."""
    if settings.secret is not None:
        return settings.secret
    try:
        return SecretStr(settings.secret_file.read_text().strip())
    except FileNotFoundError:
        return SecretStr(write_secret(settings.secret_file, secrets.token_urlsafe(32)))


def _password(settings: WorkerSettings) -> str:
    if settings.keystore_password is not None:
        return settings.keystore_password.get_secret_value()
    try:
        return settings.password_file.read_text().strip()
    except OSError:
        raise KeystoreError(
            f"no password for the keystore: none is set and none is in {settings.password_file}"
        ) from None


def _inputs(settings: WorkerSettings, http: HttpClient) -> Inputs:
    limits = Limits(bytes_max=settings.dataset_bytes_max, unpacked_bytes_max=settings.dataset_bytes_max)
    return HttpInputs(http, limits, settings.default_dataset)


def _gas(rpc: Rpc, vendor: Vendor) -> Callable[[], Awaitable[int | None]]:
    """Return what asks for how many refunds the ether of the address that is paid will do."""

    async def refunds() -> int | None:
        try:
            price = int(await rpc.call("eth_gasPrice"), 16)
            balance = await TokenReader(rpc, vendor.asset).native_balance(vendor.pay_to)
        except (ChainError, OutboundError, ValueError, TypeError):
            return None
        return balance // max(1, price * TRANSFER_GAS)

    return refunds


def _local_minute() -> int:
    now = time.localtime()
    return now.tm_hour * 60 + now.tm_min
