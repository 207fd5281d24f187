"""
Artifacts in MongoDB's GridFS, for hosts without a disk: bucket `artifacts`, one document of `artifacts.current` a path.

The document of `run/job/name` says which file is the current one and which uploads are under way. An upload is entered
there before its first byte and takes the place of the current file in one write, which needs that entry still; files
that no document knows, or no longer, are litter. So no uploader touches another's file before that has lost its place,
and one whose entry was struck out because it was frozen for too long can no longer replace anything.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import unquote

from bson import ObjectId
from gridfs import AsyncGridFSBucket, NoFile
from pymongo.asynchronous.collection import AsyncCollection
from pymongo.errors import PyMongoError

from agent.core.errors import ArtifactsUnavailable, UnknownArtifact
from agent.ports import Usage
from storage import mongo
from storage.errors import StorageError
from wire.file_name import to_file_name

BUCKET = "artifacts"
ABANDONED_S = 3_600
# A document that knows nothing.
_EMPTY = {"file": {"$exists": False}, "uploads": []}


class GridFsArtifacts:
    """
    Files in the database `database` at `url`; nothing is connected before the first is asked for.

    Uploads older than `abandoned_s` are of the dead: they go with the next put of the same job.
    """

    def __init__(self, url: str, database: str, *, abandoned_s: float = ABANDONED_S) -> None:
        self._mongo = mongo.Mongo(url, database)
        self._abandoned_s = abandoned_s

    async def put(self, run_id: str, job_id: str, name: str, chunks: AsyncIterator[bytes]) -> None:
        path, upload = _path(run_id, job_id, name), ObjectId()
        with _translated():
            await self._sweep(_path(run_id, job_id))
            await (await self._current()).update_one({"_id": path}, {"$push": {"uploads": upload}}, upsert=True)
            stream = (await self._bucket()).open_upload_stream_with_id(_file_id(path, upload), path)
        try:
            async for chunk in chunks:
                with _translated():
                    await stream.write(chunk)
            with _translated():
                await stream.close()
        except BaseException:
            with suppress(PyMongoError):
                await stream.abort()
                await (await self._current()).update_one({"_id": path}, {"$pull": {"uploads": upload}})
                await self._forget_empty(path)
            raise
        with _translated():
            await self._replace(path, upload, stream.length)

    async def size(self, run_id: str, job_id: str, name: str) -> int | None:
        with _translated():
            found = await self._find(_path(run_id, job_id, name))
        return None if found is None else int(found["bytes"])

    async def remove(self, run_id: str, job_id: str, name: str) -> bool:
        with _translated():
            path = _path(run_id, job_id, name)
            # Uploads under way stay entered: theirs is the last word.
            before = await (await self._current()).find_one_and_update({"_id": path}, {"$unset": {"file": True}})
            await self._forget_empty(path)
            if before is None or "file" not in before:
                return False
            with suppress(NoFile):
                await (await self._bucket()).delete(before["file"]["file_id"])
        return True

    async def sweep(self, run_id: str, job_id: str, stays: Callable[[str], bool], *, closing: bool = False) -> None:
        job = _path(run_id, job_id)
        with _translated():
            current = await self._current()
            # In this order: an upload that took its place before its entry was struck out is found among the kept.
            if closing:
                await current.update_many({"_id": _below(job)}, {"$set": {"uploads": []}})
            paths = [document["_id"] async for document in current.find({"_id": _below(job)}, {"_id": True})]
        for name in (unquote(path.rpartition("/")[2]) for path in paths):
            if not stays(name):
                await self.remove(run_id, job_id, name)
        if closing:
            with _translated():
                await current.delete_many({"_id": _below(job), **_EMPTY})
                await self._sweep(job)

    async def usage(self, run_id: str, job_id: str) -> Usage:
        found = {"_id": _below(_path(run_id, job_id)), "file": {"$exists": True}}
        summed = {"_id": None, "files": {"$sum": 1}, "bytes": {"$sum": "$file.bytes"}}
        with _translated():
            cursor = await (await self._current()).aggregate([{"$match": found}, {"$group": summed}])
            rows = [row async for row in cursor]
        return Usage(int(rows[0]["files"]), int(rows[0]["bytes"])) if rows else Usage(0, 0)

    async def open(self, run_id: str, job_id: str, name: str, start: int = 0) -> AsyncGenerator[bytes, None]:
        with _translated():
            found = await self._find(_path(run_id, job_id, name))
            if found is None:
                raise UnknownArtifact(f"{name} is not kept")
            stream = await (await self._bucket()).open_download_stream(found["file_id"])
            await stream.seek(start)
        while True:
            with _translated():
                chunk = await stream.readchunk()
            if not chunk:
                return
            yield chunk

    async def close(self) -> None:
        await self._mongo.close()

    async def _bucket(self) -> AsyncGridFSBucket:
        return AsyncGridFSBucket(await self._mongo.database(), BUCKET)

    async def _current(self) -> AsyncCollection[dict[str, Any]]:
        return (await self._mongo.database())[f"{BUCKET}.current"]

    async def _find(self, path: str) -> dict[str, Any] | None:
        """Return what is current at `path`: `file_id` and `bytes`."""
        found = await (await self._current()).find_one({"_id": path, "file": {"$exists": True}})
        return None if found is None else found["file"]

    async def _replace(self, path: str, upload: ObjectId, length: int) -> None:
        """Make `upload` the current file of `path`, and remove the one it was before."""
        entered = {"_id": path, "uploads": upload}
        file = {"file_id": _file_id(path, upload), "bytes": length}
        before = await (await self._current()).find_one_and_update(
            entered, {"$set": {"file": file}, "$pull": {"uploads": upload}}
        )
        if before is None:
            with suppress(PyMongoError):
                await (await self._bucket()).delete(file["file_id"])
            raise ArtifactsUnavailable(
                f"it took more than {self._abandoned_s} s, or the job was closed: it was removed"
            )
        # It is kept: what cannot be removed now is litter.
        with suppress(PyMongoError):
            if "file" in before:
                await (await self._bucket()).delete(before["file"]["file_id"])

    async def _forget_empty(self, path: str) -> None:
        """Remove the document of `path` where it knows nothing."""
        await (await self._current()).delete_one({"_id": path, **_EMPTY})

    async def _sweep(self, job: str) -> None:
        """Remove what is litter of `job`, a path without a name."""
        # The order matters: what was found and is not known afterwards never will be.
        mine = _below(job)
        found = await (await self._mongo.database())[f"{BUCKET}.chunks"].distinct("files_id", {"files_id": mine})
        too_old = ObjectId.from_datetime(datetime.now(UTC) - timedelta(seconds=self._abandoned_s))
        await (await self._current()).update_many({"_id": mine}, {"$pull": {"uploads": {"$lt": too_old}}})
        known = set()
        async for document in (await self._current()).find({"_id": mine}):
            known |= {_file_id(document["_id"], upload) for upload in document["uploads"]}
            known.add(document.get("file", {}).get("file_id"))
        for litter in set(found) - known:
            with suppress(NoFile):
                await (await self._bucket()).delete(litter)


def _path(*parts: str) -> str:
    return "/".join(to_file_name(part) for part in parts)


def _below(job: str) -> dict[str, str]:
    """Return what the paths, and the files, of `job` are: "0" follows "/"."""
    return {"$gte": f"{job}/", "$lt": f"{job}0"}


def _file_id(path: str, upload: ObjectId) -> str:
    return f"{path}#{upload}"


@contextmanager
def _translated() -> Iterator[None]:
    """Turn the driver's errors into ours."""
    try:
        with mongo.translated():
            yield
    except StorageError as error:
        raise ArtifactsUnavailable(str(error)) from error
