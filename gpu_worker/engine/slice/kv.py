"""
The KV cache of a slice: one slot a session, in one room that is set aside at the start.

A slot is as wide as the longest session, yet costs only what is written: on a CPU the room is address space that no
memory stands behind until it is touched. What is counted against the cap is what sessions reserved when they opened.
Elsewhere a slot is memory from its first byte, so that it is narrower where the cap holds few of the longest.
"""

import mmap
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from gpu_worker.core.errors import OwnersFault
from gpu_worker.core.inference.codes import InferenceError
from gpu_worker.core.inference.step import CacheUse
from gpu_worker.engine.slice.stage import Rows

_PAGE = mmap.PAGESIZE
# MAP_NORESERVE, which Python names from 3.13 on: addresses alone, which no count of free memory limits.
_NORESERVE = {"linux": 0x4000, "darwin": 0x40}.get(sys.platform, 0)
# Without it: as wide as the context where the cap holds so many of these, else narrower, yet not below the width.
_SLOTS_LEAST = 16
_WIDTH_LEAST = 4_096


@dataclass(slots=True)
class _Session:
    slot: int
    reserved: int
    length: int = 0


class KvCache:
    """
    `cells` is [slots, layers, 2, kv heads, width, head dim]: the keys (0) and values (1) of every layer.

    Of `bytes_max` a session takes `bytes_per_position` times the positions that it reserves. None has more than
    `context`, the width of a slot, which may be less than the model's.
    """

    def __init__(
        self,
        *,
        layers: int,
        kv_heads: int,
        head_dim: int,
        context: int,
        bytes_max: int,
        sessions_max: int,
        dtype: torch.dtype,
        device: torch.device,
        is_lazy: bool = True,
    ) -> None:
        """`is_lazy` False: the room is memory from the start on a CPU too. Raises InferenceError, OwnersFault."""
        self.bytes_per_position = 2 * layers * kv_heads * head_dim * dtype.itemsize
        self.bytes_max = bytes_max
        self.positions_max = bytes_max // self.bytes_per_position
        self._model_context = context
        is_lazy = is_lazy and device.type == "cpu" and _NORESERVE != 0
        width = context if is_lazy else max(_WIDTH_LEAST, self.positions_max // min(sessions_max, _SLOTS_LEAST))
        self.context = min(context, self.positions_max, width)
        if self.context < 1:
            raise InferenceError("no_capacity", f"{bytes_max} bytes of KV cache hold no position of this slice")
        # What is memory from its first byte may be no larger than the cap.
        slots = sessions_max if is_lazy else max(1, min(sessions_max, self.positions_max // self.context))
        slot_bytes = -(-self.context * self.bytes_per_position // _PAGE) * _PAGE
        self._map: mmap.mmap | None = None
        if is_lazy:
            self._map, slots = _address_space(slots, slot_bytes)
        if self._map is None:
            room = torch.zeros(slots * slot_bytes, dtype=torch.uint8, device=device)
        else:
            room = torch.frombuffer(self._map, dtype=torch.uint8)
        room = room.view(slots, slot_bytes)[:, : self.context * self.bytes_per_position]
        self.cells = room.view(dtype).unflatten(1, (layers, 2, kv_heads, self.context, head_dim))
        self._slot_bytes = slot_bytes
        self._free = list(range(slots))
        self._sessions: dict[str, _Session] = {}
        self._reserved = 0

    @property
    def use(self) -> CacheUse:
        return CacheUse(
            sessions=len(self._sessions),
            positions=self._reserved,
            positions_max=self.positions_max,
            bytes_max=self.bytes_max,
        )

    def open(self, session: str, positions: int) -> None:
        """
        Reserve; a session that is open already begins again.

        Raises InferenceError: no_capacity, context_length_exceeded, invalid_argument; nothing changes then.
        """
        if positions < 1:
            raise InferenceError("invalid_argument", f"a session has at least one position, not {positions}")
        if positions > self._model_context:
            why = f"{positions} positions; the model has {self._model_context}"
            raise InferenceError("context_length_exceeded", why)
        if positions > self.context:
            raise InferenceError("no_capacity", f"{positions} positions wanted, a session has {self.context} here")
        known = self._sessions.get(session)
        free = self.positions_max - self._reserved + (0 if known is None else known.reserved)
        if positions > free:
            raise InferenceError("no_capacity", f"{positions} positions wanted, {free} of {self.positions_max} free")
        if known is None and not self._free:
            raise InferenceError("no_capacity", f"all {len(self._sessions)} sessions are taken")
        self.close(session)
        # The lowest one: sessions that lie side by side are read without copying them together.
        slot = min(self._free)
        self._free.remove(slot)
        self._sessions[session] = _Session(slot, positions)
        self._reserved += positions

    def length(self, session: str) -> int | None:
        found = self._sessions.get(session)
        return None if found is None else found.length

    def place(self, runs: Sequence[Rows]) -> list[int]:
        """
        Return the slots that the rows of `runs` are written to; nothing changes.

        Raises InferenceError: unknown_session, position_gap, or no_capacity: more than it reserved.
        """
        ends: dict[str, int] = {}
        slots = []
        for run in runs:
            found = self._known(run.session)
            end = ends.get(run.session, found.length)
            if run.position != end:
                raise InferenceError("position_gap", f"a run begins at {run.position}, the session has {end}")
            if not 1 <= run.count <= found.reserved - end:
                raise InferenceError("no_capacity", f"the session has reserved {found.reserved} positions, not more")
            ends[run.session] = end + run.count
            slots.append(found.slot)
        return slots

    def written(self, runs: Sequence[Rows]) -> None:
        """Take note that the rows of `runs` are there."""
        for run in runs:
            self._sessions[run.session].length = run.position + run.count

    def rollback(self, session: str, length: int) -> None:
        """Forget the positions from `length` on. Raises InferenceError unknown_session."""
        found = self._known(session)
        if length < found.length:
            self._clear(found, max(0, length))
            found.length = max(0, length)

    def close(self, session: str) -> None:
        found = self._sessions.pop(session, None)
        if found is None:
            return
        self._reserved -= found.reserved
        if self._map is not None and hasattr(self._map, "madvise"):
            # Gives the memory back; what is read there next is zero.
            self._map.madvise(mmap.MADV_DONTNEED, found.slot * self._slot_bytes, self._slot_bytes)
        else:
            self._clear(found, 0)
        self._free.append(found.slot)

    def _known(self, session: str) -> _Session:
        found = self._sessions.get(session)
        if found is None:
            raise InferenceError("unknown_session", "the session is not open here")
        return found

    def _clear(self, session: _Session, start: int) -> None:
        """
        Write zeros from `start` on.

        A masked position has no weight, but nothing times no weight is not nothing where it is infinite: what hostile
        rows left behind must not reach who comes next.
        """
        self.cells[session.slot, :, :, :, start : session.length].zero_()


def _address_space(slots: int, slot_bytes: int) -> tuple[mmap.mmap, int]:
    """Return a room without memory for as many of `slots` as the process may have addresses for. Raises OwnersFault."""
    while slots:
        try:
            room = mmap.mmap(-1, slots * slot_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NORESERVE)
        except (OSError, OverflowError, ValueError):
            slots //= 2
            continue
        if hasattr(mmap, "MADV_NOHUGEPAGE"):
            # A large page would commit 2 MB a head and layer for a session's first position.
            room.madvise(mmap.MADV_NOHUGEPAGE)
        return room, slots
    raise OwnersFault(f"the KV cache cannot have {slot_bytes} bytes of addresses for one session")
