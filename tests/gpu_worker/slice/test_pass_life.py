"""A session pass lasts for minutes, a session for as long as it talks: where it moves, it shows a new one."""

import asyncio
from collections.abc import Sequence

from gpu_worker.core.inference.batch import Hop
from gpu_worker.core.inference.codes import InferenceError
from gpu_worker.core.inference.passes import TTL_S, Shown
from gpu_worker.inference.stage.service import StageService
from tests.fixtures.head_world import World, expected, hop, world
from tests.fixtures.toy_links import ToyRegistry
from tests.fixtures.virtual_time import run

PROMPT, COUNT, PAUSE_S = range(9), 40, 20.0


def now() -> float:
    return asyncio.get_running_loop().time()


class SigningRegistry(ToyRegistry):
    """`signed` are the passes so far: until when they hold, and for what."""

    def __init__(self, stages: Sequence[Hop]) -> None:
        super().__init__(stages)
        self.signed: list[str] = []

    def session_pass(self, session: str, layers: Sequence[tuple[int, int]]) -> str:
        self.signed.append(f"{now() + TTL_S} {session} {len(self.signed)}")
        return self.signed[-1]


class TimedPasses:
    """`inference.sessions.Passes` for those; `seen` are the ones that sessions were opened with, `streams` streams."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.streams: list[str] = []

    def check(self, session_pass: str, session: str, hop: Hop) -> str:
        until_s, name, _ = session_pass.split()
        self.seen.append(session_pass)
        if float(until_s) < now() or name != session:
            raise InferenceError("unauthenticated", "the session pass has expired")
        return ""

    def check_stream(self, session_pass: str, hop: Hop) -> Shown:
        until_s, name, _ = session_pass.split()
        self.streams.append(session_pass)
        if float(until_s) < now():
            raise InferenceError("unauthenticated", "the session pass has expired")
        return Shown(name, "", session_pass)


class GuardedWorld(World):
    def __init__(self, *args: object, **more: object) -> None:
        self.guards: dict[str, TimedPasses] = {}
        super().__init__(*args, **more)  # type: ignore[arg-type]

    def start_stage(self, name: str) -> None:
        if not isinstance(self.registry, SigningRegistry):
            self.registry = SigningRegistry(self.registry.hops)
        its, self.guards[name] = hop(name), TimedPasses()
        stage = StageService(
            engine=self.engine_of(its),
            links=self.net.links_of(name),
            registry=self.registry,
            endpoint=name,
            passes=self.guards[name],
            clock=now,
        )
        self.net.listen(name, stage)
        self.stages[name] = stage


def test_a_session_that_moves_after_its_pass_has_expired_shows_a_new_one() -> None:
    async def main() -> None:
        async with world(
            "0:1", "1:3a", "3:4a", "1:3b", kind=GuardedWorld, unread=2, unread_s=10 * PAUSE_S, step_s=1e6
        ) as here:
            assert isinstance(here, GuardedWorld)
            began, tokens = now(), []
            async for each in await here.ask("s", PROMPT, COUNT, temperature=0.0):
                tokens.append(each.token)
                if len(tokens) == COUNT // 2:
                    lost = here.head.hops[1].endpoint
                    here.net.cut(lost)
                await asyncio.sleep(PAUSE_S)
            (spare,) = {"1:3a", "1:3b"} - {lost}

            assert now() - began > 2 * TTL_S
            assert tokens == expected(PROMPT, COUNT, temperature=0.0)
            assert here.head.stats.failovers == 1
            assert isinstance(here.registry, SigningRegistry)
            streams = [each for each in here.registry.signed if each.split()[1] != "s"]
            first, second = (each for each in here.registry.signed if each.split()[1] == "s")
            assert {*here.guards[lost].streams, *here.guards[spare].streams} <= {*streams}
            assert not {*here.guards[lost].streams} & {*here.guards[spare].streams}
            assert here.guards[lost].seen == [first]
            assert here.guards[spare].seen == [second]
            assert float(second.split()[0]) - float(first.split()[0]) > TTL_S

    run(main())
