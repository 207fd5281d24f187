"""
The control plane over HTTP, for programs: `async with Client() as client: run = await client.start("...", 5)`.

Errors of the control plane are ProblemError; a control plane that cannot be reached is Unreachable.
"""

from datetime import datetime
from decimal import Decimal
from typing import Any, Self, TypeVar

import httpx

from wire import decimal_json
from wire.control import (
    HealthReply,
    JobRequest,
    RunDocument,
    RunIdRequest,
    RunsReply,
    StartRequest,
    StatusReply,
    TickReply,
)
from wire.model import Body
from wire.problems import ProblemDocument

DEFAULT_URL = "http://127.0.0.1:3000"
# A tick may wait for a settlement on a busy chain.
TIMEOUT_S = 90.0

BodyT = TypeVar("BodyT", bound=Body)


class Unreachable(Exception):
    """No control plane answered at this address."""


class ProblemError(Exception):
    """The control plane refused; `problem` says why and what to do next."""

    def __init__(self, problem: ProblemDocument) -> None:
        super().__init__(f"{problem.title}: {problem.detail}")
        self.problem = problem


class Client:
    """
    One control plane at `url`.

    Args:
        transport: what carries requests instead of the network, e.g. `httpx.ASGITransport(app)`.
    """

    def __init__(self, url: str = DEFAULT_URL, *, transport: httpx.AsyncBaseTransport | None = None) -> None:
        self.url = url
        self._http = httpx.AsyncClient(base_url=url, timeout=TIMEOUT_S, transport=transport, trust_env=False)

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
            raise Unreachable(f"no control plane answers at {self.url}: {type(error).__name__}") from None
        if reply.status_code == 200:
            return kind.from_json(reply.content)
        try:
            problem = ProblemDocument.model_validate(decimal_json.loads(reply.content))
        except ValueError:
            raise Unreachable(f"{self.url} answered {reply.status_code}, and not as a control plane does") from None
        raise ProblemError(problem)
