"""One process of several on a store: `python -m tests.contracts.store_process VERB JSON`."""

import asyncio
import json
import os
import sys
from dataclasses import replace
from typing import Any

from agent.core.model import LogHead
from agent.ports import Claim, Hold
from tests.contracts.store_values import Place, a_payment, an_entry


async def take_turns(place: Place, run_id: str, turns: int, witness: str) -> None:
    """Hold the run `turns` times; while holding it, be the only one to make the witness."""
    store = place.open()
    while turns:
        claim = await store.claim(run_id, 60)
        if not isinstance(claim, Claim):
            await asyncio.sleep(0.001)
            continue
        os.close(os.open(witness, os.O_CREAT | os.O_EXCL))
        seq = claim.run.log.seq + 1
        await store.save(claim.token, replace(claim.run, log=LogHead(seq=seq)), [an_entry(run_id, seq)])
        os.unlink(witness)
        await store.release(run_id, claim.token, None)
        turns -= 1
    await store.close()


async def hold_often(place: Place, run_id: str, times: int, cap_atomic: int) -> None:
    """Count 1 under the shared cap as often as asked; print how often it was let."""
    store = place.open()
    claim = await store.claim(run_id, 600)
    assert isinstance(claim, Claim)
    hold = Hold(scope="shared", amount_atomic=1, cap_atomic=cap_atomic)
    saved = [await store.save(claim.token, claim.run, holds=[hold]) for _ in range(times)]
    print(saved.count(None))
    await store.close()


async def save_and_wait(place: Place, run_id: str, lease_s: int) -> None:
    """Save a payment under a short lease and never come back to release it."""
    store = place.open()
    claim = await store.claim(run_id, lease_s)
    assert isinstance(claim, Claim)
    run = replace(claim.run, payments=(a_payment(payment_id="pay_of_the_dead"),), log=LogHead(seq=1))
    await store.save(claim.token, run, [an_entry(run_id, 1)], durable=True)
    print("saved", flush=True)
    sys.stdin.read()


VERBS = {"take_turns": take_turns, "hold_often": hold_often, "save_and_wait": save_and_wait}


def main(verb: str, words: dict[str, Any]) -> None:
    asyncio.run(VERBS[verb](Place(**words.pop("place")), **words))


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
