"""
What a request costs whoever pays for it: the most that it may come to is set aside before it is served, what was made
is charged at its end, the rest is credit again.

A request is charged for its prompt and for the tokens that were made, also where its client left. One that breaks off
by our fault costs nothing.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal

from cashier.core.credit import Hold, digest_of, is_address
from cashier.ports import CreditBook
from gpu_worker.core.inference.callers import Caller
from gpu_worker.core.inference.codes import InferenceError
from gpu_worker.core.inference.prices import UNBOUNDED_TOKENS, Bound, Prices, bound
from gpu_worker.inference.text.admission import KeyHolder
from gpu_worker.inference.text.engine import Ask, ModelCard, TextEngine
from gpu_worker.inference.text.fitting import Summed, overflow_of, summary_tokens, tokens_wanted
from gpu_worker.inference.text.token_engine import too_long
from wire.openai import Overflow

# Of text, about; for prompts whose tokens were not told.
BYTES_PER_TOKEN = 4
# Tokens that an engine may put around a text.
MARKS = 4
_LOG = logging.getLogger("livery.gpu_worker.paying")


@dataclass(frozen=True, slots=True, kw_only=True)
class Payer(Caller):
    """Who sent a payment with a request; all of it is set aside for `bill`, on which the request runs."""

    bill: "Bill"


class Billing:
    """
    Charges callers with a prepaid key and payers; all others cost their owner.

    `now_s` is Unix time.
    """

    def __init__(self, book: CreditBook, prices: Prices, now_s: Callable[[], int] = lambda: int(time.time())) -> None:
        self.book, self.prices, self.now_s = book, prices, now_s
        self._opening = asyncio.Lock()
        self._is_open = False

    async def ready(self) -> None:
        """End what ran when the worker last died, once, at no cost; before this nothing is set aside."""
        async with self._opening:
            if not self._is_open:
                if left := await self.book.release_all(self.now_s()):
                    _LOG.info("%d requests were not served to their end: they cost nothing", left)
                self._is_open = True

    async def most(self, engine: TextEngine, card: ModelCard, ask: Ask, overflow: Overflow) -> Bound:
        """
        Return what `ask` comes to at most.

        Raises:
            InferenceError: it would be refused: context_length_exceeded where `overflow` is error, or as `count`.
        """
        request, context = ask.request, card.context
        overflow = overflow_of(request, overflow)
        is_cut = overflow != "error"
        try:
            prompt = await engine.count(ask)
        except InferenceError as error:
            if not is_cut or error.code != "context_length_exceeded":
                raise
            prompt = None
        wanted = 1 if request.tokens_max is None else request.tokens_max
        if is_cut and context is not None:
            wanted = tokens_wanted(request, context)
        if prompt is not None and context is not None and prompt + wanted > context:
            if not is_cut:
                raise too_long(context, prompt, wanted)
            prompt = None
        most = bound(
            prompt_tokens=prompt,
            body_bytes=_bytes_of(ask),
            named=request.tokens_max,
            usual=ask.tokens_usual,
            context=context,
        )
        if overflow == "summarise" and prompt is None and context is not None:
            # What goes is read to be summed up, besides the chat that is left.
            return Bound(2 * most.prompt_tokens, most.tokens + summary_tokens(context))
        return most

    async def open(
        self, engine: TextEngine, card: ModelCard, ask: Ask, caller: Caller | None, overflow: Overflow = "error"
    ) -> "Bill | None":
        """
        Return the bill of a request that is to be served, None where nobody pays for it. It must be settled.

        Raises:
            InferenceError: payment_required, what the caller has left does not do; or as `most`.
        """
        if isinstance(caller, Payer):
            return caller.bill
        if caller is None or caller.kind != "key":
            return None
        most = await self.most(engine, card, ask, overflow)
        amount = self.prices.cost_atomic(most.prompt_tokens, most.tokens)
        return Bill(self, await self._hold(caller, ask.session, amount), lambda: _bytes_of(ask))

    async def open_reading(
        self, inputs: Sequence[str | tuple[int, ...]], session: str, caller: Caller
    ) -> "Bill | None":
        """Return the bill of a request that is only read, for embeddings. Raises as `open`."""
        if caller.kind != "key":
            return None
        # A token is of a byte at least, beside those that mark where a text begins and ends.
        lengths = (
            len(each.encode("utf-8", "surrogatepass")) if isinstance(each, str) else len(each) for each in inputs
        )
        most = sum(length + MARKS for length in lengths)
        return Bill(self, await self._hold(caller, session, self.prices.cost_atomic(most, 0)), lambda: most)

    async def _hold(self, caller: Caller, session: str, amount_atomic: int) -> Hold:
        """Return what is set aside of a key's account. Raises InferenceError payment_required."""
        await self.ready()
        # Whoever pays chooses its payment's id, which has no colon in it; that of a session was told to its client.
        wanted = Hold(id=f"key:{session}", account=caller.id, amount_atomic=amount_atomic)
        try:
            hold = await self.book.reserve(wanted, self.now_s())
        except asyncio.CancelledError:
            # Its client left; it may be set aside all the same.
            await self.book.end(wanted.id, 0, self.now_s())
            raise
        if hold is None:
            raise InferenceError("payment_required", await self._short(caller.id, amount_atomic))
        return hold

    async def _short(self, name: str, amount: int) -> str:
        account, unit = await self.book.account(name), self.prices.asset.symbol
        left = self.prices.decimal(0 if account is None else account.available)
        return (
            f"this request may cost {self.prices.decimal(amount)} {unit}, the key's credit has {left} {unit} left: "
            "ask for fewer tokens, or buy credit"
        )


