"""
The `lean` back end: our own decoder for Llama-like families, for rows of many sessions in one pass.

All rows go through the linear layers together, without padding; only attention knows whose they are.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from gpu_worker.core.inference.codes import InferenceError
from gpu_worker.core.inference.layers import Layers
from gpu_worker.core.inference.step import CacheUse, SliceInfo
from gpu_worker.engine.slice import rope
from gpu_worker.engine.slice.architecture import architecture
from gpu_worker.engine.slice.attention import Plan, attend, plan
from gpu_worker.engine.slice.kv import KvCache
from gpu_worker.engine.slice.lean_weights import LeanLayer, LeanWeights, check_fits
from gpu_worker.engine.slice.linear import packing
from gpu_worker.engine.slice.loading import ModelSeen, OnProgress, free_bytes_of
from gpu_worker.engine.slice.stage import Rows

SESSIONS_MAX = 256
_WORDS = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}
_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": functional.silu,
    "gelu": functional.gelu,
    "gelu_pytorch_tanh": lambda x: functional.gelu(x, approximate="tanh"),
}


class LeanStage:
    """A slice of the model in a folder; see `Stage`. Sessions together take at most `cache_bytes_max` of cache."""

    def __init__(
        self,
        seen: ModelSeen,
        layers: Layers,
        *,
        cache_bytes_max: int,
        sessions_max: int = SESSIONS_MAX,
        dtype: str = "auto",
        quant: str = "none",
        device: str = "cpu",
        model: str = "",
        model_hash: str = "",
        free_bytes: int | None = None,
        on_progress: OnProgress | None = None,
    ) -> None:
        """
        Load it into `free_bytes` of memory at most, None: what the device has left.

        Raises OwnersFault: family or serving are not known here, it does not fit, or weights are missing.
        """
        self._about = about = architecture(seen.config)
        self._device = torch.device(device)
        how = packing(seen.dtype if dtype == "auto" else dtype, quant, self._device)
        self._flow = how.flow
        check_fits(seen, layers, how, free_bytes_of(self._device) if free_bytes is None else free_bytes)
        self.kv = KvCache(
            layers=layers.count,
            kv_heads=about.kv_heads,
            head_dim=about.head_dim,
            context=seen.context,
            bytes_max=cache_bytes_max,
            sessions_max=sessions_max,
            dtype=how.flow,
            device=self._device,
        )
        self._angles = rope.Angles(seen.config, self._device)
        self._hidden, self._act = (seen.hidden_size,), _ACTIVATIONS[about.activation]
        self._cells = [self.kv.cells[:, index] for index in range(layers.count)]
        self._layers: list[LeanLayer] = []
        # What is largest comes first, the ends here and the MLP in a layer: its copy is gone when the rest has come.
        weights = LeanWeights(seen, about, self._angles, how, self._device)
        self._embedding, self._last_norm, self._head = weights.ends(layers)
        for index in range(layers.start, layers.end):
            if on_progress is not None:
                on_progress(len(self._layers) + 1, layers.count + 1)
            self._layers.append(weights.layer(index))
        if on_progress is not None:
            on_progress(layers.count + 1, layers.count + 1)
        self._info = SliceInfo(
            model=model or seen.folder.name,
            model_hash=model_hash,
            family=seen.family.name,
            layers=layers,
            hidden_size=seen.hidden_size,
            vocab_size=seen.vocab_size,
            context=self.kv.context,
            dtype=_WORDS[how.flow],
            device=str(self._device),
            back_end=f"lean {how.name}",
            batching="ragged",
        )

    @property
    def info(self) -> SliceInfo:
        return self._info

    @property
    def cache(self) -> CacheUse:
        return self.kv.use

    def tell(self, **fields: Any) -> None:
        """Let `info` say what was found out after loading: `cost_s`, `notes`."""
        self._info = replace(self._info, **fields)

    def open(self, session: str, positions: int) -> None:
        """
        Reserve the cache of a session; one that is open already begins again.

        Raises InferenceError: no_capacity, context_length_exceeded, invalid_argument; nothing changes then.
        """
        self.kv.open(session, positions)

    def length(self, session: str) -> int | None:
        return self.kv.length(session)

    def rollback(self, session: str, length: int) -> None:
        """Forget the positions from `length` on. Raises InferenceError unknown_session."""
        self.kv.rollback(session, length)

    def close(self, session: str) -> None:
        self.kv.close(session)

    def forward(self, x: Tensor, runs: Sequence[Rows]) -> Tensor:
        """
        See `Stage.forward`.

        Raises:
            InferenceError: unknown_session, position_gap, no_capacity (more positions than were reserved),
                invalid_tensor; no session has changed then.
        """
        self._check(x, runs)
        with torch.inference_mode():
            step = plan(runs, self.kv.place(runs), self._device)
            x = x.to(self._device)
            if self._info.layers.is_first:
                x = self._embedded(x)
            angles = self._angles(step.positions)
            for layer, cells in zip(self._layers, self._cells, strict=True):
                x = self._through(x, layer, cells, step, angles)
            self.kv.written(runs)
            return self._logits(x, step) if self._info.layers.is_last else x

    def _embedded(self, x: Tensor) -> Tensor:
        x = functional.embedding(x, self._embedding).to(self._flow)
        return x if self._about.embedding_scale == 1.0 else x * self._about.embedding_scale

    def _through(self, x: Tensor, layer: LeanLayer, cells: Tensor, step: Plan, angles: Tensor) -> Tensor:
        about = self._about
        qkv = layer.qkv(self._norm(x, layer.norms[0]))
        heads = qkv.view(step.count, -1, about.head_dim)
        turning = heads[:, : about.heads + about.kv_heads]
        if layer.qk_norms is not None:
            self._norm_heads(qkv, turning, layer.qk_norms)
        if layer.is_turned:
            rope.turn(turning, angles)
        y = layer.out(attend(heads, cells, step, about.heads, layer.window, about.attention_scale))
        x = self._add(x, self._norm(y, layer.norms_after[0]))
        both = layer.gate_up(self._norm(x, layer.norms[1]))
        half = both.shape[1] // 2
        y = layer.down(self._act(both[:, :half]) * both[:, half:])
        return self._add(x, self._norm(y, layer.norms_after[1]))

    def _norm(self, x: Tensor, weight: Tensor | None) -> Tensor:
        return x if weight is None else torch.rms_norm(x, self._hidden, weight, self._about.eps)

    def _norm_heads(self, qkv: Tensor, turning: Tensor, weights: tuple[Tensor, Tensor]) -> None:
        """Norm queries and keys in place, each head of them or each row."""
        about = self._about
        cut = about.heads * about.head_dim, (about.heads + about.kv_heads) * about.head_dim
        if about.qk_norm == "head":
            parts = turning[:, : about.heads], turning[:, about.heads :]
        else:
            parts = qkv[:, : cut[0]], qkv[:, cut[0] : cut[1]]
        for part, weight in zip(parts, weights, strict=True):
            part.copy_(torch.rms_norm(part, (weight.shape[0],), weight, about.eps))

    def _add(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y if self._about.residual_scale == 1.0 else x + y * self._about.residual_scale

    def _logits(self, x: Tensor, step: Plan) -> Tensor:
        if not step.lasts:
            return x.new_zeros(0, self._info.vocab_size, dtype=torch.float32)
        if len(step.lasts) < step.count:
            x = x[step.lasts]
        assert self._head is not None
        logits = self._head(self._norm(x, self._last_norm)).float()
        return logits if self._about.logits_divisor == 1.0 else logits / self._about.logits_divisor

    def _check(self, x: Tensor, runs: Sequence[Rows]) -> None:
        total, info = sum(run.count for run in runs), self._info
        wanted = (total,) if info.layers.is_first else (total, info.hidden_size)
        kind = torch.int64 if info.layers.is_first else self._flow
        if not runs or tuple(x.shape) != wanted or x.dtype != kind:
            raise InferenceError("invalid_tensor", f"{total} rows were to come, it was {x.dtype} {tuple(x.shape)}")
        if info.layers.is_first and not 0 <= int(x.min()) <= int(x.max()) < info.vocab_size:
            raise InferenceError("invalid_tensor", f"a token is none of the {info.vocab_size} that the model knows")
