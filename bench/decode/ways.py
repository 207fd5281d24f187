"""Ways to do a part of a decode step, in pairs: before and after. Each does its part once for all layers."""

import json
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention as sdpa

from bench.decode.models import KV_HEADS, VOCABULARY
from gpu_worker.core.inference.deadlines import StepTimes
from gpu_worker.core.inference.step import Run
from gpu_worker.engine.slice import attention
from gpu_worker.engine.slice.kv import KvCache
from gpu_worker.engine.slice.linear import Linear, Pack, any_int4, any_int8, avx_int4, mkl_f32, plain, x86_int8

Way = Callable[[], Any]
# What a decode step of many sessions finds in the cache: ragged, as in the scene `many`.
SHORTEST, LONGEST = 32, 95


@dataclass(frozen=True)
class Shape:
    """The sizes of a Llama."""

    hidden: int
    inner: int
    layers: int
    heads: int
    kv_heads: int = KV_HEADS
    vocabulary: int = VOCABULARY

    @classmethod
    def of(cls, folder: Path) -> "Shape":
        config = json.loads((folder / "config.json").read_text())
        names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
        return cls(*(int(config[name]) for name in names))

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads

    @property
    def norms(self) -> int:
        return 2 * self.layers + 1

    def weights(self, *, is_joined: bool = True) -> list[tuple[int, int]]:
        """Return the weights of a whole model, [out, in] each; joined, q, k and v are one, and so are gate and up."""
        own, kv, inner = self.hidden, self.kv_heads * self.head_dim, self.inner
        wide = [own + 2 * kv, 2 * inner] if is_joined else [own, kv, kv, inner, inner]
        layer = [*((out, own) for out in wide), (own, own), (own, inner)]
        return [*(layer * self.layers), (self.vocabulary, own)]


# --- linears


def _linears(shape: Shape, rows: int, pack: Pack, *, is_joined: bool = True) -> Way:
    dice = torch.Generator().manual_seed(0)
    xs = {width: torch.randn(rows, width, generator=dice) for width in (shape.hidden, shape.inner)}
    made: list[tuple[Linear, Tensor]] = []
    for out, width in shape.weights(is_joined=is_joined):
        made.append((pack(torch.randn(out, width, generator=dice).mul_(0.03), None), xs[width]))

    def way() -> None:
        for linear, x in made:
            linear(x)

    return way


def _mkl_for_8(weight: Tensor, _: Tensor | None) -> Linear:
    ops = torch.ops.mkl
    packed = ops._mkl_reorder_linear_weight(weight, 8)
    like = weight.new_empty(1).expand(weight.shape)
    return lambda x: ops._mkl_linear(x, packed, like, None, x.shape[0])


def _one_scale(weight: Tensor, _: Tensor | None) -> Linear:
    scales = weight.abs().amax(1).div_(127).double()
    zeros = torch.zeros(len(weight), dtype=torch.int64)
    packed = torch.ops.quantized.linear_prepack(torch.quantize_per_channel(weight, scales, zeros, 0, torch.qint8), None)
    return lambda x: torch.ops.quantized.linear_dynamic(x, packed)


def _pair(before: Pack, after: Pack) -> Callable[[Shape, int], tuple[Way, Way]]:
    return lambda shape, rows: (_linears(shape, rows, before), _linears(shape, rows, after))


mkl_for_plain = _pair(plain, mkl_f32)
pack_for_256 = _pair(_mkl_for_8, mkl_f32)
row_scales = _pair(_one_scale, x86_int8)
int_mm = _pair(x86_int8, any_int8)
packed_int4 = _pair(any_int4, avx_int4)


def joined(shape: Shape, rows: int) -> tuple[Way, Way]:
    return _linears(shape, rows, x86_int8, is_joined=False), _linears(shape, rows, x86_int8)


def largest(shape: Shape, rows: int) -> tuple[Way, Way]:
    xs = [torch.randn(rows, width) for _, width in shape.weights()]
    inf = float("inf")
    return (
        lambda: [x.abs().amax(1, keepdim=True) for x in xs],
        lambda: [torch.linalg.vector_norm(x, inf, 1, keepdim=True) for x in xs],
    )


# --- attention and its cache


@dataclass(frozen=True)
class _Sessions:
    """Sessions of 32 to 95 positions, in the engine's cache, and a row of each."""

    shape: Shape
    kv: KvCache
    plan: attention.Plan
    qkv: Tensor
    slots: list[int]
    runs: list[Run]

    @classmethod
    def of(cls, shape: Shape, count: int) -> "_Sessions":
        kv = KvCache(
            layers=shape.layers, kv_heads=shape.kv_heads, head_dim=shape.head_dim, context=4 * LONGEST,
            bytes_max=1 << 29, sessions_max=count, dtype=torch.float32, device=torch.device("cpu"),
        )  # fmt: skip
        runs = []
        for at in range(count):
            length = SHORTEST + (LONGEST - SHORTEST) * at // max(1, count - 1)
            kv.open(str(at), 2 * LONGEST)
            kv.written([Run(session=str(at), epoch=0, position=0, count=length)])
            runs.append(Run(session=str(at), epoch=0, position=length, count=1, samples=True))
        slots = kv.place(runs)
        kv.cells[:count, :, :, :, : 2 * LONGEST].normal_()
        qkv = torch.randn(count, shape.heads + 2 * shape.kv_heads, shape.head_dim)
        return cls(shape, kv, attention.plan(runs, slots, torch.device("cpu")), qkv, slots, runs)

    def attend(self, plan: attention.Plan) -> None:
        scale = self.shape.head_dim**-0.5
        for layer in range(self.shape.layers):
            attention.attend(self.qkv, self.kv.cells[:, layer], plan, self.shape.heads, None, scale)


