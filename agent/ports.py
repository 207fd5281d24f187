"""
What the agent needs of the world. Edges implement these; tests run one contract suite per port.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol

from agent.core.answers import Declined as Declined
from agent.core.answers import Submitted as Submitted
from agent.core.answers import Unsettled as Unsettled
from agent.core.dialects import Challenge
from agent.core.limits import Limits as Limits
from agent.core.model import Dialect, Entry, Notice, Outcome, Run, Standing, Vendor
from agent.core.planning import Proposal, Question
from agent.core.policy import Hold as Hold
from agent.core.policy import SpendingPolicy
from chain.moves import History
from chain.moves import TransferLog as TransferLog
from wire.vendor import ArtifactsReply, JobFound, JobStatus, OffersReply, Quote, QuoteRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """The lease on a run: who holds it is known by `token`, which grows with every claim (fencing)."""

    run: Run
    token: int
    now: datetime


@dataclass(frozen=True, slots=True)
class Busy:
    """Another tick holds the run, for `retry_after_s` more seconds at most."""

    retry_after_s: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    runs: tuple[Run, ...]
    cursor: str | None


class Store(Protocol):
    """
    Runs, their log, vendors and cap counters. Every method may raise StoreUnavailable.

    A save is one transaction; `durable` ones (the two that bracket a payment) survive power loss.
    """

    async def now(self) -> datetime:
        """Return the store's clock, UTC: the one clock all ticks share."""

    async def insert_run(self, run: Run, entries: Sequence[Entry], key: str | None, fingerprint: str) -> Run:
        """
        Store a new run and its first entries, or return the run that `key` began before.

        Raises:
            KeyConflict: `key` began a run with another `fingerprint`.
        """

    async def claim(self, run_id: str, lease_s: int, *, due_before: datetime | None = None) -> Claim | Busy:
        """
        Take the lease on a run in one conditional update: free or lapsed, token + 1.

        With `due_before` only a run whose next_tick_at is not later: one that was served since then is Busy too.

        Raises:
            UnknownRun: there is no such run.
        """

    async def save(
        self,
        token: int,
        run: Run,
        entries: Sequence[Entry] = (),
        *,
        holds: Sequence[Hold] = (),
        outcomes: Sequence[Outcome] = (),
        notices: Sequence[Notice] = (),
        durable: bool = False,
    ) -> Hold | None:
        """
        Store `run` (jobs and payments included), append `entries`, count `holds` and `outcomes`, queue `notices`, all
        or nothing.

        Returns the hold whose cap refused it, in which case nothing was written; None when saved.
        `cancel_requested_at` is never written here: only `request_cancel` sets it.

        Raises:
            StaleClaim: another tick has claimed the run since; nothing was written.
        """

    async def release(self, run_id: str, token: int, next_tick_at: datetime | None) -> None:
        """Give the lease back and set when the sweep should come; does nothing for a stale token."""

    async def read_run(self, run_id: str) -> Run:
        """Raises UnknownRun."""

    async def list_runs(self, status: str | None, cursor: str | None, limit: int) -> Page:
        """Return runs, newest first; an unreadable cursor begins at the newest."""

    async def read_log(
        self,
        run_id: str,
        *,
        types: Sequence[str] | None = None,
        newest: int | None = None,
        oldest: int | None = None,
        after: int = 0,
    ) -> list[Entry]:
        """Return entries oldest first: of `types`, with seq > `after`; of these the `newest` n or the `oldest` n."""

    async def due_runs(self, now: datetime, limit: int) -> list[str]:
        """Return ids of runs whose next_tick_at has come, the longest due first."""

    async def request_cancel(self, run_id: str) -> Run:
        """Record the wish (the first time it was made stands) and make the run due. Raises UnknownRun."""

    async def put_vendor(self, vendor: Vendor, *, replace: bool) -> bool:
        """Insert `vendor`, or with `replace` overwrite it; return whether anything was written."""

    async def list_vendors(self) -> list[Vendor]:
        """Return vendors in the order they were first registered."""

    async def remove_vendor(self, vendor_id: str) -> bool: ...

    async def standings(self) -> list[Standing]:
        """Return how the jobs of every vendor and GPU type have ended, by vendor and GPU type."""

    async def take_notices(self, limit: int, lease_s: int) -> list[Notice]:
        """Return due notices, the longest due first, with `attempts` + 1, kept from others for `lease_s`."""

    async def settle_notice(self, notice_id: str, retry_s: int | None) -> None:
        """Forget a notice (`retry_s` None: it was told, or given up), or make it due again in `retry_s` seconds."""

    async def take_turn(self, name: str, now: datetime, interval_s: int) -> bool:
        """Return whether the work called `name` is the caller's to do: nobody began it in the last `interval_s`."""

    async def migrate(self) -> int:
        """Bring the store to this program's version, idempotently; return it. Raises StoreTooNew."""

    async def check(self) -> list[str]:
        """Return one line per thing that is missing (an index, a table); empty when all is well."""

    async def close(self) -> None: ...


