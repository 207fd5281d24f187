"""One contract, two places for artifacts: a folder, and a real MongoDB's GridFS."""

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from pathlib import Path

import pytest
from pydantic import SecretStr

from agent.config import AgentSettings
from agent.core.errors import ArtifactsUnavailable, UnknownArtifact
from agent.edges.artifacts_gridfs import GridFsArtifacts
from agent.ports import ArtifactStore, Usage
from agent.wiring import open_artifacts
from tests.fixtures.mongod import MongoPlace
from wire.file_name import NotAFileName

Open = Callable[[], ArtifactStore]
NAMES = [
    "model.json",
    "../../etc/passwd",
    "..",
    ".",
    ".hidden",
    "a/b\\c",
    "ünïcödé ☃",
    "nul\0",
    "a\nb",
    "%2e",
    "~",
    "C:",
    "MODEL.json",
    "%2E",
]
# More than the driver holds back before it writes.
FLUSHED_BYTES = 49_000_000


def place_of(url: str, database: str = "livery") -> ArtifactStore:
    return open_artifacts(AgentSettings(_env_file=None, artifact_url=SecretStr(url), database_name=database))


@pytest.fixture(params=["folder", "gridfs"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Open:
    """What opens the test's own place, each time anew."""
    if request.param == "folder":
        return lambda: place_of(f"{tmp_path}/artifacts")
    place: MongoPlace = request.getfixturevalue("mongo_place")
    return lambda: place_of(place.url, place.database)


@pytest.fixture
async def store(opened: Open) -> AsyncIterator[ArtifactStore]:
    store = opened()
    yield store
    await store.close()


async def chunks(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


async def breaking(error: BaseException) -> AsyncIterator[bytes]:
    yield b"x" * 600_000
    raise error


def files_under(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


class Putter:
    """A put that goes on by hand; each step returns when the one before is written."""

    def __init__(self, store: ArtifactStore, name: str = "model.bin") -> None:
        self._steps, self._taken = asyncio.Queue[bytes](), asyncio.Queue[None]()
        self._put = asyncio.ensure_future(store.put("run", "job", name, self._chunks()))

    async def _chunks(self) -> AsyncIterator[bytes]:
        self._taken.put_nowait(None)
        while part := await self._steps.get():
            yield part
            self._taken.put_nowait(None)

    async def begun(self) -> None:
        await asyncio.wait_for(self._taken.get(), 20)

    async def write(self, part: bytes) -> None:
        self._steps.put_nowait(part)
        await self.begun()

    async def end(self) -> None:
        self._steps.put_nowait(b"")
        await self._put


async def read(store: ArtifactStore, *where: str) -> bytes:
    return b"".join([chunk async for chunk in store.open(*where)])


async def test_a_file_comes_back_byte_for_byte_in_any_process(store: ArtifactStore, opened: Open) -> None:
    parts = (bytes(range(256)) * 3_000, b"", b"the end")
    await store.put("run", "job", "model.bin", chunks(*parts))
    other = opened()
    assert await other.size("run", "job", "model.bin") == 256 * 3_000 + 7
    assert await read(other, "run", "job", "model.bin") == b"".join(parts)
    await other.close()


async def test_an_empty_file_is_a_file(store: ArtifactStore) -> None:
    await store.put("run", "job", "empty", chunks())
    assert await store.size("run", "job", "empty") == 0
    assert await read(store, "run", "job", "empty") == b""


async def test_what_is_not_there_is_unknown(store: ArtifactStore) -> None:
    assert await store.size("run", "job", "model.bin") is None
    with pytest.raises(UnknownArtifact):
        await read(store, "run", "job", "model.bin")
    await store.put("run", "job", "model.bin", chunks(b"x"))
    for where in (("run", "job", "model"), ("run", "job-2", "model.bin"), ("run-2", "job", "model.bin")):
        assert await store.size(*where) is None


async def test_every_name_is_a_file_of_its_own_and_none_leaves_its_place(store: ArtifactStore, tmp_path: Path) -> None:
    for number, name in enumerate(NAMES):
        await store.put("run", "..", name, chunks(str(number).encode()))
    assert [await read(store, "run", "..", name) for name in NAMES] == [str(n).encode() for n in range(len(NAMES))]
    assert {path.parent.parent.parent for path in files_under(tmp_path)} <= {tmp_path / "artifacts"}


@pytest.mark.parametrize("name", ["", "x" * 256, "☃" * 29, "\ud800"])
async def test_a_name_that_no_file_can_have_is_refused(store: ArtifactStore, name: str) -> None:
    with pytest.raises(NotAFileName):
        await store.put("run", "job", name, chunks(b"x"))


async def test_a_put_that_breaks_keeps_nothing_and_leaves_what_was_there(store: ArtifactStore) -> None:
    with pytest.raises(ZeroDivisionError):
        await store.put("run", "job", "model.bin", breaking(ZeroDivisionError()))
    assert await store.size("run", "job", "model.bin") is None
    await store.put("run", "job", "model.bin", chunks(b"whole"))
    with pytest.raises(TimeoutError):
        await store.put("run", "job", "model.bin", breaking(TimeoutError()))
    assert await read(store, "run", "job", "model.bin") == b"whole"


async def test_a_put_whose_time_is_over_leaves_nothing_behind(store: ArtifactStore, tmp_path: Path) -> None:
    async def endless() -> AsyncIterator[bytes]:
        yield b"x" * 600_000
        await asyncio.Event().wait()

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await store.put("run", "job", "model.bin", endless())
    assert await store.size("run", "job", "model.bin") is None
    assert files_under(tmp_path) == []


async def test_a_second_put_takes_the_place_of_the_first(store: ArtifactStore) -> None:
    await store.put("run", "job", "model.bin", chunks(b"the first"))
    await store.put("run", "job", "model.bin", chunks(b"second"))
    assert await read(store, "run", "job", "model.bin") == b"second"
    assert await store.size("run", "job", "model.bin") == 6


async def test_a_file_that_is_not_read_whole_is_closed(store: ArtifactStore) -> None:
    await store.put("run", "job", "model.bin", chunks(b"x" * 1_000_000))
    async with aclosing(store.open("run", "job", "model.bin")) as file:
        assert 0 < len(await anext(file)) < 1_000_000


@pytest.mark.parametrize("start", [0, 1, 261_120, 500_001, 699_999, 700_000, 900_000])
async def test_a_file_is_read_from_a_byte_on(store: ArtifactStore, start: int) -> None:
    content = bytes(range(250)) * 2_800
    await store.put("run", "job", "model.bin", chunks(content))
    assert b"".join([chunk async for chunk in store.open("run", "job", "model.bin", start)]) == content[start:]


async def test_a_removed_file_is_gone_and_can_come_again(store: ArtifactStore) -> None:
    await store.put("run", "job", "model.bin", chunks(b"x" * 600_000))
    await store.put("run", "job", "other", chunks(b"other"))
    assert await store.remove("run", "job", "model.bin")
    assert not await store.remove("run", "job", "model.bin")
    assert not await store.remove("run", "job-2", "other")
    assert await store.size("run", "job", "model.bin") is None
    with pytest.raises(UnknownArtifact):
        await read(store, "run", "job", "model.bin")
    assert await read(store, "run", "job", "other") == b"other"
    await store.put("run", "job", "model.bin", chunks(b"again"))
    assert await read(store, "run", "job", "model.bin") == b"again"


async def test_what_does_not_stay_is_forgotten_by_its_name_and_neighbours_are_left_alone(store: ArtifactStore) -> None:
    await store.sweep("run", "job", lambda name: False, closing=True)
    for number, name in enumerate(NAMES):
        await store.put("run", "job", name, chunks(str(number).encode()))
    for neighbour in (("run", "job-2"), ("run-2", "job")):
        await store.put(*neighbour, "model.json", chunks(b"other"))
    staying = NAMES[::2]
    for closing in (False, True):
        await store.sweep("run", "job", staying.__contains__, closing=closing)
        assert [name for name in NAMES if await store.size("run", "job", name) is not None] == staying
        assert await store.usage("run", "job") == Usage(len(staying), sum(len(str(2 * n)) for n in range(len(staying))))
    for neighbour in (("run", "job-2"), ("run-2", "job")):
        assert await read(store, *neighbour, "model.json") == b"other"


async def test_an_upload_under_way_outlives_a_sweep_that_does_not_close(store: ArtifactStore) -> None:
    putter = Putter(store)
    await putter.begun()
    await putter.write(b"whole")
    await store.sweep("run", "job", lambda name: False)
    await putter.end()
    assert await read(store, "run", "job", "model.bin") == b"whole"


async def test_no_upload_that_began_before_a_closing_sweep_is_kept_and_nothing_of_it_is_left(
    opened: Open, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    first, closer = opened(), opened()
    await first.put("run", "job", "stays", chunks(b"s"))
    await first.put("run", "job", "goes", chunks(b"g"))
    over, new = Putter(first, "stays"), Putter(first, "new")
    for putter in (over, new):
        await putter.begun()
        await putter.write(b"u" * 600_000)
    await closer.sweep("run", "job", "stays".__eq__, closing=True)
    for putter in (over, new):
        with pytest.raises(ArtifactsUnavailable):
            await putter.end()
    assert await read(closer, "run", "job", "stays") == b"s"
    assert await closer.usage("run", "job") == Usage(1, 1)
    if "gridfs" in request.node.name:
        place: MongoPlace = request.getfixturevalue("mongo_place")
        assert (await chunks_of(place), await documents_of(place)) == ([b"s"], ["run/job/stays"])
    assert [path.name for path in files_under(tmp_path)] in ([], ["stays"])
    await closer.sweep("run", "job", lambda name: False, closing=True)
    assert not (tmp_path / "artifacts" / "run" / "job").exists()
    for store in (first, closer):
        await store.close()


async def test_what_a_job_keeps_is_counted_without_its_neighbours(store: ArtifactStore) -> None:
    assert await store.usage("run", "job") == Usage(0, 0)
    for where, content in ((("run", "job", ".a"), b"12"), (("run", "job", "b"), b"345"), (("run", "job-2", "c"), b"6")):
        await store.put(*where, chunks(content))
    await store.put("run", "job", "b", chunks(b"34"))
    assert await store.usage("run", "job") == Usage(2, 4)
    await store.remove("run", "job", ".a")
    assert (await store.usage("run", "job"), await store.usage("run", "job-2")) == (Usage(1, 2), Usage(1, 1))


async def test_an_upload_under_way_outlives_the_removal_of_what_it_replaces(store: ArtifactStore) -> None:
    await store.put("run", "job", "model.bin", chunks(b"first"))
    putter = Putter(store)
    await putter.begun()
    await putter.write(b"second")
    assert await store.remove("run", "job", "model.bin")
    await putter.end()
    assert await read(store, "run", "job", "model.bin") == b"second"


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
async def test_of_two_puts_at_one_time_the_last_to_end_stays_whole(opened: Open, order: tuple[int, int]) -> None:
    stores = [opened(), opened()]
    contents = [b"o" * FLUSHED_BYTES, b"y" * 300_000]
    putters = []
    for store, content in zip(stores, contents, strict=True):
        putters.append(Putter(store))
        await putters[-1].begun()
        await putters[-1].write(content)
    for number in order:
        await putters[number].end()
        assert await stores[0].size("run", "job", "model.bin") == len(contents[number])
        assert await read(stores[0], "run", "job", "model.bin") == contents[number]
    for store in stores:
        await store.close()


async def test_of_many_puts_that_end_at_once_one_stays_whole(store: ArtifactStore) -> None:
    contents = [bytes([number]) * 300_000 for number in range(8)]
    for _ in range(3):
        await asyncio.gather(*(store.put("run", "job", "model.bin", chunks(content)) for content in contents))
        assert await read(store, "run", "job", "model.bin") in contents
        assert await store.size("run", "job", "model.bin") == 300_000


async def test_event_loops_in_turn_share_one_store(store: ArtifactStore) -> None:
    def on_a_loop_of_its_own(name: str) -> bytes:
        async def work() -> bytes:
            await store.put("run", "job", name, chunks(name.encode()))
            return await read(store, "run", "job", name)

        return asyncio.run(work())

    found = [await asyncio.to_thread(on_a_loop_of_its_own, name) for name in ("a", "b")]
    assert (found, await read(store, "run", "job", "a")) == ([b"a", b"b"], b"a")


async def test_files_and_folders_are_their_owners_alone(tmp_path: Path) -> None:
    await place_of(f"file://{tmp_path}/the%20artifacts").put("run", "job", "model.bin", chunks(b"x"))
    made = sorted((tmp_path / "the artifacts").rglob("*"))
    assert [(path.name, oct(path.stat().st_mode & 0o777)) for path in [tmp_path / "the artifacts", *made]] == [
        ("the artifacts", "0o700"),
        ("run", "0o700"),
        ("job", "0o700"),
        ("model.bin", "0o600"),
    ]


async def test_an_upload_of_more_than_an_hour_goes_with_the_jobs_next_put_and_replaces_nothing(tmp_path: Path) -> None:
    store = place_of(str(tmp_path))
    frozen = Putter(store)
    await frozen.begun()
    (hidden,) = (tmp_path / "run" / "job").iterdir()
    os.utime(hidden, (time.time() - 3_601,) * 2)
    await store.put("run", "job", "other", chunks(b"other"))
    with pytest.raises(ArtifactsUnavailable):
        await frozen.end()
    assert [path.name for path in (tmp_path / "run" / "job").iterdir()] == ["other"]


async def test_an_upload_whose_process_was_killed_goes_with_the_runs_next_put(tmp_path: Path) -> None:
    putting = """
import asyncio, sys
from pathlib import Path
from agent.edges.artifacts_folder import FolderArtifacts

async def endless():
    yield b"half"
    print("begun", flush=True)
    await asyncio.Event().wait()

asyncio.run(FolderArtifacts(Path(sys.argv[1])).put("run", "job", "model.bin", endless()))
"""
    command = (sys.executable, "-c", putting, str(tmp_path))
    killed = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    try:
        assert killed.stdout is not None
        assert await killed.stdout.readline() == b"begun\n"
        await place_of(str(tmp_path)).put("run", "other job", "a", chunks(b"a"))
        while_it_lived = [path.name[0] for path in (tmp_path / "run" / "job").iterdir()]
    finally:
        killed.kill()
        await killed.wait()
    await place_of(str(tmp_path)).put("run", "other job", "b", chunks(b"b"))
    assert (while_it_lived, [*(tmp_path / "run" / "job").iterdir()]) == (["."], [])


async def test_a_folder_that_cannot_be_written_says_so_and_not_where(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    store = place_of(f"{tmp_path}/file")
    for work in (store.put("run", "job", "x", chunks(b"x")), store.size("run", "job", "x"), read(store, "r", "j", "x")):
        with pytest.raises(ArtifactsUnavailable) as refused:
            await work
        assert str(tmp_path) not in str(refused.value)


async def test_a_database_that_is_away_says_so() -> None:
    store = place_of("mongodb://127.0.0.1:9/?serverSelectionTimeoutMS=100&timeoutMS=200")
    for work in (store.put("run", "job", "x", chunks(b"x")), store.size("run", "job", "x"), read(store, "r", "j", "x")):
        with pytest.raises(ArtifactsUnavailable):
            await work
    await store.close()


async def chunks_of(place: MongoPlace) -> list[bytes]:
    """Return the first byte of each chunk that GridFS has."""
    from pymongo import AsyncMongoClient

    async with AsyncMongoClient(place.url) as client:
        return sorted([chunk["data"][:1] async for chunk in client[place.database]["artifacts.chunks"].find()])


async def documents_of(place: MongoPlace) -> list[str]:
    """Return the paths of which GridFS knows anything."""
    from pymongo import AsyncMongoClient

    async with AsyncMongoClient(place.url) as client:
        return sorted([document["_id"] async for document in client[place.database]["artifacts.current"].find()])


async def test_an_upload_that_a_put_of_the_job_finds_too_old_is_removed_and_replaces_nothing(
    mongo_place: MongoPlace,
) -> None:
    store = place_of(mongo_place.url, mongo_place.database)
    # The age of an upload is in whole seconds: to this one all are too old.
    hasty = GridFsArtifacts(mongo_place.url, mongo_place.database, abandoned_s=-1)
    await store.put("run", "job", "model.bin", chunks(b"model"))
    frozen = Putter(store)
    await frozen.begun()
    await frozen.write(b"f" * FLUSHED_BYTES)
    for one, job_id in ((store, "job"), (hasty, "job-2")):
        await one.put("run", job_id, "other", chunks(b"other"))
        assert b"f" in await chunks_of(mongo_place)
    await hasty.put("run", "job", "other", chunks(b"other"))
    assert await chunks_of(mongo_place) == [b"m", b"o", b"o"]
    with pytest.raises(ArtifactsUnavailable):
        await frozen.end()
    assert await read(store, "run", "job", "model.bin") == b"model"
    await hasty.put("run", "job", "other", chunks(b"other"))
    assert await chunks_of(mongo_place) == [b"m", b"o", b"o"]
    for one in (store, hasty):
        await one.close()


async def test_nothing_is_known_of_what_was_removed_or_broke(mongo_place: MongoPlace) -> None:
    store = place_of(mongo_place.url, mongo_place.database)
    with pytest.raises(ZeroDivisionError):
        await store.put("run", "job", "broken", breaking(ZeroDivisionError()))
    await store.put("run", "job", "removed", chunks(b"x"))
    assert await store.remove("run", "job", "removed")
    assert (await chunks_of(mongo_place), await documents_of(mongo_place)) == ([], [])
    await store.close()


async def test_what_uploads_left_that_nothing_knows_goes_with_the_jobs_next_put(mongo_place: MongoPlace) -> None:
    from pymongo import AsyncMongoClient

    store = place_of(mongo_place.url, mongo_place.database)
    await store.put("run", "job", "other", chunks(b"other"))
    async with AsyncMongoClient(mongo_place.url) as client:
        left = client[mongo_place.database]["artifacts.chunks"]
        await left.insert_many(
            [{"files_id": f"run/{job}/left#1", "n": 0, "data": job.encode()} for job in ("job", "job-2", "jo")]
        )
    await store.put("run", "job", "model.bin", chunks(b"first"))
    await store.put("run", "job", "model.bin", chunks(b"whole"))
    assert await chunks_of(mongo_place) == [b"j", b"j", b"o", b"w"]
    await store.close()
