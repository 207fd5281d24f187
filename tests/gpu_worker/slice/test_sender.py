"""The way to a stage: its order, its bound, and one word when it is lost."""

import asyncio

import pytest

from gpu_worker.core.errors import Unavailable
from gpu_worker.core.inference.batch import Batch, LinkFault
from gpu_worker.core.inference.step import Tensor
from gpu_worker.inference.sender import WAITING_BYTES_MAX, WAITING_MAX, Sender
from tests.fixtures.toy_links import BEHIND_MAX, ToyNet

LIMIT_S = 10.0


class Echo:
    """A stage that sends back what it gets."""

    def begin(self, reply, session_pass: str) -> None:
        return

    async def receive(self, batch: Batch, reply) -> None:
        await reply(batch)

    def ended(self, reply) -> None:
        return


class Ends:
    """What a sender's owner hears: the numbers that came back, and the faults."""

    def __init__(self, fails: bool = False) -> None:
        self.net = ToyNet()
        self.net.listen("s", Echo())
        self.numbers: asyncio.Queue[int] = asyncio.Queue()
        self.faults: asyncio.Queue[LinkFault] = asyncio.Queue()
        self._fails = fails

    def sender(self, endpoint: str = "s", **settings) -> Sender:
        return Sender(self.net.links_of("head"), endpoint, back=self._back, lost=self.faults.put, **settings)

    async def _back(self, batch: Batch) -> None:
        if self._fails:
            raise ValueError("a mistake of ours")
        await self.numbers.put(batch.number)

    async def fault(self) -> LinkFault:
        async with asyncio.timeout(LIMIT_S):
            return await self.faults.get()


def batch(number: int) -> Batch:
    return Batch(pipeline="p", epoch=0, number=number)


async def test_what_is_sent_at_once_arrives_in_order() -> None:
    ends = Ends()
    sender = ends.sender()
    assert all(await asyncio.gather(*(sender.send(batch(number)) for number in range(200))))
    assert [await ends.numbers.get() for _ in range(200)] == [*range(200)]
    await sender.close()
    assert (await sender.send(batch(0)), ends.faults.empty()) == (False, True)


async def test_a_stage_that_is_not_there_is_lost_once() -> None:
    ends = Ends()
    sender = ends.sender("nowhere")
    await sender.send(batch(1))
    fault = await ends.fault()
    assert (fault.endpoint, fault.code) == ("nowhere", "lost_stage")
    assert not await sender.send(batch(2))
    await sender.close()
    assert ends.faults.empty()


async def test_a_cut_is_told_at_once_and_once() -> None:
    ends = Ends()
    sender = ends.sender()
    await sender.send(batch(1))
    await ends.numbers.get()
    ends.net.cut("s")
    assert (await ends.fault()).code == "lost_stage"
    assert not await sender.send(batch(2))
    assert ends.faults.empty()


async def test_a_frozen_stage_is_waited_for_within_bounds() -> None:
    ends = Ends()
    sender = ends.sender(behind_s=0.05)
    await sender.send(batch(0))
    await ends.numbers.get()
    ends.net.freeze("s")
    sent = 0
    async with asyncio.timeout(LIMIT_S):
        while await sender.send(batch(sent)):
            sent += 1
    assert WAITING_MAX <= sent <= WAITING_MAX + BEHIND_MAX + 2
    assert "behind" in (await ends.fault()).detail


async def test_rows_that_wait_are_bounded_in_bytes() -> None:
    ends = Ends()
    sender = ends.sender(behind_s=0.05)
    await sender.send(batch(0))
    await ends.numbers.get()
    ends.net.freeze("s")
    rows = Tensor("float32", (1, 1), memoryview(bytes(WAITING_BYTES_MAX // 4 + 1)))
    sent = 0
    async with asyncio.timeout(LIMIT_S):
        while await sender.send(Batch(pipeline="p", epoch=0, number=sent, hidden=rows)):
            sent += 1
    assert 4 <= sent <= 4 + BEHIND_MAX + 2
    assert "behind" in (await ends.fault()).detail


async def test_who_waits_for_a_place_is_not_overtaken() -> None:
    ends = Ends()
    sender = ends.sender()
    await sender.send(batch(0))
    await ends.numbers.get()
    ends.net.freeze("s")
    rest = range(1, 2 * WAITING_MAX)
    waiting = [asyncio.create_task(sender.send(batch(number))) for number in rest]
    for _ in range(20):
        await asyncio.sleep(0)  # until nothing more has room
    assert not all(task.done() for task in waiting)
    ends.net.restore("s")
    late = [asyncio.create_task(sender.send(batch(number + len(rest)))) for number in rest]
    assert all(await asyncio.gather(*waiting, *late))
    assert [await ends.numbers.get() for _ in range(2 * len(rest))] == [*range(1, 2 * len(rest) + 1)]
    await sender.close()


async def test_an_endpoint_that_may_not_be_dialled_is_forbidden() -> None:
    async def allow(endpoint: str) -> bool:
        return endpoint != "s"

    ends = Ends()
    sender = ends.sender(allow=allow)
    await sender.send(batch(1))
    assert (await ends.fault()).code == "forbidden"
    assert "s" not in ends.net.sent


async def test_a_mistake_of_ours_breaks_the_link_and_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    ends = Ends(fails=True)
    sender = ends.sender()
    await sender.send(batch(1))
    assert (await ends.fault()).detail == "a mistake of ours"
    assert "a mistake of ours" in caplog.text


async def test_it_can_be_closed_by_who_hears_that_it_is_lost() -> None:
    net, done = ToyNet(), asyncio.Event()

    async def lost(fault: LinkFault) -> None:
        await sender.close()
        done.set()

    async def back(batch: Batch) -> None:
        raise Unavailable("nothing comes back")

    sender = Sender(net.links_of("head"), "s", back=back, lost=lost)
    async with asyncio.timeout(LIMIT_S):
        await done.wait()


async def test_a_stream_that_the_stage_ends_is_lost() -> None:
    ends = Ends()
    sender = ends.sender()
    await sender.send(batch(1))
    await ends.numbers.get()
    await ends.net.links[0].end()
    fault = await ends.fault()
    assert (fault.code, fault.detail) == ("lost_stage", "s has ended its stream")
    assert not await sender.send(batch(2))
