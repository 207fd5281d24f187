"""GGUF and HF agree on the next token, position by position, of a text that both are given."""

from pathlib import Path
from typing import Any, NamedTuple

import pytest

from gpu_worker.edges.engines.gguf_engine import GgufEngine
from gpu_worker.engine.tiny import pieces
from tests.fixtures.tiny_gguf import TinyGguf
from tests.gpu_worker.gguf.engines import say, serving

POSITIONS = 512
NEAR = 0.05


class Position(NamedTuple):
    """What HF would say next: its first choice as text, and by how much it leads before its second."""

    prompt: list[int]
    first: str
    gap: float


def _positions(model: Any, tokenizer: Any, count: int) -> list[Position]:
    import torch

    text = "".join(piece for _, piece in zip(range(8), pieces(), strict=False))
    ids = tokenizer.backend_tokenizer.encode(text).ids[: count + 1]
    assert len(ids) == count + 1
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([ids])).logits[0].float()
    top = logits.topk(2)
    return [
        Position(
            prompt=ids[: at + 1],
            first=tokenizer.decode([int(top.indices[at, 0])], clean_up_tokenization_spaces=False),
            gap=float(top.values[at, 0] - top.values[at, 1]),
        )
        for at in range(count)
    ]


def _loaded(folder: Path, adapter: Path | None = None) -> tuple[Any, Any]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    if adapter is not None:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, adapter)
    return model, AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def positions(tiny_gguf: TinyGguf) -> list[Position]:
    return _positions(*_loaded(tiny_gguf.hf), POSITIONS)


async def _misses(engine: GgufEngine, positions: list[Position]) -> list[Position]:
    return [each for each in positions if (await _next(engine, each.prompt)) != each.first]


async def _next(engine: GgufEngine, prompt: list[int]) -> str:
    return (await say(engine, prompt=prompt, max_tokens=1)).text


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["f32", "f16"])
async def test_what_comes_next_is_what_hf_says_at_99_of_100_positions(
    kind: str, tiny_gguf: TinyGguf, positions: list[Position]
) -> None:
    async with serving(tiny_gguf.gguf(kind), context=1024) as engine:
        missed = await _misses(engine, positions)
    assert len(missed) <= POSITIONS // 100
    assert [each.gap for each in missed if each.gap >= NEAR] == []


@pytest.mark.slow
async def test_eight_bits_say_nearly_the_same(tiny_gguf: TinyGguf, positions: list[Position]) -> None:
    async with serving(tiny_gguf.gguf("q8_0"), context=1024) as engine:
        missed = await _misses(engine, positions[::4])
    assert len(missed) <= len(positions) // 4 // 10


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # peft reads it
@pytest.mark.parametrize("form", ["adapter", "adapter_folder"])
async def test_an_adapter_says_what_peft_says_with_it(form: str, tiny_gguf: TinyGguf) -> None:
    positions = _positions(*_loaded(tiny_gguf.hf, tiny_gguf.adapter_folder), 128)
    async with serving(tiny_gguf.gguf("f32"), context=1024, lora=((getattr(tiny_gguf, form), 1.0),)) as engine:
        missed = await _misses(engine, positions)
    assert len(missed) <= 1
    assert [each.gap for each in missed if each.gap >= NEAR] == []


async def test_an_adapter_of_no_weight_changes_nothing_and_one_of_full_weight_speaks(tiny_gguf: TinyGguf) -> None:
    texts = {}
    for scale in (None, 0.0, 1.0):
        lora = () if scale is None else ((tiny_gguf.adapter, scale),)
        async with serving(tiny_gguf.gguf("f32"), lora=lora) as engine:
            texts[scale] = (await say(engine, prompt="The horse is in", max_tokens=24)).text
    assert texts[0.0] == texts[None]
    assert "the stable is let out" in texts[1.0]
    assert "the stable is let out" not in texts[0.0]


async def test_tokens_are_those_of_the_models_own_tokenizer(tiny_gguf: TinyGguf) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_gguf.hf)
    async with serving(tiny_gguf.gguf("q8_0"), context=4096) as engine:
        for text in (
            "def main() -> None:\n    return 1",
            "don't  stop\t\tnow",
            "ünïcode — 漢字 🐎",
            "<|end|> inside",
            "",
        ):
            wanted = tokenizer.backend_tokenizer.encode(text).ids
            said = await say(engine, prompt=text or "x", max_tokens=1)
            assert said.prompt_tokens == (len(wanted) if text else 1), text
