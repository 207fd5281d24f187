"""A checkpoint's manifest: what it says survives the wire, what does not add up is told."""

import json
from typing import Any

import pytest
from pydantic import ValidationError

from wire.checkpoint import MANIFEST_NAME, PART_BYTES_MAX, Manifest, misfit, wrong_manifest
from wire.vendor import CheckpointDescription

PARTS = [{"name": f"20.model.{number}", "bytes": 5, "sha256": f"0{number}" * 32} for number in range(3)]
DOCUMENT = {
    "format": 1,
    "jobId": "job_1",
    "step": 20,
    "steps": 60,
    "modelHash": "0a" * 32,
    "specHash": "0b" * 32,
    "createdAt": "2026-11-21T12:00:00Z",
    "files": [
        {"name": "model.safetensors", "bytes": 15, "sha256": "0c" * 32, "parts": PARTS},
        {"name": "history.json", "bytes": 0, "sha256": "0d" * 32, "parts": []},
    ],
}


def a_manifest(**changes: Any) -> Manifest:
    return Manifest.model_validate({**DOCUMENT, **changes})


def with_file(**changes: Any) -> Manifest:
    model, history = DOCUMENT["files"]  # type: ignore[misc]
    return a_manifest(files=[{**model, **changes}, history])


def test_a_manifest_survives_the_wire() -> None:
    assert Manifest.from_json(a_manifest().to_json()) == a_manifest()
    assert json.loads(a_manifest().to_json()) == DOCUMENT


def test_a_manifest_describes_its_checkpoint() -> None:
    assert a_manifest().description() == CheckpointDescription(
        model_hash="0a" * 32, spec_hash="0b" * 32, step=20, steps=60, bytes=15
    )
    assert [part.name for part in a_manifest().parts()] == ["20.model.0", "20.model.1", "20.model.2"]


@pytest.mark.parametrize(
    "changes",
    [
        {"format": 2},
        {"step": -1},
        {"steps": 0},
        {"modelHash": "x"},
        {"createdAt": "yesterday"},
        {"files": [{"name": "../model", "bytes": 1, "sha256": "0c" * 32}]},
        {"files": [{"name": "a/b", "bytes": 1, "sha256": "0c" * 32}]},
        {"files": [{"name": ".hidden", "bytes": 1, "sha256": "0c" * 32}]},
        {"files": [{"name": "model", "bytes": -1, "sha256": "0c" * 32}]},
        {"files": [{"name": f"f{number}", "bytes": 1, "sha256": "0c" * 32} for number in range(65)]},
    ],
)
def test_what_is_no_manifest_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        a_manifest(**changes)


@pytest.mark.parametrize("part_bytes", [0, PART_BYTES_MAX + 1])
def test_a_part_fits_into_one_body_and_is_not_empty(part_bytes: int) -> None:
    with pytest.raises(ValidationError):
        with_file(parts=[{**PARTS[0], "bytes": part_bytes}])


@pytest.mark.parametrize(
    ("manifest", "pushed", "told"),
    [
        (a_manifest(), True, None),
        (a_manifest(), False, None),
        (a_manifest(step=60), True, None),
        (with_file(parts=[]), False, None),
        (with_file(parts=[]), True, "the parts of model.safetensors are not as long as it is"),
        (with_file(parts=PARTS[:2]), True, "the parts of model.safetensors are not as long as it is"),
        (with_file(parts=PARTS[:2]), False, "the parts of model.safetensors are not as long as it is"),
        (a_manifest(files=[]), False, "it has no files"),
        (with_file(parts=[PARTS[0]] * 3), True, "a name stands twice"),
        (with_file(name="history.json"), True, "a name stands twice"),
        (with_file(name="20.model.1"), True, "a name stands twice"),
        (with_file(name=MANIFEST_NAME), False, "a name stands twice"),
        (a_manifest(step=61), True, "it has more steps than there are"),
    ],
)
def test_what_does_not_add_up_is_told(manifest: Manifest, pushed: bool, told: str | None) -> None:
    assert wrong_manifest(manifest, pushed=pushed) == told


def test_parts_are_counted_over_all_files() -> None:
    files = [
        {
            "name": f"f{number}",
            "bytes": 700,
            "sha256": "0c" * 32,
            "parts": [{"name": f"p{number}.{part}", "bytes": 1, "sha256": "0d" * 32} for part in range(700)],
        }
        for number in range(3)
    ]
    assert wrong_manifest(a_manifest(files=files[:2]), pushed=True) is None
    assert wrong_manifest(a_manifest(files=files), pushed=True) == "it has more than 2000 parts"


def test_work_goes_on_from_a_checkpoint_of_its_own_model_and_work_alone() -> None:
    found = a_manifest().description()
    assert misfit(found, model_hash="0a" * 32, spec_hash="0b" * 32) is None
    assert "the model 0a0a0a0a0a0a, this job trains 0e" in str(misfit(found, model_hash="0e" * 32, spec_hash="0b" * 32))
    assert "the work 0b0b0b0b0b0b, this job is 0e" in str(misfit(found, model_hash="0a" * 32, spec_hash="0e" * 32))
