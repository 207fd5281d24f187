"""
Who serves which layers, from a file that its owner edits, or from `--next`, along which every stage names its next.

A file that is wrong while it is being edited changes nothing: what was known before is served on, and it is told.
"""

import asyncio
import logging
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path

from gpu_worker.core.errors import OwnersFault, Unavailable
from gpu_worker.core.inference import topology
from gpu_worker.core.inference.batch import Hop
from gpu_worker.core.inference.topology import Topology
from gpu_worker.inference.ports import Links
from wire import decimal_json

LOOK_S = 0.5
CHAIN_LOOK_S = 5.0
DESCRIBE_S = 2.0
CHAIN_MAX = 256

_LOG = logging.getLogger("livery.gpu_worker")

SessionPass = Callable[[str, Sequence[tuple[int, int]]], str]


def no_pass(session: str, layers: Sequence[tuple[int, int]]) -> str:
    return ""


def read_topology(path: Path) -> Topology:
    """Return what the file says. Raises OwnersFault: it cannot be read, or is wrong; the sentence names the place."""
    try:
        if path.stat().st_size > topology.BYTES_MAX:
            raise OwnersFault(f"{path} is larger than {topology.BYTES_MAX} bytes")
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise OwnersFault(f"the topology {path} cannot be read: {getattr(error, 'strerror', 'no UTF-8')}") from None
    try:
        return topology.parse(decimal_json.loads(text) if path.suffix == ".json" else tomllib.loads(text))
    except (ValueError, RecursionError) as error:
        raise OwnersFault(f"the topology {path} is no {path.suffix[1:] or 'TOML'}: {error}") from None
    except OwnersFault as error:
        raise OwnersFault(f"{path}: {error}") from None


class FileTopology:
    """
    Implements `inference.ports.Registry`. Raises OwnersFault: the file cannot be used.

    `sign` makes session passes. `known` is what was read last.
    """

    def __init__(self, path: Path, sign: SessionPass = no_pass, *, look_s: float = LOOK_S) -> None:
        self.path = path
        self.sign = sign
        self._look_s = look_s
        self._seen = self._stamp()
        self._bell = asyncio.Event()
        self._told = ""
        self.known = read_topology(path)

    async def stages(self) -> Sequence[Hop]:
        await self._look()
        return self.known.stages

    async def changed(self) -> None:
        # Whoever reads it again rings for all who wait.
        bell = self._bell
        while not bell.is_set():
            await asyncio.sleep(self._look_s)
            await self._look()

    def session_pass(self, session: str, layers: Sequence[tuple[int, int]]) -> str:
        return self.sign(session, layers)

    async def _look(self) -> None:
        stamp = await asyncio.to_thread(self._stamp)
        if stamp == self._seen:
            return
        self._seen = stamp
        try:
            found = await asyncio.to_thread(read_topology, self.path)
        except OwnersFault as error:
            if str(error) != self._told:
                _LOG.warning("the topology stays as it was: %s", error)
            self._told = str(error)
            return
        self._told = ""
        if found.stages != self.known.stages or found.http != self.known.http:
            self.known = found
            self._bell.set()
            self._bell = asyncio.Event()

    def _stamp(self) -> tuple[int, int, int] | None:
        """Return what is another once the file was written; None where it is not there."""
        try:
            about = self.path.stat()
        except OSError:
            return None
        return about.st_mtime_ns, about.st_size, about.st_ino


class ChainTopology:
    """
    Implements `inference.ports.Registry`: this stage, and those that it and its next ones name.

    `own` is None while this worker has no slice loaded. `nexts` are what `--next` said, replicas of one slice.
    """

    def __init__(
        self, own: Callable[[], Hop | None], nexts: Sequence[str], links: Links, *, look_s: float = CHAIN_LOOK_S
    ) -> None:
        self._own = own
        self._nexts = tuple(nexts)
        self._links = links
        self._look_s = look_s
        self._known: tuple[Hop, ...] = ()

    async def stages(self) -> Sequence[Hop]:
        own = self._own()
        if own is None:
            raise Unavailable("this worker's layers are not loaded")
        found = {own.endpoint: own}
        wave = [name for name in self._nexts if name not in found]
        # Each wave is asked at once: a stage that is gone costs its wait, not the others'.
        while wave and len(found) < CHAIN_MAX:
            seen = await asyncio.gather(*(self._seen(name) for name in wave))
            found |= {hop.endpoint: hop for hop, _ in seen if hop is not None}
            named = dict.fromkeys(name for _, nexts in seen for name in nexts)
            asked = {*found, *wave}
            wave = [name for name in named if name not in asked]
        self._known = tuple(found.values())
        return self._known

    async def _seen(self, endpoint: str) -> tuple[Hop | None, tuple[str, ...]]:
        """Return the stage at `endpoint` and the ones that it names, None where it does not answer or is not ready."""
        try:
            seen = await self._links.describe(endpoint, DESCRIBE_S)
        except Unavailable:
            return None, ()
        nexts = tuple(name for name in seen.next.split(",") if name)[:CHAIN_MAX]
        if not seen.is_ready:
            return None, nexts
        # It is reached by the name that we have for it, whatever it calls itself.
        return Hop(endpoint=endpoint, start=seen.layers.start, end=seen.layers.end), nexts

    async def changed(self) -> None:
        before = set(self._known)
        while True:
            await asyncio.sleep(self._look_s)
            try:
                if set(await self.stages()) != before:
                    return
            except Unavailable:
                pass  # it is being loaded: that is no change of the others

    def session_pass(self, session: str, layers: Sequence[tuple[int, int]]) -> str:
        return ""
