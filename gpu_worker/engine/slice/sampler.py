"""
The next token of every session of a step, from its logits.

A row is changed in this order: constraint, tokens never chosen, logit bias, repetition penalty (tokens of prompt and
answer: above 0 divided, below 0 multiplied), frequency and presence penalty (the answer's), then the largest one where
the temperature is 0, else temperature, min-p, top-k, top-p of what is left, and the draw. It is the order of vLLM's
sampler. Log probabilities are those of the row before all of that.

The draw is the inverse of the cumulated probabilities, in the order of token ids, at the position's random number: the
same row gives the same token whatever its neighbours are, and a difference in a logit's last bits moves no boundary
further than itself. Every sum is along one row and in float64 for that.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gpu_worker.core.inference.random import uniform
from gpu_worker.core.inference.sampling import LOGPROBS_MAX, Sampling
from gpu_worker.engine.slice.past import Past

# Enough for most nuclei; where they are wider the whole row is sorted.
_NUCLEUS = 512


@dataclass(frozen=True, slots=True, eq=False)
class Draw:
    """
    What a row's token is chosen by. `position` is where the token will stand.

    `past` is None where no penalty asks for it, `allowed` ([V] bool) where nothing constrains the output.
    """

    sampling: Sampling
    position: int
    past: Past | None = None
    allowed: np.ndarray | None = None


@dataclass(frozen=True, slots=True)
class Choice:
    """`token` None: the row cannot be sampled from, for the reason `problem`. The others are as in `Sampled`."""

    token: int | None
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()
    problem: str = ""


BROKEN = Choice(None, problem="the model's logits are not numbers")
BARRED = Choice(None, problem="no token is left that may be chosen")


def choose(logits: Tensor, draws: Sequence[Draw]) -> list[Choice]:
    """Return the choice of each row of `logits`, [n, V] in float32, which stay as they are."""
    logits = logits if logits.device.type != "mps" else logits.cpu()  # no float64 there
    best = logits.max(dim=1)
    # The largest value of a row with a NaN is NaN.
    is_sound = torch.isfinite(best.values).tolist()
    tokens: list[int | None] = list(best.indices.tolist())
    changed = [row for row, draw in enumerate(draws) if is_sound[row] and not _is_plain(draw)]
    if changed:
        rows = [draws[row] for row in changed]
        for row, token in zip(changed, _changed(logits[changed], rows), strict=True):
            tokens[row] = token
    told = _logprobs(
        logits, tokens, [draw.sampling.logprobs if is_sound[row] else None for row, draw in enumerate(draws)]
    )
    return [
        BROKEN if not is_sound[row] else BARRED if token is None else told.get(row) or Choice(token)
        for row, token in enumerate(tokens)
    ]


def _is_plain(draw: Draw) -> bool:
    """Whether the token is the largest logit's as it is."""
    it = draw.sampling
    return (
        it.temperature == 0.0
        and draw.allowed is None
        and not it.logit_bias
        and not (it.ignore_eos and it.eos)
        and not _is_penalised(it)
    )


def _is_penalised(it: Sampling) -> bool:
    return it.repetition_penalty != 1.0 or it.presence_penalty != 0.0 or it.frequency_penalty != 0.0


def _changed(logits: Tensor, draws: Sequence[Draw]) -> list[int | None]:
    """Return the tokens of rows whose logits, which may be written to, are not taken as they are."""
    _bar(logits, draws)
    _bias(logits, draws)
    _penalise(logits, draws)
    best = logits.max(dim=1)
    is_open = torch.isfinite(best.values).tolist()
    tokens = [token if ok else None for token, ok in zip(best.indices.tolist(), is_open, strict=True)]
    drawn = [row for row, draw in enumerate(draws) if draw.sampling.temperature > 0.0 and is_open[row]]
    if drawn:
        rows = logits if len(drawn) == len(draws) else logits[drawn]
        for row, token in zip(drawn, _drawn(rows, [draws[row] for row in drawn]), strict=True):
            tokens[row] = token
    return tokens


def _bar(logits: Tensor, draws: Sequence[Draw]) -> None:
    masked = [row for row, draw in enumerate(draws) if draw.allowed is not None]
    if masked:
        allowed = torch.from_numpy(np.stack([draws[row].allowed for row in masked])).to(logits.device)
        logits[masked] = logits[masked].masked_fill_(~allowed, -torch.inf)
    never = [(row, token) for row, draw in enumerate(draws) if draw.sampling.ignore_eos for token in draw.sampling.eos]
    if never:
        rows, ids = zip(*never, strict=True)
        logits[list(rows), list(ids)] = -torch.inf


def _bias(logits: Tensor, draws: Sequence[Draw]) -> None:
    added = [(row, *each) for row, draw in enumerate(draws) for each in draw.sampling.logit_bias.items()]
    if added:
        rows, ids, values = zip(*added, strict=True)
        logits[list(rows), list(ids)] += torch.tensor(values, dtype=torch.float32, device=logits.device)


