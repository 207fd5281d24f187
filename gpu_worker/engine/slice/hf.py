"""
The `hf` back end: transformers' own layers, every family, the reference of correctness.

A prompt's chunk is a pass of its own; single rows of several sessions go together as their family's class allows.
"""

import inspect
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from gpu_worker.core.inference.codes import InferenceError
from gpu_worker.core.inference.step import CacheUse, SliceInfo
from gpu_worker.engine.slice.hf_cache import Kept, PassCache
from gpu_worker.engine.slice.loading import DTYPES, Loaded
from gpu_worker.engine.slice.pruning import blocks_of
from gpu_worker.engine.slice.stage import Rows, longest_beside


class _Ended(Exception):
    """The last owned layer is through; `args` is what it gave."""


class HfStage:
    """
    A slice of `loaded` weights; sessions together take at most `cache_bytes_max` bytes of cache.

    Where sessions go together, a layer's share of that is for the copies which a pass makes of one layer's rows.

    Where layers keep a state without positions (class `one`) a session can be rolled back to its beginning alone.
    """

    def __init__(self, loaded: Loaded, *, cache_bytes_max: int, model: str = "", model_hash: str = "") -> None:
        seen, layers = loaded.seen, loaded.layers
        self._loaded, self._cap = loaded, cache_bytes_max
        self._bytes_max, self._joined_max, self._row_bytes = cache_bytes_max, 0, 0
        self._kept: dict[str, Kept] = {}
        self._cache = PassCache(seen.config, layers)
        self._info = SliceInfo(
            model=model or seen.folder.name,
            model_hash=model_hash,
            family=seen.family.name,
            layers=layers,
            hidden_size=seen.hidden_size,
            vocab_size=seen.vocab_size,
            context=seen.context,
            dtype=loaded.dtype,
            device=str(loaded.device),
            back_end="hf",
            batching=seen.family.batching,
        )
        blocks = blocks_of(loaded.model, layers.total)
        self._given: Tensor | None = None
        self._needs_logits = False
        if not layers.is_first:
            blocks[layers.start].register_forward_pre_hook(self._give, with_kwargs=True)
        blocks[layers.end - 1].register_forward_hook(self._end)
        self._body = loaded.model if layers.is_last else loaded.model.base_model
        self._takes = frozenset(inspect.signature(type(self._body).forward).parameters)
        self._position_bytes, self._session_bytes = 0, 0
        self._measure_cache()

    @property
    def info(self) -> SliceInfo:
        return self._info

    @property
    def cache(self) -> CacheUse:
        positions = sum(each.positions for each in self._kept.values())
        return CacheUse(
            sessions=len(self._kept),
            positions=positions,
            positions_max=self._bytes_max // max(1, self._position_bytes),
            bytes_max=self._cap,
        )

    def tell(self, **fields: Any) -> None:
        """Let `info` say what was found out after loading: `cost_s`, `notes`."""
        self._info = replace(self._info, **fields)

    def open(self, session: str, positions: int) -> None:
        """
        Reserve the cache of a session; one that is open already begins again.

        Raises:
            InferenceError: no_capacity, context_length_exceeded; nothing is reserved then, and nothing given back.
        """
        if positions > self._info.context:
            raise InferenceError(
                "context_length_exceeded", f"{positions} positions are asked for, the model has {self._info.context}"
            )
        others = [each.positions for name, each in self._kept.items() if name != session]
        needed = (sum(others) + positions) * self._position_bytes + (len(others) + 1) * self._session_bytes
        if needed > self._bytes_max:
            raise InferenceError(
                "no_capacity",
                f"{positions} positions do not fit: that is {needed} bytes of cache, {self._bytes_max} are there",
            )
        self._kept[session] = Kept(positions)

    def length(self, session: str) -> int | None:
        kept = self._kept.get(session)
        return None if kept is None else kept.length

    def rollback(self, session: str, length: int) -> None:
        """
        Forget the positions from `length` on.

        Raises:
            InferenceError: unknown_session; position_gap: the session's state cannot be cut there, and it is empty now.
        """
        kept = self._known(session)
        if length >= kept.length:
            return
        if length and self._cache.has_states:
            kept.cut(0)
            raise InferenceError("position_gap", f"a {self._info.family} session can be cut at its beginning alone")
        kept.cut(length)

    def close(self, session: str) -> None:
        self._kept.pop(session, None)

    def forward(self, x: Tensor, runs: Sequence[Rows]) -> Tensor:
        """
        See `Stage.forward`.

        Raises:
            InferenceError: unknown_session, position_gap, no_capacity (more positions than were reserved),
                invalid_tensor; no session has changed then.
        """
        self._check(x, runs)
        with torch.inference_mode():
            return self._forward(x.to(self._loaded.device), runs)

    def _forward(self, x: Tensor, runs: Sequence[Rows]) -> Tensor:
        begins = [sum(run.count for run in runs[:number]) for number in range(len(runs))]
        out: dict[int, Tensor] = {}
        for group in self._groups(runs):
            count = runs[group[0]].count
            rows = torch.stack([x[begins[number] : begins[number] + count] for number in group])
            needs_logits = self._info.layers.is_last and any(runs[number].samples for number in group)
            made = self._pass(rows, [self._kept[runs[number].session] for number in group], needs_logits)
            out.update({number: made[row] for row, number in enumerate(group)})
        if not self._info.layers.is_last:
            return torch.cat([out[number] for number in range(len(runs))])
        sampled = [out[number][-1].float() for number, run in enumerate(runs) if run.samples]
        return torch.stack(sampled) if sampled else x.new_zeros(0, self._info.vocab_size, dtype=torch.float32)

    def _groups(self, runs: Sequence[Rows]) -> list[list[int]]:
        """Return which runs go together in which pass, by their numbers; passes are done in this order."""
        groups: list[list[int]] = []
        joint: dict[int, list[int]] = {}
        seen: set[str] = set()
        singles = [run.position for run in runs if run.count == 1]
        longest = dict(zip(singles, longest_beside(singles), strict=True))
        for number, run in enumerate(runs):
            key = run.position if self._info.batching == "equal" else longest.get(run.position, 0)
            is_alone = run.count > 1 or self._info.batching == "one" or run.session in seen
            seen.add(run.session)
            if not is_alone and key in joint and self._may_join(len(joint[key]) + 1, key + 1):
                joint[key].append(number)
                continue
            groups.append([number])
            if not is_alone:
                joint[key] = groups[-1]
        return groups

    def _may_join(self, sessions: int, longest: int) -> bool:
        return sessions * longest * self._row_bytes <= self._joined_max

    def _pass(self, rows: Tensor, kept: Sequence[Kept], needs_logits: bool) -> Tensor:
        """Return what the slice makes of `rows`, [B, count] or [B, count, H]: hidden states, or logits [B, 1, V]."""
        lengths, count = [each.length for each in kept], rows.shape[1]
        self._cache.begin(kept)
        named: dict[str, Any] = {"past_key_values": self._cache, "use_cache": True}
        named["input_ids" if self._info.layers.is_first else "inputs_embeds"] = rows
        begins = torch.tensor(lengths, device=rows.device)
        if min(lengths) < max(lengths):
            places = torch.arange(max(lengths) + count, device=rows.device)
            named["attention_mask"] = (places >= (max(lengths) - begins)[:, None]).long()
        if "position_ids" in self._takes:
            named["position_ids"] = begins[:, None] + torch.arange(count, device=rows.device)
        if "logits_to_keep" in self._takes:
            named["logits_to_keep"] = 1
        self._given, self._needs_logits = rows, needs_logits
        try:
            made: Tensor = self._body(**named).logits[:, -1:]
        except _Ended as ended:
            made = ended.args[0]
        except BaseException:
            for each in kept:
                if each.states:  # half of the layers have taken the rows, and none can give them back
                    each.cut(0)
            raise
        finally:
            self._given = None
        self._cache.end(count)
        return made

    def _give(self, block: Any, args: Any, named: Any) -> Any:
        """Put what came from the stage before in the place of what stands before the layers."""
        return (self._given, *args[1:]), named

    def _end(self, block: Any, args: Any, made: Any) -> None:
        if not self._needs_logits:
            raise _Ended(made[0] if isinstance(made, tuple) else made)

    def _check(self, x: Tensor, runs: Sequence[Rows]) -> None:
        total, info = sum(run.count for run in runs), self._info
        wanted = (total,) if info.layers.is_first else (total, info.hidden_size)
        kind = torch.int64 if info.layers.is_first else DTYPES[info.dtype]
        if not runs or tuple(x.shape) != wanted or x.dtype != kind or min(run.count for run in runs) < 1:
            raise InferenceError("invalid_tensor", f"{total} rows were to come, it was {x.dtype} {tuple(x.shape)}")
        if info.layers.is_first and not 0 <= int(x.min()) <= int(x.max()) < info.vocab_size:
            raise InferenceError("invalid_tensor", f"a token is none of the {info.vocab_size} that the model knows")
        ends: dict[str, int] = {}
        for run in runs:
            kept = self._known(run.session)
            if run.position != ends.get(run.session, kept.length):
                raise InferenceError("position_gap", f"a run begins at {run.position}, the session has {kept.length}")
            ends[run.session] = run.position + run.count
            if ends[run.session] > kept.positions:
                raise InferenceError("no_capacity", f"the session has reserved {kept.positions} positions, not more")

    def _known(self, session: str) -> Kept:
        kept = self._kept.get(session)
        if kept is None:
            raise InferenceError("unknown_session", "the session is not open here")
        return kept

    def _measure_cache(self) -> None:
        """Find by one row what a session and a position take: every family keeps something else."""
        info, sizes = self._info, []
        row = torch.zeros(1, 1, dtype=torch.int64, device=self._loaded.device)
        if not info.layers.is_first:
            row = row.to(DTYPES[info.dtype])[..., None].expand(1, 1, info.hidden_size)
        for positions in (1, 2):
            kept = Kept(positions)
            with torch.inference_mode():
                self._pass(row, [kept], needs_logits=False)
            sizes.append(kept.bytes)
        self._position_bytes = sizes[1] - sizes[0]
        self._session_bytes = sizes[0] - self._position_bytes
        if info.batching != "one":
            self._row_bytes = max((sum(side.nbytes for side in rows) for rows in kept.rows.values()), default=0) // 2
            self._joined_max = self._cap // (info.layers.count + 1)
            self._bytes_max = self._cap - self._joined_max
