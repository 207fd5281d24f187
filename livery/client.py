"""
The control plane over HTTP, for programs: `async with Client() as client: run = await client.start("...", 5)`.

Errors of the control plane are ProblemError; a control plane that cannot be reached is Unreachable.
"""

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator, Callable
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, BinaryIO, Self, TypeVar

import httpx

from livery.events import EventReader, RunEvent
from wire import decimal_json
from wire.control import (
    ArtifactDocument,
    HealthReply,
    InputReply,
    JobRequest,
    RunDocument,
    RunIdRequest,
    RunsReply,
    StartRequest,
    StatusReply,
    TickReply,
)
from wire.jobs import INPUT_PREFIX
from wire.loopback import is_loopback
from wire.model import Body
from wire.problems import ProblemDocument

DEFAULT_URL = "http://127.0.0.1:3000"
# A tick may wait for a settlement on a busy chain.
TIMEOUT_S = 90.0
# Hosts that gather an answer before they send it give no more of a file at a time.
PART_BYTES = 4 * 1024 * 1024

BodyT = TypeVar("BodyT", bound=Body)


class Unreachable(Exception):
    """No control plane answered at this address."""


class ProblemError(Exception):
    """The control plane refused; `problem` says why and what to do next."""

    def __init__(self, problem: ProblemDocument) -> None:
        super().__init__(f"{problem.title}: {problem.detail}")
        self.problem = problem


class Damaged(Exception):
    """What arrived is not the file that was listed: its size or its SHA-256 is another."""


class Exposed(Exception):
    """The secret would go over the network in the open, or to whom it is not meant for; nothing was sent."""


