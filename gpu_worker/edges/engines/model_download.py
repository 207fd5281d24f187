"""
Fetches GGUF models from an address or from Hugging Face's hub: what was begun is gone on with, and checked at the end.

    .NAME.IDENTITY.part    what is there of a file; IDENTITY is of its hash, or of what its server calls its version
    NAME                   the whole file, its hash checked; of a split model only when all parts are there

A model is fetched once at a time. Everything that a server says of sizes is held against the disk before it is kept.
"""

import asyncio
import logging
import re
import shutil
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import quote, urljoin, urlsplit

from pydantic import ValidationError

from gpu_worker.core.errors import OwnersFault
from gpu_worker.core.hub import Offer, Source, chosen, offers_of, source_of
from gpu_worker.core.quantization.catalogue import quant_called, quant_in
from gpu_worker.edges.engines.once import Once
from gpu_worker.edges.engines.part_file import PartFile, is_kept
from gpu_worker.model_port import Tell
from outbound.http import HttpClient, HttpStream, OutboundError
from wire.hub import Repository

HUB = "https://huggingface.co"
GIB = 1024**3
REDIRECTS_MAX = 5
LIST_BYTES_MAX = 16 * 1024 * 1024
BATCH_BYTES = 4 * 1024 * 1024
TRIES = 5
_MOVED = frozenset({301, 302, 303, 307, 308})
MAGIC = b"GGUF"
_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})  # try again: it is busy, or broken
_RANGE = re.compile(r"^bytes (\d{1,18})-(\d{1,18})/(\d{1,18})$")
_REASONS = {
    401: "the hub asks who you are: set HF_TOKEN",
    403: "the hub does not let you: ask for access on the model's page, and set HF_TOKEN",
    404: "it is not there",
}

Choose = Callable[[Sequence[Offer]], Offer]

logger = logging.getLogger("livery.worker.download")


@dataclass(frozen=True, slots=True)
class _Wanted:
    """A file to fetch: `bytes` and `sha256` as they were told beforehand, None: they were not."""

    url: str
    name: str
    bytes: int | None = None
    sha256: str | None = None


