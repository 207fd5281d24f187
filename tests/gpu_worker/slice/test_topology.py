"""Who serves which layers: the file, what is told of a wrong one, how a change is seen, and the chain of `--next`."""

import asyncio
import json
import logging
from pathlib import Path
from typing import Any

import pytest

from gpu_worker.core.errors import OwnersFault, Unavailable
from gpu_worker.core.inference.batch import Hop
from gpu_worker.core.inference.layers import Layers, gap
from gpu_worker.core.inference.seen import Seen
from gpu_worker.core.inference.topology import endpoint_of, parse, slice_of
from gpu_worker.edges.grpc.topology_file import ChainTopology, FileTopology, read_topology
from tests.gpu_worker.world import until

STAGES = [
    {"endpoint": "10.0.0.1:50051", "layers": "0:2", "http": "http://10.0.0.1:31331"},
    {"endpoint": "[::1]:50052", "layers": "2:4"},
    {"endpoint": "gpu.example:50051", "layers": "2:4"},
]
TOML = """
model = "tiny"
key = "pass.pem"
[[stages]]
endpoint = "10.0.0.1:50051"
layers = "0:2"
http = "http://10.0.0.1:31331"
[[stages]]
endpoint = "[::1]:50052"
layers = "2:4"
[[stages]]
endpoint = "gpu.example:50051"
layers = "2:4"
"""


def write(path: Path, stages: list[dict[str, Any]], **more: Any) -> Path:
    """Write a topology as an editor does: the whole file at once."""
    draft = path.with_suffix(".draft")
    draft.write_text(json.dumps({"model": "tiny", "stages": stages, **more}))
    draft.replace(path)
    return path


def test_toml_and_json_say_the_same(tmp_path: Path) -> None:
    toml = tmp_path / "who.toml"
    toml.write_text(TOML)
    found = read_topology(toml)

    assert found == read_topology(write(tmp_path / "who.json", STAGES, key="pass.pem"))
    assert found.stages[1:] == (
        Hop(endpoint="[::1]:50052", start=2, end=4),
        Hop(endpoint="gpu.example:50051", start=2, end=4),
    )
    assert found.http == {"10.0.0.1:50051": "http://10.0.0.1:31331"}
    assert slice_of(found.stages, "[::1]:50052") == found.stages[1]
    assert slice_of(found.stages, "10.0.0.9:50051") is None


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ([], "is no table"),
        ({"stages": STAGES}, "needs `model`"),
        ({"model": "tiny"}, "needs `stages`"),
        ({"model": "tiny", "stages": []}, "needs `stages`"),
        ({"model": "tiny", "stages": STAGES, "modle": 1}, "has 'modle'"),
        ({"model": "tiny", "stages": STAGES, "model_hash": "abc"}, "no SHA-256"),
        ({"model": "tiny", "stages": [STAGES[0], STAGES[0]]}, "10.0.0.1:50051 is twice"),
        ({"model": "tiny", "stages": [{"endpoint": "a:1", "layers": "2:2"}]}, "stage 1 of the topology: `layers` is"),
        ({"model": "tiny", "stages": [{"endpoint": "a:1", "layers": [0, 2]}]}, "needs `layers`, a text"),
        ({"model": "tiny", "stages": [{"endpoint": "http://a:1", "layers": "0:2"}]}, "no gRPC address"),
        ({"model": "tiny", "stages": [{"endpoint": "a:70000", "layers": "0:2"}]}, "no gRPC address"),
        ({"model": "tiny", "stages": [{"layers": "0:2"}]}, "stage 1 of the topology needs `endpoint`"),
        ({"model": "tiny", "stages": ["a:1"]}, "stage 1 of the topology is no table"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_wrong_topology_is_one_sentence_that_names_the_place(document: Any, said: str) -> None:
    with pytest.raises(OwnersFault, match=said):
        parse(document)


def test_a_file_that_is_none_is_told_with_its_name(tmp_path: Path) -> None:
    (tmp_path / "no.toml").write_text("stages = [")
    (tmp_path / "deep.json").write_text("[" * 100_000)
    (tmp_path / "long.json").write_text(" " * 1_100_000)
    for name, said in (
        ("no.toml", "is no toml"),
        ("deep.json", "is no json"),
        ("long.json", "larger"),
        ("none.toml", "cannot be read"),
    ):
        with pytest.raises(OwnersFault, match=rf"{name}.*{said}"):
            read_topology(tmp_path / name)


def test_endpoints_are_told_apart_from_urls() -> None:
    assert endpoint_of("localhost:1") == "localhost:1"
    for wrong in ("localhost", ":1", "a:0", "a:65536", "a b:1", "a:1,b:2", ""):
        with pytest.raises(OwnersFault):
            endpoint_of(wrong)


@pytest.mark.row(51)
async def test_a_change_of_the_file_is_seen_and_a_broken_one_changes_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path / "who.json", STAGES)
    registry = FileTopology(path, lambda session, layers: f"pass of {session}", look_s=0.01)
    assert len(await registry.stages()) == 3
    assert registry.session_pass("s", [(0, 4)]) == "pass of s"

    waiting = asyncio.create_task(registry.changed())
    with caplog.at_level(logging.WARNING, logger="livery.gpu_worker"):
        path.write_text("{")
        await until(lambda: bool(caplog.records))
    assert "the topology stays as it was" in caplog.text
    assert len(await registry.stages()) == 3
    assert not waiting.done()

    write(path, STAGES[:2])
    async with asyncio.timeout(5):
        await waiting
    assert [hop.endpoint for hop in await registry.stages()] == ["10.0.0.1:50051", "[::1]:50052"]
    # The same once more is no change; who waits now waits for the next one.
    again = asyncio.create_task(registry.changed())
    write(path, STAGES[:2])
    await registry.stages()
    assert not again.done()
    path.unlink()
    assert len(await registry.stages()) == 2
    again.cancel()


