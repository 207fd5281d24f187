"""
One route of a head while it holds: its links, its micro-batches in flight, and how it finds out that it is broken.

Each micro-batch has a lane with at most one batch in flight; its next step goes as soon as the answer is there. A
courier tells the stages of sessions that begin and end, without waiting for a step.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace

from gpu_worker.core.inference.batch import Batch, Hop, LinkFault, Refill, Route
from gpu_worker.core.inference.deadlines import FIRST_S
from gpu_worker.core.inference.ring import FILL_ROWS
from gpu_worker.core.inference.sampling import Sampling
from gpu_worker.core.inference.schedule import groups, spread
from gpu_worker.core.inference.step import Done, Open, Run, Step
from gpu_worker.inference.head.parts import HeadParts
from gpu_worker.inference.head.streams import HeadSession
from gpu_worker.inference.head.watch import Break, Watch
from gpu_worker.inference.sender import Sender

# Closes of so long ago are said again on a new route: who was lost with the old one may not have passed them on.
AGAIN_S = 30.0


@dataclass(slots=True, eq=False)
class _Flight:
    runs: tuple[Run, ...]
    rows: int
    began_s: float
    sent_s: float
    answer: "asyncio.Future[None]"
    due_s: float = 0.0
    timer: asyncio.TimerHandle | None = None


class Lanes:
    def __init__(self, parts: HeadParts, hops: tuple[Hop, ...], epoch: int) -> None:
        self.hops, self.epoch = hops, epoch
        self._watch = Watch(parts.links, [hop.endpoint for hop in hops[1:]], parts.desk.limits.ask_s)
        self.broken = self._watch.broken
        self.broken.add_done_callback(self._let_go)
        self.groups = 1
        self._parts, self._desk = parts, parts.desk
        self._flights: dict[int, _Flight] = {}
        self._is_stopping = self._is_over = False
        self._late_rows = 0
        self._due: dict[str, list[Refill]] = {}
        self.is_proven = False
        self._down = self._answers = None if len(hops) == 1 else self._sender(hops[1], self._back_down)
        if len(hops) > 2:
            self._answers = self._sender(hops[-1], self._back)

    def _sender(self, hop: Hop, back: Callable[[Batch], Awaitable[None]]) -> Sender:
        async def lost(fault: LinkFault) -> None:
            self._fault(fault)

        return Sender(self._parts.links, hop.endpoint, back=back, lost=lost, session_pass=self._pass(self._parts.name))

    def _pass(self, session: str) -> str:
        """Return a new pass for a session of this route; its streams have one of the pipeline itself."""
        return self._parts.registry.session_pass(session, [(hop.start, hop.end) for hop in self.hops])

    async def begin(self, fills: Sequence[int], sessions: Sequence[HeadSession]) -> None:
        """Show the stages their route and open `sessions` on it; those at the places `fills` fill their next one."""
        for sender, index in ((self._down, 1), (self._answers, len(self.hops) - 1)):
            if sender is not None and (index > 1 or sender is self._down):
                route = Route(
                    pipeline=self._parts.name, epoch=self.epoch, hops=self.hops, index=index,
                    answers=sender is self._answers,
                )  # fmt: skip
                await sender.send(self._batch(route=route))
        await self._tell(sessions, self._desk.closed_since(self._parts.clock() - AGAIN_S))
        for each in sessions:
            if each.acked and fills:
                self._late_rows += each.acked
                self._due[each.name] = [
                    Refill(session=each.name, epoch=each.epoch, length=each.acked, index=place) for place in fills
                ]
        # The last of more stages says when it has a session; rows that come before that would be refused there.
        for each in sessions:
            if not self._is_awaited(each.request.sampling):
                await self._fill(each.name)

    async def _fill(self, name: str) -> None:
        """Have the cache of a session filled where it is new."""
        for refill in self._due.pop(name, ()):
            if self._down is not None and refill.index == 0:
                for run, hidden in self._parts.ring.fills(refill, FILL_ROWS):
                    await self._down.send(self._batch(runs=(run,), hidden=hidden))
            elif self._down is not None:
                await self._down.send(self._batch(refills=(refill,)))

    async def run(self) -> Break:
        """Serve until the route is broken or stopped; no step is in flight any more then. Returns why. Raises Bug."""
        try:
            async with asyncio.TaskGroup() as tasks:
                courier = tasks.create_task(self._courier())
                await asyncio.gather(*(tasks.create_task(self._lane(group)) for group in range(len(self.hops))))
                # What it tells is told to the end: a close that is forgotten is a cache that nobody gives back.
                self._is_stopping = True
                self._desk.news.set()
                await courier
                closes = self._desk.closings()
                if self._is_over:
                    # Those that were told a moment ago may be on their way, and the way ends now.
                    closes = self._desk.closed_since(self._parts.clock() - AGAIN_S)
                if closes and not self.broken.done():
                    await self._tell((), closes, is_last=True)
        except BaseExceptionGroup as several:
            raise several.exceptions[0] from None
        return self.broken.result() if self.broken.done() else Break(detail="moved")

    def stop(self, *, is_over: bool = False) -> None:
        """Let the batches in flight be answered, send no more. `is_over`: there is no other route after this one."""
        self._is_stopping, self._is_over = True, self._is_over or is_over
        self._desk.work.set()

    async def close(self) -> None:
        self._watch.close()
        for sender in {self._down, self._answers} - {None}:
            if sender is not None:
                await sender.close()

    async def _lane(self, group: int) -> None:
        desk = self._desk
        while not (self._is_stopping or self.broken.done()):
            work = desk.compose(group)
            if work is None:
                # Cleared by whoever waits: what is set afterwards wakes all lanes, and each looks for itself.
                desk.work.clear()
                await desk.work.wait()
                continue
            await self._step(group, *work)

    async def _step(self, group: int, runs: tuple[Run, ...], tokens: tuple[int, ...]) -> None:
        parts, began_s = self._parts, self._parts.clock()
        takes = self.hops[1].takes if len(self.hops) > 1 else ()
        done = await parts.engine.step(Step(runs=runs, rows=tokens, takes=takes))
        for refusal in done.refusals:
            self._desk.refused(refusal)
        self._desk.stats.steps += 1
        self._desk.stats.rows += len(tokens)
        if self._down is None or not done.runs:
            self._landed(done.runs, len(tokens), began_s, done)
            return
        assert done.hidden is not None
        parts.ring.keep(done.runs, done.hidden)
        word = self._batch(group=group, runs=done.runs, hidden=done.hidden, compute_s=(done.compute_s,))
        await self._fly(word, len(tokens), began_s)

    async def _fly(self, word: Batch, rows: int, began_s: float) -> None:
        """Send a batch and return when it was answered, or the route is broken."""
        if self._down is None or self.broken.done():
            return
        parts = self._parts
        parts.number += 1
        flight = _Flight(word.runs, rows, began_s, parts.clock(), asyncio.get_running_loop().create_future())
        self._flights[parts.number] = flight
        self._wake(parts.number, flight, parts.times.suspect_s(self._rows(flight), self._least_s))
        await self._down.send(replace(word, number=parts.number))
        await flight.answer

    def _landed(self, runs: Sequence[Run], rows: int, began_s: float, answer: Batch | Done) -> None:
        """The tokens of an answer are delivered, its sessions may go on."""
        parts, now = self._parts, self._parts.clock()
        self._desk.take(answer.tokens)
        self._desk.landed(runs)
        if runs:
            compute_s = answer.compute_s if isinstance(answer, Batch) else (answer.compute_s,)
            parts.times.add(rows, now - began_s)
            parts.shape.add(self.hops, rows, compute_s, now - began_s)
        parts.answered(now)
        parts.patience, self._late_rows, self.is_proven = 1.0, 0, True
        self._desk.work.set()

    async def _courier(self) -> None:
        desk = self._desk
        while True:
            await desk.news.wait()
            if self._is_stopping:
                return
            desk.news.clear()
            opens, closes = desk.next_words(self._parts.engine.cache)
            if opens or closes:
                await self._tell(opens, closes)
                if closes and desk.waiting:
                    desk.news.set()
            self._regroup()

    def _regroup(self) -> None:
        sessions = self._desk.open
        self.groups = groups(len(sessions), *self._parts.shape.curves(self.hops))
        now = {name: each.group for name, each in sessions.items()}
        for name, group in spread(tuple(sessions), now, self.groups).items():
            sessions[name].group = group
        self._desk.work.set()

    async def _tell(self, sessions: Sequence[HeadSession], closes: Sequence[str], *, is_last: bool = False) -> None:
        """
        Open and close sessions on all stages. What they are drawn with goes to the last stage alone.

        With `is_last` it returns when all stages have done so, or the route is broken.
        """
        brief: list[Open] = []
        full: list[Open] = []
        for each in sessions:
            for opens, new in zip((brief, full), each.tell(self._pass(each.name), self._parts.clock()), strict=True):
                opens.append(new)
        for name in closes:
            self._parts.ring.drop(name)
        is_whole = len(self.hops) == 1
        done = await self._parts.engine.step(Step(opens=tuple(full if is_whole else brief), closes=tuple(closes)))
        for refusal in done.refusals:
            self._desk.refused(refusal)
        refused = {each.session for each in done.refusals}
        if self._down is not None and self._answers is not None:
            chain, direct = (
                tuple(each for each in some if each.session not in refused)
                for some in (full if self._down is self._answers else brief, full)
            )
            word = self._batch(opens=chain, closes=tuple(closes))
            if is_last:
                await self._fly(word, 0, self._parts.clock())
                return
            await self._down.send(word)
            if self._down is not self._answers and direct:
                await self._answers.send(self._batch(opens=direct))
                return
        for opened in full:
            if not self._is_awaited(opened.sampling):
                self._desk.opened(opened.session, opened.epoch)

    def _is_awaited(self, sampling: Sampling | None) -> bool:
        """Return whether the last stage says when it has a session: it may have a JSON schema to compile first."""
        has_schema = sampling is not None and sampling.schema is not None
        return len(self.hops) > 2 or (len(self.hops) == 2 and has_schema)

    def _batch(self, **fields: object) -> Batch:
        return Batch(pipeline=self._parts.name, epoch=self.epoch, **fields)  # type: ignore[arg-type]

    async def _back_down(self, batch: Batch) -> None:
        """Take what the next stage sends; only where it is the last one, too, are there answers in it."""
        await self._take(batch, is_answer=self._down is self._answers)

    async def _back(self, batch: Batch) -> None:
        await self._take(batch, is_answer=True)

    async def _take(self, batch: Batch, *, is_answer: bool) -> None:
        if batch.pipeline != self._parts.name or batch.epoch != self.epoch or self.broken.done():
            self._desk.stats.stale_answers += len(batch.tokens)
            return
        for fault in batch.faults:
            self._fault(fault)
        for name in batch.opened if is_answer else ():
            await self._fill(name)
            self._desk.opened(name)
        for refusal in batch.refusals:
            self._desk.refused(refusal)
        flight = self._flights.pop(batch.number, None) if is_answer else None
        if flight is None:
            self._desk.take(batch.tokens)
            return
        if flight.timer is not None:
            flight.timer.cancel()
        self._landed(flight.runs, flight.rows, flight.began_s, batch)
        flight.answer.set_result(None)

    def _fault(self, fault: LinkFault) -> None:
        if fault.code == "draining":
            self._parts.leaving(fault)
        else:
            self._watch.ask(f"{fault.endpoint}: {fault.code}: {fault.detail}", fault.endpoint)

    @property
    def _least_s(self) -> float:
        return self._desk.limits.step_s * self._parts.patience

    def _rows(self, flight: _Flight) -> int:
        return flight.rows + self._late_rows

    def _wake(self, number: int, flight: _Flight, after_s: float) -> None:
        flight.due_s = self._parts.clock() + after_s
        flight.timer = asyncio.get_running_loop().call_later(after_s, self._late, number, flight)

    def _late(self, number: int, flight: _Flight) -> None:
        """A step takes long: the stages are asked whether they live; past its deadline the route is broken anyhow."""
        now = self._parts.clock()
        # While this process stood still itself, no stage was waited for.
        flight.sent_s += max(0.0, now - flight.due_s)
        waited_s = now - flight.sent_s
        left_s = self._parts.times.deadline_s(self._rows(flight), self._least_s) - waited_s
        if left_s > 1e-6:
            self._watch.ask("a step is late")
            self._wake(number, flight, left_s)
        else:
            self._parts.patience *= 2
            self._watch.ask(f"a step was not answered for {waited_s:.1f} s", is_overdue=True)

    def tend(self, now: float) -> None:
        """Look after what no step in flight tells: a last stage that does not say that it has opened a session."""
        limits, waited_s = self._desk.limits, self._desk.opening_s(now)
        if len(self.hops) > 1 and waited_s > limits.step_s / 2:
            self._watch.ask("a session was not opened", is_overdue=waited_s > FIRST_S)

    def _let_go(self, _: "asyncio.Future[Break]") -> None:
        """The route is broken: nobody waits for an answer any more."""
        for flight in self._flights.values():
            if flight.timer is not None:
                flight.timer.cancel()
            if not flight.answer.done():
                flight.answer.set_result(None)
        self._flights.clear()
        self._desk.work.set()
