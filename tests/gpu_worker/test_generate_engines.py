"""Jobs that generate, answered by the model that the worker serves: real programs, a real llama.cpp, no torch."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from gpu_worker.core.asked import Answered, Asked
from gpu_worker.core.folder import EXIT_BAD_INPUT, EXIT_COMPLETED, EXIT_STOPPED
from gpu_worker.core.inference.callers import Caller
from gpu_worker.core.inference.codes import InferenceError
from gpu_worker.edges.jobs.job_answers import JobAnswers
from gpu_worker.engine.batches import seed_of
from gpu_worker.inference.text.answering import begin
from tests.fixtures.ollama import Said as OllamaSaid
from tests.fixtures.ollama import fake_ollama, model
from tests.fixtures.tiny_gguf import TinyGguf
from tests.gpu_worker.generating import CHATS, CONTEXT, DRAWN, GREEDY, RECORDS, SLOTS, TOKENS, Bench, opened
from tests.gpu_worker.gguf.engines import NAME, child_of, say
from tests.gpu_worker.test_ollama import engine_at
from tests.gpu_worker.world import until, until_async
from wire.openai import CompletionRequest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("params", [GREEDY, DRAWN])
async def test_the_lines_are_what_the_engine_says_when_it_is_asked_itself(
    params: dict[str, Any], tmp_path: Path, tiny_gguf: TinyGguf
) -> None:
    async with opened(tmp_path, tiny_gguf.gguf("f32")) as bench:
        prompts, chats = await bench.done("prompts", RECORDS, params), await bench.done("chats", CHATS, params)
        terms: dict[str, Any] = {"max_tokens": TOKENS, "temperature": float(params.get("temperature", 0))}
        if "seed" in params:
            terms |= {"top_p": 0.9, "top_k": -1, "min_p": 0.0}

        async def said(number: int, **asked: Any) -> str:
            seed = seed_of(params.get("seed", 0), f"record {number}") % 2**31
            return (await say(bench.engine, seed=seed, **asked, **terms)).text

        assert prompts == [
            {"id": record["id"], "completion": await said(number, prompt=record["prompt"])}
            for number, record in enumerate(RECORDS)
        ]
        assert chats == [
            {"id": record["id"], "completion": await said(number, messages=record["messages"])}
            for number, record in enumerate(CHATS)
        ]
        state = await bench.state("prompts")
    assert all(line["completion"] for line in (*prompts, *chats))
    assert state.final_metrics == {"completions": Decimal(len(RECORDS))}
    assert 0 < state.tokens <= TOKENS * len(RECORDS)
    assert (state.step, state.steps) == (5, 5)


@pytest.mark.parametrize("end", ["killed", "stopped"])
async def test_a_program_that_ends_in_between_goes_on_from_its_checkpoint_and_says_the_same(
    end: str, tmp_path: Path, tiny_gguf: TinyGguf
) -> None:
    params = {**DRAWN, "maxNewTokens": 64}
    async with opened(tmp_path, tiny_gguf.gguf("f32")) as bench:
        whole = await bench.done("whole", RECORDS * 3, params)
        running = await bench.start("job", RECORDS * 3, params)
        await until_async(lambda: bench.folders.checkpoint("job"))
        if end == "killed":
            os.kill(running.pid, signal.SIGKILL)
        else:
            running.ask_to_stop()
        code = await running.wait()
        newest = await bench.folders.checkpoint("job")
        reached = (await bench.state("job")).step
        # What was asked is given up: nobody hears it.
        await until(lambda: bench.service.turns.running == 0)
        asked_before = sum(bench.service.figures.ended.values())
        again = await bench.resume("job", RECORDS * 3, params)
        assert await again.wait() == EXIT_COMPLETED
        asked = sum(bench.service.figures.ended.values()) - asked_before
        lines = await bench.lines("job")
    assert newest is not None
    assert 2 <= newest[0].step < 15
    assert asked == len(RECORDS * 3) - 2 * newest[0].step
    assert lines == whole
    if end == "killed":
        assert code == -signal.SIGKILL
    else:
        # Every whole batch is in it, though no checkpoint was due.
        assert (code, newest[0].step) == (EXIT_STOPPED, reached)


async def test_a_cancelled_job_leaves_the_model_at_once_and_the_next_one_has_it(
    tmp_path: Path, tiny_gguf: TinyGguf
) -> None:
    async with opened(tmp_path, tiny_gguf.gguf(), context=4096) as bench:
        running = await bench.start("long", RECORDS, {**GREEDY, "maxNewTokens": 4000})
        await until(lambda: bench.service.turns.running == SLOTS)
        await running.kill()
        await until(lambda: bench.service.turns.running == 0)
        assert len(await bench.done("next", RECORDS[:2], GREEDY)) == 2


async def test_a_prompt_that_is_too_long_ends_the_job_and_the_buyer_hears_which(
    tmp_path: Path, tiny_gguf: TinyGguf
) -> None:
    records = [*RECORDS[:3], {"prompt": "word " * CONTEXT}]
    async with opened(tmp_path, tiny_gguf.gguf()) as bench:
        running = await bench.start("job", records, GREEDY)
        assert await running.wait() == EXIT_BAD_INPUT
        state = await bench.state("job")
        assert (state.fault, state.code) == ("buyer", "invalid_field")
        assert state.message is not None
        assert state.message.startswith(f"record 4: This model's maximum context length is {CONTEXT} tokens")
        assert len(await bench.done("next", RECORDS[:1], GREEDY)) == 1


@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGSEGV])
async def test_an_engine_that_dies_meanwhile_is_asked_again(
    blow: signal.Signals, tmp_path: Path, tiny_gguf: TinyGguf
) -> None:
    params = {**DRAWN, "maxNewTokens": 400}
    async with opened(tmp_path, tiny_gguf.gguf("f32")) as bench:
        whole = await bench.done("whole", RECORDS[:6], params)
        tokens, turns = bench.service.figures.tokens, bench.service.turns
        running = await bench.start("job", RECORDS[:6], params)
        await until(lambda: bench.service.figures.tokens > tokens + 20 and turns.running == SLOTS)
        os.kill(child_of(bench.engine), blow)
        assert await running.wait() == EXIT_COMPLETED
        assert await bench.lines("job") == whole
        assert bench.engine.counts.restarts == 1
        assert bench.service.figures.ended["error"] >= 1


async def test_clients_come_first_and_what_was_sold_is_done_while_it_drains(
    tmp_path: Path, tiny_gguf: TinyGguf
) -> None:
    client = CompletionRequest(prompt="def ", max_tokens=4, temperature=0)
    async with opened(tmp_path, tiny_gguf.gguf()) as bench:
        service, turns = bench.service, bench.service.turns
        held = [await turns.enter() for _ in range(SLOTS)]
        running = await bench.start("job", RECORDS[:4], GREEDY)
        await until(lambda: len(turns._patient) == SLOTS)
        assert turns.waiting == 0
        first = asyncio.create_task(begin(service, client, Caller(kind="open", id="here")))
        await until(lambda: turns.waiting == 1)
        held.pop().leave()
        answer = await first
        assert len(turns._patient) == SLOTS  # who came later was first
        await answer.close()
        service.is_draining = True
        turns.dismiss(InferenceError("draining", "about to go"))
        for turn in held:
            turn.leave()
        with pytest.raises(InferenceError, match="about to go"):
            await begin(service, client, Caller(kind="open", id="here"))
        assert await running.wait() == EXIT_COMPLETED
        await turns.emptied()


async def test_a_program_that_asks_otherwise_than_it_should_is_not_heard(tmp_path: Path, tiny_gguf: TinyGguf) -> None:
    fine = Asked(number=0, prompt="def ", tokens_max=400).to_json() + b"\n"
    wrong = {"no json": b"{\n", "no record": b'{"prompt": 1}\n', "too many": fine * (SLOTS + 1), "no end": b"x" * 2**24}
    async with opened(tmp_path, tiny_gguf.gguf()) as bench:
        for what, data in wrong.items():
            ours, theirs = socket.socketpair()
            serving_it = asyncio.create_task(JobAnswers(bench.service).serve("job", NAME, ours))
            reader, writer = await asyncio.open_connection(sock=theirs)
            hello = Answered.from_json(await reader.readline())
            assert hello.at_once == SLOTS, what
            try:
                writer.write(data)
                await writer.drain()
                await reader.read()
            except ConnectionError:
                pass  # it was cut off in the middle
            await serving_it
            writer.close()
        assert (await say(bench.engine, prompt="def ")).text


async def test_an_ollama_is_asked_for_what_the_buyer_asked_for_and_nothing_of_its_own(tmp_path: Path) -> None:
    async with fake_ollama(model("small:1b")) as fake, engine_at(fake) as engine:
        bench = Bench(tmp_path, engine)
        lines = await bench.done("job", [*RECORDS[:2], CHATS[0]], {**DRAWN, "maxNewTokens": 3})
        assert [line["completion"] for line in lines] == ["It is a"] * 3
        assert sorted(path for path, _ in fake.asked) == ["/api/chat", "/api/generate", "/api/generate"]
        options = [body["options"] for body in fake.made]
        assert [each.pop("seed") for each in sorted(options, key=lambda each: each["seed"])] == sorted(
            seed_of(7, f"record {number}") % 2**31 for number in range(3)
        )
        drawn = {"temperature": 1.0, "top_p": 0.9, "top_k": 0, "min_p": 0.0, "repeat_penalty": 1.0}
        assert all({name: each[name] for name in drawn} == drawn for each in options)
        assert bench.service.figures.ended == {"length": 3}


@pytest.mark.parametrize(("wrongs", "code"), [(2, EXIT_COMPLETED), (100, 1)])
async def test_what_breaks_off_is_tried_again_and_not_for_ever(wrongs: int, code: int, tmp_path: Path) -> None:
    left = [wrongs]

    def say_it(path: str, body: dict[str, Any]) -> OllamaSaid:
        if body.get("prompt") == RECORDS[4]["prompt"] and left[0]:
            left[0] -= 1
            return OllamaSaid(cut=True)
        return OllamaSaid()

    async with fake_ollama(model("small:1b"), say=say_it) as fake, engine_at(fake) as engine:
        bench = Bench(tmp_path, engine)
        running = await bench.start("job", RECORDS, GREEDY, checkpoint_steps=100)
        assert await running.wait() == code
        state, newest = await bench.state("job"), await bench.folders.checkpoint("job")
        if code == EXIT_COMPLETED:
            assert [line["id"] for line in await bench.lines("job")] == [each["id"] for each in RECORDS]
        else:
            # What was done is not lost: another worker goes on with it.
            assert newest is not None
            assert (state.fault, newest[0].step) == ("owner", 2)
            assert left[0] == wrongs - 3


def test_the_program_loads_no_torch() -> None:
    look = (
        "import sys, gpu_worker.engine.job as job\n"
        "from gpu_worker.core.folder import Spec\n"
        "spec = Spec(job_id='j', kind='generate', params={}, device='cpu', threads=1, checkpoint_steps=1,\n"
        "    file_bytes_max=1, served='m')\n"
        "job._work_of(spec, 5)\n"
        "print(sorted({'torch', 'transformers', 'numpy', 'httpx', 'asyncio'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", look], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert found.stdout.strip() == "[]", found.stderr
