"""How fast a model will answer, from what was measured of the machine's memory: each token reads the weights."""

from decimal import Decimal
from typing import NamedTuple

from gpu_worker.core.quantization.estimate import Plan


class Rates(NamedTuple):
    """Bytes a second that were measured of the GPU's memory and of the machine's, None: not measured, or not there."""

    gpu: int | None = None
    host: int | None = None


def tokens_per_s(plan: Plan, rates: Rates) -> Decimal | None:
    """
    Return the tokens a second of one stream at half its context, None: the memory that it needs was not measured.

    It is what the memory allows; whatever else an engine does comes off it.
    """
    seconds = Decimal(0)
    for read, rate in ((plan.read_gpu, rates.gpu), (plan.read_host, rates.host)):
        if read and not rate:
            return None
        seconds += Decimal(read) / (rate or 1)
    return (1 / seconds).quantize(Decimal("0.1")) if seconds else None
