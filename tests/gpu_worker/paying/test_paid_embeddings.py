"""Embeddings cost what was read for them."""

from collections.abc import Sequence

from gpu_worker.inference.text.engine import Embedded
from gpu_worker.inference.text.token_engine import TokenEngine
from tests.fixtures.talker import MODEL, ByteText
from tests.gpu_worker.paying.world import PROMPT_ATOMIC, Selling, error_of

PATH = "/v1/embeddings"


class Embedder(TokenEngine):
    """A token is a byte, a vector has three numbers."""

    async def embed(self, model: str, inputs: Sequence[str | tuple[int, ...]]) -> Embedded:
        return Embedded(vectors=((0.5, 0.25, 1.0),) * len(inputs), tokens=sum(map(len, inputs)))


async def test_a_key_pays_for_what_was_read(world: Selling) -> None:
    door = world.door()
    door.service.engine = Embedder(MODEL, world.talker, ByteText())
    async with world.selling(door) as client:
        headers = {"authorization": f"Bearer {await world.give(door, 30 * PROMPT_ATOMIC)}"}
        refused = await client.post(PATH, json={"input": "ten bytes.", "dimensions": 0}, headers=headers)
        made = await client.post(PATH, json={"input": ["ten bytes.", "five."]}, headers=headers)
        short = await client.post(PATH, json={"input": "more than is left."}, headers=headers)
        keyless = await client.post(PATH, json={"input": "ten bytes."})
        account = await door.billing.book.account(world.account)

    assert (refused.status_code, made.status_code) == (400, 200)
    assert (short.status_code, error_of(short)["code"]) == (402, "payment_required")
    assert (keyless.status_code, error_of(keyless)["code"]) == (402, "payment_required")
    assert (account.spent, account.held) == (15 * PROMPT_ATOMIC, 0)