class Planner(Protocol):
    mode: str

    async def propose(self, question: Question) -> Proposal:
        """Return a wish; whatever goes wrong, a wish. `decide` checks it."""


class VendorGateway(Protocol):
    """One vendor's API. Every method may raise VendorUnreachable, VendorGarbled or VendorRefused."""

    async def offers(self, vendor: Vendor) -> OffersReply: ...
    async def quote(self, vendor: Vendor, request: QuoteRequest) -> Quote: ...
    async def challenge(self, vendor: Vendor, request: str, payment_id: str) -> tuple[Challenge, ...]:
        """Return what the vendor asks for `request`: at least one, in the order in which they are to be tried."""

    async def submit(
        self, vendor: Vendor, request: str, payment_id: str, header: str, dialect: Dialect
    ) -> Submitted | Unsettled | Declined: ...
    async def find(self, vendor: Vendor, payment_id: str) -> JobFound | None: ...
    async def live_jobs(self, vendor: Vendor) -> tuple[JobFound, ...]:
        """Return the jobs that the vendor works on for us, each with the payment id that bought it, if it says so."""

    async def job_status(self, vendor: Vendor, vendor_job_id: str, cursor: str | None) -> JobStatus: ...
    async def cancel(self, vendor: Vendor, vendor_job_id: str, cursor: str | None) -> JobStatus: ...
    async def artifacts(self, vendor: Vendor, vendor_job_id: str) -> ArtifactsReply: ...
    def download(self, vendor: Vendor, url: str, *, timeout_s: float, bytes_max: int) -> AsyncGenerator[bytes, None]:
        """
        Yield a listed file, chunk by chunk, in at most `timeout_s`; close it (`aclosing`) where it is not read whole.

        Raises:
            ForeignAddress: `url` is not the vendor's own address; nothing was sent.
        """


@dataclass(frozen=True, slots=True)
class Usage:
    """What a job's kept files come to."""

    files: int
    bytes: int


class ArtifactStore(Protocol):
    """
    The files that jobs left, by run, job and name. Every method may raise ArtifactsUnavailable.
    Any name is kept that `wire.file_name` can escape; another raises its NotAFileName.
    """

    async def put(self, run_id: str, job_id: str, name: str, chunks: AsyncIterator[bytes]) -> None:
        """Keep `chunks` whole in place of what was there: the last to end stays. What they raise changes nothing."""

    async def size(self, run_id: str, job_id: str, name: str) -> int | None:
        """Return how many bytes are kept, None where there is no such file."""

    async def remove(self, run_id: str, job_id: str, name: str) -> bool:
        """Forget a file; return whether there was one."""

    async def sweep(self, run_id: str, job_id: str, stays: Callable[[str], bool], *, closing: bool = False) -> None:
        """Forget files whose names do not stay; `closing` ends uploads first: none that had begun is kept."""

    async def usage(self, run_id: str, job_id: str) -> Usage:
        """Return how much is kept of one job."""

    def open(self, run_id: str, job_id: str, name: str, start: int = 0) -> AsyncGenerator[bytes, None]:
        """Yield a file from `start` on; close it (`aclosing`) where it is not read whole. Raises UnknownArtifact."""

    async def close(self) -> None: ...


