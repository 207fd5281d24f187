"""
The official x402 facilitator behind HTTP, for developers: POST /verify, POST /settle, GET /supported, GET /health.

What is added to the package: it runs off the event loop; the same settlement asked for twice, at once or later, is
one transaction and one answer; and a chain that does not answer is 503, where the package calls the payment invalid.
A failed settlement is not remembered: asking again may succeed, and a used nonce is refused by the token itself.
"""

import asyncio
import hashlib
import logging
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.responses import Response

from chain.errors import ChainError
from chain.rpc import Rpc
from outbound.http import HttpClient
from wire import decimal_json
from wire.problems import problem_document

BODY_BYTES_MAX = 64 * 1024
ANSWERS_MAX = 10_000
# Below the time that a seller waits for us, so that "pending" is said before the seller gives up.
CONFIRMATION_S = 20.0

_LOG = logging.getLogger("livery.facilitator")
ResultT = TypeVar("ResultT")


class Refused(Exception):
    """A request answered with the problem `code` of `wire.problems`."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code


@dataclass(frozen=True, slots=True)
class Asked:
    """A payment to verify or settle, as the package's own models; `fingerprint` is of everything that was sent."""

    payload: Any
    requirements: Any
    fingerprint: bytes


def create_facilitator(
    rpc_url: str, private_key: str, network: str, *, confirmation_s: float = CONFIRMATION_S
) -> FastAPI:
    """
    Return the facilitator of `network` (CAIP-2) that settles over the node at `rpc_url`.

    Args:
        private_key: 0x-hex; its account pays the gas.
        confirmation_s: a transaction not mined in this time is answered `settlement_pending`, with its hash.
    """
    from x402 import x402FacilitatorSync
    from x402.mechanisms.evm import FacilitatorWeb3Signer
    from x402.mechanisms.evm.exact import register_exact_evm_facilitator

    signer = FacilitatorWeb3Signer(private_key, rpc_url, confirmation_timeout_seconds=confirmation_s)
    official = x402FacilitatorSync()
    register_exact_evm_facilitator(official, signer, network, simulate_in_settle=True)
    node = Rpc(rpc_url, HttpClient())
    settlements = Settlements()
    app = FastAPI(title="Livery x402 facilitator", openapi_url=None)

    @app.exception_handler(Refused)
    async def refuse(_: Request, refusal: Refused) -> Response:
        problem = problem_document(refusal.code, str(refusal))
        return Response(problem.to_json(), problem.status, media_type="application/problem+json")

    async def ask(method: Callable[[Any, Any], ResultT], asked: Asked) -> ResultT:
        try:
            return await asyncio.to_thread(method, asked.payload, asked.requirements)
        except Exception as error:
            # The package raises whatever a hostile payload breaks in it, and RPC errors of several libraries.
            await _need_chain(node)
            # By name alone: what these libraries say quotes the node's whole address, and keys are in its path.
            _LOG.warning("a payment that cannot be read: %s", type(error).__name__)
            raise Refused("payment_malformed", "the payment cannot be read") from error

    @app.post("/verify")
    async def verify(request: Request) -> Response:
        verdict = await ask(official.verify, await _asked(request))
        if not verdict.is_valid:
            await _need_chain(node)
        return _answer(verdict)

    @app.post("/settle")
    async def settle(request: Request) -> Response:
        asked = await _asked(request)
        settled = await settlements.once(asked.fingerprint, lambda: ask(official.settle, asked))
        if not settled.success and not settled.transaction:
            await _need_chain(node)
        return _answer(settled)

    @app.get("/supported")
    async def supported() -> Response:
        return _answer(official.get_supported())

    @app.get("/health")
    async def health() -> dict[str, str]:
        await _need_chain(node)
        return {"status": "ok", "network": network, "signer": signer.address}

    return app


class Settlements:
    """Answers by fingerprint: one settlement for all who ask at once, and its success kept for those who ask later."""

    def __init__(self) -> None:
        self._settled: OrderedDict[bytes, Any] = OrderedDict()
        self._running: dict[bytes, asyncio.Task[Any]] = {}

    async def once(self, fingerprint: bytes, settle: Callable[[], Any]) -> Any:
        """Return the settlement under `fingerprint`, made by `settle` unless it was or is being made."""
        if fingerprint in self._settled:
            return self._settled[fingerprint]
        task = self._running.get(fingerprint)
        if task is None:
            task = asyncio.create_task(settle())
            self._running[fingerprint] = task
            task.add_done_callback(lambda done: self._keep(fingerprint, done))
        # An asker who leaves does not stop a settlement that may already be on its way.
        return await asyncio.shield(task)

    def _keep(self, fingerprint: bytes, done: "asyncio.Task[Any]") -> None:
        del self._running[fingerprint]
        if done.cancelled() or done.exception() is not None or not done.result().success:
            return
        self._settled[fingerprint] = done.result()
        if len(self._settled) > ANSWERS_MAX:
            self._settled.popitem(last=False)


async def _asked(request: Request) -> Asked:
    """Return what a request asks for. Raises Refused."""
    from x402.schemas import PaymentPayload, PaymentPayloadV1, PaymentRequirements, PaymentRequirementsV1

    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > BODY_BYTES_MAX:
            raise Refused("body_too_large", f"a body has at most {BODY_BYTES_MAX} bytes")
    try:
        sent = decimal_json.loads(bytes(body))
        first_version = sent["paymentPayload"]["x402Version"] == 1
        payload, requirements = sent["paymentPayload"], sent["paymentRequirements"]
        fingerprint = hashlib.sha256(decimal_json.dumps([payload, requirements], sort_keys=True)).digest()
        if first_version:
            return Asked(
                PaymentPayloadV1.model_validate(payload),
                PaymentRequirementsV1.model_validate(requirements),
                fingerprint,
            )
        return Asked(
            PaymentPayload.model_validate(payload), PaymentRequirements.model_validate(requirements), fingerprint
        )
    except (KeyError, TypeError, ValueError):
        raise Refused("payment_malformed", "the body is not paymentPayload and paymentRequirements of x402") from None


async def _need_chain(node: Rpc) -> None:
    """Raises Refused when the chain does not answer: then nothing can be said of any payment."""
    try:
        await node.call("eth_chainId")
    except ChainError as error:
        _LOG.warning("%s", error)
        raise Refused("chain_unavailable", "the chain does not answer") from None


def _answer(body: Any) -> Response:
    """Return `body` but for the package's messages, which quote what libraries said of the node; its codes stay."""
    content = body.model_dump_json(by_alias=True, exclude_none=True, exclude={"invalid_message", "error_message"})
    return Response(content, media_type="application/json")
