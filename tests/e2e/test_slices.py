"""One model over several workers, each a process of its own as an owner starts it: the same text, whatever happens."""

import json
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.fixtures.server import WAIT_S
from tests.fixtures.slice_worker import PROMPT, Stages, Worker, make_key, typed, until

pytestmark = pytest.mark.slow

# Without the penalty it would say one word for ever; with it the last stage must know what was said before.
GREEDY = {"temperature": 0, "frequency_penalty": 1.0}
DRAWN = {"temperature": 1.0, "seed": 7, "top_p": 0.95}
WAYS = {"greedy": GREEDY, "drawn": DRAWN}
# Tokens of a stream that is disturbed: what the model's 512 positions have room for.
LONG = 480


@dataclass
class Place(Stages):
    """`whole` serves all layers; `head`, `second`, `third` and `spare` some, as the topology says."""

    whole: Worker
    second: Worker
    third: Worker
    spare: Worker


@pytest.fixture(scope="module")
def place(tiny_words: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("stages")
    path = folder / "who.json"
    make_key(folder)

    def by_file(name: str, *typed: str) -> Worker:
        return Worker(folder, tiny_words, name, "--topology", str(path), *typed)

    # An oracle that is not there: it serves alone.
    whole = Worker(folder, tiny_words, "whole", ORACLE_API_URL="http://127.0.0.1:1")
    # The third and the spare one wait: nobody is told of them yet.
    third, spare = by_file("third", "--layers", "4:6"), by_file("spare", "--layers", "2:4")
    place = Place(path, by_file("head"), whole, by_file("second"), third, spare)
    workers = [place.whole, place.head, place.second, place.third, place.spare]
    place.tell((place.second, "2:6"))
    try:
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.wait_until("worker is online")
        yield place
    finally:
        for worker in workers:
            worker.stop()


@pytest.fixture(scope="module")
def said(place: Place) -> Callable[[int, str], str]:
    """What the whole model says: `count` words, chosen in one of two ways."""
    known: dict[tuple[int, str], str] = {}

    def ask(count: int, how: str) -> str:
        if (count, how) not in known:
            known[count, how] = place.whole.ask(count, WAYS[how])
        return known[count, how]

    return ask


@pytest.mark.row(56)
def test_a_worker_whose_oracle_is_not_there_serves_the_whole_model_alone(place: Place) -> None:
    health = httpx.get(f"{place.whole.url}/health").json()

    assert (health["mode"], health["layers"]) == ("single", {"start": 0, "end": 6, "total": 6})
    assert "this worker serves alone" in place.whole.log
    assert len(place.whole.ask(5, GREEDY).split()) == 5


@pytest.mark.row(45)
@pytest.mark.row(55)
def test_two_stages_say_what_one_process_says(place: Place, said: Callable[[int, str], str]) -> None:
    place.has((place.second, "2:6"))
    health = httpx.get(f"{place.head.url}/health").json()

    assert (health["status"], health["mode"]) == ("ok", "pipeline")
    assert health["layers"] == {"start": 0, "end": 2, "total": 6}
    for how, ways in WAYS.items():
        assert place.head.ask(40, ways) == said(40, how)
        assert "".join(place.head.stream(40, ways)) == said(40, how)


@pytest.mark.row(50)
def test_a_stage_that_is_not_the_head_says_where_the_head_is(place: Place) -> None:
    place.has((place.second, "2:6"))
    until(lambda: place.second.status()["slice"]["head"] == place.head.url, place.second)
    for path, body in (
        ("/api/v1/generate", {"inputs": PROMPT}),
        ("/v1/completions", {"model": "tiny-words", "prompt": PROMPT}),
    ):
        reply = httpx.post(f"{place.second.url}{path}", json=body, timeout=WAIT_S)
        assert reply.status_code == 409
        assert place.head.url in reply.text
    assert reply.json()["error"]["code"] == "not_head"


@pytest.mark.row(51)
def test_a_third_stage_joins_and_no_request_fails(place: Place, said: Callable[[int, str], str]) -> None:
    place.has((place.second, "2:6"))
    answers: list[str] = []
    is_over = threading.Event()

    def go_on() -> None:
        while not is_over.is_set():
            answers.append("".join(place.head.stream(40, GREEDY)))

    with ThreadPoolExecutor(3) as pool:
        asking = [pool.submit(go_on) for _ in range(3)]
        try:
            until(lambda: len(answers) >= 3 or any(each.done() for each in asking), place.head)
            place.tell((place.second, "2:4"), (place.third, "4:6"))
            three = [each.endpoint for each in (place.head, place.second, place.third)]
            until(lambda: place.head.route() == three or any(each.done() for each in asking), place.head)
            count = len(answers)
            until(lambda: len(answers) >= count + 4 or any(each.done() for each in asking), place.head)
        finally:
            is_over.set()
        for each in asking:
            each.result()
    assert set(answers) == {said(40, "greedy")}
    assert place.second.status()["slice"]["layers"] == {"start": 2, "end": 4, "total": 6}
    # A stage that is asked and is busy for longer than it has is not among them.
    until(lambda: _nodes(place.head) == [(0, 2), (2, 4), (4, 6)], place.head)


def _nodes(head: Worker) -> list[tuple[int, int]]:
    told = httpx.get(f"{head.url}/api/v1/pipeline/status", timeout=WAIT_S).json()
    return [(node["layerStart"], node["layerEnd"]) for node in told["topology"]["nodes"]]


@pytest.mark.row(45)
def test_three_stages_say_what_one_process_says(place: Place, said: Callable[[int, str], str]) -> None:
    place.has((place.second, "2:4"), (place.third, "4:6"))
    for how, ways in WAYS.items():
        assert place.head.ask(40, ways) == said(40, how)


@pytest.mark.row(53)
def test_eight_at_once_each_get_their_own_words(place: Place) -> None:
    place.has((place.second, "2:4"), (place.third, "4:6"))
    prompts = [" ".join(f"w{1 + (7 * number + at) % 255}" for at in range(3 + 9 * number)) for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        together = [*pool.map(lambda prompt: place.head.ask(30, DRAWN, prompt), prompts)]
    assert together == [place.whole.ask(30, DRAWN, prompt) for prompt in prompts]


@pytest.mark.row(52)
@pytest.mark.parametrize("how", ["greedy", "drawn"])
def test_a_stage_that_is_frozen_or_killed_in_a_stream_is_replaced_and_the_text_is_the_same(
    place: Place, said: Callable[[int, str], str], how: str
) -> None:
    place.has((place.second, "2:4"), (place.spare, "2:4"), (place.third, "4:6"))
    replicas = {each.endpoint: each for each in (place.second, place.spare)}
    middle = next(replicas[each] for each in place.head.route() if each in replicas)
    # Half-open is the harder one, so it comes first; who was frozen then stands in for who is killed.
    harm = signal.SIGSTOP if how == "greedy" else signal.SIGKILL
    failovers = place.head.status()["slice"]["failovers"]

    # So long that the head is far from its end when the fifth piece is read here, however late that is.
    pieces = []
    try:
        for piece in place.head.stream(LONG, WAYS[how]):
            pieces.append(piece)
            if len(pieces) == 5:
                middle.send(harm)
        # While it is frozen: thawed it may be taken again.
        route = place.head.route()
    finally:
        middle.send(signal.SIGCONT)

    assert "".join(pieces) == said(LONG, how)
    assert len(pieces) > LONG / 2
    assert place.head.status()["slice"]["failovers"] > failovers
    assert len(route) == 3
    assert middle.endpoint not in route


@pytest.mark.row(57)
@pytest.mark.parametrize("where", ["typed", "topology"])
def test_a_model_of_another_hash_is_not_served(tiny_words: Path, tmp_path: Path, where: str) -> None:
    wrong, path = "0" * 64, tmp_path / "who.json"
    stages = [{"endpoint": "127.0.0.1:50999", "layers": "0:6"}]
    path.write_text(json.dumps({"model": "tiny-words", "model_hash": wrong, "stages": stages}))
    words = ["--model-hash", wrong] if where == "typed" else ["--topology", str(path)]
    ended = typed(tmp_path, "worker", "start", "--model", str(tiny_words), "--grpc-port", "0", "--port", "0", *words)

    assert ended.returncode == 1
    assert "is not the one that was asked for" in ended.stderr
    assert "worker is online" not in ended.stderr
    assert "Traceback" not in ended.stderr
