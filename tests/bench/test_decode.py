"""The benchmark of decoding: its sums, and its scenes with a model so small that only their working is seen."""

import asyncio
import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from bench.decode import client, report, run
from bench.decode.client import Turn, turn_of
from bench.decode.report import Row, Scene

TINY = ("--model", "llama-tiny", "--turns", "1", "--tokens", "16")


def test_of_a_turn_those_tokens_count_that_came_while_all_decoded() -> None:
    turn = turn_of([[1.0, 2.0, 3.0, 4.0], [2.0, 3.0, 4.0, 5.0]], began_s=0.5)
    # From 2.0, when the last of them had its first token, to 4.0, when the first of them was through.
    assert (turn.tokens, turn.seconds, turn.per_second) == (4, 2.0, 2.0)
    assert (turn.wall_tokens, turn.wall_s) == (8, 4.5)


def test_sessions_that_were_never_together_are_no_turn() -> None:
    with pytest.raises(RuntimeError, match="more tokens"):
        turn_of([[1.0, 2.0], [3.0, 4.0]], began_s=0.0)


def test_a_ratio_is_the_median_of_pairs_and_not_of_the_two_medians() -> None:
    ours = [Turn(10, 1.0), Turn(30, 1.0), Turn(20, 1.0)]
    theirs = [Turn(10, 1.0), Turn(10, 1.0), Turn(40, 1.0)]
    assert report.ratio(ours, theirs) == 1.0
    assert report.median_rate(ours) == 20.0


@pytest.mark.parametrize(
    ("row", "is_met"),
    [
        (Row("a", 0.94, least=0.95), False),
        (Row("a", 0.95, least=0.95), True),
        (Row("a", 3.1, most=3.0), False),
        (Row("a", 1.05, least=0.9, most=1.1), True),
        (Row("a", 1.2, least=0.9, most=1.1), False),
        (Row("a", 1.2), None),
        (Row("a", None, least=1.0, note="not installed"), None),
    ],
    ids=["below", "at", "above", "between", "beyond", "no goal", "no figure"],
)
def test_a_figure_is_held_against_its_goal(row: Row, is_met: bool | None) -> None:
    assert row.is_met is is_met


def test_a_scene_tells_what_it_missed_in_its_table_and_in_its_document() -> None:
    scene = Scene("speed", "how fast")
    scene.add("ours / theirs", 0.9, least=1.0)
    scene.add("ours / another's", None, least=1.0, note="not installed")
    said = io.StringIO()
    report.show(scene, Console(file=said, width=120))
    assert "missed" in said.getvalue()
    assert scene.missed == ["ours / theirs"]
    assert scene.document()["figures"]["ours / theirs"] == {"figure": 0.9, "goal": ">= 1", "met": False}
    assert scene.document()["figures"]["ours / another's"]["note"] == "not installed"


def test_tokens_are_counted_however_the_answer_is_cut_into_packets() -> None:
    parts = [
        b'data: {"finish_re',
        b'ason":null}\n\ndata: {"finish_reason":null}',
        b'\n\ndata: {"finish_reason":"length"}',
    ]

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"}")
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        for part in parts:
            writer.write(part)
            await writer.drain()
        writer.close()

    async def asked() -> list[list[float]]:
        async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            return (await client.streamed(f"http://127.0.0.1:{port}", [[1]], 2, {}))[0]

    assert [len(times) for times in asyncio.run(asked())] == [2]


@pytest.mark.slow
def test_one_stream_is_measured_with_a_tiny_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # No interpreter of peers: llama.cpp is told of as missing, and the rest is measured.
    run.main(["--scene", "single", *TINY, "--models", str(tmp_path), "--peers-python", str(tmp_path / "none")])
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    single = said["single"]
    for name in ("ours", "ours unsplit", "two engines and a bare pipe", "HF unsplit", "HF pipeline"):
        assert single["figures"][name]["figure"] > 0
    for name in ("ours", "two engines and a bare pipe", "HF pipeline"):
        assert len(single["processes"][name]) == 2
    figures = {name: each["figure"] for name, each in single["figures"].items()}
    assert figures["two engines and a bare pipe / ours unsplit"] > 0
    assert figures["ours / two engines and a bare pipe"] > 0
    assert single["figures"]["ours / Petals"]["note"].startswith("recorded")
    # A row of 64 float32 and what it is wrapped in.
    assert 256 < single["bytes of a step"] < 1_024
    assert single["figures"]["ours / llama.cpp f32 unsplit"]["figure"] is None
