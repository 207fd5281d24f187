"""
Single answers and credit, sold to whoever pays: no account, no key, one payment with the request.

Rule 1: the most that an answer may cost is paid before it is made; what it did not cost is the payer's credit.
Rule 2: a payment buys one answer. Sent again it gets the same one, or goes on where nothing was made of it.
Rule 3: who has paid is never told to try again by paying again: `x-should-retry: false`.

Sources: x402 specification v2 and v1; draft-ietf-httpauth-payment; the headers that OpenAI's clients obey.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.responses import Response

from cashier.core import answers
from cashier.core.credit import Deposit, Hindrance, Hold
from cashier.core.model import Answer, PaidRequest, Price, Sale
from cashier.credit import give_key
from cashier.ports import Admit
from cashier.wiring import Cashier
from gpu_worker.core.inference.callers import Caller
from gpu_worker.core.inference.codes import CODES, InferenceError
from gpu_worker.edges.http import openai_errors as errors
from gpu_worker.edges.http.kept_answers import KeptAnswers, KeptReply
from gpu_worker.inference.text.engine import Ask
from gpu_worker.inference.text.paying import Bill, Billing, Payer
from gpu_worker.inference.text.service import Service
from gpu_worker.inference.text.turns import Turns
from storage.errors import StorageError
from wire import decimal_json
from wire import openai_answers as openai
from wire.credits import CREDITS_PATH, CreditsReply, CreditsRequest
from wire.money import Amount
from wire.openai import ChatRequest, CompletionRequest, Refused
from wire.problems import PROBLEMS

COUNTER = "inference"
# How long a settlement is waited for before its payer is told to ask again.
PENDING_S = 30.0
# Credit of a payer without a key goes back after so long without a request, so that one transfer ends a conversation.
IDLE_S = 30
LOOK_S = 15.0
# Who has not paid yet has its prompt counted all the same, for the price: a few at a time, before a short queue.
PRICED_AT_ONCE = 2
PRICES_WAITING = 32
PRICE_WAIT_S = 10.0
# Rounds until a payment that was busy is told to be: it ends as fast as its answer, each of them is one.
ROUNDS_MAX = 8
_LOG = logging.getLogger("livery.gpu_worker.paying")
NO_RETRY = {"x-should-retry": "false"}

Serve = Callable[[Caller], Awaitable[Response]]


class PaidDoor:
    """
    Sells answers of `service` and credit.

    Args:
        cashier: takes the payments; they are this counter's own.
        pay_to: who is paid, and pays back.
        least_atomic: the least that is transferred.
        admit: why nothing is sold to a payer, None where it may buy.
    """

    def __init__(
        self,
        service: Service,
        billing: Billing,
        cashier: Cashier,
        pay_to: str,
        least_atomic: int,
        admit: Admit | None = None,
    ) -> None:
        self.service, self.billing = service, billing
        self.pay_to, self.least_atomic = pay_to, least_atomic
        self.cashier = cashier.at(COUNTER)
        self._admit = admit
        self._kept = KeptAnswers(service.monotonic)
        self._pricing = Turns(PRICED_AT_ONCE, PRICES_WAITING, PRICE_WAIT_S)

    async def keep(self, look_s: float = LOOK_S) -> None:
        """End what was left in the middle of being paid, then send credit back for ever, whatever the database does."""
        has_recovered = False
        while True:
            try:
                await self.billing.ready()
                if not has_recovered:
                    await self.cashier.recover(self._start)
                    has_recovered = True
                await self.cashier.pay_back(self.pay_to, self.least_atomic, IDLE_S)
            except StorageError as error:
                _LOG.warning("the book of credit cannot be read: %s", error)
            await asyncio.sleep(look_s)

    async def sell(
        self,
        request: Request,
        body: bytes,
        asked: ChatRequest | CompletionRequest,
        tokens_usual: int | None,
        serve: Serve,
    ) -> Response:
        """
        Return the answer that `serve` makes for who has paid for it, or what is to be paid.

        Raises:
            InferenceError: it is refused, and nothing was charged.
        """
        await self.billing.ready()
        most_atomic, what = await self._price(asked, tokens_usual)
        paid = await self.charge(request, body, most_atomic, what, self._start, keeps_body=False)
        if paid.status != 200:
            return told(paid)
        sold = decimal_json.loads(paid.body)
        hold = await self._begun(sold["paymentId"])
        headers = {**_settlement(paid), **NO_RETRY}
        if isinstance(hold, Response):
            return hold
        if isinstance(hold, str):
            return _gone(hold, headers)
        bill = Bill(self.billing, hold, lambda: len(body))
        return await self._serve(hold.id, Payer(kind="paid", id=sold["payer"], bill=bill), headers, request, serve)

    async def charge(
        self,
        request: Request,
        body: bytes,
        amount_atomic: int,
        what: str,
        start: Callable[[Sale], Awaitable[Mapping[str, Any]]],
        *,
        keeps_body: bool = True,
    ) -> Answer:
        """Return the cashier's answer; one that is being settled is waited for."""
        asset = self.billing.prices.asset
        price = Price(amount=Amount(amount_atomic, asset.address, asset.network), pay_to=self.pay_to, description=what)
        sent = PaidRequest(
            method=request.method,
            url=str(request.url),
            headers=dict(request.headers),
            body=body,
            keeps_body=keeps_body,
        )
        until_s = time.monotonic() + PENDING_S
        while True:
            answer = await self.cashier.charge(sent, price, self._has_room, start, self._admit)
            if answer.status != 202 or time.monotonic() > until_s:
                return answer
            await asyncio.sleep(answers.RETRY_AFTER_S)

    async def _price(self, asked: ChatRequest | CompletionRequest, tokens_usual: int | None) -> tuple[int, str]:
        """Return what the request costs at most, and what that buys. Raises InferenceError: it would be refused."""
        engine, card = self.service.answering(), self.service.card(asked.model)
        ask = Ask(request=asked, model=card.name, session="", tokens_usual=tokens_usual)
        turn = await self._pricing.enter()
        try:
            most = await self.billing.most(engine, card, ask, self.service.context_overflow)
        finally:
            turn.leave()
        cost = self.billing.prices.cost_atomic(most.prompt_tokens, most.tokens)
        # A token is sold for a unit at least: a cheque over nothing cannot be signed.
        return max(1, cost), f"{card.name[:40]}: at most {most.prompt_tokens} + {most.tokens} tokens"

    async def _has_room(self, reserved: int) -> bool | Answer:
        try:
            self.service.answering()
        except InferenceError as error:
            return answers.problem(error.code, str(error))
        return self.service.turns.room > reserved

    async def _start(self, sale: Sale) -> dict[str, Any]:
        """Put a payment on its payer's account, for its request to begin on; credit is bought besides."""
        if urlsplit(sale.url).path == CREDITS_PATH:
            return (await self.give_credit(sale)).document()
        deposit = Deposit(payment_id=sale.payment_id, account=sale.payer, amount_atomic=sale.amount.atomic)
        await self.billing.book.deposit(deposit, self.billing.now_s(), holds=True)
        return {"paymentId": sale.payment_id, "payer": sale.payer}

    async def give_credit(self, sale: Sale, told: list[str] | None = None, account: str | None = None) -> CreditsReply:
        """
        Return what a payment bought. The key comes first: without one the credit would go back.

        Args:
            told: gets the key, where one is made; None: nobody could be told of it, so none is.
            account: whose key came with the payment; the same account needs no other.
        """
        asked, book, now_s = CreditsRequest.from_json(sale.body), self.billing.book, self.billing.now_s()
        key = None
        if account != sale.payer and (told is not None or asked.key_sha256 is not None):
            key, secret = await give_key(book, sale.payer, now_s, asked.key_sha256)
            if secret is not None and told is not None:
                told.append(secret)
        deposit = Deposit(payment_id=sale.payment_id, account=sale.payer, amount_atomic=sale.amount.atomic)
        await book.deposit(deposit, now_s)
        prices = self.billing.prices
        return CreditsReply(
            account=sale.payer,
            amount=prices.decimal(sale.amount.atomic),
            currency=prices.asset.symbol,
            key_id=None if key is None else key.id,
        )

    async def _begun(self, payment_id: str) -> Hold | Hindrance | Response:
        """Return what the request runs on, the answer that the payment got before, or why there is neither."""
        for _ in range(ROUNDS_MAX):
            begun = await self.billing.book.begin(payment_id, self.billing.now_s())
            if isinstance(begun, Hold) or begun == "short":
                return begun
            kept = await self._kept.find(payment_id)
            if kept is not None or begun == "spent":
                return kept or begun
        return "busy"

    async def _serve(
        self, payment_id: str, payer: Payer, headers: Mapping[str, str], request: Request, serve: Serve
    ) -> Response:
        kept = self._kept.begin(payment_id)
        end = partial(self._kept.end, payment_id, kept)
        try:
            reply = await serve(payer)
        except BaseException as error:
            end()
            # Where nothing was made of it all is credit, or the next one's who brings this payment. That one may be
            # here: what has ended is not ended again.
            await payer.bill.settle()
            if not isinstance(error, InferenceError):
                raise
            reply = await errors.refuse_inference(request, error)
            reply.headers.update(headers)
            return reply
        return KeptReply(reply, headers, kept, end)