class Client:
    """
    One control plane at `url`.

    Args:
        secret: the control plane's LIVERY_API_SECRET, where it has one.
        transport: what carries requests instead of the network, e.g. `httpx.ASGITransport(app)`.

    Raises:
        Exposed: there is a secret, and `url` is neither https nor on this machine.
    """

    def __init__(
        self, url: str = DEFAULT_URL, *, secret: str | None = None, transport: httpx.AsyncBaseTransport | None = None
    ) -> None:
        asked = httpx.URL(url)
        if secret is not None and asked.scheme != "https" and not is_loopback(asked.host):
            raise Exposed(f"the secret is sent over https or on this machine alone, not to {url}")
        self.url = url
        self._http = httpx.AsyncClient(
            base_url=url,
            headers={} if secret is None else {"authorization": f"Bearer {secret}"},
            timeout=TIMEOUT_S,
            transport=transport,
            trust_env=False,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    async def start(
        self,
        goal: str,
        budget: Decimal | int | str,
        *,
        job: JobRequest | None = None,
        deadline: datetime | None = None,
        max_price_per_hour: Decimal | None = None,
        user_id: str = "local",
        key: str | None = None,
    ) -> RunDocument:
        """Start a run; with a `key` used before for the same request, return the run it began."""
        request = StartRequest(
            goal=goal,
            budget_total=Decimal(budget),
            user_id=user_id,
            job=job or JobRequest(),
            deadline=deadline,
            max_price_per_hour=max_price_per_hour,
        )
        return await self._post(RunDocument, "/api/agent-start", request, key)

    async def tick(self, run_id: str) -> TickReply:
        return await self._post(TickReply, "/api/agent-tick", RunIdRequest(run_id=run_id))

    async def cancel(self, run_id: str) -> RunDocument:
        return await self._post(RunDocument, "/api/agent-cancel", RunIdRequest(run_id=run_id))

    async def status(self, run_id: str) -> StatusReply:
        return await self._get(StatusReply, "/api/agent-status", {"runId": run_id})

    async def runs(self, status: str | None = None, cursor: str | None = None) -> RunsReply:
        query = {"status": status, "cursor": cursor}
        return await self._get(RunsReply, "/api/agent-runs", {name: value for name, value in query.items() if value})

    async def events(self, run_id: str, since: int | None = None) -> AsyncIterator[RunEvent]:
        """
        Yield what happens to a run, from its beginning or after the event `since` (an `observation.seq`), to its end.

        A stream that breaks off or ends early (a restart, a host that cannot stream) is asked for again from where it
        stopped; it is Unreachable when the control plane does not answer then.
        """
        last, reader = since or 0, EventReader()
        while True:
            try:
                query: dict[str, str | int] = {"runId": run_id, "since": last}
                async with self._http.stream("GET", "/api/agent-events", params=query) as reply:
                    if reply.status_code == 204:
                        return
                    if reply.status_code != 200:
                        await reply.aread()
                        raise self._problem(reply)
                    ended = False
                    async for event in reader.events(reply.aiter_bytes()):
                        last, ended = event.observation.seq, ended or event.is_end
                        yield event
                    if ended:
                        return
            except (httpx.ReadError, httpx.ReadTimeout, httpx.RemoteProtocolError):
                # It broke off. Whether the control plane is still there, the next request tells.
                pass
            except httpx.TransportError as error:
                raise self._unreachable(error) from None
            await asyncio.sleep(reader.retry_s)

    async def download(
        self,
        run_id: str,
        job_id: str,
        artifact: ArtifactDocument,
        to: Path,
        progress: Callable[[int], None] = lambda received: None,
    ) -> None:
        """
        Write one of a job's `artifacts` to the file `to`, whole and hash-checked; `progress` is told the bytes so far.

        Raises:
            Damaged: what arrived is not what is listed; the file was not written.
            OSError: the file cannot be written.
        """
        part = to.with_name(f".{hashlib.sha256(to.name.encode()).hexdigest()[:16]}.part")
        query = {"runId": run_id, "jobId": job_id, "name": artifact.name}
        try:
            with part.open("wb") as file:
                try:
                    await self._receive(query, artifact, file, progress)
                except httpx.TransportError as error:
                    raise self._unreachable(error) from None
            os.replace(part, to)
        finally:
            part.unlink(missing_ok=True)

    async def _receive(
        self, query: dict[str, str], artifact: ArtifactDocument, file: BinaryIO, progress: Callable[[int], None]
    ) -> None:
        """Write the file, a large one part by part; whoever answers with other parts fails at the hash."""
        digest, received, more = hashlib.sha256(), 0, True
        while more:
            before = received
            large = artifact.bytes > PART_BYTES
            headers = {"range": f"bytes={received}-{received + PART_BYTES - 1}"} if large else {}
            # Not `artifact.url`: the secret goes to this control plane, whatever an answer says.
            async with self._http.stream("GET", "/api/agent-artifact", params=query, headers=headers) as reply:
                if reply.status_code not in (200, 206):
                    await reply.aread()
                    raise self._problem(reply)
                async for chunk in reply.aiter_raw():
                    received += len(chunk)
                    if received > artifact.bytes:
                        break
                    digest.update(chunk)
                    file.write(chunk)
                    progress(received)
            more = reply.status_code == 206 and before < received < artifact.bytes
        if received != artifact.bytes or digest.hexdigest() != artifact.sha256:
            raise Damaged(f"{artifact.name}: what arrived is not what the control plane lists")

    async def upload(self, path: Path, progress: Callable[[int], None] = lambda sent: None) -> str:
        """
        Upload a dataset, part by part; return what a run names it by, `input:` and its hash.

        Raises:
            OSError: the file cannot be read.
        """
        with path.open("rb") as file:
            sha256, total = hashlib.file_digest(file, "sha256").hexdigest(), file.tell()
            for start in range(0, max(total, 1), PART_BYTES):
                file.seek(start)
                part = file.read(PART_BYTES)
                headers = {"content-type": "application/octet-stream"}
                if part:
                    headers["content-range"] = f"bytes {start}-{start + len(part) - 1}/{total}"
                query = {"sha256": sha256}
                reply = await self._call(
                    InputReply, "PUT", "/api/agent-input", params=query, content=part, headers=headers
                )
                progress(start + len(part))
                if reply.is_whole:
                    break
        return f"{INPUT_PREFIX}{sha256}"

    async def health(self) -> HealthReply:
        return await self._get(HealthReply, "/health", {})

    async def _post(self, kind: type[BodyT], path: str, body: Body, key: str | None = None) -> BodyT:
        headers = {"content-type": "application/json"} | ({} if key is None else {"idempotency-key": key})
        return await self._call(kind, "POST", path, content=body.to_json(), headers=headers)

    async def _get(self, kind: type[BodyT], path: str, query: dict[str, str]) -> BodyT:
        return await self._call(kind, "GET", path, params=query)

    async def _call(self, kind: type[BodyT], method: str, path: str, **request: Any) -> BodyT:
        try:
            reply = await self._http.request(method, path, **request)
        except httpx.TransportError as error:
            raise self._unreachable(error) from None
        if reply.status_code in (200, 201):
            return kind.from_json(reply.content)
        raise self._problem(reply)

    def _unreachable(self, error: Exception) -> Unreachable:
        return Unreachable(f"no control plane answers at {self.url}: {type(error).__name__}")

    def _problem(self, reply: httpx.Response) -> Exception:
        """Return what a reply other than 200, read whole, says."""
        try:
            return ProblemError(ProblemDocument.model_validate(decimal_json.loads(reply.content)))
        except ValueError:
            return Unreachable(f"{self.url} answered {reply.status_code}, and not as a control plane does")
