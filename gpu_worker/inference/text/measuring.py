"""How fast a model answers one client, measured once it is loaded: what /health tells as benchmarkTokPerSec."""

import asyncio
import logging

from gpu_worker.core.inference.codes import InferenceError
from gpu_worker.inference.text.engine import Ask, ModelCard, TextEngine
from gpu_worker.inference.text.service import Service
from wire.openai import CompletionRequest

PROMPT = "Once upon a time there was a small house at the edge of a wide forest, and in it lived"
# The first answer pays for what is made at the first use, and is not counted.
WARMING_TOKENS, TOKENS = 4, 64
LIMIT_S = 60.0

_LOG = logging.getLogger("livery.gpu_worker")


async def measure(service: Service) -> float:
    """
    Return the tokens a second of one answer by the default model; 0: it could not be measured.

    The prompt is a line that the model has just read, and an answer before it has set up whatever the first one does. A
    model that is loaded when it is first asked for is not loaded for this. Nobody is charged and no request counted.
    """
    engine = service.engine
    card = service.card(None)
    if engine is None or not card.is_loaded:
        return 0.0
    try:
        async with asyncio.timeout(LIMIT_S):
            await _timed(service, engine, card, WARMING_TOKENS)
            return await _timed(service, engine, card, TOKENS)
    except TimeoutError:
        _LOG.warning("how fast %s is could not be measured within %d s", card.name, LIMIT_S)
    except InferenceError as error:
        _LOG.warning("how fast %s is could not be measured: %s", card.name, error)
    return 0.0


async def _timed(service: Service, engine: TextEngine, card: ModelCard, tokens: int) -> float:
    """Return the tokens a second of an answer of so many tokens, or of fewer where it ends by itself."""
    # Another's server may take no field that OpenAI's API has not, and an Ollama has nothing like it.
    goes_on = True if engine.kind in ("slice", "gguf") else None
    request = CompletionRequest(model=card.name, prompt=PROMPT, max_tokens=tokens, temperature=0.0, ignore_eos=goes_on)
    began_s = service.monotonic()
    answer = await engine.begin(Ask(request=request, model=card.name, session=service.new_id()))
    try:
        # Timed as a whole: a piece may hold many tokens that were made before it came.
        made = sum([piece.tokens async for piece in answer.pieces()])
        took_s = service.monotonic() - began_s
    finally:
        await answer.close()
    return made / took_s if took_s > 0 else 0.0