def test_gaps_and_overlaps_are_sentences() -> None:
    def told(*texts: str) -> str | None:
        return gap([Layers.parse(text, 8) for text in texts])

    assert told("0:4", "4:8") is None
    assert told() == "no stage serves any layer"
    assert told("0:4", "5:8") == "layers 4 to 5 are served by nobody"
    assert told("0:4", "3:8") == "layers 3 to 4 are served twice"
    assert told("0:4") == "layers 4 to 8 are served by nobody"


class Described:
    """Links on which each stage says of itself what `stages` has for it; one that is not in it does not answer."""

    def __init__(self, **stages: tuple[str, str, bool]) -> None:
        self.stages = {f"{name}:1": said for name, said in stages.items()}
        self.asked: list[str] = []

    async def describe(self, endpoint: str, timeout_s: float) -> Seen:
        self.asked.append(endpoint)
        if endpoint not in self.stages:
            raise Unavailable("nobody there")
        layers, next, is_ready = self.stages[endpoint]
        return Seen(
            endpoint="as it calls itself:1",
            layers=Layers.parse(layers, 6),
            model="tiny",
            model_hash="0" * 64,
            is_ready=is_ready,
            next=next,
        )

    async def connect(self, endpoint: str) -> Any:
        raise Unavailable("only described")

    async def close(self) -> None:
        pass


OWN = Hop(endpoint="head:1", start=0, end=2)


async def test_the_head_walks_the_chain_by_what_each_stage_names() -> None:
    links = Described(middle=("2:4", "last:1,spare:1", True), last=("4:6", "", True), spare=("4:6", "", True))
    stages = await ChainTopology(lambda: OWN, ["middle:1"], links).stages()

    assert stages == (
        OWN,
        Hop(endpoint="middle:1", start=2, end=4),
        Hop(endpoint="last:1", start=4, end=6),
        Hop(endpoint="spare:1", start=4, end=6),
    )


async def test_a_chain_that_bites_its_tail_or_has_holes_ends() -> None:
    ring = Described(middle=("2:4", "head:1,middle:1,last:1", True), last=("4:6", "middle:1", True))
    assert len(await ChainTopology(lambda: OWN, ["middle:1"], ring).stages()) == 3
    assert sorted(ring.asked) == ["last:1", "middle:1"]
    # One that loads still is not used, but the ones behind it are known; one that is gone leaves the rest unknown.
    loading = Described(middle=("2:4", "last:1", False), last=("4:6", "", True))
    assert [hop.endpoint for hop in await ChainTopology(lambda: OWN, ["middle:1"], loading).stages()] == [
        "head:1",
        "last:1",
    ]
    assert await ChainTopology(lambda: OWN, ["gone:1"], Described()).stages() == (OWN,)
    with pytest.raises(Unavailable, match="not loaded"):
        await ChainTopology(lambda: None, ["middle:1"], ring).stages()


async def test_the_chain_tells_when_a_stage_comes_or_goes() -> None:
    links = Described(middle=("2:4", "", True))
    chain = ChainTopology(lambda: OWN, ["middle:1"], links, look_s=0.01)
    await chain.stages()
    waiting = asyncio.create_task(chain.changed())
    await until(lambda: len(links.asked) >= 3)
    assert not waiting.done()
    links.stages["middle:1"] = ("2:6", "", True)
    async with asyncio.timeout(5):
        await waiting
    assert (await chain.stages())[1].end == 6
