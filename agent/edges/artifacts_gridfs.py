"""
Artifacts in MongoDB's GridFS, for hosts without a disk: bucket `artifacts`, one file each, called `run/job/name`.

An upload has an id of its own and is seen when its last byte is there; then it takes the place of the others. Of two
with one name the older is read: the younger is of an uploader that was frozen, lost the run, and went on.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from bson import ObjectId
from gridfs import AsyncGridFSBucket, NoFile
from pymongo.errors import PyMongoError

from agent.core.errors import ArtifactsUnavailable, UnknownArtifact
from storage import mongo
from storage.errors import StorageError
from wire.file_name import to_file_name

BUCKET = "artifacts"


class GridFsArtifacts:
    """Files in the database `database` at `url`; nothing is connected before the first is asked for."""

    def __init__(self, url: str, database: str) -> None:
        self._mongo = mongo.Mongo(url, database)

    async def put(self, run_id: str, job_id: str, name: str, chunks: AsyncIterator[bytes]) -> None:
        path = _path(run_id, job_id, name)
        upload_id = f"{path}#{ObjectId()}"
        with _translated():
            await self._sweep(path)
            stream = (await self._bucket()).open_upload_stream_with_id(upload_id, path)
        try:
            async for chunk in chunks:
                with _translated():
                    await stream.write(chunk)
            with _translated():
                await stream.close()
        except BaseException:
            with suppress(PyMongoError):
                await stream.abort()
            raise
        with _translated():
            await self._replace(path, upload_id)

    async def size(self, run_id: str, job_id: str, name: str) -> int | None:
        with _translated():
            found = await self._find(_path(run_id, job_id, name))
        return None if found is None else int(found["length"])

    async def open(self, run_id: str, job_id: str, name: str) -> AsyncGenerator[bytes, None]:
        with _translated():
            found = await self._find(_path(run_id, job_id, name))
            if found is None:
                raise UnknownArtifact(f"{name} is not kept")
            stream = await (await self._bucket()).open_download_stream(found["_id"])
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

    async def _find(self, path: str) -> dict[str, Any] | None:
        files = (await self._mongo.database())[f"{BUCKET}.files"]
        return await files.find_one({"filename": path}, sort=[("uploadDate", 1)])

    async def _sweep(self, path: str) -> None:
        """Remove the chunks that killed uploads of `path` left: they belong to no file."""
        database = await self._mongo.database()
        whole = await database[f"{BUCKET}.files"].distinct("_id", {"filename": path})
        # "$" follows "#", and neither is in a path: these are the uploads of this one.
        mine = {"$gte": f"{path}#", "$lt": f"{path}$", "$nin": whole}
        await database[f"{BUCKET}.chunks"].delete_many({"files_id": mine})

    async def _replace(self, path: str, upload_id: str) -> None:
        """Remove every file called `path` but the new one."""
        bucket = await self._bucket()
        files = (await self._mongo.database())[f"{BUCKET}.files"]
        for old in await files.distinct("_id", {"filename": path, "_id": {"$ne": upload_id}}):
            with suppress(NoFile):
                await bucket.delete(old)


def _path(run_id: str, job_id: str, name: str) -> str:
    return "/".join(to_file_name(part) for part in (run_id, job_id, name))


@contextmanager
def _translated() -> Iterator[None]:
    """Turn the driver's errors into ours."""
    try:
        with mongo.translated():
            yield
    except StorageError as error:
        raise ArtifactsUnavailable(str(error)) from error