class ModelDownloads:
    """
    Args:
        http: has the guard, if any.
        folder: the folder of the models.
        token: the hub's, sent to nobody else.
        reserve_bytes: so much of the disk stays free.
        silence_s: seconds without a byte after which a connection is given up.
        retry_s: seconds before it is tried again.
    """

    def __init__(
        self,
        http: HttpClient,
        folder: Path,
        *,
        hub: str = HUB,
        token: str | None = None,
        reserve_bytes: int = 5 * GIB,
        silence_s: float = 60,
        retry_s: float = 2,
    ) -> None:
        self._http, self._folder, self._hub, self._token = http, folder, hub.rstrip("/"), token
        self._reserve, self._silence_s, self._retry_s = reserve_bytes, silence_s, retry_s
        self._once: Once[Path] = Once()

    async def fetch(
        self,
        source: str,
        tell: Tell,
        *,
        quant: str = "auto",
        sha256: str | None = None,
        memory_bytes: int | None = None,
        beside_bytes: int = 0,
    ) -> Path:
        """
        Return the file of a model, fetched where it is not there; of a split one its first part, the others beside it.

        Args:
            quant: what a repository's model is wanted in; a name after `:` in `source` wins. auto: the best that fits.
            sha256: what the file must have, None: what the hub says.
            memory_bytes: what is free for the weights, None: that is not known.
            beside_bytes: what the machine has free beside its GPU.

        Raises:
            OwnersFault: it cannot be had; the sentence says why.
        """
        found = source_of(source)
        if found is None:
            raise OwnersFault(f"{source[:200]} is no address of a .gguf file and no owner/repository of the hub")
        key = (source, quant, sha256)
        wanted = found.quant or quant
        choose = partial(chosen, quant=wanted, memory_bytes=memory_bytes, beside_bytes=beside_bytes)
        return await self._once.do(key, lambda: self._fetch(found, tell, wanted, sha256, choose))

    async def _fetch(self, source: Source, tell: Tell, quant: str, sha256: str | None, choose: Choose) -> Path:
        into = self._folder / source.folder
        wanted = [_Wanted(source.url, source.name, None, sha256 and sha256.lower())]
        origin = source.url.partition("?")[0]  # another one may have another file of this name; a query is a signature
        if source.repo:
            try:
                wanted = await self._listed(source.repo, sha256, choose)
            except OutboundError as error:
                # What is whole here is served without the hub.
                kept = await asyncio.to_thread(_kept, into, quant, sha256)
                if kept is None:
                    raise OwnersFault(f"the hub cannot be reached: {error}") from error
                return kept
        try:
            await asyncio.to_thread(into.mkdir, parents=True, exist_ok=True)
        except OSError as error:
            raise OwnersFault(f"{into.name} cannot be made in the models' folder: {error.strerror}") from error
        await asyncio.to_thread(self._check_disk, into, wanted)
        parts: list[tuple[PartFile, Path]] = []
        try:
            for file in wanted:
                if not await asyncio.to_thread(is_kept, into / file.name, file.sha256, origin):
                    parts.append((await self._whole(file, into, tell), into / file.name))
            # The first one last: without it nobody takes the others for a model.
            for part, path in reversed(parts):
                await asyncio.to_thread(part.become, path, origin)
        finally:
            for part, _ in parts:
                part.close()
        return into / wanted[0].name

    async def _listed(self, repo: str, sha256: str | None, choose: Choose) -> list[_Wanted]:
        """Return the files of a repository to fetch, at the commit looked at. Raises OwnersFault, OutboundError."""
        url = f"{self._hub}/api/models/{repo}/revision/main?blobs=true"
        try:
            async with self._opened(url, {}) as answer:
                if answer.status != 200:
                    raise OwnersFault(f"{repo} of the hub: {_REASONS.get(answer.status, f'HTTP {answer.status}')}")
                body = bytearray()
                async for chunk in answer.chunks:
                    body += chunk
                    if len(body) > LIST_BYTES_MAX:
                        raise OwnersFault(f"{repo} of the hub: its list of files is too long")
            told = Repository.model_validate_json(bytes(body))
        except ValidationError:
            raise OwnersFault(f"{repo} of the hub: what was answered is no list of its files") from None
        offer = choose(offers_of(told))
        if sha256 is not None and [file.sha256 for file in offer.files] != [sha256.lower()]:
            raise OwnersFault(f"{offer.quant} of {repo} is not the file of the SHA-256 that is asked for")
        base = f"{self._hub}/{repo}/resolve/{told.sha}/"
        return [_Wanted(base + quote(file.path), file.name, file.bytes, file.sha256) for file in offer.files]

    async def _whole(self, file: _Wanted, into: Path, tell: Tell) -> PartFile:
        """Return a file that is there as a part, whole and checked. Raises OwnersFault."""
        part, validator, tries = None, None, 0
        if file.sha256 is not None:
            part = await asyncio.to_thread(PartFile, into, file.name, file.sha256)
        try:
            while part is None or file.bytes is None or part.size != file.bytes:
                have = 0 if part is None else part.size
                try:
                    async with self._opened(file.url, _range(have, validator)) as answer:
                        if part is None:
                            validator = _strong(answer)
                            identity = validator and f"{file.url} {validator}"
                            part = await asyncio.to_thread(PartFile, into, file.name, identity)
                            if part.size:
                                continue
                        if await self._take(answer, file, part, tell):
                            break
                except OutboundError as error:
                    if not error.retryable:
                        raise OwnersFault(f"{file.name} cannot be fetched: {error}") from error
                tries += 1
                if part is not None and file.sha256 is None and validator is None:
                    # Nothing says that the rest would be of the same file.
                    part.restart()
                elif part is not None and part.size > have:
                    tries = 0
                if tries == TRIES:
                    raise OwnersFault(f"{file.name} cannot be fetched: it broke off {TRIES} times at the same place")
                await asyncio.sleep(self._retry_s)
            await self._check(file, part)
        except BaseException:
            if part is not None:
                part.close()
            raise
        return part

    async def _take(self, answer: HttpStream, file: _Wanted, part: PartFile, tell: Tell) -> bool:
        """Add what is answered to what is there. Returns whether it is whole now. Raises OwnersFault, OutboundError."""
        if answer.status in _PASSING or (answer.status in (206, 416) and not _goes_on(answer, part.size)):
            if answer.status not in _PASSING:
                part.restart()
            return False
        if answer.status not in (200, 206):
            raise OwnersFault(f"{file.name} cannot be fetched: {_REASONS.get(answer.status, f'HTTP {answer.status}')}")
        if answer.status == 200:
            part.restart()
        total = _total(answer)
        if file.bytes is not None and total not in (None, file.bytes):
            raise OwnersFault(f"{file.name} is not as large as the hub says")
        most = min(self._room(part), total if total is not None else file.bytes or self._room(part))
        batch = bytearray()
        try:
            async for chunk in answer.chunks:
                batch += chunk
                if part.size + len(batch) > most:
                    part.restart()
                    raise OwnersFault(f"{file.name} is larger than was said, or than the disk has room for")
                if len(batch) >= BATCH_BYTES or part.size == 0:
                    await self._keep(file, part, batch)
                    tell(f"fetching {file.name}", part.size, total or file.bytes or part.size)
        except OutboundError:
            await self._keep(file, part, batch)
            raise
        await self._keep(file, part, batch)
        tell(f"fetching {file.name}", part.size, total or part.size)
        return total is None or part.size == total

    async def _keep(self, file: _Wanted, part: PartFile, batch: bytearray) -> None:
        data = bytes(batch)
        batch.clear()
        await asyncio.to_thread(part.append, data)
        if part.head != MAGIC[: len(part.head)]:
            part.discard()
            raise OwnersFault(f"{file.name} is no GGUF file: what was answered begins otherwise")

    def _room(self, part: PartFile) -> int:
        """Return how large a file may become."""
        return part.size + shutil.disk_usage(self._folder).free - self._reserve

    def _check_disk(self, into: Path, wanted: Sequence[_Wanted]) -> None:
        """Raises OwnersFault: there is no room for what is still to come of the files."""
        missing = sum(file.bytes or 0 for file in wanted if not is_kept(into / file.name, file.sha256))
        missing -= sum(path.stat().st_size for file in wanted for path in into.glob(f".{file.name}.*.part"))
        short = missing + self._reserve - shutil.disk_usage(into).free
        if missing > 0 and short > 0:
            told = f"{missing / GIB:.1f} GiB more: {short / GIB:.1f} GiB of that are missing where the models are kept"
            raise OwnersFault(f"{wanted[0].name} needs {told}")

    async def _check(self, file: _Wanted, part: PartFile) -> None:
        if file.sha256 is not None and part.sha256 != file.sha256:
            part.discard()
            raise OwnersFault(f"{file.name} came with another SHA-256 than it should have: it was thrown away")
        if part.size < len(MAGIC):
            part.discard()
            raise OwnersFault(f"{file.name} is empty")
        logger.info("fetched %s, %d bytes, sha256 %s", file.name, part.size, part.sha256)

    @asynccontextmanager
    async def _opened(self, url: str, headers: dict[str, str]) -> AsyncIterator[HttpStream]:
        """Yield what answers at `url`, or where that says that it is. Raises OutboundError, OwnersFault."""
        for _ in range(REDIRECTS_MAX):
            token = {"authorization": f"Bearer {self._token}"} if self._token and self._is_hub(url) else {}
            async with self._http.stream(
                "GET", url, headers=headers | token, content=None, silence_s=self._silence_s
            ) as answer:
                if answer.status not in _MOVED:
                    yield answer
                    return
                try:
                    to = urljoin(url, answer.headers.get("location", ""))
                    is_safe = urlsplit(to).scheme == "https"
                except ValueError:
                    raise OwnersFault(f"{urlsplit(url).hostname} sends on to what is no address") from None
            if urlsplit(url).scheme == "https" and not is_safe:
                raise OwnersFault(f"{urlsplit(url).hostname} sends on to an address without TLS")
            url = to
        raise OwnersFault(f"{urlsplit(url).hostname} sends on and on")

    def _is_hub(self, url: str) -> bool:
        return urlsplit(url)[:2] == urlsplit(self._hub)[:2]


