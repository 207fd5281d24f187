"""What requests are given by llama.cpp: kept promises, refusals before anything is computed, slots that come free."""

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from gpu_worker.core.inference.codes import InferenceError
from gpu_worker.edges.engines.gguf_engine import GgufEngine
from tests.fixtures.broken_gguf import rewritten, with_template
from tests.fixtures.tiny_gguf import WIDTH, TinyGguf
from tests.gpu_worker.gguf.engines import BATCHES, CONTEXT, NAME, ask_of, chat, say, serving, until

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": "looks something up",
            "parameters": {
                "type": "object",
                "properties": {"count": {"type": "integer"}, "is_far": {"type": "boolean"}},
                "required": ["count", "is_far"],
                "additionalProperties": False,
            },
        },
    }
    for name in ("weather", "stable")
]
# How Hermes and Qwen write tools and calls.
TEMPLATE = (
    "{% if tools %}<system> You may call: {% for tool in tools %}{{ tool | tojson }} {% endfor %}<tool_call><|end|>"
    "{% endif %}{% for message in messages %}<{{ message.role }}> {% if message.tool_calls %}"
    "{% for call in message.tool_calls %}<tool_call>{{ call.function | tojson }}</tool_call>{% endfor %}"
    "{% else %}{{ message.content }}{% endif %}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}"
)


async def _figures(engine: GgufEngine) -> dict[str, float]:
    """Return what llama.cpp itself has counted."""
    [kept] = engine._kept.values()
    assert kept._child is not None
    async with httpx.AsyncClient(headers={"authorization": f"Bearer {kept._child.key}"}) as client:
        told = (await client.get(f"{kept._child.process.url}/metrics")).text
    lines = (line.removeprefix("llamacpp:").split() for line in told.splitlines() if line.startswith("llamacpp:"))
    return {name: float(value) for name, value in lines}


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"prompt": "def " * (CONTEXT + 1)}, "context_length_exceeded"),
        ({"messages": chat("def " * (CONTEXT + 1))}, "context_length_exceeded"),
        ({"prompt": [7] * (CONTEXT + 1)}, "context_length_exceeded"),
        ({"prompt": [7] * CONTEXT, "max_tokens": None}, "context_length_exceeded"),
        ({"prompt": "def ", "max_tokens": CONTEXT}, "context_length_exceeded"),
        ({"messages": chat(), "max_tokens": CONTEXT}, "context_length_exceeded"),
        ({"messages": chat(), "tools": TOOLS}, "invalid_argument"),
        ({"messages": chat(), "tools": TOOLS, "tool_choice": "required"}, "invalid_argument"),
        ({"messages": chat(), "chat_template_kwargs": {"messages": []}}, "invalid_argument"),
        ({"prompt": [10**6]}, "invalid_argument"),
        (
            {
                "messages": chat(),
                "response_format": {"type": "json_schema", "json_schema": {"schema": {"$ref": "#/nowhere"}}},
            },
            "invalid_argument",
        ),
    ],
)
async def test_what_cannot_be_done_is_refused_before_anything_is_computed(
    fields: dict[str, Any], code: str, tiny_gguf: TinyGguf
) -> None:
    async with serving(tiny_gguf.gguf()) as engine:
        with pytest.raises(InferenceError) as refused:
            await say(engine, **fields)
        assert refused.value.code == code
        assert str(tiny_gguf.folder) not in str(refused.value)
        assert (await _figures(engine))["prompt_tokens_total"] == 0
        assert engine.load().running == 0
        assert (await say(engine, messages=chat())).tokens == 8


async def test_an_answer_may_fill_the_context_to_its_last_token_and_not_one_more(tiny_gguf: TinyGguf) -> None:
    async with serving(tiny_gguf.gguf()) as engine:
        said = await say(engine, prompt=[7] * (CONTEXT - 5), max_tokens=5, ignore_eos=True)
        assert (said.tokens, said.finish_reason) == (5, "length")
        said = await say(engine, prompt=[7] * (CONTEXT - 5), max_tokens=None, ignore_eos=True)
        assert said.tokens in (4, 5)
        assert said.finish_reason == "length"
        with pytest.raises(InferenceError):
            await say(engine, prompt=[7] * (CONTEXT - 5), max_tokens=6)


