"""What a worker says of its machine is believed if it proves it; altered, older, late and others' words are not."""

import asyncio
import base64
import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from chain.signed import signed
from gpu_worker.core.attest import Challenge
from gpu_worker.verifying import NotAnswered
from tests.fixtures.attest import KEY, OTHER, Tamper, challenge, post_to, proving, verified

pytestmark = pytest.mark.slow


@pytest.mark.row(89)
async def test_an_honest_worker_is_believed_and_its_least_speed_is_told(tmp_path: Path) -> None:
    asked = challenge(size=512, rounds=16)
    async with proving(tmp_path) as url:
        verdict = await verified(post_to(url), asked)
    assert verdict.faults == ()
    assert (verdict.address, verdict.device) == (str(KEY.address), "cpu")
    assert verdict.operations_per_s == int(2 * 512 * 512 * 16 / verdict.seconds)
    assert verdict.held_bytes == 512 * 512
    assert verdict.report is not None
    assert verdict.report.gpus[0].vram_total_mb == 24_564
    assert verdict.report.agent_id == "verifier"


def altered(**fields: Any) -> Tamper:
    """Return what writes other values into the statement, as somebody without the key can."""

    def tamper(answer: dict[str, Any]) -> None:
        statement = json.loads(answer["statement"])
        statement.update(fields)
        answer["statement"] = json.dumps(statement)

    return tamper


def more_memory(answer: dict[str, Any]) -> None:
    statement = json.loads(answer["statement"])
    statement["report"]["gpus"][0]["vram_total_mb"] *= 4
    answer["statement"] = json.dumps(statement)


def other_vectors(answer: dict[str, Any]) -> None:
    content = bytearray(base64.b64decode(answer["vectors"]))
    content[0] ^= 1
    answer["vectors"] = base64.b64encode(content).decode()


def typed_in(answer: dict[str, Any]) -> None:
    """Numbers of one's own, well signed by the worker's own key: it has computed nothing."""
    content = bytes(len(base64.b64decode(answer["vectors"])))
    statement = json.loads(answer["statement"])
    statement["vectors_sha256"] = hashlib.sha256(content).hexdigest()
    answer["vectors"] = base64.b64encode(content).decode()
    answer["statement"] = json.dumps(statement)
    answer["signature"] = signed(KEY, answer["statement"])


def one_round_less(answer: dict[str, Any]) -> None:
    content = base64.b64decode(answer["vectors"])
    content = content[: -4 * 256] + content[-8 * 256 : -4 * 256]
    statement = json.loads(answer["statement"])
    statement["vectors_sha256"] = hashlib.sha256(content).hexdigest()
    answer["vectors"] = base64.b64encode(content).decode()
    answer["statement"] = json.dumps(statement)
    answer["signature"] = signed(KEY, answer["statement"])


def by_another(answer: dict[str, Any]) -> None:
    statement = json.loads(answer["statement"])
    statement["address"] = str(OTHER.address)
    answer["statement"] = json.dumps(statement)
    answer["signature"] = signed(OTHER, answer["statement"])


def no_signature(answer: dict[str, Any]) -> None:
    answer["signature"] = "0x" + "00" * 65


TAMPERED: dict[str, tuple[Tamper, str]] = {
    "report": (more_memory, "not signed by the key"),
    "device": (altered(device="cuda:0"), "not signed by the key"),
    "seconds": (altered(seconds=0.001), "not signed by the key"),
    "address": (altered(address=str(OTHER.address)), "not signed by the key"),
    "vectors": (other_vectors, "not those that were signed"),
    "typed-in": (typed_in, "product of matrices is wrong"),
    "one-round-less": (one_round_less, "product of matrices is wrong"),
    "another-key": (by_another, "another one was expected"),
    "no-signature": (no_signature, "the signature is none"),
}


@pytest.fixture(scope="module")
def answered(tmp_path_factory: pytest.TempPathFactory) -> tuple[Challenge, list[tuple[str, int, dict[str, Any]]]]:
    """A challenge, and what an honest worker answered: status and body of each path."""
    asked, seen = challenge(), []

    async def record() -> None:
        async with proving(tmp_path_factory.mktemp("honest")) as url:
            post = post_to(url)

            async def recorded(path: str, *arguments: Any) -> tuple[int, bytes]:
                status, content = await post(path, *arguments)
                seen.append((path, status, json.loads(content)))
                return status, content

            assert (await verified(recorded, asked)).is_believed

    asyncio.run(record())
    return asked, seen


def replayed(answers: list[tuple[str, int, dict[str, Any]]], tamper: Tamper | None = None) -> Any:
    """Return what answers as was answered before."""
    left = json.loads(json.dumps(answers))

    async def post(path: str, body: Any, timeout_s: float, bytes_max: int) -> tuple[int, bytes]:
        _, status, answer = left.pop(0)
        if tamper is not None and "statement" in answer:
            tamper(answer)
        return status, json.dumps(answer).encode()

    return post


@pytest.mark.row(89)
@pytest.mark.parametrize("kind", TAMPERED)
async def test_an_answer_that_was_tampered_with_is_rejected(answered: Any, kind: str) -> None:
    asked, answers = answered
    tamper, fault = TAMPERED[kind]
    verdict = await verified(replayed(answers, tamper), asked)
    assert not verdict.is_believed
    assert any(fault in each for each in verdict.faults), verdict.faults
    assert (await verified(replayed(answers), asked)).is_believed


@pytest.mark.row(89)
async def test_an_older_answer_and_a_late_one_are_rejected(answered: Any) -> None:
    asked, answers = answered
    for other in (replace(asked, seed=os.urandom(32)), replace(asked, start=os.urandom(32))):
        verdict = await verified(replayed(answers), other)
        assert set(verdict.faults) == {"the statement answers another challenge", "the product of matrices is wrong"}
    clock = iter((100.0, 103.5))
    late = await verified(replayed(answers), asked, deadline_s=3, monotonic=lambda: next(clock))
    assert late.faults == ("the answer took 3.50 s, at most 3 s were given",)
    # Who expects nobody's key in particular is told whose it was.
    assert (await verified(replayed(answers), asked, address=None)).address == str(KEY.address)


@pytest.mark.parametrize(
    "answers",
    [
        [("", 201, {"challenge": "../../v1", "device": "cpu", "keeps_s": 60})],
        [("", 201, {"device": "cpu"})],
        [("", 201, [])],
        [("", 503, {"detail": "no"})],
        [("", 201, {"challenge": "a", "device": "cpu", "keeps_s": 60}), ("", 200, {"statement": "{}"})],
        [
            ("", 201, {"challenge": "a", "device": "cpu", "keeps_s": 60}),
            ("", 200, {"statement": "[1]", "signature": "0x" + "11" * 65, "vectors": ""}),
        ],
    ],
    ids=["path", "half", "list", "refusal", "no-proof", "no-statement"],
)
async def test_what_is_no_answer_is_said_to_be_none(answers: Any) -> None:
    with pytest.raises(NotAnswered):
        await verified(replayed(answers), challenge())
