"""
Challenging a worker, and judging what it answers: what its report says was said by its key, just now, by a machine that
computes at least so fast.

What is proven is a least: the time is measured here, the network's included. That the GPU is the one that the report
names, and is not a friend's, is not proven; that its key said so is.
"""

import base64
import binascii
import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, TypeVar

from pydantic import BaseModel

from gpu_worker.core.attest import (
    NUMBER_BYTES,
    PURPOSE,
    WEIGHTS,
    Challenge,
    Vector,
    is_product,
    vectors_of,
    weights_of,
)
from wire import decimal_json
from wire.capability import STATEMENT_CHARS_MAX, ChallengeReady, GpuCheck, Proof, Statement

PREPARE_PATH = "/gpu-check/challenges"
# A worker has this long for the program's start and the matrix, which are not timed.
PREPARE_S = 150.0
SMALL_BYTES_MAX = 64 * 1024
SAID_CHARS_MAX = 300
GRACE_S = 5.0
_WEIGHT_BYTES = 32

BodyT = TypeVar("BodyT", bound=BaseModel)


class NotAnswered(Exception):
    """The worker cannot be asked, or does not prove; the message says why in one sentence."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """
    `faults` are why the answer is not believed, none: it is. What stands beside them is believed without faults alone.

    `operations_per_s` and `held_bytes` are the least that the worker has done and kept.
    """

    faults: tuple[str, ...]
    address: str
    device: str
    seconds: float
    operations_per_s: int
    held_bytes: int
    report: GpuCheck | None

    @property
    def is_believed(self) -> bool:
        return not self.faults


# Sends a POST with JSON to a path of the worker, and returns status and body: body, time and size limits are its own.
Post = Callable[[str, dict[str, Any], float, int], Awaitable[tuple[int, bytes]]]
# Returns the address whose key signed a text, None: the signature is none.
SignerOf = Callable[[str, str], str | None]


async def challenge_worker(
    post: Post,
    challenge: Challenge,
    *,
    agent_id: str,
    deadline_s: int,
    address: str | None,
    chance: Callable[[int], bytes],
    signer_of: SignerOf,
    monotonic: Callable[[], float],
) -> Verdict:
    """
    Return what is to be thought of the worker behind `post`.

    Args:
        address: whose key it must have, None: whichever it has.
        chance: returns so many bytes that nobody can guess.

    Raises:
        NotAnswered: it refuses, or answers in another language. Whatever `post` raises.
    """
    asked = {"agent_id": agent_id, "seed": challenge.seed.hex(), "size": challenge.size}
    ready = await _asked(post, PREPARE_PATH, asked, PREPARE_S, SMALL_BYTES_MAX, ChallengeReady)
    if not ready.challenge.isalnum():
        raise NotAnswered("the worker calls its challenge what cannot stand in a path")
    start = {"start": challenge.start.hex(), "rounds": challenge.rounds, "deadline_s": deadline_s}
    size_max = 2 * NUMBER_BYTES * challenge.size * challenge.rounds + 2 * STATEMENT_CHARS_MAX
    began_s = monotonic()
    # The worker says itself that it was too slow; a silent one is not waited for much longer.
    path = f"{PREPARE_PATH}/{ready.challenge}"
    proof = await _asked(post, path, start, deadline_s + GRACE_S, size_max, Proof)
    took_s = monotonic() - began_s
    weights = [weights_of(chance(_WEIGHT_BYTES), challenge.size) for _ in range(WEIGHTS)]
    signer = signer_of(proof.statement, proof.signature)
    return judged(
        proof, challenge, signer=signer, weights=weights, took_s=took_s, deadline_s=deadline_s, address=address
    )


def judged(
    proof: Proof,
    challenge: Challenge,
    *,
    signer: str | None,
    weights: list[tuple[int, ...]],
    took_s: float,
    deadline_s: float,
    address: str | None,
) -> Verdict:
    """Return the verdict on an answer that came `took_s` after the start was told. Raises NotAnswered."""
    try:
        statement = Statement.model_validate(decimal_json.loads(proof.statement))
    except ValueError:
        raise NotAnswered("what the worker signed is no statement of ours") from None
    wanted = (PURPOSE, challenge.seed.hex(), challenge.start.hex(), challenge.size, challenge.rounds)
    told = (statement.purpose, statement.seed, statement.start, statement.size, statement.rounds)
    content = _content(proof.vectors)
    vectors = None if content is None else vectors_of(content, challenge)
    checks: tuple[tuple[bool, str], ...] = (
        (signer is not None, "the signature is none"),
        (signer == statement.address, "the statement is not signed by the key that it names"),
        (
            address is None or statement.address.lower() == address.lower(),
            f"the worker's key is that of {statement.address[:60]}, another one was expected",
        ),
        (told == wanted, "the statement answers another challenge"),
        (
            content is not None and hashlib.sha256(content).hexdigest() == statement.vectors_sha256,
            "the vectors are not those that were signed",
        ),
        (vectors is not None and _is_right(challenge, vectors, weights), "the product of matrices is wrong"),
        (took_s <= deadline_s, f"the answer took {took_s:.2f} s, at most {deadline_s:g} s were given"),
    )
    return Verdict(
        faults=tuple(says for holds, says in checks if not holds),
        address=statement.address,
        device=statement.device,
        seconds=took_s,
        operations_per_s=int(challenge.operations / took_s) if took_s > 0 else 0,
        held_bytes=challenge.matrix_bytes,
        report=statement.report,
    )


def document(verdict: Verdict) -> dict[str, Any]:
    """Return the verdict as JSON has it."""
    return {
        "believed": verdict.is_believed,
        "faults": list(verdict.faults),
        "address": verdict.address,
        "device": verdict.device,
        "seconds": Decimal(f"{verdict.seconds:.4f}"),
        "operationsPerS": verdict.operations_per_s,
        "heldBytes": verdict.held_bytes,
        "report": None if verdict.report is None else verdict.report.model_dump(),
    }


def _is_right(challenge: Challenge, vectors: tuple[tuple[int, ...], ...], weights: list[tuple[int, ...]]) -> bool:
    columns: list[Vector] = list(weights)
    return is_product(challenge, vectors, columns)


def _content(text: str) -> bytes | None:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None


async def _asked(
    post: Post, path: str, body: dict[str, Any], timeout_s: float, bytes_max: int, kind: type[BodyT]
) -> BodyT:
    status, content = await post(path, body, timeout_s, bytes_max)
    try:
        answer = decimal_json.loads(content)
        if status >= 400:
            said = answer.get("detail") if isinstance(answer, dict) else None
            raise NotAnswered(f"the worker answers {status}: {str(said)[:SAID_CHARS_MAX]}")
        return kind.model_validate(answer)
    except ValueError:
        raise NotAnswered(f"the worker answers {status} with what is no answer to a challenge") from None
