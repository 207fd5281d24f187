"""Who tries to have the model work for nothing: at one moment or another a request fails, leaves, or comes twice."""

import asyncio
from collections.abc import Sequence
from typing import Any

from gpu_worker.core.inference.codes import InferenceError
from gpu_worker.edges.http.paid_door import PRICED_AT_ONCE, PRICES_WAITING
from gpu_worker.inference.text.engine import Ask, Embedded
from gpu_worker.inference.text.paying import BYTES_PER_TOKEN
from gpu_worker.inference.text.token_engine import TokenEngine
from storage.errors import Unavailable
from tests.fixtures.talker import MODEL, ByteText, Talker
from tests.gpu_worker.paying.world import (
    ANSWER_ATOMIC,
    CHAT,
    MOST_ATOMIC,
    PROMPT_ATOMIC,
    SAYS,
    Selling,
    asked_in,
    error_of,
    until,
)

PATH = "/v1/chat/completions"
CONTEXT = 900


class Hasty:
    """A book at which the next request of a payment is there as soon as the one before has ended."""

    def __init__(self, book: Any) -> None:
        self._book = book
        self.begun: Any = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._book, name)

    async def end(self, hold_id: str, cost_atomic: int, now_s: int) -> int:
        ended: int = await self._book.end(hold_id, cost_atomic, now_s)
        if self.begun is None:
            self.begun = await self._book.begin(hold_id, now_s)
        return ended


async def test_a_request_that_failed_ends_no_other_one_of_its_payment(world: Selling) -> None:
    world.talker.refuses = InferenceError("no_route", "nobody has layers 2:4")
    door = world.door()
    door.billing.book = book = Hasty(door.billing.book)
    async with world.selling(door) as client:
        headers = await world.headers(client, PATH, CHAT)
        assert (await client.post(PATH, json=CHAT, headers=headers)).status_code == 503
        account = await door.billing.book.account(world.account)

    # The next one runs, and pays for what it is given.
    assert book.begun.state == "running"
    assert (account.held, account.available) == (MOST_ATOMIC, 0)


class Late(TokenEngine):
    """An engine that tells of nothing before the first token, which never comes."""

    asked = asyncio.Event()

    async def begin(self, ask: Ask) -> Any:
        self.asked.set()
        await asyncio.Event().wait()


async def test_who_leaves_while_the_prompt_is_read_pays_for_the_prompt(world: Selling) -> None:
    door = world.door()
    door.service.engine = engine = Late(MODEL, world.talker, ByteText())
    engine.asked = asyncio.Event()
    async with world.selling(door) as client:
        key = await world.give(door, MOST_ATOMIC)
        asking = asyncio.create_task(client.post(PATH, json=CHAT, headers={"authorization": f"Bearer {key}"}))
        await asyncio.wait_for(engine.asked.wait(), 10)
        asking.cancel()
        account = await until(lambda: door.billing.book.account(world.account), lambda found: found.held == 0)

    assert 0 < account.spent <= len(str(CHAT)) // BYTES_PER_TOKEN * PROMPT_ATOMIC
    assert account.available == MOST_ATOMIC - account.spent


def long_chat(**more: Any) -> dict[str, Any]:
    turns = [{"role": role, "content": "x" * 40} for _ in range(20) for role in ("user", "assistant")]
    return {"messages": [*turns, {"role": "user", "content": "And now?"}], "max_tokens": 20, **more}


def summing(world: Selling) -> Any:
    world.talker = Talker(says=SAYS, context=CONTEXT)
    return world.door(context_overflow="summarise")


async def test_a_summary_is_paid_for_like_the_answer(world: Selling) -> None:
    door = summing(world)
    async with world.selling(door) as client:
        key = await world.give(door, 100 * MOST_ATOMIC)
        reply = await client.post(PATH, json=long_chat(), headers={"authorization": f"Bearer {key}"})
        account = await door.billing.book.account(world.account)

    summary, answer = world.talker.requests
    read = len(summary.prompt) + len(answer.prompt)
    made = 2 * (len(SAYS) + 1)
    assert reply.json()["usage"]["prompt_tokens"] == len(answer.prompt)
    assert account.spent == read * PROMPT_ATOMIC + made * ANSWER_ATOMIC
    assert reply.json()["usage"]["cost"] == account.spent / 1e6