def bounded(ask: Ask, card: ModelCard) -> Ask:
    """Return `ask` with a limit where nothing else limits it: what is paid for must have a most."""
    if ask.request.tokens_max is None and ask.tokens_usual is None and card.context is None:
        return replace(ask, tokens_usual=UNBOUNDED_TOKENS)
    return ask


class Bill:
    """
    What one request may cost, and at its end did; what was summed up for it is part of that.

    Args:
        prompt_bytes: tells how long its prompt is.
    """

    def __init__(self, billing: Billing, hold: Hold, prompt_bytes: Callable[[], int]) -> None:
        self._billing, self._hold, self._prompt_bytes = billing, hold, prompt_bytes
        self._is_settled = False
        self.summed = Summed()

    def cost_atomic(self, prompt_tokens: int, tokens: int) -> int:
        """
        Return the cost of what was made so far, never more than was set aside.

        An engine that tells of the prompt's tokens at the end alone reads them all the same, also for who leaves before
        the first token: where it told of none, they are guessed.
        """
        prompt_tokens = prompt_tokens or self._prompt_bytes() // BYTES_PER_TOKEN
        summed = self.summed
        cost = self._billing.prices.cost_atomic(prompt_tokens + summed.prompt_tokens, tokens + summed.tokens)
        return min(self._hold.amount_atomic, cost)

    @property
    def summed_atomic(self) -> int:
        """The cost of what was summed up alone."""
        cost = self._billing.prices.cost_atomic(self.summed.prompt_tokens, self.summed.tokens)
        return min(self._hold.amount_atomic, cost)

    def cost(self, prompt_tokens: int, tokens: int) -> Decimal:
        """Return the same in decimal units of the asset."""
        return self._billing.prices.decimal(self.cost_atomic(prompt_tokens, tokens))

    async def settle(self, cost_atomic: int = 0) -> None:
        """Charge it, and give the rest back. Idempotent."""
        if not self._is_settled:
            self._is_settled = True
            await self._billing.book.end(self._hold.id, cost_atomic, self._billing.now_s())


def _bytes_of(ask: Ask) -> int:
    """Return how long the request is as JSON, in UTF-8."""
    return len(ask.request.model_dump_json(exclude_none=True).encode("utf-8", "surrogatepass"))


class Keys:
    """Implements `admission.PrepaidKeys` by the book."""

    def __init__(self, book: CreditBook) -> None:
        self._book = book

    async def find(self, key: str) -> KeyHolder | None:
        found = await self._book.find_key(digest_of(key))
        if found is None or found.revoked_s is not None:
            return None
        return KeyHolder(found.account, found.id if is_address(found.account) else found.account)
