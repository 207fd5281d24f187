"""
Wrongs that can be planted in a trial's processes, to prove that the checks would see them. None is planted otherwise.

Each takes away one thing that the promise rests on.
"""

import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from agent import purchase
from agent.ports import Agent
from vendor_mock.shop import MockShop


@dataclass(frozen=True, slots=True)
class Plant:
    spoil_agent: Callable[[Agent], Agent] = lambda agent: agent
    spoil_shop: Callable[[MockShop], None] = lambda shop: None


class _Spoiled:
    """A port of which some methods are wrong."""

    def __init__(self, inner: Any, **wrong: Any) -> None:
        self.__dict__.update(wrong)
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


def _forgets_the_intent(agent: Agent) -> Agent:
    """The cheque is sent and was never stored; and a nonce is drawn each time."""

    async def save(token: int, run: Any, entries: Any = (), **more: Any) -> Any:
        if any(entry.data.get("kind") == "payment_reserved" for entry in entries):
            return None
        return await agent.store.save(token, run, entries, **more)

    setattr(purchase, "payment_nonce", lambda run_id, number: "0x" + secrets.token_hex(32))  # noqa: B010 - a plant
    spoiled: Any = _Spoiled(agent.store, save=save)
    return replace(agent, store=spoiled)


def _calls_unknown_failed(agent: Agent) -> Agent:
    """A chain that is believed too early: what it does not show at once was never paid."""
    asked: set[str] = set()

    async def is_nonce_used(payer: str, nonce: str) -> bool:
        return False

    async def finalized_time_s() -> int:
        asked.add("finalized")
        return 2**40

    wrong: dict[str, Any] = {"is_nonce_used": is_nonce_used, "is_nonce_used_finalized": is_nonce_used}
    spoiled: Any = _Spoiled(agent.chain, finalized_time_s=finalized_time_s, **wrong)
    return replace(agent, chain=spoiled)


def _starts_anew(shop: MockShop) -> None:
    """A job that is started anew each time its payment is seen."""
    start_job = shop.store.start_job

    async def start(payment_id: str, vendor_id: str, make: Any) -> Any:
        def another(number: int) -> Any:
            return replace(make(number), payment_id=f"{payment_id}#{secrets.token_hex(4)}")

        return await start_job(f"{payment_id}#", vendor_id, another)

    spoiled: Any = _Spoiled(shop.store, start_job=start)
    shop.store = spoiled


def _refunds_unstored(shop: MockShop) -> None:
    """A refund that is broadcast and was never stored as signed."""
    desk = shop.cashier.desk

    async def sign_refund(refund: Any) -> bool:
        return True

    till: Any = _Spoiled(desk.till, sign_refund=sign_refund)
    shop.cashier.desk = replace(desk, till=till)


def _raises_every_second_time(agent: Agent) -> Agent:
    """A tick that is done and ends with an error of ours all the same."""
    released = 0

    async def release(run_id: str, token: int, next_tick_at: Any) -> None:
        nonlocal released
        await agent.store.release(run_id, token, next_tick_at)
        released += 1
        if released % 2 == 0:
            raise KeyError(run_id)

    spoiled: Any = _Spoiled(agent.store, release=release)
    return replace(agent, store=spoiled)


def _raises_in_the_search(agent: Agent) -> Agent:
    """A search for orphans that ends with an error of ours."""

    async def live_jobs(vendor: Any) -> Any:
        raise KeyError(vendor.vendor_id)

    spoiled: Any = _Spoiled(agent.vendors, live_jobs=live_jobs)
    return replace(agent, vendors=spoiled)


def _wrong_for_a_moment(agent: Agent) -> Agent:
    """Books that do not add up once, and do again with the next save."""

    async def save(token: int, run: Any, entries: Any = (), **more: Any) -> Any:
        if any(entry.data.get("kind") == "job_quoted" for entry in entries):
            off = replace(run.budget, available_atomic=run.budget.available_atomic - 1, reserved_atomic=1)
            return await agent.store.save(token, replace(run, budget=off), entries, **more)
        return await agent.store.save(token, run, entries, **more)

    spoiled: Any = _Spoiled(agent.store, save=save)
    return replace(agent, store=spoiled)


def _tokens_start_anew(agent: Agent) -> Agent:
    """A store, SQLite's, that counts its tokens from the beginning again for each process."""
    is_first = True

    async def claim(run_id: str, lease_s: int, **more: Any) -> Any:
        nonlocal is_first
        if is_first:
            database: Any = agent.store
            await database._db.write(lambda connection: connection.execute("UPDATE runs SET token = 0"), durable=False)
            is_first = False
        return await agent.store.claim(run_id, lease_s, **more)

    spoiled: Any = _Spoiled(agent.store, claim=claim)
    return replace(agent, store=spoiled)


def _holds_nothing(agent: Agent) -> Agent:
    """Caps of a day that no payment counts under."""

    async def save(token: int, run: Any, entries: Any = (), **more: Any) -> Any:
        return await agent.store.save(token, run, entries, **(more | {"holds": ()}))

    spoiled: Any = _Spoiled(agent.store, save=save)
    return replace(agent, store=spoiled)


NONE = Plant()
PLANTS: Mapping[str, Plant] = {
    "forgets the intent": Plant(spoil_agent=_forgets_the_intent),
    "calls unknown failed": Plant(spoil_agent=_calls_unknown_failed),
    "starts anew": Plant(spoil_shop=_starts_anew),
    "refunds unstored": Plant(spoil_shop=_refunds_unstored),
    "raises every second time": Plant(spoil_agent=_raises_every_second_time),
    "raises in the search for orphans": Plant(spoil_agent=_raises_in_the_search),
    "is wrong for a moment": Plant(spoil_agent=_wrong_for_a_moment),
    "counts its tokens anew": Plant(spoil_agent=_tokens_start_anew),
    "holds nothing": Plant(spoil_agent=_holds_nothing),
}
