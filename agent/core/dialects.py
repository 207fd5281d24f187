"""
The dialects of x402 that the agent speaks: how each reads a 402, writes a payment and tells a settlement.

A 402 is read into version 2's words, whatever it was written in, and policy judges those; what is sent back are the
seller's own words, because sellers compare. It is paid in the first dialect of DIALECTS whose offer policy allows.
Source: x402 specifications v1 and v2, transports-v1/http.md and transports-v2/http.md.
"""

import base64
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Any, TypeVar

from pydantic import ValidationError

from agent.core.errors import VendorGarbled, VendorUnpayable
from agent.core.model import Dialect
from agent.core.quirks import (
    PROOF_HEADERS,
    amounts_as_text,
    header_json,
    network_as_id,
    network_as_name,
    version_as_text,
)
from wire import decimal_json
from wire.model import ITEMS_MAX, Body, first_error
from wire.x402 import (
    HEADER_BYTES_MAX,
    PAYMENT_REQUIRED,
    PAYMENT_RESPONSE,
    PAYMENT_SIGNATURE,
    HeaderError,
    PaymentPayload,
    PaymentRequired,
    PaymentRequirements,
    SettleResponse,
)
from wire.x402_v1 import (
    NETWORK_NAMES,
    X_PAYMENT,
    X_PAYMENT_RESPONSE,
    PaymentRequiredV1,
    RequirementsV1,
    payment_v1,
    required_v2,
)

# Sellers of version 1 that write their 402 into a header use this name: open-wallet-standard/core#140.
X_PAYMENT_REQUIRED = "X-PAYMENT-REQUIRED"

BODY_BYTES_MAX = 64 * 1024
# What is said back travels in a header of HEADER_BYTES_MAX, as base64, with the cheque.
ECHO_BYTES_MAX = HEADER_BYTES_MAX * 3 // 4

