"""Credit over HTTP: bought with a payment by anybody, read and sent back to its payer with a key."""

import hashlib
import secrets
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from cashier.core.credit import Account, withdrawal
from cashier.core.errors import CashierError, RefundRefused
from cashier.core.model import Sale
from gpu_worker.core.inference.callers import Caller, Refusal
from gpu_worker.edges.http.openai_body import read_body
from gpu_worker.edges.http.openai_errors import RefusedRequest
from gpu_worker.edges.http.openai_gate import caller_of
from gpu_worker.edges.http.paid_door import PaidDoor, told
from inbound.web import JsonReply
from wire.credits import (
    CREDITS_PATH,
    WITHDRAW_PATH,
    AccountReply,
    CreditsReply,
    CreditsRequest,
    WithdrawReply,
    WithdrawRequest,
)
from wire.model import first_error
from wire.money import MoneyError, to_atomic
from wire.openai import Refused
from wire.problems import PROBLEMS

NO_STORE = {"cache-control": "no-store"}
IDEMPOTENCY_KEY_CHARS_MAX = 128
# A purchase is written down before it is paid.
BODY_BYTES_MAX = 4_096


def routes() -> list[Route]:
    return [
        Route(CREDITS_PATH, buy, methods=["POST"]),
        Route(CREDITS_PATH, read, methods=["GET"]),
        Route(WITHDRAW_PATH, withdraw, methods=["POST"]),
    ]


async def buy(request: Request) -> Response:
    """Sell credit to whoever pays, and tell the key to it once."""
    paid: PaidDoor = request.app.state.paid
    body = await read_body(request, BODY_BYTES_MAX)
    amount = _amount(paid, _read(CreditsRequest, body).amount)
    found: Caller | Refusal = request.state.admitted
    account = found.id if isinstance(found, Caller) and found.kind == "key" else None
    keys: list[str] = []

    async def start(sale: Sale) -> Mapping[str, Any]:
        return (await paid.give_credit(sale, keys, account)).document()

    await paid.billing.ready()
    unit = paid.billing.prices.asset.symbol
    answer = await paid.charge(request, body, amount, f"{paid.billing.prices.decimal(amount)} {unit} of credit", start)
    reply = told(answer)
    if answer.status == 200 and keys:
        # What is kept of the answer has no key in it: once settled, all of a payment's header is public.
        reply.body = CreditsReply.from_json(answer.body).model_copy(update={"key": keys[-1]}).to_json()
        reply.headers["content-length"] = str(len(reply.body))
    return reply


async def read(request: Request) -> Response:
    """Tell of the account of the key that was sent."""
    paid: PaidDoor = request.app.state.paid
    account = await _account(request, paid)
    money, asset = paid.billing.prices.decimal, paid.billing.prices.asset
    reply = AccountReply(
        account=account.name,
        available=money(account.available),
        held=money(account.held),
        spent=money(account.spent),
        withdrawn=money(account.withdrawn),
        deposited=money(account.deposited),
        is_free=account.is_free,
        currency=asset.symbol,
        asset=asset.address,
        network=asset.network,
    )
    return JsonReply(reply, headers=NO_STORE)


async def withdraw(request: Request) -> Response:
    """Send credit back to the address that paid it, whoever shows the key."""
    paid: PaidDoor = request.app.state.paid
    account = await _account(request, paid)
    wanted = _read(WithdrawRequest, await read_body(request, BODY_BYTES_MAX)).amount
    amount = None if wanted is None else _amount(paid, wanted)
    key, prices, transaction = _withdrawal(account, request.headers.get("idempotency-key")), paid.billing.prices, None
    try:
        amount, transaction = await paid.cashier.withdraw(
            withdrawal(key, account.name, paid.pay_to, amount), paid.least_atomic
        )
    except RefundRefused as error:
        raise RefusedRequest(Refused(str(error), code=error.code), PROBLEMS[error.code].status) from None
    except CashierError:
        # It is stored and will be sent.
        amount = (await paid.cashier.desk.till.read_refund(key)).amount_atomic
    reply = WithdrawReply(
        account=account.name, amount=prices.decimal(amount), currency=prices.asset.symbol, transaction=transaction
    )
    return JsonReply(reply, 200 if transaction else 202, headers=NO_STORE)


async def _account(request: Request, paid: PaidDoor) -> Account:
    caller = request.state.admitted
    account = None
    if isinstance(caller, Caller) and caller.kind == "key":
        account = await paid.billing.book.account(caller.id)
    elif isinstance(caller, Caller):
        caller_of(request)
    if account is None:
        raise RefusedRequest(Refused("send the key that the credit is used with", code="invalid_api_key"), 401)
    return account


def _withdrawal(account: Account, idempotency_key: str | None) -> str:
    """Return the name of a withdrawal: the same for the same key of the client's, within its account."""
    if idempotency_key is None:
        return f"withdraw_{secrets.token_hex(12)}"
    if len(idempotency_key) > IDEMPOTENCY_KEY_CHARS_MAX:
        raise RefusedRequest(Refused(f"Idempotency-Key: at most {IDEMPOTENCY_KEY_CHARS_MAX} characters"))
    return f"withdraw_{hashlib.sha256(f'{account.name}:{idempotency_key}'.encode()).hexdigest()}"


def _read(kind: type[Any], body: bytes) -> Any:
    try:
        return kind.from_json(body or b"{}")
    except ValidationError as error:
        raise RefusedRequest(Refused(first_error(error, "the body"))) from None
    except ValueError:
        raise RefusedRequest(Refused("the body is not one JSON object")) from None


def _amount(paid: PaidDoor, value: Any) -> int:
    prices = paid.billing.prices
    try:
        amount = to_atomic(value, prices.asset)
    except MoneyError as error:
        raise RefusedRequest(Refused(f"amount: {error}", "amount", error.code)) from None
    if amount < paid.least_atomic:
        least = f"{prices.decimal(paid.least_atomic)} {prices.asset.symbol}"
        raise RefusedRequest(Refused(f"amount: at least {least}", "amount", "credit_too_small"))
    return amount