async def test_what_is_set_aside_does_for_a_summary_and_the_longest_answer(world: Selling) -> None:
    door = summing(world)
    async with world.selling(door) as client:
        asked = asked_in(await client.post(PATH, json=long_chat()))
        # One that fits as it is, but not with the room that its answer is given: it is cut, and its answer is longer.
        turns = [{"role": role, "content": "x" * 40} for _ in range(7) for role in ("user", "assistant")]
        tight = {"messages": [*turns, {"role": "user", "content": "x" * 14}], "context_overflow": "drop_oldest"}
        left = len("<user><assistant>") + 14 + 6 * (len("<user><assistant>") + 80)
        cut = asked_in(await client.post(PATH, json=tight))

    assert int(asked.amount) >= (CONTEXT + CONTEXT // 2) * PROMPT_ATOMIC + (20 + CONTEXT // 8) * ANSWER_ATOMIC
    assert int(cut.amount) >= left * PROMPT_ATOMIC + (CONTEXT - left) * ANSWER_ATOMIC


async def test_a_request_that_is_refused_after_its_summary_has_paid_for_that(world: Selling) -> None:
    door = summing(world)
    wrong = long_chat(logit_bias={"1000": 1})
    async with world.selling(door) as client:
        key = await world.give(door, 100 * MOST_ATOMIC)
        reply = await client.post(PATH, json=wrong, headers={"authorization": f"Bearer {key}"})
        account = await door.billing.book.account(world.account)

    assert (reply.status_code, error_of(reply)["param"]) == (400, "logit_bias")
    (summary,) = world.talker.requests
    assert account.spent == len(summary.prompt) * PROMPT_ATOMIC + (len(SAYS) + 1) * ANSWER_ATOMIC


async def test_a_free_request_that_is_refused_after_its_summary_is_used_up(world: Selling) -> None:
    world.talker = Talker(says=SAYS, context=CONTEXT)
    door = world.door(context_overflow="summarise", admission={"free_per_hour": 1})
    async with world.selling(door) as client:
        wrong = await client.post(PATH, json=long_chat(logit_bias={"1000": 1}))
        again = await client.post(PATH, json=long_chat(logit_bias={"1000": 1}))

    assert (wrong.status_code, again.status_code) == (400, 429)
    assert len(world.talker.requests) == 1


class Embedder(TokenEngine):
    asked = 0

    async def embed(self, model: str, inputs: Sequence[str | tuple[int, ...]]) -> Embedded:
        self.asked += 1
        return Embedded(vectors=((0.5, 0.25, 1.0),) * len(inputs), tokens=sum(map(len, inputs)))


async def test_vectors_of_a_width_that_no_model_knows_are_not_made_for_nothing(world: Selling) -> None:
    door = world.door(admission={"free_per_hour": 1})
    door.service.engine = engine = Embedder(MODEL, world.talker, ByteText())
    body = {"input": "ten bytes.", "dimensions": 4}
    async with world.selling(door) as client:
        key = await world.give(door, MOST_ATOMIC)
        billed = await client.post("/v1/embeddings", json=body, headers={"authorization": f"Bearer {key}"})
        free = [await client.post("/v1/embeddings", json=body) for _ in range(3)]
        account = await door.billing.book.account(world.account)

    assert (billed.status_code, account.spent) == (400, 10 * PROMPT_ATOMIC)
    assert [reply.status_code for reply in free] == [400, 429, 429]
    assert engine.asked == 2


class Reader(TokenEngine):
    """An engine that has begun to read texts, and goes on for ever."""

    asked: asyncio.Event

    async def embed(self, model: str, inputs: Sequence[str | tuple[int, ...]]) -> Embedded:
        self.asked.set()
        return await asyncio.Event().wait()  # type: ignore[return-value]


async def test_who_leaves_while_its_texts_are_read_pays_for_them(world: Selling) -> None:
    door = world.door()
    door.service.engine = engine = Reader(MODEL, world.talker, ByteText())
    engine.asked = asyncio.Event()
    async with world.selling(door) as client:
        key = await world.give(door, MOST_ATOMIC)
        headers = {"authorization": f"Bearer {key}"}
        asking = asyncio.create_task(client.post("/v1/embeddings", json={"input": "x" * 36}, headers=headers))
        await asyncio.wait_for(engine.asked.wait(), 10)
        asking.cancel()
        account = await until(lambda: door.billing.book.account(world.account), lambda found: found.held == 0)

    assert account.spent == (36 + 4) // BYTES_PER_TOKEN * PROMPT_ATOMIC


async def test_what_was_paid_before_a_crash_and_never_asked_for_again_is_nobodys_for_long(world: Selling) -> None:
    first = world.door()
    async with world.selling(first) as client:
        asked = asked_in(await client.post(PATH, json=CHAT))
        headers = await world.headers(client, PATH, CHAT)

        async def dies(*_: Any) -> Any:
            raise RuntimeError("died")

        # Settled, and dead before it was put on an account.
        first.billing.book.deposit = dies  # type: ignore[method-assign]
        assert (await client.post(PATH, json=CHAT, headers=headers)).status_code == 500
    assert world.earned() == int(asked.amount)
    door = world.door()
    keeping = asyncio.create_task(door.keep())
    account = await until(lambda: door.billing.book.account(world.account), lambda found: found is not None)
    keeping.cancel()

    assert (account.available, account.held) == (MOST_ATOMIC, 0)


class Counted(TokenEngine):
    """An engine that is slow to count."""

    going: asyncio.Event
    counting = most = 0

    async def count(self, ask: Ask) -> int:
        self.counting += 1
        self.most = max(self.most, self.counting)
        await self.going.wait()
        self.counting -= 1
        return await super().count(ask)


async def test_who_only_asks_for_prices_does_not_keep_the_engine_counting(world: Selling) -> None:
    door = world.door()
    door.service.engine = engine = Counted(MODEL, world.talker, ByteText())
    engine.going = asyncio.Event()
    async with world.selling(door) as client:
        asking = {asyncio.create_task(client.post(PATH, json=CHAT)) for _ in range(PRICED_AT_ONCE + PRICES_WAITING + 1)}
        done, _ = await asyncio.wait(asking, return_when=asyncio.FIRST_COMPLETED)
        engine.going.set()
        replies = await asyncio.gather(*asking)

    assert [task.result().status_code for task in done] == [429]
    assert sorted(reply.status_code for reply in replies) == [402] * (len(asking) - 1) + [429]
    assert engine.most == PRICED_AT_ONCE


async def test_who_has_not_paid_is_told_so_before_its_body_is_read(world: Selling) -> None:
    async with world.selling() as client:
        embeddings = await client.post("/v1/embeddings", content=b"no JSON at all")
        credit = await client.post("/v1/credits", content=b'{"amount": 1' + b" " * 10_000 + b"}")

    assert embeddings.status_code == 402
    # What is asked for is written down before anybody has paid.
    assert credit.status_code == 413


async def test_a_book_that_fails_for_a_while_is_asked_again(world: Selling) -> None:
    door, asked = world.door(), 0

    async def busy(*_: Any) -> int:
        nonlocal asked
        asked += 1
        raise Unavailable("the file is locked")

    async def looked() -> int:
        return asked

    door.cashier.pay_back = busy  # type: ignore[method-assign]
    keeping = asyncio.create_task(door.keep(look_s=0))
    await until(looked, lambda found: found > 1 or keeping.done())
    assert not keeping.done()
    keeping.cancel()
