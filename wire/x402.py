"""
x402 version 2: the objects and the codecs of its headers. Nothing here signs, sends or trusts.

Amounts are decimal strings of atomic units, as the protocol has them.
Source: x402 specification v2, transports-v2/http.md and schemes/exact (EVM, EIP-3009).
"""

import base64
import binascii
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, Field, StringConstraints, ValidationError

from wire.model import Body, Entries, Many, first_error

PAYMENT_REQUIRED = "PAYMENT-REQUIRED"
PAYMENT_SIGNATURE = "PAYMENT-SIGNATURE"
PAYMENT_RESPONSE = "PAYMENT-RESPONSE"
PAYMENT_IDENTIFIER = "payment-identifier"

# A server in the wild fails above 3.0 kB of PAYMENT-REQUIRED; no honest header comes near 16 KiB.
HEADER_BYTES_MAX = 16 * 1024


def _uint256(text: str) -> str:
    if int(text) >= 2**256:
        raise ValueError("an amount fits in a uint256")
    return text


Address = Annotated[str, StringConstraints(pattern=r"^0x[0-9a-fA-F]{40}$")]
Bytes32 = Annotated[str, StringConstraints(pattern=r"^0x[0-9a-fA-F]{64}$")]
Atomic = Annotated[str, StringConstraints(pattern=r"^(0|[1-9][0-9]{0,77})$"), AfterValidator(_uint256)]
Network = Annotated[str, StringConstraints(pattern=r"^[-a-z0-9]{3,8}:[-_a-zA-Z0-9]{1,32}$")]
PaymentIdentifier = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{16,128}$")]
BodyT = TypeVar("BodyT", bound=Body)

_IDENTIFIER = re.compile(r"[A-Za-z0-9_-]{16,128}")


class HeaderError(ValueError):
    """A payment header that is too large, not base64, not JSON, or not the object it should be."""


class ResourceInfo(Body):
    url: str
    description: str | None = None
    mime_type: str | None = None


class PaymentRequirements(Body):
    """One way to pay: `amount` atomic units of `asset` on `network` to `pay_to`."""

    scheme: str
    network: Network
    asset: str
    amount: Atomic
    pay_to: str
    max_timeout_seconds: int = Field(ge=1)
    extra: Entries[Any] = Field(default_factory=dict)


class PaymentRequired(Body):
    """The body of the PAYMENT-REQUIRED header that comes with a 402."""

    x402_version: Literal[2] = Field(2, alias="x402Version")
    error: str | None = None
    resource: ResourceInfo | None = None
    accepts: Many[PaymentRequirements]
    extensions: Entries[Any] | None = None


class Authorization(Body):
    """The EIP-3009 message: who pays whom how much, within which seconds, under which nonce."""

    from_: Address = Field(alias="from")
    to: Address
    value: Atomic
    valid_after: Atomic
    valid_before: Atomic
    nonce: Bytes32


class ExactPayload(Body):
    signature: Annotated[str, StringConstraints(pattern=r"^0x([0-9a-fA-F]{2})+$")]
    authorization: Authorization


class PaymentPayload(Body):
    """The body of the PAYMENT-SIGNATURE header: the requirements chosen and the signed authorization."""

    x402_version: Literal[2] = Field(2, alias="x402Version")
    resource: ResourceInfo | None = None
    accepted: PaymentRequirements
    payload: ExactPayload
    extensions: Entries[Any] | None = None


class VerifyResponse(Body):
    is_valid: bool
    invalid_reason: str | None = None
    payer: str | None = None


class SettleResponse(Body):
    """What a facilitator, and in PAYMENT-RESPONSE a seller, says of a settlement. A claim, not a proof."""

    success: bool
    error_reason: str | None = None
    payer: str | None = None
    transaction: str = ""
    network: str = ""
    amount: str | None = None


def encode_header(body: Body) -> str:
    """Return `body` as the base64 text of its header."""
    return base64.b64encode(body.to_json()).decode("ascii")


def decode_header(kind: type[BodyT], text: str) -> BodyT:
    """
    Return the `kind` in a header's base64 text.

    Raises:
        HeaderError: larger than HEADER_BYTES_MAX, not base64, not JSON, or not a `kind`.
    """
    if len(text) > HEADER_BYTES_MAX:
        raise HeaderError(f"the header is larger than {HEADER_BYTES_MAX} bytes")
    try:
        return kind.from_json(base64.b64decode(text, validate=True))
    except binascii.Error:
        raise HeaderError("the header is not base64") from None
    except ValidationError as error:
        raise HeaderError(first_error(error, "the header")) from None
    except ValueError as error:
        raise HeaderError(f"the header is not JSON: {error}") from None


def declare_payment_identifier(*, required: bool = False) -> dict[str, Any]:
    """Return the `extensions` of a 402 that asks the payer for a payment identifier."""
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "properties": {
            "required": {"type": "boolean"},
            "id": {"type": "string", "minLength": 16, "maxLength": 128, "pattern": "^[a-zA-Z0-9_-]+$"},
        },
        "required": ["required"],
    }
    return {PAYMENT_IDENTIFIER: {"info": {"required": required}, "schema": schema}}


def with_payment_identifier(extensions: Mapping[str, Any] | None, identifier: str) -> dict[str, Any] | None:
    """
    Return the `extensions` a payer sends back: the server's own, plus its id where the server asked for one.

    A server compares what it declared with what comes back, so nothing is dropped or changed.
    """
    if not extensions:
        return None
    asked = extensions.get(PAYMENT_IDENTIFIER)
    if not isinstance(asked, dict) or not isinstance(asked.get("info"), dict):
        return dict(extensions)
    return {**extensions, PAYMENT_IDENTIFIER: {**asked, "info": {**asked["info"], "id": identifier}}}


def payment_identifier(extensions: Mapping[str, Any] | None) -> str | None:
    """
    Return the payer's payment identifier, None where there is none.

    Raises:
        HeaderError: one is there and is not 16-128 of `[A-Za-z0-9_-]`.
    """
    declared = (extensions or {}).get(PAYMENT_IDENTIFIER)
    if not isinstance(declared, dict) or not isinstance(declared.get("info"), dict):
        return None
    identifier = declared["info"].get("id")
    if identifier is None:
        return None
    if not isinstance(identifier, str) or not _IDENTIFIER.fullmatch(identifier):
        raise HeaderError("payment-identifier: an id is 16-128 of [A-Za-z0-9_-]")
    return identifier
