"""Models fetched from a hub or an address: gone on with, checked, once at a time, and never more than there is room."""

import asyncio
import hashlib
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from gpu_worker.config import WorkerSettings
from gpu_worker.core.errors import OwnersFault
from gpu_worker.core.hub import Source, chosen, offers_of, source_of
from gpu_worker.edges.engines.model_download import ModelDownloads
from gpu_worker.edges.engines.part_file import PartFile
from gpu_worker.wiring.place import gguf_place
from outbound.http import HttpClient
from tests.fixtures.hub import COMMIT, REPO, FakeHub, fake_hub
from wire.hub import Repository

MIB = 1024 * 1024


def gguf(size: int, seed: int = 1) -> bytes:
    return b"GGUF" + random.Random(seed).randbytes(size - 4)


SMALL, LARGE = gguf(9 * MIB + 5), gguf(64_000, 2)
FILES = {"tiny-Q4_K_M.gguf": SMALL, "tiny-Q8_0.gguf": LARGE}


def downloads(hub: FakeHub, folder: Path, **more: Any) -> ModelDownloads:
    return ModelDownloads(HttpClient(), folder, hub=hub.url, retry_s=0, **more)


def untold(what: str, done: int, total: int) -> None:
    pass


def sizes(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in folder.rglob("*") if path.is_file()}


def left(folder: Path) -> set[str]:
    return {name for name in sizes(folder) if not name.endswith(".json")}


