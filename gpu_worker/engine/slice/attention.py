"""
Attention of a step's rows over the KV cache: runs of one row together with those of a like length, longer runs each for
itself.

A plan is made once a step and serves all its layers.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch.nn.functional import scaled_dot_product_attention as sdpa

from gpu_worker.engine.slice.stage import Rows, longest_beside

# Slots between those of a step's sessions are read as well, up to this many times their number: cheaper than a copy.
_SPREAD = 2


@dataclass(slots=True)
class Span:
    """Rows [row, row + count) of the step: positions from `position` on of the session in `slot`."""

    slot: int
    position: int
    count: int
    row: int
    masks: dict[int | None, tuple[int, torch.Tensor | None]] = field(default_factory=dict)


@dataclass(slots=True)
class Together:
    """
    One row each of several sessions, in the order of their slots.

    `rows` are their places in the step, None where they are all of it and in order. They are read as the slots
    [first, first + wide); `at` are theirs among these, None where they are all of them; where they lie too far apart
    `first` is -1 and they are copied together.
    """

    slots: torch.Tensor
    positions: torch.Tensor
    low: int
    high: int
    rows: torch.Tensor | None
    first: int
    wide: int
    at: torch.Tensor | None
    masks: dict[int | None, tuple[int, torch.Tensor | None]] = field(default_factory=dict)


@dataclass(slots=True)
class Plan:
    """`positions` has one entry a row. `lasts` are the last rows of the runs that sample."""

    count: int
    positions: torch.Tensor
    together: list[Together]
    spans: list[Span]
    lasts: list[int]


def plan(runs: Sequence[Rows], slots: Sequence[int], device: torch.device) -> Plan:
    """Return how the rows of `runs`, whose sessions have `slots`, attend."""
    spans, row = [], 0
    for run, slot in zip(runs, slots, strict=True):
        spans.append(Span(slot, run.position, run.count, row))
        row += run.count
    lasts = [span.row + span.count - 1 for span, run in zip(spans, runs, strict=True) if run.samples]
    # A session with several runs in one step attends run by run.
    often = {slot for slot, times in Counter(slots).items() if times > 1}
    single = sorted((span for span in spans if span.count == 1 and span.slot not in often), key=lambda span: span.slot)
    numbers = [span.position + step for span in spans for step in range(span.count)]
    positions = torch.tensor(numbers, device=device)
    alone = [span for span in spans if span.count > 1 or span.slot in often]
    groups: dict[int, list[Span]] = {}
    for span, longest in zip(single, longest_beside([span.position for span in single]), strict=True):
        groups.setdefault(longest, []).append(span)
    alone += [group[0] for group in groups.values() if len(group) == 1]
    together = [_together(group, row, device) for group in groups.values() if len(group) > 1]
    return Plan(row, positions, together, alone, lasts)


def _together(spans: list[Span], total: int, device: torch.device) -> Together:
    slots = [span.slot for span in spans]
    rows = [span.row for span in spans]
    wide = slots[-1] - slots[0] + 1
    is_near = wide <= _SPREAD * len(spans)
    return Together(
        slots=torch.tensor(slots, device=device),
        positions=torch.tensor([span.position for span in spans], device=device),
        low=min(span.position for span in spans),
        high=max(span.position for span in spans) + 1,
        rows=None if rows == list(range(total)) else torch.tensor(rows, device=device),
        first=slots[0] if is_near else -1,
        wide=wide if is_near else len(spans),
        at=torch.tensor([s - slots[0] for s in slots], device=device) if is_near and wide > len(spans) else None,
    )


def attend(
    qkv: torch.Tensor, cells: torch.Tensor, plan: Plan, heads: int, window: int | None, scale: float
) -> torch.Tensor:
    """
    Return the attention of every row, [N, heads * head dim], and keep the rows' keys and values.

    `qkv` is [N, heads + 2 kv heads, head dim], its keys turned already; `cells` are those of one layer,
    [slots, 2, kv heads, width, head dim]. A row sees the last `window` positions, None: all.
    """
    kv = qkv[:, heads:].view(plan.count, 2, -1, qkv.shape[2])
    if not plan.together and len(plan.spans) == 1:
        return _span(qkv[:, :heads], kv, cells, plan.spans[0], window, scale)
    if not plan.spans and len(plan.together) == 1 and plan.together[0].rows is None:
        return _rows(qkv[:, :heads], kv, cells, plan.together[0], window, scale)
    y = qkv.new_empty(plan.count, heads * qkv.shape[-1])
    for some in plan.together:
        y[some.rows] = _rows(qkv[some.rows, :heads], kv[some.rows], cells, some, window, scale)
    for span in plan.spans:
        part = slice(span.row, span.row + span.count)
        y[part] = _span(qkv[part, :heads], kv[part], cells, span, window, scale)
    return y


def _rows(
    q: torch.Tensor, kv: torch.Tensor, cells: torch.Tensor, some: Together, window: int | None, scale: float
) -> torch.Tensor:
    """One row each of several sessions: the queries that share a key are rows of one product."""
    count, kv_heads = q.shape[0], kv.shape[2]
    cells[some.slots, :, :, some.positions] = kv
    q = q.view(count, kv_heads, -1, q.shape[2])
    low, mask = _mask_of_rows(some, window, q)
    if some.first < 0:
        seen = cells[some.slots, :, :, low : some.high]
    else:
        seen = cells[some.first : some.first + some.wide, :, :, low : some.high]
    if some.at is not None:
        wide = q.new_zeros(some.wide, *q.shape[1:])
        wide[some.at] = q
        q = wide
    y = sdpa(q, seen[:, 0], seen[:, 1], attn_mask=mask, scale=scale)
    if some.at is not None:
        y = y[some.at]
    return y.reshape(count, -1)


def _mask_of_rows(some: Together, window: int | None, q: torch.Tensor) -> tuple[int, torch.Tensor | None]:
    """Return the first position that any row sees, and what hides from each row what it does not see."""
    if window not in some.masks:
        low = 0 if window is None else max(0, some.low + 1 - window)
        mask = None
        if some.low + 1 < some.high:
            keys = torch.arange(low, some.high, device=q.device)[None]
            ends = some.positions[:, None]
            is_seen = keys <= ends
            if window is not None:
                is_seen &= keys > ends - window
            mask = q.new_zeros(some.wide, some.high - low)
            hidden = mask.new_zeros(is_seen.shape).masked_fill_(~is_seen, float("-inf"))
            mask = hidden if some.at is None else mask.index_copy_(0, some.at, hidden)
            mask = mask[:, None, None].expand(some.wide, 1, q.shape[2], some.high - low)
        some.masks[window] = low, mask
    return some.masks[window]


def _span(
    q: torch.Tensor, kv: torch.Tensor, cells: torch.Tensor, span: Span, window: int | None, scale: float
) -> torch.Tensor:
    """The rows of one session: as many queries as rows, or, of one row, those that share a key as rows."""
    end = span.position + span.count
    kv_heads = kv.shape[2]
    mine = cells[span.slot]
    low, mask = _mask_of_span(span, window, q)
    if span.count == 1:
        mine[:, :, span.position].copy_(kv[0])
        keys, values = mine[:, None, :, low:end].unbind()
        return sdpa(q.view(1, kv_heads, -1, q.shape[2]), keys, values, scale=scale).view(1, -1)
    mine[:, :, span.position : end] = kv.permute(1, 2, 0, 3)
    keys, values = mine[:, None, :, low:end].unbind()
    y = sdpa(
        q.transpose(0, 1)[None],
        keys,
        values,
        attn_mask=mask,
        is_causal=mask is None,
        scale=scale,
        enable_gqa=kv_heads != q.shape[1],
    )
    return y[0].transpose(0, 1).reshape(span.count, -1)


def _mask_of_span(span: Span, window: int | None, q: torch.Tensor) -> tuple[int, torch.Tensor | None]:
    """As for rows; None for the rows of a span that begins at 0 and sees all: they are causal."""
    if window not in span.masks:
        end = span.position + span.count
        low = 0 if window is None else max(0, span.position + 1 - window)
        mask = None
        if span.count > 1 and (span.position or (window is not None and window < end)):
            keys = torch.arange(low, end, device=q.device)[None]
            ends = torch.arange(span.position, end, device=q.device)[:, None]
            is_seen = keys <= ends
            if window is not None:
                is_seen &= keys > ends - window
            mask = q.new_zeros(is_seen.shape).masked_fill_(~is_seen, float("-inf"))
        span.masks[window] = low, mask
    return span.masks[window]