class Wallet(Protocol):
    """Signs EIP-712 documents with one key; where the key lives is its own affair."""

    async def address(self) -> str:
        """Return the address that pays. Raises WalletError."""

    async def sign(self, typed_data: dict[str, Any]) -> str:
        """Return the 65-byte signature, 0x-hex. Raises WalletError."""


class Chain(Protocol):
    """What the chain shows of one token. Every method may raise ChainUnavailable."""

    async def head(self) -> int:
        """Return the newest block's number."""

    async def finalized_time_s(self) -> int:
        """Return the Unix time of the newest finalised block."""

    async def is_nonce_used(self, payer: str, nonce: str) -> bool:
        """Return whether the authorization was settled (EIP-3009 `authorizationState`), at the newest block."""

    async def is_nonce_used_finalized(self, payer: str, nonce: str) -> bool:
        """The same at the newest finalised block, the state that no reorganisation changes."""

    async def settlement(self, payer: str, nonce: str, pay_to: str, value_atomic: int, from_block: int) -> str | None:
        """Return the transaction with AuthorizationUsed(payer, nonce) and its Transfer, None where there is none."""

    async def transfers(self, transaction: str, sender: str, receiver: str) -> list[TransferLog]:
        """Return the token's Transfers from `sender` to `receiver` in a mined, successful transaction."""

    async def cancellation(self, payer: str, nonce: str, from_block: int) -> str | None:
        """Return the finalised transaction with AuthorizationCanceled(payer, nonce), None where there is none yet."""

    async def balance(self, address: str, block: int | None = None) -> int:
        """Return what `address` holds, in the newest block or in `block`, which a node may have forgotten."""

    async def history(self, account: str, from_block: int, to_block: int) -> History:
        """Return what `account` did in these blocks."""


class Revoker(Protocol):
    async def revoke(self, payer: str, nonce: str) -> str:
        """
        Ask the chain to cancel the payer's cheque; return the transaction, not yet mined.

        Raises:
            CannotRevoke: the chain will not. WalletError, ChainUnavailable.
        """


@dataclass(frozen=True, slots=True)
class Delivery:
    """What became of one attempt to tell a notice; after a final one there is no other."""

    is_accepted: bool
    is_final: bool
    detail: str = ""


class Webhooks(Protocol):
    async def send(self, notice: Notice) -> Delivery:
        """Tell the owner's program, signed, once. Never raises: what goes wrong was not accepted."""


class Callbacks(Protocol):
    def is_signed(self, vendor_id: str, headers: Mapping[str, str], body: bytes) -> bool:
        """Return whether the vendor signed `body` in the last five minutes; header names are in lower case."""


class FileTokens(Protocol):
    """The words by which a vendor's job proves itself at the door of the run's files; each is good for one job."""

    def token(self, vendor_id: str, run_id: str, job_id: str) -> str | None:
        """Return the job's token, None where no secret is shared with the vendor."""

    def is_token(self, vendor_id: str, run_id: str, job_id: str, token: str) -> bool: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Agent:
    """
    What a use case is given. `wallet` is None where no key is configured: the agent then reads, never pays.
    `revoker` is None where the wallet signs documents and cannot send transactions.
    `callback_base_url` is the address that vendors reach this control plane at, None where they cannot: they then do
    not call back, and no job can leave checkpoints, nor move.
    """

    store: Store
    artifacts: ArtifactStore
    vendors: VendorGateway
    chain: Chain
    planner: Planner
    policy: SpendingPolicy
    wallet: Wallet | None
    limits: Limits = field(default_factory=Limits)
    webhooks: Webhooks | None = None
    callbacks: Callbacks | None = None
    callback_base_url: str | None = None
    revoker: Revoker | None = None
    file_tokens: FileTokens | None = None
