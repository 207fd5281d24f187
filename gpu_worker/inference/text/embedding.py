"""A request for embeddings: it waits for its turn like one for text, and is paid for by the tokens that were read."""

import asyncio
from collections.abc import Sequence

from gpu_worker.core.inference.callers import Caller, model_for
from gpu_worker.core.inference.codes import InferenceError
from gpu_worker.inference.text.engine import Embedded, ModelCard
from gpu_worker.inference.text.service import Service

# What is told as base64 is told in 32 bits.
FLOAT32_MAX = 3.4028234663852886e38


async def embed(
    service: Service, name: str | None, inputs: Sequence[str | tuple[int, ...]], dimensions: int | None, caller: Caller
) -> tuple[ModelCard, Embedded]:
    """
    Return the model and a vector for each input.

    Raises:
        InferenceError: it is refused; invalid_argument: the model makes none, or none of so many `dimensions`.
    """
    engine, session = service.answering(), service.new_id()
    card = service.card(model_for(caller, name, service.resolve))
    await service.admission.open(caller, session)
    try:
        bill = None if service.billing is None else await service.billing.open_reading(inputs, session, caller)
        cost_atomic = 0
        try:
            turn = await service.turns.enter(is_priority=caller.is_priority)
            try:
                embedded = await engine.embed(card.name, inputs)
            except asyncio.CancelledError:
                # Who leaves has it read all the same.
                cost_atomic = 0 if bill is None else bill.cost_atomic(0, 0)
                raise
            finally:
                turn.leave()
            if any(abs(each) > FLOAT32_MAX for vector in embedded.vectors for each in vector):
                raise InferenceError("upstream_error", "the engine of this model makes numbers that no vector has")
            cost_atomic = 0 if bill is None else bill.cost_atomic(embedded.tokens, 0)
        finally:
            if bill is not None:
                await bill.settle(cost_atomic)
    except InferenceError:
        await service.admission.unopened(caller, session)
        raise
    service.figures.prompt_tokens += embedded.tokens
    width = len(embedded.vectors[0])
    if dimensions not in (None, width):
        # They were made, which tells how wide they are: this is not asked for again and again for nothing.
        raise InferenceError("invalid_argument", f"vectors of {card.name} have {width} dimensions", "dimensions")
    return card, embedded
