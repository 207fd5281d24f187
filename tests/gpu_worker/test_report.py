"""What every job leaves: a report, and a curve whose points are where the losses are."""

import json
import struct
import zlib

import pytest

from gpu_worker.core.curve import HEIGHT, WIDTH, frame_of, png
from gpu_worker.core.folder import ProgressLine, Spec, State
from gpu_worker.core.report import end_files, history_of
from tests.fixtures.tiny import Job

RED = (200, 60, 40)
BLUE = (120, 160, 220)


def pixels(content: bytes) -> list[list[tuple[int, ...]]]:
    """Return the rows of colours of a PNG with a palette; every chunk's sum is checked."""
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    at, chunks = 8, {}
    while at < len(content):
        (size,) = struct.unpack(">I", content[at : at + 4])
        kind, data = content[at + 4 : at + 8], content[at + 8 : at + 8 + size]
        assert struct.unpack(">I", content[at + 8 + size : at + 12 + size])[0] == zlib.crc32(kind + data)
        chunks[kind] = data
        at += 12 + size
    width, height, depth, colours = struct.unpack(">IIBB", chunks[b"IHDR"][:10])
    assert (depth, colours) == (8, 3)
    palette = [tuple(chunks[b"PLTE"][at : at + 3]) for at in range(0, len(chunks[b"PLTE"]), 3)]
    rows = zlib.decompress(chunks[b"IDAT"])
    assert len(rows) == height * (width + 1)
    return [[palette[pixel] for pixel in rows[at + 1 : at + 1 + width]] for at in range(0, len(rows), width + 1)]


def test_the_curve_has_its_points_where_the_losses_are() -> None:
    trained, held_out = [(1, 5.0), (2, 4.5), (3, 2.5), (4, 2.0)], [(0, 5.5), (4, 3.0)]
    picture = pixels(png(trained, held_out))
    frame = frame_of([*trained, *held_out])
    assert (len(picture), len(picture[0])) == (HEIGHT, WIDTH)
    for points, colour in ((trained, BLUE), (held_out, RED)):
        for column, row in (frame.place(*point) for point in points):
            assert picture[row][column] == colour
    assert frame.place(0, 5.5)[1] < frame.place(4, 2.0)[1]


@pytest.mark.parametrize("points", [[], [(7, 1.0)], [(1, 2.0), (2, 2.0)], [(1, float("nan")), (2, 3.0)]])
def test_a_curve_of_little_is_still_a_picture(points: list[tuple[int, float]]) -> None:
    assert len(pixels(png(points, []))) == HEIGHT


@pytest.mark.slow
def test_a_jobs_picture_shows_its_held_out_losses(trained: Job) -> None:
    picture = pixels((trained.result / "curve.png").read_bytes())
    losses, held_out = trained.losses("loss"), trained.losses("eval_loss")
    frame = frame_of([*losses.items(), *held_out.items()])
    for column, row in (frame.place(*point) for point in held_out.items()):
        assert picture[row][column] == RED


@pytest.mark.slow
def test_the_report_says_what_the_job_was_and_how_it_went(trained: Job) -> None:
    report = trained.report
    assert (report["outcome"], report["kind"], report["steps"]) == ("completed", "fine_tune", 60)
    assert report["params"] == {"steps": 60, "learningRate": 0.003}
    assert [point["step"] for point in report["history"]] == [*range(61)]
    assert report["dataset"]["sha256"] == json.loads((trained.path / "spec.json").read_text())["input"]["sha256"]
    assert report["state"]["phase"] == "ended"


@pytest.mark.slow
def test_what_is_downloaded_is_readable_without_running_anything(trained: Job) -> None:
    kinds = {path.suffix for path in trained.result.iterdir()}
    assert kinds == {".safetensors", ".json", ".jinja", ".png"}


@pytest.mark.slow
def test_a_failed_job_has_its_report_too(worked: dict[str, Job]) -> None:
    for name in ("one_record", "no_template", "other_model", "no_number", "huge_config", "too_large_a_file"):
        report = worked[name].report
        assert report["outcome"] == "failed"
        assert report["state"]["message"] == worked[name].state["message"]
    assert (worked["too_large_a_file"].result / "curve.png").exists()


@pytest.mark.slow
def test_of_a_killed_job_the_report_is_made_from_what_it_told(trained: Job) -> None:
    spec = Spec.from_json((trained.path / "spec.json").read_bytes())
    told = [line for line in trained.lines() if line["kind"] == "metric"][:9]
    lines = [ProgressLine.model_validate(line) for line in json.loads(json.dumps(told), parse_float=_decimal)]
    state = State.from_json((trained.path / "state.json").read_bytes()).model_copy(
        update={"code": "killed", "message": "took too much memory"}
    )
    files = end_files(spec, state, history_of(lines))
    assert json.loads(files["report.json"])["outcome"] == "failed"
    assert len(pixels(files["curve.png"])) == HEIGHT
    assert set(end_files(spec, None, [])) == {"report.json"}


def test_what_was_done_again_after_a_resume_counts_once() -> None:
    lines = [
        ProgressLine(kind="metric", step=step, values={"loss": loss})
        for step, loss in ((1, 5), (2, 4), (3, 3), (2, 40), (3, 30))
    ]
    assert [(point.step, point.values["loss"]) for point in history_of(lines)] == [(1, 5), (2, 40), (3, 30)]


def _decimal(text: str) -> object:
    from decimal import Decimal

    return Decimal(text)
