"""Where `livery run artifacts --to` puts what a job left."""

from pathlib import Path
from types import SimpleNamespace

from cli.artifacts import _place

TO = Path("results")


def names(*called: str) -> list[str]:
    job = SimpleNamespace(id="run_Ab-job-1", artifacts=[SimpleNamespace(name=name) for name in called])
    places = [_place(TO, job, artifact) for artifact in job.artifacts]
    assert {place.parent for place in places} == {TO / "run_Ab-job-1"}
    return [place.name for place in places]


def test_a_file_is_called_as_the_vendor_called_it() -> None:
    assert names("README.md", "Model.json") == ["README.md", "Model.json"]


def test_names_that_differ_in_case_alone_have_files_of_their_own_on_any_disk() -> None:
    assert names("Model", "model", "LOG") == ["%4Dodel", "model", "LOG"]
