"""
The KV cache of the `hf` back end: a session's keys and values lie apart from all others', and a pass joins those of its
sessions for the time of one layer.

transformers asks a cache's first layer how long the sequence is, also where that layer is somebody else's. Here every
layer answers for the pass, so it does not matter which ones are owned. Layers that see a window keep all positions (the
mask hides the rest), so that a session can be cut at any of them.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import Cache, CacheLayerMixin, LinearAttentionCacheLayerMixin

from gpu_worker.core.inference.layers import Layers


class Kept:
    """What a session has in the cache: `positions` are reserved, `length` of them are filled."""

    def __init__(self, positions: int) -> None:
        self.positions = positions
        self.length = 0
        self.rows: dict[int, tuple[Tensor, Tensor]] = {}
        self.states: dict[int, Any] = {}

    @property
    def bytes(self) -> int:
        """What its tensors take, whether filled or not."""
        tensors = [each for pair in self.rows.values() for each in pair]
        for state in self.states.values():
            tensors += [
                each for each in (*state.conv_states.values(), *state.recurrent_states.values()) if each is not None
            ]
        return sum(each.nbytes for each in tensors)

    def cut(self, length: int) -> None:
        """Forget the positions from `length` on; states without positions are forgotten whole."""
        self.length = min(self.length, length)
        self.states = {}


class PassCache(Cache):  # type: ignore[misc]
    """The cache as one pass sees it: of sessions whose rows end together, shorter ones padded on the left."""

    def __init__(self, config: Any, layers: Layers) -> None:
        kinds = [type(kind) for kind in DynamicCache(config=config).layers]
        self._states = {
            index: kind for index, kind in enumerate(kinds) if issubclass(kind, LinearAttentionCacheLayerMixin)
        }
        self._owned = [index for index in self._states if layers.start <= index < layers.end]
        self._kept: Sequence[Kept] = ()
        self.past = 0
        super().__init__(
            layers=[kind() if index in self._states else _Rows(self, index) for index, kind in enumerate(kinds)]
        )

    @property
    def has_states(self) -> bool:
        """Whether an owned layer keeps a state without positions."""
        return bool(self._owned)

    def begin(self, kept: Sequence[Kept]) -> None:
        """Let the next pass be of these sessions. Where layers keep states it is one session alone."""
        self._kept, self.past = kept, max(each.length for each in kept)
        if self._owned:
            kept[0].states = kept[0].states or {index: self._states[index]() for index in self._owned}
            for index, state in kept[0].states.items():
                self.layers[index] = state

    def end(self, count: int) -> None:
        """Count the rows of the pass as kept, `count` a session."""
        for each in self._kept:
            each.length += count
        self._kept = ()

    def join(self, index: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Keep the rows [B, heads, count, width] of a layer; return those of all positions, padded on the left."""
        count = keys.shape[2]
        for row, each in enumerate(self._kept):
            if index not in each.rows:
                each.rows[index] = _room(keys, each.positions), _room(values, each.positions)
            for room, new in zip(each.rows[index], (keys, values), strict=True):
                room[:, each.length : each.length + count] = new[row]
        joined = tuple(self._joined(index, side, count) for side in (0, 1))
        return joined[0], joined[1]

    def _joined(self, index: int, side: int, count: int) -> Tensor:
        rooms = [(each.rows[index][side], each.length) for each in self._kept]
        if len(rooms) == 1:
            room, length = rooms[0]
            return room[None, :, : length + count]
        heads, _, width = rooms[0][0].shape
        # Zeros, not what lies there by chance: what is masked must still be finite.
        whole = rooms[0][0].new_zeros(len(rooms), heads, self.past + count, width)
        for row, (room, length) in enumerate(rooms):
            whole[row, :, self.past - length :] = room[:, : length + count]
        return whole


class _Rows(CacheLayerMixin):  # type: ignore[misc]
    """A layer with attention, owned or not."""

    def __init__(self, cache: PassCache, index: int) -> None:
        super().__init__()
        self._cache, self._index = cache, index

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        pass

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **named: Any) -> tuple[Tensor, Tensor]:
        return self._cache.join(self._index, key_states, value_states)

    def get_seq_length(self) -> int:
        return self._cache.past

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self._cache.past + query_length, 0

    def get_max_length(self) -> int:
        return -1


def _room(like: Tensor, positions: int) -> Tensor:
    return like.new_empty(like.shape[1], positions, like.shape[3])
