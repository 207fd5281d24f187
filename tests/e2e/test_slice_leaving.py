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
from tests.fixtures.slice_worker import PROMPT, Stages, Worker, make_key, until

pytestmark = pytest.mark.slow

WAYS = {"greedy": {"temperature": 0, "frequency_penalty": 1.0}, "drawn": {"temperature": 1.0, "seed": 7, "top_p": 0.95}}
# Tokens of a stream: so many that it is far from its end when somebody leaves who is told so at its first ones.
LONG = 480


@dataclass
class Place(Stages):
    middle: Worker
    other: Worker
    last: Worker

    def sessions_of(self, worker: Worker) -> int:
        return int(worker.status()["slice"]["cache"]["sessions"])


@pytest.fixture(scope="module")
def place(tiny_words: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("leaving")
    path = folder / "who.json"
    make_key(folder)
    names = ("head", "middle", "other", "last")
    workers = {name: Worker(folder, tiny_words, name, "--topology", str(path)) for name in names}
    place = Place(topology=path, **workers)
    try:
        yield place
    finally:
        for worker in workers.values():
            worker.stop()


@pytest.fixture
def four(place: Place) -> Place:
    """All of them serve, and the middle one has a replica."""
    place.has((place.middle, "2:4"), (place.other, "2:4"), (place.last, "4:6"))
    return place


@pytest.fixture(scope="module")
def said(place: Place) -> Callable[[], dict[str, str]]:
    """What is said where nobody leaves."""
    known: dict[str, str] = {}

    def ask() -> dict[str, str]:
        for how, ways in WAYS.items():
            if how not in known:
                known[how] = place.head.ask(LONG, ways)
        return known

    return ask


def leaves_amid_streams(place: Place, worker: Worker, leave: Callable[[], object]) -> dict[str, str]:
    """Return what two streams through `worker` say while it leaves, once it has ended."""
    is_under_way = threading.Barrier(3, timeout=WAIT_S)

    def follow(how: str) -> str:
        pieces = []
        for piece in place.head.stream(LONG, WAYS[how]):
            pieces.append(piece)
            if len(pieces) == 3:
                is_under_way.wait()
        return "".join(pieces)

    with ThreadPoolExecutor(2) as pool:
        following: dict[str, Future[str]] = {how: pool.submit(follow, how) for how in WAYS}
        is_under_way.wait()
        assert place.sessions_of(worker) == 2
        leave()
        assert worker.server.process.wait(WAIT_S) == 0
        said = {how: each.result() for how, each in following.items()}
    assert "final report" in worker.log
    assert "Traceback" not in worker.log
    return said


def test_a_middle_stage_that_is_drained_loses_no_word(four: Place, said: Callable[[], dict[str, str]]) -> None:
    undisturbed, before = said(), four.head.counted()
    middle = next(each for each in (four.middle, four.other) if each.endpoint in four.head.route())

    def drain() -> None:
        assert httpx.post(f"{middle.url}/api/v1/drain", timeout=WAIT_S).is_success

    assert leaves_amid_streams(four, middle, drain) == undisturbed
    after = four.head.counted()
    # They went on elsewhere, and nobody was lost.
    assert after["livery_route_moves"] == before["livery_route_moves"] + 1
    assert after["livery_failovers"] == before["livery_failovers"]


def test_a_last_stage_that_is_told_to_end_loses_no_word_where_another_takes_its_layers(
    place: Place, said: Callable[[], dict[str, str]]
) -> None:
    place.has((place.middle, "2:4"), (place.last, "4:6"))
    undisturbed = said()

    def end() -> None:
        place.last.send(signal.SIGTERM)
        place.tell((place.middle, "2:6"))

    assert leaves_amid_streams(place, place.last, end) == undisturbed
    until(lambda: place.head.route() == [place.head.endpoint, place.middle.endpoint], place.head)


def test_a_head_that_is_drained_ends_its_streams_and_takes_no_new_ones(four: Place) -> None:
    head, pieces = four.head, []
    wanted = head.ask(LONG, WAYS["drawn"])
    for piece in head.stream(LONG, WAYS["drawn"]):
        pieces.append(piece)
        if len(pieces) == 3:
            assert httpx.post(f"{head.url}/api/v1/drain", timeout=WAIT_S).json()["state"] in ("online", "draining")
            body = {"model": "tiny-words", "prompt": PROMPT, "max_tokens": 3}
            until(lambda: httpx.get(f"{head.url}/health", timeout=WAIT_S).json()["state"] == "draining", head)
            refused = httpx.post(f"{head.url}/v1/completions", json=body, timeout=WAIT_S)
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")

    assert "".join(pieces) == wanted
    assert head.server.process.wait(WAIT_S) == 0
    for worker in (four.middle, four.other, four.last):
        until(lambda: four.sessions_of(worker) == 0, worker)  # noqa: B023
