"""
Which back end serves a slice: `lean` where it shows on this very checkpoint that it computes what `hf` does, else `hf`.
"""

import gc
from pathlib import Path
from typing import Any

import torch

from gpu_worker.core.errors import OwnersFault
from gpu_worker.core.inference.codes import InferenceError
from gpu_worker.core.inference.layers import Layers
from gpu_worker.core.inference.step import Run
from gpu_worker.engine.slice.architecture import architecture
from gpu_worker.engine.slice.cost import cost_curve, rows_for
from gpu_worker.engine.slice.heap import large_blocks_apart
from gpu_worker.engine.slice.hf import HfStage
from gpu_worker.engine.slice.lean import SESSIONS_MAX, LeanStage
from gpu_worker.engine.slice.loading import ModelSeen, OnProgress, load_slice, look_at
from gpu_worker.engine.slice.stage import Stage

BACK_ENDS = ("auto", "lean", "hf")
# How far the lean back end may be from hf, both in single precision, relative to the largest number.
EXACT = 1e-4
# And served so, from itself in single precision, relative in the norm: what rounding of that kind brings, times three.
ROUNDED = {"fp32": EXACT, "fp16": 3e-3, "bf16": 3e-2, "int8": 0.1, "int4": 0.5}
_CACHE_BYTES = 64 * 1024 * 1024
_PROMPTS = (13, 6)
_DECODED = 3


def admit(
    folder: Path,
    layers: Layers | str,
    *,
    cache_bytes_max: int,
    sessions_max: int = SESSIONS_MAX,
    dtype: str = "auto",
    quant: str = "none",
    device: str = "cpu",
    back_end: str = "auto",
    model: str = "",
    model_hash: str = "",
    free_bytes: int | None = None,
    on_progress: OnProgress | None = None,
) -> Stage:
    """
    Return the slice of the model in `folder`, loaded and measured. `layers` may be text, as `0:12`.

    With `auto`, `info.notes` say why it is not `lean` where it is not.

    Raises:
        BadInput: the model needs code of its own.
        OwnersFault: the slice cannot be served so: its family, files or size, or its quantisation by this back end.
    """
    if back_end not in BACK_ENDS:
        raise OwnersFault(f"{back_end!r} is none of the back ends {', '.join(BACK_ENDS)}")
    seen = look_at(folder)
    owned = Layers.parse(layers, seen.layers) if isinstance(layers, str) else layers
    word = seen.dtype if dtype == "auto" else dtype
    how: dict[str, Any] = {"dtype": word, "device": device, "free_bytes": free_bytes}
    named: dict[str, Any] = {"cache_bytes_max": cache_bytes_max, "model": model, "model_hash": model_hash}
    stage: LeanStage | HfStage
    with large_blocks_apart():
        why = None if back_end == "hf" else why_not_lean(seen, owned, quant=quant, **how)
        if why is not None and back_end == "lean":
            raise OwnersFault(why)
        if back_end == "hf" or why is not None:
            if quant != "none":
                reason = f": {why}" if why else ""
                raise OwnersFault(f"the hf back end serves no {quant}, the lean one alone does{reason}")
            stage = HfStage(load_slice(seen, owned, on_progress=on_progress, **how), **named)
        else:
            stage = LeanStage(
                seen, owned, quant=quant, sessions_max=sessions_max, on_progress=on_progress, **how, **named
            )
    stage.tell(cost_s=cost_curve(stage), notes=(f"not lean: {why}",) if why else ())
    return stage


def why_not_lean(
    seen: ModelSeen, layers: Layers, *, dtype: str, quant: str, device: str, free_bytes: int | None = None
) -> str | None:
    """
    Return why the `lean` back end must not serve these layers, None where it may.

    It is tried on single layers, one of each kind that the slice has and the last one with norm and head: two
    sessions, prompts and decode steps, first against `hf` in single precision, then as it is to be served. No two of
    them are in memory together; one that does not fit into `free_bytes` is a reason too.
    """
    how: dict[str, Any] = {"device": device, "free_bytes": free_bytes}
    try:
        about = architecture(seen.config)
        kinds = {(about.windows[at], about.turns[at]): at for at in reversed(range(layers.start, layers.end))}
        for at in sorted({*kinds.values(), *([layers.end - 1] if layers.is_last else [])}):
            layer = Layers(at, at + 1, layers.total)
            exact = _tried(_lean(seen, layer, "fp32", "none", **how))
            loaded = load_slice(seen, layer, dtype="fp32", **how)
            wanted = _tried(HfStage(loaded, cache_bytes_max=_CACHE_BYTES))
            del loaded
            # A model with hooks is a circle, which holds its weights until it is looked for.
            gc.collect()
            off = float((exact - wanted).abs().max() / wanted.abs().max())
            if not off <= EXACT:
                return f"layer {at} is {off:.1e} off what hf computes, more than {EXACT:.0e}"
            if (dtype, quant) == ("fp32", "none"):
                continue
            served = _tried(_lean(seen, layer, dtype, quant, **how))
            off, most = float((served - exact).norm() / exact.norm()), ROUNDED[dtype if quant == "none" else quant]
            if not off <= most:
                return f"layer {at} is {off:.1e} off single precision, more than {most}"
    except (OwnersFault, InferenceError) as error:
        return str(error)
    except Exception as error:  # a config may hold anything: hf says whether it can be served at all
        said = (str(error).splitlines() or [""])[0]
        return f"its self-test ended with {type(error).__name__}: {said[:200]}"
    return None


def _lean(seen: ModelSeen, layer: Layers, dtype: str, quant: str, **how: Any) -> LeanStage:
    return LeanStage(seen, layer, cache_bytes_max=_CACHE_BYTES, dtype=dtype, quant=quant, **how)


def _tried(stage: Stage) -> torch.Tensor:
    """Return in single precision what a stage makes of two sessions that join at different steps."""
    first, second = "first", "second"
    made, at = [], {first: 0, second: 0}

    def step(**counts: int) -> None:
        runs = [
            Run(session=name, epoch=0, position=at[name], count=count, samples=True) for name, count in counts.items()
        ]
        made.append(stage.forward(rows_for(stage, sum(counts.values())).to(stage.info.device), runs).float().cpu())
        for name, count in counts.items():
            at[name] += count

    for name, prompt in zip((first, second), _PROMPTS, strict=True):
        stage.open(name, 2 * prompt + _DECODED)
        step(**{name: prompt})
    step(first=_PROMPTS[0], second=1)
    for _ in range(_DECODED - 1):
        step(second=1, first=1)
    return torch.cat(made)
