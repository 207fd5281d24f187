"""llama.cpp's process: killed, hung, orphaned, told its secret; and models that are loaded when they are asked for."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import psutil
import pytest

from gpu_worker.config import program_environment
from gpu_worker.core.errors import Bug, OwnersFault
from gpu_worker.core.inference.codes import InferenceError
from gpu_worker.edges.engines.gguf_engine import GgufEngine, package_of
from gpu_worker.edges.engines.llama_process import offloads
from tests.fixtures.tiny_gguf import TinyGguf
from tests.gpu_worker.gguf.engines import (
    NAME,
    PACKAGE,
    ask_of,
    chat,
    child_of,
    engine_of,
    say,
    serving,
    setup_of,
    until,
)

GONE_S = 30.0
ROOT = Path(__file__).resolve().parents[3]


async def _gone(pid: int) -> None:
    await until(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)


@pytest.mark.parametrize(("blow", "least"), [(signal.SIGKILL, 0), (signal.SIGSEGV, 0), (signal.SIGSTOP, 0.5)])
async def test_a_child_that_dies_or_hangs_in_a_stream_is_started_again_and_the_next_one_served(
    blow: signal.Signals, least: float, tiny_gguf: TinyGguf
) -> None:
    async with serving(tiny_gguf.gguf(), context=4096, times={"health_s": 1.0}) as engine:
        before = await say(engine, messages=chat())
        pid, kept = child_of(engine), asyncio.create_task(engine.keep())
        answer = await engine.begin(ask_of(messages=chat(), max_tokens=3900, ignore_eos=True))
        pieces, began_s = answer.pieces(), time.monotonic()
        await anext(pieces)
        os.kill(pid, blow)
        with pytest.raises(InferenceError) as broke:
            async for _ in pieces:
                pass
        await answer.close()
        assert broke.value.code == "upstream_error"
        assert time.monotonic() - began_s >= least
        after = await say(engine, messages=chat())
        assert after.text == before.text
        assert child_of(engine) != pid
        assert engine.counts.restarts == 1
        assert engine.load().running == 0
        assert not kept.done()
        kept.cancel()
        await _gone(pid)


async def test_what_was_counted_outlives_the_child(tiny_gguf: TinyGguf) -> None:
    async with serving(tiny_gguf.gguf(), times={"health_s": 0.4}) as engine:
        for _ in range(2):
            await say(engine, prompt="def main() -> None:")
        await until(lambda: engine.counts.steps >= 16)
        before = engine.counts
        assert before.prefix_queries > before.prefix_hits > 0
        os.kill(child_of(engine), signal.SIGKILL)
        await until(lambda: engine.counts.restarts == 1)
        await say(engine, prompt="def main() -> None:")
        assert engine.counts.steps >= before.steps
        assert engine.counts.prefix_queries > before.prefix_queries


async def test_a_model_that_cannot_be_loaded_any_more_ends_the_worker_loudly(
    tiny_gguf: TinyGguf, tmp_path: Path
) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(tiny_gguf.gguf().read_bytes())
    async with serving(path, times={"backoff_s": 0.01, "ready_s": 0.5}) as engine:
        # llama.cpp has the old one mapped still.
        path.unlink()
        os.kill(child_of(engine), signal.SIGKILL)
        with pytest.raises(Bug, match=f"{NAME} cannot be served"):
            async with asyncio.timeout(GONE_S):
                await engine.keep()
        with pytest.raises(InferenceError) as refused:
            await say(engine, messages=chat())
        assert refused.value.code == "not_ready"


async def test_a_child_that_ends_again_and_again_is_started_again_and_again(tiny_gguf: TinyGguf) -> None:
    async with serving(tiny_gguf.gguf(), times={"backoff_s": 0.01}) as engine:
        for count in range(1, 8):
            os.kill(child_of(engine), signal.SIGKILL)
            assert (await say(engine, messages=chat())).tokens == 8
            await until(lambda: engine.counts.restarts == count)  # noqa: B023 - it is asked at once


async def test_the_child_listens_on_this_machine_alone_and_to_who_has_its_key(tiny_gguf: TinyGguf) -> None:
    os.environ["LIVERY_TEST_SECRET"] = "a secret of the owner's"
    try:
        async with serving(tiny_gguf.gguf()) as engine:
            child = psutil.Process(child_of(engine))
            [place] = [each.laddr for each in child.net_connections() if each.status == psutil.CONN_LISTEN]
            assert place.ip == "127.0.0.1"
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{place.port}") as stranger:
                for path in ("/v1/models", "/v1/chat/completions", "/slots", "/metrics", "/tokenize"):
                    replies = [await stranger.get(path), await stranger.post(path, json={"messages": chat()})]
                    assert {each.status_code for each in replies} <= {401, 404, 405}, path
            told = " ".join(child.cmdline()) + str(child.environ())
            [kept] = engine._kept.values()
            assert kept._child is not None
            assert kept._child.key not in told
            assert "secret of the owner" not in told
            assert len(kept._child.key) >= 40
    finally:
        del os.environ["LIVERY_TEST_SECRET"]


async def test_the_child_may_have_what_its_model_needs_and_not_the_whole_machine(tiny_gguf: TinyGguf) -> None:
    async with serving(tiny_gguf.gguf(), memory_bytes=2**29) as engine:
        told = psutil.Process(child_of(engine)).rlimit(psutil.RLIMIT_DATA)
    assert told == (2 * 2**29 + 2**31,) * 2


ORPHAN = """
import asyncio, sys
from pathlib import Path
from tests.gpu_worker.gguf.engines import child_of, serving