def together(shape: Shape, count: int) -> tuple[Way, Way]:
    all_of = _Sessions.of(shape, count)
    spans = [
        attention.Span(slot, run.position, 1, row)
        for row, (run, slot) in enumerate(zip(all_of.runs, all_of.slots, strict=True))
    ]
    alone = attention.Plan(count, all_of.plan.positions, [], spans, all_of.plan.lasts)
    return partial(all_of.attend, alone), partial(all_of.attend, all_of.plan)


def _products(all_of: _Sessions, cells: list[Tensor], change: Callable[[Tensor], Tensor]) -> Way:
    """Return what attends as the engine does, over `cells` of each layer, with `change` made to the queries."""
    shape, ends = all_of.shape, all_of.plan.positions
    high = int(ends.max()) + 1
    hidden = torch.arange(high)[None] > ends[:, None]
    mask = torch.zeros(len(ends), high).masked_fill_(hidden, float("-inf"))[:, None, None]
    mask = mask.expand(-1, 1, shape.heads // shape.kv_heads, high)

    def way() -> None:
        for each in cells:
            q = change(all_of.qkv[:, : shape.heads].view(len(ends), shape.kv_heads, -1, shape.head_dim))
            seen = each[: len(ends), :, :, :high]
            sdpa(q, seen[:, 0], seen[:, 1], attn_mask=mask.to(q.dtype)).to(torch.float32)

    return way


def _as_engine(all_of: _Sessions) -> tuple[list[Tensor], Way]:
    cells = [all_of.kv.cells[:, layer] for layer in range(all_of.shape.layers)]
    return cells, _products(all_of, cells, lambda q: q)


def contiguous_queries(shape: Shape, count: int) -> tuple[Way, Way]:
    all_of = _Sessions.of(shape, count)
    cells, before = _as_engine(all_of)
    return before, _products(all_of, cells, Tensor.contiguous)


def layer_major(shape: Shape, count: int) -> tuple[Way, Way]:
    all_of = _Sessions.of(shape, count)
    cells, before = _as_engine(all_of)
    return before, _products(all_of, [each.contiguous() for each in cells], lambda q: q)


def bf16_cache(shape: Shape, count: int) -> tuple[Way, Way]:
    all_of = _Sessions.of(shape, count)
    cells, before = _as_engine(all_of)
    return before, _products(all_of, [each.bfloat16() for each in cells], Tensor.bfloat16)


def _writes(shape: Shape, count: int, write: Callable[[_Sessions, Tensor, Tensor], None]) -> tuple[Way, Way]:
    """Return the engine's way to write a row of each session, and `write`."""
    all_of = _Sessions.of(shape, count)
    slots, positions = torch.tensor(all_of.slots), all_of.plan.positions
    kv = all_of.qkv[:, shape.heads :].view(count, 2, -1, shape.head_dim)

    def engine() -> None:
        for layer in range(shape.layers):
            all_of.kv.cells[:, layer][slots, :, :, positions] = kv

    def other() -> None:
        for layer in range(shape.layers):
            write(all_of, all_of.kv.cells[:, layer], kv)

    return engine, other


def cache_indices_first(shape: Shape, count: int) -> tuple[Way, Way]:
    def write(all_of: _Sessions, cells: Tensor, kv: Tensor) -> None:
        cells.permute(0, 3, 1, 2, 4)[torch.tensor(all_of.slots), all_of.plan.positions] = kv

    return _writes(shape, count, write)


def cache_loop(shape: Shape, count: int) -> tuple[Way, Way]:
    def write(all_of: _Sessions, cells: Tensor, kv: Tensor) -> None:
        for row, (slot, run) in enumerate(zip(all_of.slots, all_of.runs, strict=True)):
            cells[slot, :, :, run.position].copy_(kv[row])

    after, before = _writes(shape, count, write)
    return before, after


# --- the rest


def norms(shape: Shape, rows: int) -> tuple[Way, Way]:
    x, weight = torch.randn(rows, shape.hidden), torch.ones(shape.hidden)
    scaled = weight * shape.hidden**0.5

    def before() -> None:
        for _ in range(shape.norms):
            torch.rms_norm(x, (shape.hidden,), weight, 1e-5)

    def after() -> None:
        for _ in range(shape.norms):
            (x / torch.linalg.vector_norm(x, 2, 1, keepdim=True)).mul_(scaled)

    return before, after


def step_times(_: Shape, rows: int) -> tuple[Way, Way]:
    """The deadline of a step from the last 256: sorted for it, or kept in order."""
    kept, ordered = deque([(rows, 0.03 + at % 17 / 1_000) for at in range(256)], 256), StepTimes()
    for _rows, seconds in kept:
        ordered.add(_rows, seconds)

    def before() -> None:
        kept.append((rows, 0.04))
        for part in (0.99, 0.99):
            sorted(seconds for _, seconds in kept)[int(part * len(kept))]
            sorted(each for each, _ in kept)[len(kept) // 2]

    def after() -> None:
        ordered.add(rows, 0.04)
        ordered.suspect_s(rows, 5.0)

    return before, after