def _kept(folder: Path, quant: str, sha256: str | None) -> Path | None:
    """Return the file of this quantisation that was fetched whole, of a split one the first, None: there is none."""
    found = (path for path in sorted(folder.glob("*.gguf")) if quant_in(path.name) == quant_called(quant))
    return next((path for path in found if is_kept(path, sha256 and sha256.lower())), None)


def _range(have: int, validator: str | None) -> dict[str, str]:
    return {} if not have else {"range": f"bytes={have}-"} | ({"if-range": validator} if validator else {})


def _strong(answer: HttpStream) -> str | None:
    """Return the version that an answer is of, None where it names none that holds byte for byte."""
    tag = answer.headers.get("etag", "")
    return tag if tag.startswith('"') else None


def _goes_on(answer: HttpStream, have: int) -> bool:
    """Return whether an answer is the rest, from what is there up to the end."""
    found = _RANGE.match(answer.headers.get("content-range", ""))
    return found is not None and int(found[1]) == have and int(found[2]) + 1 == int(found[3])


def _total(answer: HttpStream) -> int | None:
    """Return how large the whole file is, None where it is not told."""
    found = _RANGE.match(answer.headers.get("content-range", ""))
    told = answer.headers.get("content-length", "") if found is None else found[3]
    return int(told) if told.isascii() and told.isdigit() and len(told) < 19 else None