BodyT = TypeVar("BodyT", bound=Body)
_Quirk = Callable[[Mapping[str, Any]], dict[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Challenge:
    """What a 402 asks, in version 2's words, and the dialect it was asked in; `said[i]` are the seller's own words for
    `required.accepts[i]`."""

    required: PaymentRequired
    dialect: Dialect
    said: tuple[Mapping[str, Any], ...]

    def words_for(self, chosen: PaymentRequirements) -> Mapping[str, Any]:
        """Return the seller's own words for `chosen`, one of `required.accepts`."""
        pairs = zip(self.required.accepts, self.said, strict=True)
        return next(said for offer, said in pairs if offer == chosen)


@dataclass(frozen=True, slots=True, kw_only=True)
class Speech:
    """One dialect: the version its 402 says, the headers of payment and settlement, and how both ways are spelt."""

    version: int
    payment: str
    settlement: str
    read: Callable[[Dialect, Mapping[str, Any]], Challenge]
    write: Callable[[PaymentPayload, Mapping[str, Any]], dict[str, Any]]


def read_challenges(headers: Mapping[str, str], body: bytes) -> tuple[Challenge, ...]:
    """
    Return what a 402 asks, at least one, in DIALECTS' order. `headers` have lower-case names.

    Raises:
        VendorUnpayable: it wants proof of a transfer made first.
        VendorGarbled: no dialect can read it.
    """
    challenges: list[Challenge] = []
    complaints: list[str] = []
    found = list(_found(headers, body, complaints))
    for dialect, speech in DIALECTS.items():
        for place, said in found:
            if _version(said) != speech.version:
                continue
            try:
                challenges.append(speech.read(dialect, said))
            except ValidationError as error:
                complaints.append(f"{dialect}: {place}: {first_error(error)}")
            except HeaderError as error:
                complaints.append(f"{dialect}: {place}: {error}")
    if challenges:
        return tuple(challenges)
    if wanted := _proof_wanted(headers, body):
        raise VendorUnpayable(f"the 402 wants {wanted}, the hash of a transfer made before the job is bound")
    complaints += [f"{place}: x402Version is not 2 or 1" for place, said in found if _version(said) not in _VERSIONS]
    raise VendorGarbled("; ".join(complaints) or "neither headers nor body hold x402")


def write_payment(challenge: Challenge, payment: PaymentPayload) -> str:
    """Return the value of the header that pays `challenge`: the same bytes for the same payment."""
    document = DIALECTS[challenge.dialect].write(payment, challenge.words_for(payment.accepted))
    return base64.b64encode(decimal_json.dumps(document)).decode("ascii")


def settled_in(dialect: Dialect, headers: Mapping[str, str]) -> str | None:
    """Return the transaction that the seller says it settled in, None where it says none. A claim, not a proof."""
    try:
        text = _header_text(headers, DIALECTS[dialect].settlement)
        # Version 1 tells a settlement with the same members.
        return SettleResponse.from_json(header_json(text)).transaction or None
    except ValueError:
        return None


def _found(headers: Mapping[str, str], body: bytes, complaints: list[str]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the JSON objects that a 402 holds, with the place of each; what cannot be one becomes a complaint."""
    for name in (PAYMENT_REQUIRED, X_PAYMENT_REQUIRED):
        if name.lower() in headers:
            try:
                yield name, _object(header_json(_header_text(headers, name)))
            except ValueError as error:
                complaints.append(f"{name}: {error}")
    # Most bodies beside a header are `{}` or a page for people: nothing to complain of.
    if len(body) <= BODY_BYTES_MAX and body.lstrip().startswith(b"{"):
        try:
            yield "the body", _object(body)
        except ValueError as error:
            complaints.append(f"the body: {error}")


def _header_text(headers: Mapping[str, str], name: str) -> str:
    text = headers.get(name.lower(), "")
    if len(text) > HEADER_BYTES_MAX:
        raise HeaderError(f"the header is larger than {HEADER_BYTES_MAX} bytes")
    return text


def _object(text: bytes) -> Mapping[str, Any]:
    try:
        value = decimal_json.loads(text)
    except ValueError as error:
        raise HeaderError(f"not JSON: {error}") from None
    if not isinstance(value, dict):
        raise HeaderError("not a JSON object")
    return value


def _version(said: Mapping[str, Any]) -> int | None:
    version = said.get("x402Version")
    return version if type(version) is int else None


def _proof_wanted(headers: Mapping[str, str], body: bytes) -> str | None:
    """Return the header in which the 402 wants the hash of a transfer, None where it wants none."""
    told = "\n".join((*headers, *headers.values())).lower()
    page = body[:BODY_BYTES_MAX].decode("utf-8", "replace").lower()
    return next((name for name in PROOF_HEADERS if name in told or name in page), None)


def _read_each(
    said: Mapping[str, Any], kind: type[BodyT], quirks: tuple[_Quirk, ...], offer_bytes_max: int
) -> list[tuple[BodyT, Mapping[str, Any]]]:
    """
    Return the offers that are a `kind`, each with the seller's own words; a wrong one does not spoil the others.

    Source: x402-foundation/x402#3510, #2729.

    Raises:
        HeaderError: there is no list of offers, or every offer is wrong.
    """
    offers = said.get("accepts")
    if not isinstance(offers, list) or len(offers) > ITEMS_MAX:
        raise HeaderError(f"accepts: must be a list of at most {ITEMS_MAX}")
    kept: list[tuple[BodyT, Mapping[str, Any]]] = []
    wrong: list[str] = []
    for place, words in enumerate(offers):
        try:
            if not isinstance(words, dict) or len(decimal_json.dumps(words)) > offer_bytes_max:
                raise HeaderError(f"must be an object of at most {offer_bytes_max} bytes")
            proper = reduce(lambda offer, quirk: quirk(offer), quirks, words)
            kept.append((kind.model_validate(proper), words))
        except ValidationError as error:
            wrong.append(f"accepts.{place}.{first_error(error)}")
        except HeaderError as error:
            wrong.append(f"accepts.{place}: {error}")
    if wrong and not kept:
        raise HeaderError(wrong[0])
    return kept


def _read_v2(dialect: Dialect, said: Mapping[str, Any]) -> Challenge:
    beside = {name: said[name] for name in ("resource", "extensions") if name in said}
    left = ECHO_BYTES_MAX - len(decimal_json.dumps(beside))
    if left <= 0:
        raise HeaderError(f"resource and extensions are larger than {ECHO_BYTES_MAX} bytes")
    kept = _read_each(said, PaymentRequirements, (amounts_as_text, version_as_text, network_as_id), left)
    required = PaymentRequired.model_validate({**beside, "accepts": [offer for offer, _ in kept]})
    return Challenge(required=required, dialect=dialect, said=tuple(words for _, words in kept))


def _read_v1(dialect: Dialect, said: Mapping[str, Any]) -> Challenge:
    kept = [
        (offer, words)
        for offer, words in _read_each(
            said, RequirementsV1, (amounts_as_text, version_as_text, network_as_name), BODY_BYTES_MAX
        )
        if offer.network in NETWORK_NAMES.values()
    ]
    required = required_v2(PaymentRequiredV1(accepts=tuple(offer for offer, _ in kept)))
    return Challenge(required=required, dialect=dialect, said=tuple(words for _, words in kept))


def _write_v2(payment: PaymentPayload, words: Mapping[str, Any]) -> dict[str, Any]:
    return {**payment.document(), "accepted": dict(words)}


def _write_v1(payment: PaymentPayload, words: Mapping[str, Any]) -> dict[str, Any]:
    return {**payment_v1(payment).document(), "network": words["network"]}


DIALECTS: Mapping[Dialect, Speech] = {
    "x402-v2": Speech(
        version=2, payment=PAYMENT_SIGNATURE, settlement=PAYMENT_RESPONSE, read=_read_v2, write=_write_v2
    ),
    "x402-v1": Speech(version=1, payment=X_PAYMENT, settlement=X_PAYMENT_RESPONSE, read=_read_v1, write=_write_v1),
}
_VERSIONS = frozenset(speech.version for speech in DIALECTS.values())