def _penalise(logits: Tensor, draws: Sequence[Draw]) -> None:
    found = [
        (row, draw.sampling, draw.past) for row, draw in enumerate(draws) if draw.past and _is_penalised(draw.sampling)
    ]
    if not found:
        return
    sizes = [len(past.ids) for _, _, past in found]

    def spread(values: list[float], dtype: type = np.float32) -> Tensor:
        """Return one value for each distinct token of each of the rows."""
        return torch.from_numpy(np.repeat(np.array(values, dtype), sizes)).to(logits.device)

    ids = torch.from_numpy(np.concatenate([past.ids for _, _, past in found])).to(logits.device)
    counts = torch.from_numpy(np.concatenate([past.counts for _, _, past in found])).to(logits.device)
    rows = spread([row for row, _, _ in found], np.int64)
    factor = spread([it.repetition_penalty for _, it, _ in found])
    values = logits[rows, ids]
    values = torch.where(values > 0, values / factor, values * factor)
    values -= counts * spread([it.frequency_penalty for _, it, _ in found])
    values -= (counts > 0) * spread([it.presence_penalty for _, it, _ in found])
    logits[rows, ids] = values


def _drawn(logits: Tensor, draws: Sequence[Draw]) -> list[int]:
    """
    Return one token for each row, drawn at its position's random number.

    Every row has a finite logit; the rows may be written to.
    """

    def column(values: Sequence[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float64, device=logits.device)[:, None]

    its = [draw.sampling for draw in draws]
    best, heat = logits.max(dim=1, keepdim=True).values.double(), column([it.temperature for it in its])
    if any(it.min_p > 0.0 for it in its):
        logits.masked_fill_(logits < best + heat * column([it.min_p for it in its]).log(), -torch.inf)
    rows = [row for row, it in enumerate(its) if 0 < it.top_k < logits.shape[1] or it.top_p < 1.0]
    if len(rows) == len(its):
        logits.masked_fill_(_cut(logits, best, heat, its), -torch.inf)
    elif rows:
        part = logits[rows]
        logits[rows] = part.masked_fill_(_cut(part, best[rows], heat[rows], [its[row] for row in rows]), -torch.inf)
    cumulated = _weights(logits, best, heat).cumsum(dim=1)
    at = column([uniform(it.seed, draw.position) for it, draw in zip(its, draws, strict=True)]) * cumulated[:, -1:]
    # The first token whose sum is above: never one without probability.
    tokens: list[int] = torch.searchsorted(cumulated, at, right=True)[:, 0].tolist()
    return tokens


def _weights(logits: Tensor, best: Tensor, heat: Tensor) -> Tensor:
    """Return the probabilities times a factor of each row, in float64: the largest is 1."""
    return logits.double().sub_(best).div_(heat).exp_()


def _cut(part: Tensor, best: Tensor, heat: Tensor, its: Sequence[Sampling]) -> Tensor:
    """Return what top-k and then top-p leave out of each row, [m, V] bool."""
    vocab = part.shape[1]
    ks = [min(it.top_k, vocab) or vocab for it in its]
    k = torch.tensor(ks, device=part.device)[:, None]
    p = torch.tensor([it.top_p for it in its], dtype=torch.float64, device=part.device)[:, None]
    total = best
    if max(ks) == vocab:
        total = _weights(part, best, heat).cumsum(dim=1)[:, -1:]
    # How much of each row is sorted: its k largest, or where there is no k a guess at its nucleus first.
    width = max(size if size < vocab else min(_NUCLEUS, vocab) for size in ks)
    values = part.topk(width, dim=1).values
    kept = _kept(_weights(values, best, heat), k, p, total, vocab)
    if width < vocab and bool((kept > width).any()):
        values = part.sort(dim=1, descending=True).values
        kept = _kept(_weights(values, best, heat), k, p, total, vocab)
    last = values.gather(1, kept - 1)
    # Of equal values at the edge those with the lowest token ids stay, so that it is `kept` of them.
    cut, ties = part < last, part == last
    spare = kept - (values > last).sum(dim=1, keepdim=True)
    if bool((ties.sum(dim=1, keepdim=True) > spare).any()):
        cut |= ties & (ties.cumsum(dim=1) > spare)
    return cut


def _kept(weights: Tensor, k: Tensor, p: Tensor, total: Tensor, vocab: int) -> Tensor:
    """
    Return how many of each row's largest values stay, [m, 1]; `weights` are the largest ones'.

    As many as it takes until their share of the k largest ones' sum (of `total` where k is all) is p, at least one;
    one more than there are `weights` where these are too few to say.
    """
    cumulated, width = weights.cumsum(dim=1), weights.shape[1]
    whole = torch.where(k < vocab, cumulated.gather(1, k.clamp(max=width) - 1), total)
    needed = (cumulated < p * whole).sum(dim=1, keepdim=True) + 1
    # The sum of all may end a last bit below its share.
    return torch.where(p < 1.0, torch.minimum(needed, k), k).clamp(max=vocab)


def _logprobs(logits: Tensor, tokens: Sequence[int | None], wanted: Sequence[int | None]) -> dict[int, Choice]:
    """Return the choices of the rows that tell log probabilities."""
    rows = [row for row, count in enumerate(wanted) if count is not None and tokens[row] is not None]
    if not rows:
        return {}
    logs = torch.log_softmax(logits[rows].double(), dim=1)
    # Always as many, so that it does not hang on the neighbours which of equal ones are told.
    top = logs.topk(min(LOGPROBS_MAX, logs.shape[1]), dim=1)
    found = {}
    for at, row in enumerate(rows):
        best = sorted(
            zip(top.indices[at].tolist(), top.values[at].tolist(), strict=True), key=lambda each: (-each[1], each[0])
        )
        found[row] = Choice(tokens[row], logs[at, tokens[row]].item(), tuple(best[: wanted[row]]))
    return found
