"""Where a GGUF model is fetched from, and which of a repository's files it is."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from urllib.parse import unquote, urlsplit

from gpu_worker.core.errors import OwnersFault
from gpu_worker.core.quantization.catalogue import quality_of, quant_called, quant_in
from gpu_worker.core.quantization.estimate import usable_of
from wire.hub import Repository

_URL = re.compile(r"^https?://[^\s#]{1,2000}$")
_REPO = re.compile(
    r"^(?:(?:hf\.co|huggingface\.co)/)?"
    r"(?P<repo>[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95})(?::(?P<quant>[A-Za-z0-9_]{2,24}))?$"
)
_FILE = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._+-]{0,200}\.gguf$")
_PART = re.compile(r"^(?P<stem>.+)-(?P<at>\d{5})-of-(?P<count>\d{5})\.gguf$")
# What lies beside models: the part of one that sees, and what quantising was tuned by.
_NO_MODEL = re.compile(r"(?:^|[-_./])(?:mmproj|imatrix)", re.IGNORECASE)
# What is taken where nobody knows how much memory there is, as Ollama does.
USUAL = "Q4_K_M"


@dataclass(frozen=True, slots=True)
class Source:
    """The file at `url`, or one of the hub's `repo`, in `quant` where that is named. `folder` is where it is kept."""

    url: str = ""
    repo: str = ""
    quant: str = ""

    @property
    def name(self) -> str:
        """What the file at `url` is called."""
        return unquote(urlsplit(self.url).path.rpartition("/")[2])

    @property
    def folder(self) -> str:
        return self.repo or self.name.removesuffix(".gguf")


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file of a repository. `sha256` is empty where it is not told."""

    path: str
    bytes: int
    sha256: str

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]


@dataclass(frozen=True, slots=True)
class Offer:
    """A model of a repository: its quantisation, and its file, or the parts that it was split into, in order."""

    quant: str
    files: tuple[RemoteFile, ...]

    @property
    def bytes(self) -> int:
        return sum(file.bytes for file in self.files)


def source_of(text: str) -> Source | None:
    """Return where a model called so is fetched from: an address of a .gguf, or `owner/repo[:QUANT]`. None: nowhere."""
    if _URL.match(text):
        source = Source(url=text)
        try:
            return source if _FILE.match(source.name) else None
        except ValueError:  # it is no address
            return None
    found = _REPO.match(text)
    return None if found is None else Source(repo=found["repo"], quant=found["quant"] or "")


def offers_of(repository: Repository) -> tuple[Offer, ...]:
    """Return the models that are whole in a repository and tell their quantisation. Names of ours alone are kept."""
    groups: dict[str, dict[int, RemoteFile]] = {}
    counts: dict[str, int] = {}
    for sibling in repository.siblings:
        path, blob = sibling.rfilename, sibling.lfs
        file = RemoteFile(path, 0 if blob is None else blob.size, "" if blob is None else blob.sha256)
        if blob is None or not _is_plain(path) or _NO_MODEL.search(path):
            continue
        part = _PART.match(path)
        key = path if part is None else part["stem"]
        groups.setdefault(key, {})[1 if part is None else int(part["at"])] = file
        counts[key] = 1 if part is None else int(part["count"])
    whole = {key: parts for key, parts in groups.items() if sorted(parts) == list(range(1, counts[key] + 1))}
    told = ((quant_in(key), parts) for key, parts in whole.items())
    return tuple(Offer(quant, tuple(parts[at] for at in sorted(parts))) for quant, parts in told if quant is not None)


def chosen(offers: Sequence[Offer], quant: str, memory_bytes: int | None, beside_bytes: int = 0) -> Offer:
    """
    Return the offer to fetch: the one of `quant`; for `auto` the best that fits in `memory_bytes`, None: the usual one.

    What fits in no GPU may lie in `beside_bytes`, the machine's own memory, in part: then nothing better is taken than
    the usual one, which is slow enough there.

    Raises:
        OwnersFault: it is not there, or nothing fits; the sentence says what is there.
    """
    if not offers:
        raise OwnersFault("the repository has no GGUF file that names its quantisation")
    ordered = sorted(offers, key=lambda offer: (_quality(offer), -offer.bytes), reverse=True)
    there = ", ".join(dict.fromkeys(f"{offer.quant} ({offer.bytes / 1e9:.1f} GB)" for offer in ordered))
    if quant == "auto" and memory_bytes is not None:
        found = next((offer for offer in ordered if offer.bytes <= usable_of(memory_bytes)), None)
        if found is None:
            room = usable_of(memory_bytes) + usable_of(beside_bytes)
            apt = (offer for offer in ordered if _quality(offer) <= quality_of(USUAL))
            found = next((offer for offer in apt if offer.bytes <= room), None)
        if found is None:
            raise OwnersFault(f"no quantisation fits in {memory_bytes / 1e9:.1f} GB: there are {there}")
        return found
    wanted = USUAL if quant == "auto" else quant_called(quant) or quant.upper()
    found = next((offer for offer in ordered if offer.quant == wanted), None)
    if found is None and quant == "auto":
        return ordered[-1]
    if found is None:
        raise OwnersFault(f"there is no {quant}: there are {there}")
    return found


def _is_plain(path: str) -> bool:
    """Return whether a path stays below its folder, and its last name is one that is kept."""
    *folders, name = path.split("/")
    return _FILE.match(name) is not None and all(part not in ("", ".", "..") for part in folders)


def _quality(offer: Offer) -> Decimal:
    return quality_of(offer.quant)
