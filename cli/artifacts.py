"""`livery run artifacts`: the files that a run's jobs left, listed and brought here."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TransferSpeedColumn

from cli.console import Json, err, fail, run, show, table
from cli.run import Local, OrNewest, Url, control_plane, named
from cli.watching import short
from livery.client import Client, Damaged
from wire.control import ArtifactDocument, JobDocument, StatusReply
from wire.file_name import to_file_name

COLUMNS = ("job", "vendor", "file", "bytes", "sha256")


def artifacts(
    run_id: OrNewest = None,
    to: Annotated[Path | None, typer.Option("--to", help="Bring them into this folder, one folder for a job.")] = None,
    url: Url = None,
    here: Local = False,
    as_json: Json = False,
) -> None:
    """
    List the files that a run's jobs left, and with --to download them, hash-checked.

    Example: livery run artifacts --to results
    """

    async def read() -> list[dict[str, Any]]:
        async with control_plane(url, here) as client:
            status = await client.status(await named(client, run_id))
            if to is not None:
                await _bring(client, status, to.expanduser(), as_json)
            return [_line(job, artifact, to) for job, artifact in _kept(status)]

    try:
        lines = run(read(), as_json=as_json)
    except Damaged as error:
        fail(str(error), "Nothing was written for this file; try again.", as_json=as_json)
    except OSError as error:
        fail(f"{error.filename}: {error.strerror}", "Name a folder that can be written with --to.", as_json=as_json)
    rows = [
        (line["jobId"], line["vendorId"], line.get("path", line["name"]), line["bytes"], short(line["sha256"]))
        for line in lines
    ]
    show(lines, lambda: table(COLUMNS, rows) if rows else "no files are kept of this run", as_json=as_json)


def _kept(status: StatusReply) -> Iterator[tuple[JobDocument, ArtifactDocument]]:
    """Yield the files of a run, the oldest job's first."""
    for job in reversed(status.jobs):
        for artifact in job.artifacts:
            yield job, artifact


def _place(to: Path, job: JobDocument, artifact: ArtifactDocument) -> Path:
    """Return where a file goes, inside `to` whatever a vendor called it; no two of a job share one, on any disk."""
    alike = [one for one in job.artifacts if one.name.casefold() == artifact.name.casefold()]
    return to / to_file_name(job.id, cased=True) / to_file_name(artifact.name, cased=len(alike) == 1)


def _line(job: JobDocument, artifact: ArtifactDocument, to: Path | None) -> dict[str, Any]:
    line = {"runId": job.run_id, "jobId": job.id, "vendorId": job.vendor_id, **artifact.document()}
    return line if to is None else {**line, "path": str(_place(to, job, artifact))}


async def _bring(client: Client, status: StatusReply, to: Path, as_json: bool) -> None:
    bar = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        console=err,
        transient=True,
        disable=as_json,
    )
    with bar:
        for job, artifact in _kept(status):
            place = _place(to, job, artifact)
            place.parent.mkdir(parents=True, exist_ok=True)
            task = bar.add_task(place.name, total=artifact.bytes)
            await client.download(status.run.id, job.id, artifact, place, partial(_advance, bar, task))


def _advance(bar: Progress, task: TaskID, received: int) -> None:
    bar.update(task, completed=received)
