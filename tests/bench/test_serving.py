"""What the benchmark of whole models finds is what happened: nothing is lost, and every figure is there."""

import json
from pathlib import Path

import pytest

from bench.serving import run

pytestmark = pytest.mark.slow


def test_the_door_and_the_engine_alone_are_timed_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    words = ["--models", str(tmp_path), "--model", "llama-tiny", "--turns", "1", "--tokens", "32"]
    run.main([*words, "--scene", "door"])
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])["door"]["figures"]
    assert set(figures) == {
        f"{streams}, {what}"
        for streams in ("1 stream", "8 streams")
        for what in ("llama.cpp itself", "through the door", "through / itself", "first token, through / itself")
    }
    assert all(each["figure"] > 0 for each in figures.values())


def test_of_many_streams_at_once_no_chunk_is_lost(capsys: pytest.CaptureFixture) -> None:
    run.main(["--scene", "crowd", "--streams", "40", "--chunks", "40"])
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])["crowd"]["figures"]
    assert figures["chunks lost, doubled or out of order"]["figure"] == 0
    assert figures["chunks told"]["figure"] == 1_600


def test_a_pass_is_timed_beside_the_bare_signature(capsys: pytest.CaptureFixture) -> None:
    run.main(["--scene", "passes"])
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])["passes"]["figures"]
    assert {name: each["figure"] > 0 for name, each in figures.items() if "/" in name} == {
        "EdDSA, the pass / the signature": True,
        "RS256, the pass / the signature": True,
    }
