"""Files that somebody broke, and templates that do harm: refused in a sentence, or served; this process goes on."""

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gpu_worker.config import program_environment
from gpu_worker.core.errors import OwnersFault
from gpu_worker.core.inference.codes import InferenceError
from gpu_worker.core.inference.llama import LlamaSpec
from gpu_worker.edges.engines.gguf_engine import GgufEngine
from gpu_worker.edges.engines.llama_process import LlamaProcess
from tests.fixtures.broken_gguf import ALL, broken, with_template
from tests.fixtures.tiny_gguf import TinyGguf
from tests.gpu_worker.gguf.engines import NAME, PACKAGE, chat, say, serving, setup_of

LONG_S = 30.0
# What is odd, and harmless: it is served, and says nonsense.
SERVED = {"merges of nothing"}
# A path, a trace, an address, a line of llama.cpp's own log.
LEAKS = re.compile(r"/\w+/|\.cpp:|\.py|Traceback|0x[0-9a-f]{6}|\d\.\d\d\.\d{3}|\n")


@pytest.mark.parametrize("name", ALL)
async def test_a_broken_file_is_refused_in_a_sentence_that_leaks_nothing(
    name: str, tiny_gguf: TinyGguf, tmp_path: Path
) -> None:
    path = broken(tiny_gguf.gguf(), tmp_path / "odd.gguf", name)
    said = ""
    try:
        async with asyncio.timeout(LONG_S), serving(path, memory_bytes=2**29) as engine:
            await say(engine, messages=chat())
    except OwnersFault as error:
        said = str(error)
    if name in SERVED:
        assert said == ""
        return
    assert len(said) > 20
    assert LEAKS.search(said) is None, said


# Not found by the header alone: llama.cpp itself is asked, without us looking at the file first.
@pytest.mark.parametrize(
    "name", ["4 million blocks", "cut in half", "no merges", "half a norm", "an unknown architecture"]
)
async def test_what_llama_cpp_says_of_a_broken_file_is_put_in_words_of_ours(
    name: str, tiny_gguf: TinyGguf, tmp_path: Path
) -> None:
    path = broken(tiny_gguf.gguf(), tmp_path / "odd.gguf", name)
    spec = LlamaSpec(package=PACKAGE, path=str(path), name=NAME, key="k" * 20, context=512, slots=1, threads=1)
    with pytest.raises(OwnersFault) as refused:
        await LlamaProcess.start(spec, program_environment(1), start_s=LONG_S)
    said = str(refused.value)
    assert LEAKS.search(said) is None, said
    assert re.search("layers|cut off|vocabulary|another shape|does not know", said), said


async def test_the_file_that_was_not_asked_for_is_refused_before_llama_cpp_sees_it(tiny_gguf: TinyGguf) -> None:
    with pytest.raises(OwnersFault, match=r"has the SHA-256 [0-9a-f]{64}, not 0000"):
        async with serving(tiny_gguf.gguf(), sha256="0" * 64):
            pass


async def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OwnersFault, match=r"none\.gguf"):
        async with serving(tmp_path / "none.gguf"):
            pass


FOR_EVER = "{% for each in range(100000) %}" * 3 + "{% endfor %}" * 3
POISONS = {
    "reads a file": "{% include '/etc/passwd' %}{{ messages }}",
    "imports": "{% import 'os' as os %}{{ os.popen('id').read() }}",
    "climbs": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "climbs by a builtin": "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "never ends": FOR_EVER + "x",
    "doubles": "{% set n = namespace(x='a') %}{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}{{ n.x }}",
    "calls itself": "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}",
    "is nested without end": "{{ " + "(" * 100_000 + "1" + ")" * 100_000 + " }}",
    "raises": "{{ raise_exception('/etc/passwd') }}",
    "is no template": "{% for m in messages %}{{ m.content ",
}


@pytest.mark.parametrize("name", POISONS)
async def test_a_poisoned_template_reaches_nothing_and_harms_nobody(
    name: str, tiny_gguf: TinyGguf, tmp_path: Path
) -> None:
    """Whether it is refused when it is loaded, or with the request: no word of it, and the next model is served."""
    path = with_template(tiny_gguf.gguf(), tmp_path / "odd.gguf", POISONS[name])
    with pytest.raises((OwnersFault, InferenceError)) as refused:
        async with serving(path, memory_bytes=2**29, times={"start_s": 5.0, "silence_s": 3.0}) as engine:
            await say(engine, messages=chat())
    assert LEAKS.search(str(refused.value)) is None
    assert not re.search("passwd|root:|uid=|class", str(refused.value))
    async with serving(tiny_gguf.gguf()) as engine:
        assert (await say(engine, messages=chat())).tokens == 8


@pytest.fixture
async def trap(tiny_gguf: TinyGguf, tmp_path: Path) -> AsyncIterator[GgufEngine]:
    """A model whose template hangs over one chat alone."""
    template = "{% if messages[0].content == 'go' %}" + FOR_EVER + "{% endif %}<user> {{ messages[0].content }}"
    path = with_template(tiny_gguf.gguf(), tmp_path / "odd.gguf", template)
    times = {"silence_s": 60.0, "stuck_s": 1.0, "health_s": 2.0}
    async with serving(path, times=times) as engine:
        yield engine


async def test_a_chat_that_hangs_in_the_template_is_ended_and_the_next_one_is_served(trap: GgufEngine) -> None:
    before = await say(trap, messages=chat("stay"))
    with pytest.raises(InferenceError) as broke:
        await say(trap, messages=chat("go"))
    assert broke.value.code in ("upstream_error", "upstream_timeout")
    assert (await say(trap, messages=chat("stay"))).text == before.text
    assert trap.counts.restarts == 1


async def test_who_waits_for_a_slot_is_not_taken_for_one_that_hangs(tiny_gguf: TinyGguf) -> None:
    times = {"stuck_s": 0.2, "health_s": 6.0}
    async with serving(tiny_gguf.gguf("f32"), context=4096, slots=1, times=times) as engine:
        said = await asyncio.gather(
            *(say(engine, messages=chat("stay"), max_tokens=3900, ignore_eos=True) for _ in range(3))
        )
        assert [each.tokens for each in said] == [3900] * 3
        assert engine.counts.restarts == 0


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"slots": 0}, "slots"),
        ({"slots": 100_000}, "slots"),
        ({"context": 0}, "context"),
        ({"context": 2**24, "slots": 200}, "more than any machine holds"),
        ({"threads": 0}, "threads"),
        ({"gpu_layers": -1}, "gpu_layers"),
        ({"batch": 1}, "batch"),
        ({"lora": ((Path("none.gguf"), 1.0),)}, r"none\.gguf"),
    ],
)
async def test_numbers_that_llama_cpp_ends_over_are_refused_by_us(
    wrong: dict[str, object], words: str, tiny_gguf: TinyGguf
) -> None:
    with pytest.raises(OwnersFault, match=words):
        async with serving(tiny_gguf.gguf(), **wrong):
            pass


async def test_an_adapter_for_another_model_is_refused(tiny_gguf: TinyGguf, tmp_path: Path) -> None:
    setup = setup_of(tiny_gguf.gguf())
    assert setup.lora == ()
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(tiny_gguf.adapter.read_bytes()[:-1000])
    for adapter in (tiny_gguf.gguf("q8_0"), cut):
        with pytest.raises(OwnersFault) as refused:
            async with serving(tiny_gguf.gguf(), lora=((adapter, 1.0),)):
                pass
        assert LEAKS.search(str(refused.value)) is None, str(refused.value)
