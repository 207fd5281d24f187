"""How many answers are made at once, and how long each may be: what fits, or what the owner set and fits."""

from dataclasses import dataclass

from gpu_worker.core.errors import OwnersFault
from gpu_worker.core.hardware import MIB
from gpu_worker.core.quantization.estimate import KvType, Memory, Plan, Serving, plan
from gpu_worker.core.quantization.weights import Weights, shrunk, smaller_quants

GIB = 1024 * MIB
# What a slot has where nobody says more, and where the model was trained for it.
CONTEXT_USUAL = 8_192
CONTEXT_LEAST = 4_096
_STEPS = ((32, 16), (31, 8), (15, 4), (7, 2))


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What the owner set, None: whatever fits. `context` is of one slot."""

    context: int | None = None
    slots: int | None = None
    gpu_layers: int | None = None
    kv: KvType = "f16"


def slots_most(memory_bytes: int) -> int:
    """
    Return how many answers at once a device of this memory is given at the most where its owner says nothing.

    2, 4, 8 with 8, 16, 32 GB, 1 with less and 16 with more; a card of 8 GB has a little less or more in bytes.
    """
    gib = round(memory_bytes / GIB)
    return next((slots for above, slots in _STEPS if gib > above), 1)


def settle(weights: Weights, memory: Memory, wanted: Wanted) -> Plan:
    """
    Return how the model is served on this machine, as `planned` says.

    Raises:
        OwnersFault: it does not fit; the sentence says how much is missing, and what would fit.
    """
    found = planned(weights, memory, wanted)
    if not found.fits:
        raise OwnersFault(refusal(found, memory, wanted))
    return found


def planned(weights: Weights, memory: Memory, wanted: Wanted) -> Plan:
    """
    Return how the model would be served, whether it fits or not.

    Slots that nobody set are as many as cost no layer its place on the GPU; a context that nobody set is the usual one,
    the least one where only that fits.

    Raises:
        OwnersFault: a context is set that the model was not trained for.
    """
    tried = [_with_slots(weights, memory, wanted, context) for context in _contexts(weights, wanted)]
    return next((each for each in tried if each.fits), tried[-1])


def _contexts(weights: Weights, wanted: Wanted) -> tuple[int, ...]:
    """Return the contexts of a slot that are tried, the longest first. Raises OwnersFault: the model has less."""
    if wanted.context is None:
        return tuple(dict.fromkeys(min(weights.context, each) for each in (CONTEXT_USUAL, CONTEXT_LEAST)))
    if wanted.context > weights.context:
        raise OwnersFault(
            f"a context of {wanted.context:,} tokens is set, {weights.name} was trained for {weights.context:,}"
        )
    return (wanted.context,)


def _with_slots(weights: Weights, memory: Memory, wanted: Wanted, context: int) -> Plan:
    def of(slots: int) -> Plan:
        return plan(weights, Serving(context=context, slots=slots, kv=wanted.kv), memory, wanted.gpu_layers)

    if wanted.slots is not None:
        return of(wanted.slots)
    one = of(1)
    more = (of(slots) for slots in range(slots_most(memory.total_bytes) if one.fits else 1, 1, -1))
    return next((each for each in more if each.fits and each.gpu_layers == one.gpu_layers), one)


def refusal(short: Plan, memory: Memory, wanted: Wanted) -> str:
    """Return why a model is not served as planned: how much is missing, and what would fit."""
    is_gpu = short.gpu.missing_bytes > 0
    part = short.gpu if is_gpu else short.host
    slots, context = short.serving.slots, short.serving.context
    said = (
        f"{short.weights.name} does not fit: with {slots} x {context:,} tokens it takes {_mib(part.bytes)} MiB of "
        f"{'the GPU' if is_gpu else 'memory'}, {max(0, part.free_bytes - part.reserve) // MIB:,} may be used: "
        f"{_mib(part.missing_bytes)} MiB are missing"
    )
    return f"{said}; {_instead(short, memory, wanted)}"


def _instead(short: Plan, memory: Memory, wanted: Wanted) -> str:
    """Return what would fit in place of it."""
    weights, slots, context = short.weights, short.serving.slots, short.serving.context

    def fits(slots: int, context: int, weights: Weights = weights, gpu_layers: int | None = wanted.gpu_layers) -> bool:
        return plan(weights, Serving(context=context, slots=slots, kv=wanted.kv), memory, gpu_layers).fits

    if wanted.gpu_layers is not None and fits(slots, context, gpu_layers=None):
        return "with fewer GPU_LAYERS, or none set, it would fit"
    fewer = next((count for count in range(slots - 1, 0, -1) if fits(count, context)), None)
    if fewer is not None:
        return f"MAX_CONCURRENT_JOBS {fewer} would fit"
    shorter = next((of for of in _shorter(context) if fits(1, of)), None)
    would = [] if shorter is None else [f"a CONTEXT of {shorter:,}"]
    smaller = [(quant, shrunk(weights, quant)) for quant in smaller_quants(weights)]
    would += [f"{quant} of it" for quant, less in smaller if fits(1, context, less)][:1]
    least = min(context, CONTEXT_LEAST)
    would = (
        would or [f"{quant} of it with a CONTEXT of {least:,}" for quant, less in smaller if fits(1, least, less)][:1]
    )
    return f"one answer at a time, {' or '.join(would)} would fit" if would else "no quantisation of it would fit"


def _shorter(context: int) -> tuple[int, ...]:
    """Return half of a context, half of that, and so on."""
    return tuple(context >> shift for shift in range(1, 8) if context >> shift >= CONTEXT_LEAST)


def _mib(size: int) -> str:
    return f"{-(-size // MIB):,}"