@pytest.mark.row(62)
async def test_a_model_of_the_hub_is_fetched_at_one_commit_and_its_hash_checked(tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    async with fake_hub(files=FILES) as hub:
        path = await downloads(hub, tmp_path).fetch(REPO, lambda *step: told.append(step), quant="q4_k_m")
        again = await downloads(hub, tmp_path).fetch(f"hf.co/{REPO}:Q4_K_M", untold)
    assert path == again == tmp_path / REPO / "tiny-Q4_K_M.gguf"
    assert path.read_bytes() == SMALL
    assert hub.seen[1][1] == f"/{REPO}/resolve/{COMMIT}/tiny-Q4_K_M.gguf"
    assert len(hub.fetched) == 1, "what is there whole is not fetched again"
    assert told[-1] == ("fetching tiny-Q4_K_M.gguf", len(SMALL), len(SMALL))
    assert len(told) > 2


@pytest.mark.row(62)
async def test_what_breaks_off_is_gone_on_with_where_it_was(tmp_path: Path) -> None:
    async with fake_hub(files=FILES, cuts=[5 * MIB, *(100,) * 6, 0, 0]) as hub:
        path = await downloads(hub, tmp_path).fetch(REPO, untold)
    assert path.read_bytes() == SMALL
    begun = [5 * MIB + 100 * times for times in (*range(7), 6, 6)]
    assert hub.fetched == ["", *(f"bytes={at}-" for at in begun)]


async def test_what_another_run_began_is_gone_on_with(tmp_path: Path) -> None:
    async with fake_hub(files=FILES, cuts=[5 * MIB, 0, 0, 0, 0, 0]) as hub:
        with pytest.raises(OwnersFault, match="broke off 5 times"):
            await downloads(hub, tmp_path).fetch(REPO, untold)
        (part,) = left(tmp_path)
        assert part.endswith(".part")
        hub.seen.clear()
        path = await downloads(hub, tmp_path).fetch(REPO, untold)
    assert path.read_bytes() == SMALL
    assert [told != "" for told in hub.fetched] == [True]
    assert left(tmp_path) == {"tiny-Q4_K_M.gguf"}


async def test_a_file_at_an_address_is_gone_on_with_only_while_it_is_the_same(tmp_path: Path) -> None:
    async with fake_hub(files=FILES, cuts=[5 * MIB, 0, 0, 0, 0, 0]) as hub:
        url = f"{hub.cdn}/tiny-Q4_K_M.gguf"
        with pytest.raises(OwnersFault):
            await downloads(hub, tmp_path).fetch(url, untold)
        hub.seen.clear()
        path = await downloads(hub, tmp_path).fetch(url, untold)
        assert path.read_bytes() == SMALL
        assert [told != "" for told in hub.fetched] == [False, True]
        assert hub.seen[1][2]["if-range"].startswith('"')
    other = tmp_path / "other"
    async with fake_hub(files=FILES, cuts=[5 * MIB], headers={"etag": None}) as hub:
        path = await downloads(hub, other).fetch(f"{hub.cdn}/tiny-Q4_K_M.gguf", untold)
    assert path == other / "tiny-Q4_K_M" / "tiny-Q4_K_M.gguf"
    assert (path.read_bytes(), hub.fetched) == (SMALL, ["", ""]), "without a version all of it is fetched again"


@pytest.mark.parametrize("how", [{"ranges": False}, {"slack": 1000}], ids=str)
async def test_a_server_that_gives_other_ranges_is_begun_with_again(tmp_path: Path, how: dict[str, Any]) -> None:
    async with fake_hub(files=FILES, cuts=[5 * MIB], **how) as hub:
        path = await downloads(hub, tmp_path).fetch(REPO, untold)
    assert path.read_bytes() == SMALL


async def test_what_is_whole_is_served_without_the_hub(tmp_path: Path) -> None:
    async with fake_hub(files=FILES) as hub:
        fetch = downloads(hub, tmp_path)
        path = await fetch.fetch(f"{REPO}:Q8_0", untold)
    assert await fetch.fetch(f"{REPO}:Q8_0", untold) == path
    with pytest.raises(OwnersFault, match="the hub cannot be reached"):
        await fetch.fetch(f"{REPO}:Q4_K_M", untold)


async def test_a_file_that_was_changed_is_fetched_again(tmp_path: Path) -> None:
    async with fake_hub(files=FILES) as hub:
        path = await downloads(hub, tmp_path).fetch(REPO, untold, quant="Q8_0")
        path.write_bytes(SMALL)
        again = await downloads(hub, tmp_path).fetch(REPO, untold, quant="Q8_0")
    assert again.read_bytes() == LARGE


async def test_a_model_is_fetched_once_however_many_ask(tmp_path: Path) -> None:
    async with fake_hub(files=FILES) as hub:
        hub.flowing.clear()
        fetch = downloads(hub, tmp_path)
        tasks = [asyncio.create_task(fetch.fetch(REPO, untold)) for _ in range(3)]
        await asyncio.wait_for(hub.asked.wait(), 10)
        tasks[0].cancel()
        elsewhere = downloads(hub, tmp_path)
        with pytest.raises(OwnersFault, match="being fetched by another program"):
            await elsewhere.fetch(REPO, untold)
        hub.flowing.set()
        paths = await asyncio.gather(*tasks[1:])
    assert {path.read_bytes() for path in paths} == {SMALL}
    assert hub.fetched == [""]


async def test_a_split_model_is_there_when_all_its_parts_are(tmp_path: Path) -> None:
    parts = {f"Q8_0/big-Q8_0-0000{at}-of-00002.gguf": gguf(50_000, at) for at in (1, 2)}
    async with fake_hub(files=parts, cuts=[50_000, 10_000, 0, 0, 0, 0, 0]) as hub:
        with pytest.raises(OwnersFault):
            await downloads(hub, tmp_path).fetch(REPO, untold, quant="Q8_0")
        assert all(name.endswith(".part") for name in left(tmp_path))
        hub.cuts.clear()
        path = await downloads(hub, tmp_path).fetch(REPO, untold, quant="Q8_0")
    assert path.name == "big-Q8_0-00001-of-00002.gguf"
    assert left(tmp_path) == {name.partition("/")[2] for name in parts}


async def test_a_split_model_that_the_disk_refused_in_the_middle_is_gone_on_with(tmp_path: Path) -> None:
    parts = {f"big-Q8_0-0000{at}-of-00002.gguf": gguf(50_000, at) for at in (1, 2)}
    settings = WorkerSettings(data=tmp_path, models=tmp_path)
    stands_in_the_way = tmp_path / REPO / "big-Q8_0-00001-of-00002.gguf"
    stands_in_the_way.mkdir(parents=True)
    async with fake_hub(files=parts) as hub:
        with pytest.raises(OwnersFault, match="cannot be kept: Is a directory"):
            await downloads(hub, tmp_path, reserve_bytes=0).fetch(REPO, untold, quant="Q8_0")
        stands_in_the_way.rmdir()
        assert gguf_place(settings, REPO) is None, "a model without its first part is none"
        await downloads(hub, tmp_path, reserve_bytes=0).fetch(REPO, untold, quant="Q8_0")
        assert gguf_place(settings, REPO) == tmp_path / REPO
    assert left(tmp_path) == set(parts)
    assert hub.fetched == ["", ""]


HARM: list[tuple[dict[str, Any], str]] = [
    ({"lies": {"sha256": "0" * 64}}, "another SHA-256"),
    ({"lies": {"size": 5}}, "not as large as the hub says"),
    ({"lies": {"size": 2**49}, "headers": {"content-length": str(2**49)}}, "GiB of that are missing"),
    ({"lies": {"size": -1}}, "no list of its files"),
    ({"lies": {"sha256": "../../x"}}, "no list of its files"),
    ({"status": 401}, "HF_TOKEN"),
    ({"status": 404}, "it is not there"),
    ({"files": {"tiny-Q4_K_M.gguf": b"<html>not found</html>"}}, "no GGUF file"),
    ({"files": {"tiny-Q4_K_M.gguf": b""}}, "is empty"),
    ({"files": {"readme-Q4_K_M.txt": SMALL}}, "no GGUF file that names its quantisation"),
    ({"location": "ftp://127.0.0.1/x"}, "cannot be fetched"),
    ({"location": "http://[/x"}, "sends on to what is no address"),
]


@pytest.mark.parametrize(("harm", "words"), HARM, ids=lambda value: value if isinstance(value, str) else "")
async def test_what_a_hub_does_wrong_is_one_sentence_and_nothing_is_kept(
    tmp_path: Path, harm: dict[str, Any], words: str
) -> None:
    async with fake_hub(**{"files": FILES, **harm}) as hub:
        with pytest.raises(OwnersFault, match=words) as failed:
            await downloads(hub, tmp_path).fetch(REPO, untold, quant="Q4_K_M")
    assert str(tmp_path) not in str(failed.value)
    assert not any((tmp_path / REPO / name).exists() for name in FILES)


async def test_no_more_is_kept_than_the_disk_has_room_for(tmp_path: Path) -> None:
    async with fake_hub(files=FILES, headers={"content-length": None, "etag": None}) as hub:
        fetch = downloads(hub, tmp_path, reserve_bytes=2**60)
        with pytest.raises(OwnersFault, match="than the disk has room for"):
            await fetch.fetch(f"{hub.cdn}/tiny-Q4_K_M.gguf", untold)
        with pytest.raises(OwnersFault, match="GiB of that are missing"):
            await fetch.fetch(REPO, untold)
    assert all(size == 0 for size in sizes(tmp_path).values())


async def test_another_address_has_another_file_of_the_same_name(tmp_path: Path) -> None:
    files = {"a/tiny.gguf": SMALL, "b/tiny.gguf": LARGE}
    async with fake_hub(files=files) as hub:
        fetch = downloads(hub, tmp_path, reserve_bytes=0).fetch
        assert (await fetch(f"{hub.cdn}/a/tiny.gguf?sign=1", untold)).read_bytes() == SMALL
        await fetch(f"{hub.cdn}/a/tiny.gguf?sign=2", untold)
        assert (await fetch(f"{hub.cdn}/b/tiny.gguf", untold)).read_bytes() == LARGE
    assert len(hub.fetched) == 2


async def test_the_token_goes_to_the_hub_alone(tmp_path: Path) -> None:
    async with fake_hub(files=FILES) as hub:
        await downloads(hub, tmp_path, token="hf_hush").fetch(REPO, untold, quant="Q8_0")
    told = {(f"http://{host}" == hub.cdn, headers.get("authorization")) for host, _, headers in hub.seen}
    assert told == {(False, "bearer hf_hush"), (True, None)}


async def test_an_endless_redirect_ends(tmp_path: Path) -> None:
    async with fake_hub(files=FILES) as hub:
        hub.location = f"{hub.url}/{REPO}/resolve/{COMMIT}/tiny-Q4_K_M.gguf"
        with pytest.raises(OwnersFault, match="sends on and on"):
            await downloads(hub, tmp_path).fetch(REPO, untold)


@asynccontextmanager
async def listing(*names: tuple[str, int]) -> AsyncIterator[Repository]:
    blob = {"sha256": "a" * 64}
    siblings = [{"rfilename": name, "lfs": {**blob, "size": size}} for name, size in names]
    yield Repository.model_validate({"sha": COMMIT, "siblings": siblings})


GB = 10**9
SHELF = (
    ("x-Q8_0.gguf", 8 * GB),
    ("x-Q4_K_M.gguf", 5 * GB),
    ("x-Q2_K.gguf", 3 * GB),
    ("mmproj-x-F16.gguf", GB),
    ("y-Q6_K-00001-of-00003.gguf", 2 * GB),
    ("../../etc/x-Q5_K_M.gguf", GB),
    ("x-Q5_K_M.gguf/..", GB),
    (".x-Q5_K_M.gguf", GB),
)


@pytest.mark.parametrize(
    ("quant", "memory", "name"),
    [
        ("auto", 12 * GB, "x-Q8_0.gguf"),
        ("auto", 8 * GB, "x-Q4_K_M.gguf"),
        ("auto", 5 * GB, "x-Q2_K.gguf"),
        ("auto", None, "x-Q4_K_M.gguf"),
        ("q2_k", GB, "x-Q2_K.gguf"),
    ],
)
async def test_the_best_quantisation_that_fits_is_fetched(quant: str, memory: int | None, name: str) -> None:
    async with listing(*SHELF) as repository:
        assert [file.path for file in chosen(offers_of(repository), quant, memory).files] == [name]


async def test_what_is_not_there_is_told_with_what_is() -> None:
    async with listing(*SHELF) as repository:
        offers = offers_of(repository)
    with pytest.raises(OwnersFault, match=r"no IQ2_M: there are Q8_0 \(8.0 GB\), Q4_K_M \(5.0 GB\), Q2_K"):
        chosen(offers, "IQ2_M", None)
    with pytest.raises(OwnersFault, match=r"no quantisation fits in 2\.0 GB"):
        chosen(offers, "auto", 2 * GB)
    # Beside a small GPU the processor computes a part: what is better than the usual one is not worth it there.
    assert chosen(offers, "auto", 2 * GB, 64 * GB).quant == "Q4_K_M"
    assert chosen(offers, "auto", 2 * GB, 5 * GB).quant == "Q2_K"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("acme/tiny", Source(repo="acme/tiny")),
        ("hf.co/acme/tiny:Q4_K_M", Source(repo="acme/tiny", quant="Q4_K_M")),
        ("https://x.test/a/b%20c.gguf", None),
        ("https://x.test/a/b.gguf?sign=1", Source(url="https://x.test/a/b.gguf?sign=1")),
        ("https://x.test/.gguf", None),
        ("https://x.test/..%2Fb.gguf", None),
        ("llama3.1:8b", None),
        ("../tiny", None),
        ("acme/..", None),
        ("a/b/c", None),
        ("file:///etc/x.gguf", None),
        ("https://[/x.gguf", None),
    ],
)
def test_only_addresses_and_names_of_the_hub_are_sources(text: str, found: Source | None) -> None:
    assert source_of(text) == found


def test_a_part_of_another_content_is_not_gone_on_with(tmp_path: Path) -> None:
    first = PartFile(tmp_path, "x.gguf", "one")
    first.append(b"GGUF12")
    first.close()
    other, again = PartFile(tmp_path, "x.gguf", "two"), PartFile(tmp_path, "x.gguf", "one")
    assert (other.size, again.size, again.head) == (0, 6, b"GGUF")
    again.append(b"34")
    assert again.sha256 == hashlib.sha256(b"GGUF1234").hexdigest()
    again.become(tmp_path / "x.gguf")
    other.close()
    again.close()
    assert left(tmp_path) == {"x.gguf"}
