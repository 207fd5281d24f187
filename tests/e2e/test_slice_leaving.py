"""Workers that leave a model that runs: what streams through them goes on, and they end by themselves."""

import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.fixtures.server import WAIT_S
from tests.fixtures.slice_worker import PROMPT, Worker, tell, typed, until

pytestmark = pytest.mark.slow

WAYS = {"greedy": {"temperature": 0, "frequency_penalty": 1.0}, "drawn": {"temperature": 1.0, "seed": 7, "top_p": 0.95}}
COUNT = 200
LONG = 490
# What a worker needs at most to end once it has let everything go.
GOING_S = 20


@dataclass
class Place:
    head: Worker
    middle: Worker
    other: Worker
    last: Worker
    topology: Path

    def route(self) -> list[str]:
        return [hop["endpoint"] for hop in self.head.status()["slice"]["route"] if hop["isUsed"]]

    def sessions_of(self, worker: Worker) -> int:
        return int(worker.status()["slice"]["cache"]["sessions"])


@pytest.fixture(scope="module")
def place(tiny_words: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("leaving")
    path = folder / "who.json"
    slices = {"head": "0:2", "middle": "2:4", "other": "2:4", "last": "4:6"}
    workers = {name: Worker(folder, tiny_words, name, "--topology", str(path)) for name in slices}
    tell(path, [(workers[name], layers) for name, layers in slices.items()])
    place = Place(**workers, topology=path)
    try:
        for worker in workers.values():
            worker.start()
        for worker in workers.values():
            worker.wait_until("worker is online")
        until(place.route, place.head.log)
        yield place
    finally:
        for worker in workers.values():
            worker.stop()


@pytest.fixture(scope="module")
def said(place: Place) -> dict[str, str]:
    """What is said where nobody leaves."""
    return {how: place.head.ask(COUNT, ways) for how, ways in WAYS.items()}


def leaves_amid_streams(place: Place, worker: Worker, leave: Callable[[], object]) -> dict[str, str]:
    """Return what two streams through `worker` say while it leaves, once it has ended."""
    is_under_way = threading.Barrier(3, timeout=WAIT_S)

    def follow(how: str) -> str:
        pieces = []
        for piece in place.head.stream(COUNT, WAYS[how]):
            pieces.append(piece)
            if len(pieces) == 10:
                is_under_way.wait()
        return "".join(pieces)

    with ThreadPoolExecutor(2) as pool:
        following: dict[str, Future[str]] = {how: pool.submit(follow, how) for how in WAYS}
        is_under_way.wait()
        assert worker.endpoint in place.route()
        assert place.sessions_of(worker) == 2
        leave()
        assert worker.server.process.wait(GOING_S) == 0
        said = {how: each.result() for how, each in following.items()}
    assert "final report" in worker.log
    assert "Traceback" not in worker.log
    return said


def test_a_middle_stage_that_is_drained_loses_no_word(place: Place, said: dict[str, str], tmp_path: Path) -> None:
    used = place.route()
    middle = place.middle if place.middle.endpoint in used else place.other

    def drain() -> None:
        ended = typed(tmp_path, "worker", "drain", "--api-url", middle.url)
        assert ended.returncode == 0, ended.stderr

    assert leaves_amid_streams(place, middle, drain) == said
    assert place.head.status()["slice"]["failovers"] == 0


def test_a_last_stage_that_is_told_to_end_loses_no_word_where_another_takes_its_layers(
    place: Place, said: dict[str, str]
) -> None:
    (left,) = (each for each in (place.middle, place.other) if each.is_alive)

    def end() -> None:
        place.last.send(signal.SIGTERM)
        tell(place.topology, [(place.head, "0:2"), (left, "2:6")])

    assert leaves_amid_streams(place, place.last, end) == said
    assert place.route() == [place.head.endpoint, left.endpoint]


def test_a_head_that_is_drained_ends_its_streams_and_takes_no_new_ones(place: Place) -> None:
    head, pieces = place.head, []
    wanted = head.ask(LONG, WAYS["drawn"])
    for piece in head.stream(LONG, WAYS["drawn"]):
        pieces.append(piece)
        if len(pieces) == 10:
            assert httpx.post(f"{head.url}/api/v1/drain", timeout=WAIT_S).json()["state"] in ("online", "draining")
            body = {"model": "tiny-words", "prompt": PROMPT, "max_tokens": 3}
            until(lambda: httpx.get(f"{head.url}/health").json()["state"] == "draining", head.log)
            refused = httpx.post(f"{head.url}/v1/completions", json=body, timeout=WAIT_S)
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")

    assert "".join(pieces) == wanted
    assert head.server.process.wait(GOING_S) == 0
    left = [each for each in (place.middle, place.other) if each.is_alive]
    assert len(left) == 1
    until(lambda: place.sessions_of(left[0]) == 0, head.log)
