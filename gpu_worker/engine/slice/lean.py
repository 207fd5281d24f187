"""
The `lean` back end: our own decoder for Llama-like families, for rows of many sessions in one pass.

All rows go through the linear layers together, without padding; only attention knows whose they are.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from gpu_worker.core.errors import OwnersFault
from gpu_worker.core.inference.codes import InferenceError
from gpu_worker.core.inference.layers import Layers
from gpu_worker.core.inference.step import CacheUse, SliceInfo
from gpu_worker.engine.model_files import stored_in, weight_files
from gpu_worker.engine.slice import rope
from gpu_worker.engine.slice.architecture import architecture
from gpu_worker.engine.slice.attention import Plan, attend, plan
from gpu_worker.engine.slice.kv import KvCache
from gpu_worker.engine.slice.linear import Linear, Packing, packing
from gpu_worker.engine.slice.loading import SPARE_BYTES, ModelSeen, OnProgress, free_bytes_of, weights_of
from gpu_worker.engine.slice.stage import Rows

SESSIONS_MAX = 256
_WORDS = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}
_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": functional.silu,
    "gelu": functional.gelu,
    "gelu_pytorch_tanh": lambda x: functional.gelu(x, approximate="tanh"),
}


class _Layer(NamedTuple):
    """`norms` are those before the attention and the MLP, `norms_after` those behind them; each may be missing."""

    norms: tuple[Tensor | None, Tensor | None]
    norms_after: tuple[Tensor | None, Tensor | None]
    qkv: Linear
    out: Linear
    gate_up: Linear
    down: Linear
    qk_norms: tuple[Tensor, Tensor] | None
    window: int | None
    is_turned: bool


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
        _check_fits(seen, layers, how, free_bytes_of(self._device) if free_bytes is None else free_bytes)
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
        self._angles = rope.Angles(seen.config, how.flow, self._device)
        self._hidden, self._act = (seen.hidden_size,), _ACTIVATIONS[about.activation]
        self._cells = [self.kv.cells[:, index] for index in range(layers.count)]
        self._layers: list[_Layer] = []
        for index in range(layers.start, layers.end):
            self._layers.append(self._load_layer(seen, index, how))
            if on_progress is not None:
                on_progress(len(self._layers), layers.count + 1)
        self._load_ends(seen, layers, how)
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
        x = functional.embedding(x, self._embedding)
        return x if self._about.embedding_scale == 1.0 else x * self._about.embedding_scale

    def _through(self, x: Tensor, layer: _Layer, cells: Tensor, step: Plan, angles: tuple[Tensor, Tensor]) -> Tensor:
        about = self._about
        qkv = layer.qkv(self._norm(x, layer.norms[0]))
        heads = qkv.view(step.count, -1, about.head_dim)
        turning = heads[:, : about.heads + about.kv_heads]
        if layer.qk_norms is not None:
            self._norm_heads(qkv, turning, layer.qk_norms)
        if layer.is_turned:
            rope.turn(turning, *angles)
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

    def _load_layer(self, seen: ModelSeen, index: int, how: Packing) -> _Layer:
        about, at = self._about, f"model.layers.{index}."
        # Opened layer by layer: what is read of a file leaves memory with its layer.
        weights = weights_of(seen.folder, Layers(index, index + 1, seen.layers))
        attention, mlp = f"{at}self_attn.", f"{at}mlp."

        def packed(prefix: str, *names: str) -> Linear:
            return how.pack(*self._joined(weights, [f"{prefix}{name}" for name in names]))

        is_fused = f"{attention}qkv_proj.weight" in weights
        between = f"{at}post_attention_layernorm.weight"
        names = [f"{at}input_layernorm.weight", between, None, None]
        if about.norms_after:
            names = [None, None, between, f"{at}post_feedforward_layernorm.weight"]
        norms = [None if name is None else self._norm_weight(weights, name) for name in names]
        of_heads = [self._norm_weight(weights, f"{attention}{name}_norm.weight") for name in "qk" if about.qk_norm]
        return _Layer(
            norms=(norms[0], norms[1]),
            norms_after=(norms[2], norms[3]),
            qkv=packed(attention, "qkv_proj") if is_fused else packed(attention, "q_proj", "k_proj", "v_proj"),
            out=packed(attention, "o_proj"),
            gate_up=packed(mlp, "gate_up_proj") if is_fused else packed(mlp, "gate_proj", "up_proj"),
            down=packed(mlp, "down_proj"),
            qk_norms=(of_heads[0], of_heads[1]) if of_heads else None,
            window=about.windows[index],
            is_turned=about.turns[index],
        )

    def _load_ends(self, seen: ModelSeen, layers: Layers, how: Packing) -> None:
        weights = weights_of(seen.folder, layers)
        embedding, head = "model.embed_tokens", "lm_head"
        if layers.is_first:
            self._embedding = _asked(weights, f"{embedding}.weight").to(self._device, self._flow)
        if layers.is_last:
            self._last_norm = self._norm_weight(weights, "model.norm.weight")
            is_tied = getattr(seen.config, "tie_word_embeddings", False) or f"{head}.weight" not in weights
            self._head = how.pack_head(*self._joined(weights, [embedding if is_tied else head]))

    def _joined(self, weights: Mapping[str, Tensor], names: Sequence[str]) -> tuple[Tensor, Tensor | None]:
        """Return the weights of `names` one below the other, and their biases, None where they have none."""
        parts = [_asked(weights, f"{name}.weight").to(self._device, self._flow) for name in names]
        weight = parts[0] if len(parts) == 1 else torch.cat(parts)
        biases = [weights.get(f"{name}.bias") for name in names]
        if not any(each is not None for each in biases):
            return weight, None
        filled = [
            torch.zeros(len(part)) if bias is None else bias.float() for part, bias in zip(parts, biases, strict=True)
        ]
        return weight, torch.cat(filled).to(self._device, self._flow)

    def _norm_weight(self, weights: Mapping[str, Tensor], name: str) -> Tensor:
        weight = _asked(weights, name).to(self._device, torch.float32, copy=True)
        return (weight + self._about.norm_offset).to(self._flow)


def _check_fits(seen: ModelSeen, layers: Layers, how: Packing, free: int) -> None:
    """Raise OwnersFault: the slice, and the largest tensor of it twice more while it is packed, has more bytes."""
    names, numbers, largest = set(weights_of(seen.folder, layers)), 0, 0
    is_tied = bool(getattr(seen.config, "tie_word_embeddings", False))
    for path in weight_files(seen.folder):
        for name, stored in stored_in(path):
            is_idle = ("embed" in name and not (layers.is_first or (layers.is_last and is_tied))) or (
                "lm_head" in name and not layers.is_last
            )
            if name in names and not is_idle:
                numbers, largest = numbers + stored.numbers, max(largest, stored.numbers)
    needed = int(numbers * how.bytes_per_number) + 2 * largest * how.flow.itemsize + SPARE_BYTES
    if needed > free:
        raise OwnersFault(
            f"the layers {layers} of {seen.folder.name} need {needed >> 20} MiB as {how.name}, {free >> 20} are free: "
            f"{(needed - free >> 20) + 1} MiB are missing"
        )


def _asked(weights: Mapping[str, Tensor], name: str) -> Any:
    try:
        return weights[name]
    except KeyError:
        raise OwnersFault(f"the model's files lack {name}") from None
