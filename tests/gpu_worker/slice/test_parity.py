"""A model in one to four slices says what it says unsplit: every family, many sessions, chunks and single tokens."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from gpu_worker.core.inference.families import FAMILIES
from tests.fixtures.tiny_families import CONFIGURATIONS, MORE, TinyFamilies
from tests.gpu_worker.slice.pipeline import Pipeline, Told, run_sessions, stage_of

SPLITS = (((0, 5),), ((0, 2), (2, 5)), ((0, 2), (2, 4), (4, 5)), ((0, 1), (1, 2), (2, 4), (4, 5)))
LOGITS_OFF = 1e-3
ALONE_OFF = 1e-4


def _off(unsplit: torch.nn.Module, told: Told) -> float:
    """Return how far the logits are from the unsplit model's, which reads all at once; its tokens must be the same."""
    with torch.inference_mode():
        logits = unsplit(torch.tensor([told.tokens])).logits[0, told.prompt - 1 : -1].float()
    assert logits.argmax(-1).tolist() == told.tokens[told.prompt :]
    return float((torch.stack(told.logits) - logits).abs().max())


@pytest.mark.row(48)
@pytest.mark.parametrize("name", [name for name in CONFIGURATIONS if name != "phi3_longrope"])
def test_slices_say_what_the_unsplit_model_says(tiny_families: TinyFamilies, name: str) -> None:
    _compare(tiny_families.folder(name), SPLITS)


@pytest.mark.row(48)
@pytest.mark.parametrize("name", MORE)
def test_so_do_those_of_families_of_the_same_parts(tiny_families: TinyFamilies, name: str) -> None:
    _compare(tiny_families.folder(name), SPLITS[2:3])


def _compare(folder: Path, splits: Sequence[Sequence[tuple[int, int]]]) -> None:
    from transformers import AutoModelForCausalLM

    unsplit = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    stages = {layers: stage_of(folder, *layers) for split in splits for layers in split}
    for number, split in enumerate(splits):
        told = run_sessions([stages[layers] for layers in split], seed=number)
        assert len(told) == 3
        assert max(_off(unsplit, each) for each in told.values()) < LOGITS_OFF


def test_every_family_that_is_known_is_among_the_tested_ones() -> None:
    assert set(FAMILIES) == {model_type for model_type, _ in (CONFIGURATIONS | MORE).values()}
    for asked in ("llama", "qwen2", "qwen3", "mistral", "gemma", "gemma2", "gemma3_text", "gpt2", "bloom"):
        assert FAMILIES[asked].batching == "ragged"


@pytest.mark.parametrize("name", ["llama", "mistral", "bloom", "qwen3_next", "phi3_longrope"])
def test_a_session_gets_what_it_gets_alone(tiny_families: TinyFamilies, name: str) -> None:
    stages = [stage_of(tiny_families.folder(name), *layers) for layers in SPLITS[1]]
    together = run_sessions(stages, seed=7, sessions=6)
    for session, told in together.items():
        alone = Pipeline(stages)
        alone.open(session, told.tokens[: told.prompt], told.wanted)
        while not alone.told[session].is_done:
            alone.step([session])
        alone.close(session)
        assert alone.told[session].tokens == told.tokens
        assert torch.stack(alone.told[session].logits).sub(torch.stack(told.logits)).abs().max() < ALONE_OFF