async def main():
    async with serving(Path(sys.argv[1])) as engine:
        print(child_of(engine), flush=True)
        await asyncio.sleep(600)

asyncio.run(main())
"""


@pytest.mark.parametrize("hangs", [False, True])
async def test_a_child_ends_with_its_worker_even_where_it_hangs(hangs: bool, tiny_gguf: TinyGguf) -> None:
    worker = subprocess.Popen(  # noqa: ASYNC220 - it starts in no time
        [sys.executable, "-c", ORPHAN, str(tiny_gguf.gguf())], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    with worker:
        assert worker.stdout is not None
        child = int(await asyncio.to_thread(worker.stdout.readline))
        if hangs:
            os.kill(child, signal.SIGSTOP)
        worker.kill()
    await _gone(child)


async def test_closing_ends_every_child_and_may_be_done_twice(tiny_gguf: TinyGguf) -> None:
    engine = engine_of(setup_of(tiny_gguf.gguf()), setup_of(tiny_gguf.gguf("q8_0"), name="other"))
    await engine.open(lambda what, done, total: None)
    pids = [kept._child.process.pid for kept in engine._kept.values() if kept._child]
    assert len(pids) == 2
    await engine.close()
    await engine.close()
    for pid in pids:
        await _gone(pid)


async def test_a_model_is_loaded_when_it_is_first_asked_for_and_once(tiny_gguf: TinyGguf) -> None:
    late = setup_of(tiny_gguf.gguf("q8_0"), name="late", preload=False)
    engine = engine_of(setup_of(tiny_gguf.gguf()), late)
    told: list[str] = []
    try:
        await engine.open(lambda what, done, total: told.append(what))
        assert [(card.name, card.is_loaded) for card in engine.cards()] == [(NAME, True), ("late", False)]
        asks = [ask_of(messages=chat()) for _ in range(4)]
        counts = await asyncio.gather(*(engine.count(_named(ask, "late")) for ask in asks))
        assert len(set(counts)) == 1
        assert [card.is_loaded for card in engine.cards()] == [True, True]
        assert told.count("loading late") == 2  # begun and done
        with pytest.raises(InferenceError) as refused:
            await engine.begin(_named(asks[0], "never heard of"))
        assert refused.value.code == "model_not_found"
    finally:
        await engine.close()


async def test_a_model_that_cannot_be_loaded_beside_others_harms_none_of_them(
    tiny_gguf: TinyGguf, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF and nothing behind it")
    engine = engine_of(setup_of(tiny_gguf.gguf()), setup_of(broken, name="late", preload=False), ready_s=1.0)
    try:
        await engine.open(lambda what, done, total: None)
        kept = asyncio.create_task(engine.keep())
        with pytest.raises(InferenceError) as refused:
            await engine.begin(_named(ask_of(messages=chat()), "late"))
        assert refused.value.code == "not_ready"
        assert (await say(engine, messages=chat())).tokens == 8
        assert not kept.done()
        kept.cancel()
    finally:
        await engine.close()


def _named(ask, name):  # type: ignore[no-untyped-def]
    from dataclasses import replace

    return replace(ask, model=name)


def test_a_package_that_is_not_there_is_named_with_what_brings_it() -> None:
    assert package_of("auto") in ("xllamacpp", "llama-cpp-python")
    with pytest.raises(OwnersFault, match=r"pip install 'livery\[gguf\]'"):
        package_of("nobody's")


def test_an_engine_that_is_not_open_tells_what_it_will_serve(tiny_gguf: TinyGguf) -> None:
    engine: GgufEngine = engine_of(setup_of(tiny_gguf.gguf()))
    [card] = engine.cards()
    assert (card.name, card.context, card.is_loaded) == (NAME, 512, False)


async def test_it_is_known_whether_this_llama_cpp_computes_on_a_gpu() -> None:
    assert await offloads(PACKAGE, program_environment(1)) is False  # the wheel, and a build without a GPU's compiler
    assert await offloads(PACKAGE, {"PATH": "/nowhere"}) is False
