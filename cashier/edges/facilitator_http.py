"""
A facilitator over HTTP: POST /verify and POST /settle.

Its word is believed where it is whole: a success names a transaction, our network and the payer that signed.
Anything else is no answer, and a settlement without an answer is pending: it may be on its way to the chain.
Source: x402 specification v2, section 7 (facilitator interface).
"""

import logging
import re
from collections.abc import Mapping
from typing import Any, TypeVar

from cashier.core.errors import FacilitatorUnavailable
from cashier.ports import Declined, Pending, Settled, Verdict
from outbound.http import HttpClient, OutboundError
from wire import decimal_json
from wire.model import Body
from wire.x402 import PaymentRequirements, SettleResponse, VerifyResponse

VERIFY_TIMEOUT_S = 15.0
# A facilitator that cannot read a payment refuses it so; at /verify nothing was sent yet.
UNREADABLE = (400, 422)
# Longer than a facilitator waits for a block; after that nobody knows.
SETTLE_TIMEOUT_S = 60.0
ANSWER_BYTES_MAX = 64 * 1024
SETTLEMENT_PENDING = "settlement_pending"
REASON_CHARS_MAX = 200

# Refusals of the cheque itself. Others ("transaction_failed", "unexpected_settle_error") are said of a transaction
# that was handed to a node as well, even where its hash is missing; of a used nonce only the chain knows for what.
_UNSENT = re.compile(r"(?!.*(nonce|transaction))(invalid|insufficient|unsupported)_[a-z0-9_]*")
_CODE = re.compile(r"[A-Za-z0-9_-]+")
_LOG = logging.getLogger("livery.cashier")
_TRANSACTION = re.compile(r"0x[0-9a-fA-F]{64}")
BodyT = TypeVar("BodyT", bound=Body)


class HttpFacilitator:
    """Implements `cashier.ports.Facilitator`. `settle_s` is how long a settlement is waited for."""

    def __init__(self, url: str, http: HttpClient, *, settle_s: float = SETTLE_TIMEOUT_S) -> None:
        self._url = url.rstrip("/")
        self._http = http
        self._settle_s = settle_s

    async def verify(self, payload: Mapping[str, Any], asked: PaymentRequirements) -> Verdict:
        status, content = await self._call("verify", payload, asked, VERIFY_TIMEOUT_S)
        reply = _read(VerifyResponse, content)
        if reply is None and status in UNREADABLE:
            return Verdict("the facilitator cannot read the payment")
        if reply is None:
            raise FacilitatorUnavailable(f"the facilitator answered verify with {status} and nothing of the protocol")
        if not reply.is_valid:
            return Verdict(_reason(reply.invalid_reason))
        if status != 200:
            raise FacilitatorUnavailable(f"the facilitator said valid with status {status}")
        return Verdict()

    async def settle(self, payload: Mapping[str, Any], asked: PaymentRequirements) -> Settled | Pending | Declined:
        try:
            status, content = await self._call("settle", payload, asked, self._settle_s)
        except FacilitatorUnavailable as error:
            if isinstance(error.__cause__, OutboundError) and not error.__cause__.sent:
                raise
            _LOG.warning("a settlement without an answer: %s", error)
            return Pending()
        reply = _read(SettleResponse, content)
        if reply is None:
            _LOG.warning("the facilitator answered settle with %s and nothing of the protocol", status)
            return Pending()
        if reply.error_reason == SETTLEMENT_PENDING:
            return Pending(reply.transaction if _TRANSACTION.fullmatch(reply.transaction) else None)
        if not reply.success:
            reason = reply.error_reason or ""
            return Declined(_reason(reason), unsent=not reply.transaction and _UNSENT.fullmatch(reason) is not None)
        signer = str(payload["payload"]["authorization"]["from"]).lower()
        whole = (
            status == 200
            and _TRANSACTION.fullmatch(reply.transaction)
            and reply.network == asked.network
            and (reply.payer or signer).lower() == signer
        )
        if not whole:
            _LOG.warning("the facilitator claims a settlement that is not ours")
            return Pending()
        return Settled(reply.transaction)

    async def _call(
        self, verb: str, payload: Mapping[str, Any], asked: PaymentRequirements, timeout_s: float
    ) -> tuple[int, bytes]:
        document = {"x402Version": 2, "paymentPayload": dict(payload), "paymentRequirements": asked.document()}
        try:
            reply = await self._http.request(
                "POST",
                f"{self._url}/{verb}",
                headers={"content-type": "application/json", "accept": "application/json"},
                content=decimal_json.dumps(document),
                timeout_s=timeout_s,
                body_bytes_max=ANSWER_BYTES_MAX,
            )
        except OutboundError as error:
            raise FacilitatorUnavailable(f"the facilitator does not answer {verb}: {type(error).__name__}") from error
        if reply.status >= 500:
            raise FacilitatorUnavailable(f"the facilitator answered {verb} with {reply.status}")
        return reply.status, reply.content


def _read(kind: type[BodyT], content: bytes) -> BodyT | None:
    try:
        return kind.from_json(content)
    except ValueError:
        return None


def _reason(text: str | None) -> str:
    """Return the facilitator's code for a refusal; what is no code is not repeated to a payer."""
    return text[:REASON_CHARS_MAX] if text and _CODE.fullmatch(text) else "refused"