async def test_what_it_says_is_counted_as_it_is(tiny_gguf: TinyGguf) -> None:
    async with serving(tiny_gguf.gguf()) as engine:
        ask = ask_of(messages=chat("def main() -> None:"), max_tokens=20)
        counted = await engine.count(ask)
        first = await say(engine, messages=chat("def main() -> None:"), max_tokens=20)
        again = await say(engine, messages=chat("def main() -> None:"), max_tokens=20)
        [card] = engine.cards()
    assert first.prompt_tokens == again.prompt_tokens == counted
    assert (first.cached_tokens, again.cached_tokens) == (0, counted - 1)
    assert (first.text, first.tokens, first.finish_reason) == (again.text, 20, "length")
    assert first.model_hash == card.model_hash
    assert len(card.model_hash) == 64
    assert (card.quant, card.bytes) == ("F16", tiny_gguf.gguf().stat().st_size)


async def test_the_same_seed_says_the_same_and_another_one_something_else(tiny_gguf: TinyGguf) -> None:
    async with serving(tiny_gguf.gguf()) as engine:
        texts = [
            (await say(engine, prompt="class ", temperature=1.5, seed=seed, max_tokens=30)).text for seed in (3, 3, 4)
        ]
    assert texts[0] == texts[1] != texts[2]


async def test_a_stop_ends_the_text_before_it(tiny_gguf: TinyGguf) -> None:
    async with serving(tiny_gguf.gguf()) as engine:
        whole = await say(engine, messages=chat(), max_tokens=40)
        stop = whole.text[20:23]
        said = await say(engine, messages=chat(), max_tokens=40, stop=[stop])
    assert said.text == whole.text[: whole.text.index(stop)]
    assert said.finish_reason == "stop"


async def test_log_probabilities_are_those_of_the_tokens_it_said_or_are_refused(tiny_gguf: TinyGguf) -> None:
    async with serving(tiny_gguf.gguf()) as engine:
        if not BATCHES:
            with pytest.raises(InferenceError) as refused:
                await say(engine, messages=chat(), logprobs=True)
            assert refused.value.code == "invalid_argument"
            return
        said = await say(engine, messages=chat(), max_tokens=6, logprobs=True, top_logprobs=3)
        bare = await say(engine, prompt="def ", max_tokens=6, logprobs=2)
    assert "".join(each.text for each in said.told) == said.text
    assert all(len(each.top) == 3 and each.top[0][2] == each.logprob <= 0 for each in said.told)
    assert "".join(each.text for each in bare.told) == bare.text


SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 5}, "horses": {"enum": ["🐎", "漢字", "ünï"]}},
    "required": ["name", "horses"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("fields", [{"messages": chat()}, {"prompt": "def "}])
async def test_an_answer_is_held_to_a_schema_and_its_characters_come_whole(
    fields: dict[str, Any], tiny_gguf: TinyGguf
) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": SCHEMA}}
    async with serving(tiny_gguf.gguf()) as engine:
        said = await say(engine, **fields, max_tokens=200, response_format=form)
    found = json.loads(said.text)
    assert found["horses"] in SCHEMA["properties"]["horses"]["enum"]  # type: ignore[index]
    assert len(found["name"]) <= 5
    assert "\ufffd" not in said.text


@pytest.fixture
def with_tools(tiny_gguf: TinyGguf, tmp_path: Path) -> Path:
    return with_template(tiny_gguf.gguf(), tmp_path / "tools.gguf", TEMPLATE)


@pytest.mark.parametrize(
    ("choice", "names"),
    [("required", {"weather", "stable"}), ({"type": "function", "function": {"name": "stable"}}, {"stable"})],
)
async def test_a_call_that_is_demanded_comes_and_has_the_arguments_of_its_schema(
    choice: Any, names: set[str], with_tools: Path
) -> None:
    async with serving(with_tools) as engine:
        said = await say(
            engine,
            messages=chat("Is it far?"),
            tools=TOOLS,
            tool_choice=choice,
            parallel_tool_calls=False,
            max_tokens=200,
        )
    [call] = said.calls
    assert call.name in names
    found = json.loads(call.arguments)
    assert type(found["count"]) is int
    assert type(found["is_far"]) is bool
    assert call.id
    assert (said.text, said.finish_reason) == ("", "tool_calls")
    assert said.tokens > 5


async def test_tools_stand_in_the_prompt_and_need_not_be_called(with_tools: Path) -> None:
    async with serving(with_tools) as engine:
        said = await say(engine, messages=chat("hi"), tools=TOOLS)
        bare = await say(engine, messages=chat("hi"))
    assert said.prompt_tokens > bare.prompt_tokens + 50
    assert (said.calls, said.tokens) == ([], 8)


async def test_an_answer_that_nobody_wants_any_more_is_not_computed_on(tiny_gguf: TinyGguf) -> None:
    """The slot is free after what its server had written by then; the next request, for the same slot, is served."""
    async with serving(tiny_gguf.gguf("f32"), context=4096, slots=1) as engine:
        answer = await engine.begin(ask_of(messages=chat(), max_tokens=4000, ignore_eos=True))
        await anext(answer.pieces())
        await answer.close()
        assert engine.load().running == 0
        assert (await say(engine, messages=chat("next"))).tokens == 8
        figures = await _figures(engine)
        assert figures["requests_processing"] == 0
        assert figures["tokens_predicted_total"] < 2000


async def test_answers_are_computed_together_and_each_is_what_it_is_alone(tiny_gguf: TinyGguf) -> None:
    words = [f"def part_{number}(" for number in range(8)]
    async with serving(tiny_gguf.gguf("f32"), slots=8) as engine:
        alone = [await say(engine, prompt=each, max_tokens=200, ignore_eos=True) for each in words]
        before = await _figures(engine)
        together = await asyncio.gather(*(say(engine, prompt=each, max_tokens=200, ignore_eos=True) for each in words))
        after = await _figures(engine)
    assert [each.tokens for each in together] == [200] * 8
    # Other shapes of matrices round otherwise: near ties may fall to the other side.
    assert sum(one.text[:40] == other.text[:40] for one, other in zip(alone, together, strict=True)) >= 6
    steps = after["n_decode_total"] - before["n_decode_total"]
    assert steps < 8 * 200 / 2 if BATCHES else steps == 8 * 200


async def test_one_more_than_there_are_slots_waits_and_is_served(tiny_gguf: TinyGguf) -> None:
    async with serving(tiny_gguf.gguf(), slots=2) as engine:
        said = await asyncio.gather(*(say(engine, prompt=f"def {each}", max_tokens=50) for each in "abcde"))
        assert all(each.tokens > 0 for each in said)
        await until(lambda: engine.load().running == 0)


async def test_what_it_takes_and_has_is_what_it_was_told(tiny_gguf: TinyGguf) -> None:
    async with serving(tiny_gguf.gguf(), slots=3, context=1000, kv_dtype="q8_0") as engine:
        [kept] = engine._kept.values()
        assert kept._child is not None
        async with httpx.AsyncClient(headers={"authorization": f"Bearer {kept._child.key}"}) as client:
            slots = (await client.get(f"{kept._child.process.url}/slots")).json()
        count = 3 if BATCHES else 1
        assert [each["n_ctx"] for each in slots] == [1024] * count
        assert engine.load().cache_max == 1000 * count
        answer = await engine.begin(ask_of(messages=chat(), max_tokens=50))
        [_ async for _ in answer.pieces()]
        assert engine.load().cache_used == answer.prompt_tokens + answer.tokens
        assert engine.load().running == 1
        await answer.close()


async def test_a_model_that_pools_makes_vectors_and_they_are_hfs(tiny_gguf: TinyGguf, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModel, AutoTokenizer

    path = rewritten(tiny_gguf.gguf("f32"), tmp_path / "embedder.gguf", fields={"llama.pooling_type": 1})
    inputs: list[Any] = ["def main() -> None:", "a horse", (5, 6, 7), "class Stable:\n    horses: int\n" * 20]
    async with serving(path, slots=4) as engine:
        assert engine.cards()[0].embeds
        # Computed together, and beside each other: each is what it is alone.
        found, *_ = await asyncio.gather(*(engine.embed(NAME, inputs[at:]) for at in range(len(inputs))))
        for long in ((7,) * 1000, "horse " * 1000):
            with pytest.raises(InferenceError) as refused:
                await engine.embed(NAME, ["short", long])
            assert refused.value.code == "context_length_exceeded"
        with pytest.raises(InferenceError, match="makes embeddings, no texts"):
            await say(engine, messages=chat())
    model, tokenizer = AutoModel.from_pretrained(tiny_gguf.hf), AutoTokenizer.from_pretrained(tiny_gguf.hf)
    for text, vector in zip(inputs, found.vectors, strict=True):
        ids = tokenizer.backend_tokenizer.encode(text).ids if isinstance(text, str) else list(text)
        with torch.inference_mode():
            wanted = model(input_ids=torch.tensor([ids])).last_hidden_state[0].mean(0)
        assert len(vector) == WIDTH
        assert torch.cosine_similarity(wanted, torch.tensor(vector), dim=0) > 0.9999
    assert found.tokens > 3


async def test_a_model_that_says_texts_makes_no_vectors(tiny_gguf: TinyGguf) -> None:
    async with serving(tiny_gguf.gguf()) as engine:
        assert not engine.cards()[0].embeds
        with pytest.raises(InferenceError) as refused:
            await engine.embed(NAME, ["hi"])
        assert refused.value.code == "invalid_argument"
