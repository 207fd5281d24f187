"""The engine's thread: steps in order, a loop that is never blocked, and a broken engine that nobody waits for."""

import asyncio
import threading
import time
from collections.abc import Callable

import pytest

from gpu_worker.core.errors import Bug, OwnersFault
from gpu_worker.core.inference.codes import InferenceError
from gpu_worker.core.inference.layers import Layers
from gpu_worker.core.inference.step import CacheUse, Done, SliceInfo, Step
from gpu_worker.edges.engines.engine_thread import PREPARING_MAX, EngineThread, start_engine

INFO = SliceInfo(
    model="m", model_hash="", family="toy", layers=Layers(0, 1, 1), hidden_size=1, vocab_size=1, context=1,
    dtype="float32", device="cpu", back_end="toy", batching="ragged",
)  # fmt: skip


class Engine:
    """
    Counts its steps; they wait while `may_step` is not set, and the step that closes `bad` raises.

    It prepares schemas once `may_prepare` is set.
    """

    def __init__(self) -> None:
        self.threads = {threading.get_ident()}
        self.may_step = threading.Event()
        self.may_step.set()
        self.may_prepare = threading.Event()
        self.is_closed = False
        self.done: list[str] = []

    info = INFO
    cache = CacheUse(sessions=0, positions=0, positions_max=1, bytes_max=1)

    def step(self, step: Step) -> Done:
        self.may_step.wait()
        self.threads.add(threading.get_ident())
        self.done += step.closes
        if step.closes == ("bad",):
            raise RuntimeError("the step")
        return Done(compute_s=float(len(self.done)))

    def prepare(self, schema: str) -> None:
        assert self.may_prepare.wait(30)
        if schema == "bad":
            raise InferenceError("invalid_argument", "the schema")

    def close(self) -> None:
        self.is_closed = True


def closing(name: str) -> Step:
    return Step(closes=(name,))


async def until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not is_so():  # noqa: ASYNC110 - another thread brings it about
            await asyncio.sleep(0)


async def test_steps_are_done_in_the_order_they_came_by_one_thread_which_is_not_the_loops():
    engine = Engine()
    thread = await start_engine(lambda: opened_here(engine))
    found = await asyncio.gather(*(thread.step(closing(str(at))) for at in range(300)))
    assert engine.done == [str(at) for at in range(300)]
    assert [done.compute_s for done in found] == [float(at + 1) for at in range(300)]
    assert thread.info is INFO
    assert thread.cache.positions_max == 1
    await thread.close()
    assert engine.is_closed
    assert len(engine.threads) == 1
    assert threading.get_ident() not in engine.threads


def opened_here(engine: Engine) -> Engine:
    engine.threads = {threading.get_ident()}
    return engine


async def test_a_full_queue_holds_back_who_asks_and_not_the_loop():
    engine = Engine()
    thread = await start_engine(lambda: engine, queue_max=3)
    engine.may_step.clear()
    asking = [asyncio.create_task(thread.step(closing(str(at)))) for at in range(10)]
    for _ in range(20):
        await asyncio.sleep(0)  # the loop turns while the engine stands
    assert thread._jobs.qsize() <= 3
    engine.may_step.set()
    await asyncio.gather(*asking)
    assert engine.done == [str(at) for at in range(10)]
    await thread.close()


async def test_a_step_whose_asker_is_gone_is_done_all_the_same():
    engine = Engine()
    thread = await start_engine(lambda: engine, queue_max=2)
    engine.may_step.clear()
    gone = [asyncio.create_task(thread.step(closing(name))) for name in "ab"]
    await until(lambda: len(thread._waiting) == 2)
    for task in gone:
        task.cancel()
    await asyncio.gather(*gone, return_exceptions=True)
    stays = asyncio.create_task(thread.step(closing("c")))
    engine.may_step.set()
    assert (await stays).compute_s == 3.0
    assert engine.done == ["a", "b", "c"]
    await thread.close()


async def test_a_broken_engine_fails_everybody_who_waits_and_who_comes(caplog: pytest.LogCaptureFixture):
    engine = Engine()
    thread = await start_engine(lambda: engine, queue_max=3)
    assert isinstance(await thread.step(closing("a")), Done)
    engine.may_step.clear()
    asking = [asyncio.create_task(thread.step(closing(name))) for name in ("bad", "b", "c", "d", "e")]
    await until(lambda: len(thread._waiting) == 3)
    engine.may_step.set()
    async with asyncio.timeout(10):
        found = await asyncio.gather(*asking, return_exceptions=True)
    assert {(type(each), str(each)) for each in found} == {(Bug, "the engine is broken: RuntimeError: the step")}
    with pytest.raises(Bug, match="the step"):
        await thread.step(closing("f"))
    assert engine.done == ["a", "bad"]
    assert "RuntimeError: the step" in caplog.text
    await thread.close()


async def test_an_engine_that_cannot_be_opened_says_why():
    def fails() -> Engine:
        raise OwnersFault("it does not fit")

    with pytest.raises(OwnersFault, match="it does not fit"):
        await start_engine(fails)


async def test_who_no_longer_wants_the_engine_does_not_wait_for_it():
    engine, may_open = Engine(), threading.Event()

    def slowly() -> Engine:
        may_open.wait()
        return engine

    opening = asyncio.create_task(start_engine(slowly))
    await asyncio.sleep(0)
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    may_open.set()
    await until(lambda: engine.is_closed)


async def test_after_closing_nothing_is_taken_and_what_was_queued_is_done():
    engine = Engine()
    thread = await start_engine(lambda: engine)
    engine.may_step.clear()
    queued = asyncio.create_task(thread.step(closing("a")))
    await until(lambda: len(thread._waiting) == 1)
    ending = [asyncio.create_task(thread.close()) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(Bug, match="closed"):
        await thread.step(closing("b"))
    engine.may_step.set()
    await asyncio.gather(queued, *ending)
    assert engine.done == ["a"]
    assert engine.is_closed


async def test_the_loop_turns_while_the_engine_computes():
    class Slow(Engine):
        def step(self, step: Step) -> Done:
            ends = time.perf_counter() + 0.2
            while time.perf_counter() < ends:
                pass  # holds the interpreter as Python code does
            return Done()

    thread: EngineThread = await start_engine(Slow)
    asking = asyncio.create_task(thread.step(Step()))
    turns = 0
    while not asking.done():
        await asyncio.sleep(0.001)
        turns += 1
    assert turns >= 5
    await thread.close()


async def test_schemas_are_prepared_beside_the_steps_and_not_too_many_wait():
    engine = Engine()
    thread = await start_engine(lambda: engine)
    # Equal ones are one.
    schemas = ["{}", "{}", *(f'{{"title":"{number}"}}' for number in range(PREPARING_MAX - 2)), "bad"]
    preparing = [asyncio.create_task(thread.prepare(each)) for each in schemas]
    await asyncio.sleep(0)
    assert (await thread.step(closing("a"))).compute_s == 1.0
    with pytest.raises(InferenceError) as refused:
        await thread.prepare("true")
    assert refused.value.code == "no_capacity"
    assert not any(each.done() for each in preparing)
    engine.may_prepare.set()
    *good, bad = await asyncio.gather(*preparing, return_exceptions=True)
    assert set(good) == {None}
    assert isinstance(bad, InferenceError)
    await thread.prepare("{}")
    await thread.close()