def told(answer: Answer) -> Response:
    """
    Return the cashier's answer in OpenAI's words. What is to be paid is told in the words of each dialect, and what is
    being settled in the cashier's own.
    """
    headers = {**answer.headers, **NO_RETRY}
    if answer.status in (200, 202, 402):
        return Response(answer.body, answer.status, headers)
    problem = decimal_json.loads(answer.body)
    code = CODES.get(problem["code"])
    status = answer.status if code is None else code.http
    kind = "invalid_request_error" if status < 500 else "server_error"
    body = openai.error(problem["detail"], kind if code is None else code.openai, code=problem["code"])
    del headers["content-type"]
    return errors.OpenAiReply(body, status, headers)


def _settlement(answer: Answer) -> dict[str, str]:
    """Return the headers that tell of the settlement."""
    return {name: value for name, value in answer.headers.items() if name not in ("content-type", "cache-control")}


_GONE: dict[Hindrance, str] = {
    "spent": "this payment bought an answer that is not kept any more; what it did not cost is credit",
    "short": "nothing was made of this payment, and it was paid back",
    "busy": "this payment's answer is being made elsewhere",
}


def _gone(why: Hindrance, headers: Mapping[str, str]) -> Response:
    code = "no_capacity" if why == "busy" else "answer_gone"
    status = CODES[code].http if code in CODES else PROBLEMS[code].status
    return errors.refusal(Refused(_GONE[why], code=code), status, headers)
