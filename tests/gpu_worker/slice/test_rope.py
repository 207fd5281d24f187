"""Heads turned by position: every variant as transformers turns them, or refused."""

from pathlib import Path
from typing import Any

import pytest
import torch

from gpu_worker.core.errors import OwnersFault
from gpu_worker.core.inference.layers import Layers
from gpu_worker.core.inference.step import Run
from gpu_worker.engine.slice.lean import LeanStage
from gpu_worker.engine.slice.loading import look_at
from tests.fixtures.tiny_families import VOCABULARY, make_model

_SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}


def _stage(folder: Path) -> LeanStage:
    return LeanStage(look_at(folder), Layers(0, 2, 2), cache_bytes_max=2**24)


@pytest.mark.parametrize(
    ("name", "rotary"),
    [
        ("linear", {"rope_type": "linear", "factor": 2.0}),
        ("yarn", {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 128}),
        (
            "llama3",
            {
                "rope_type": "llama3",
                "factor": 2.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            },
        ),
    ],
)
def test_every_way_to_turn_heads_is_transformers_own(name: str, rotary: dict[str, Any], tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    folder = tmp_path / name
    make_model(folder, "llama", {**_SMALL, "rope_parameters": {"rope_theta": 10_000.0, **rotary}})
    tokens = [each % VOCABULARY for each in range(7, 200)]
    whole = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        wanted = whole(torch.tensor([tokens])).logits[0, -1]
    stage = _stage(folder)
    stage.open("a", len(tokens))
    run = Run(session="a", epoch=0, position=0, count=len(tokens), samples=True)
    found = stage.forward(torch.tensor(tokens), [run])[0]
    assert float((found - wanted).abs().max() / wanted.abs().max()) < 1e-5


def test_a_turn_that_depends_on_the_whole_batch_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "long"
    longrope = {
        "rope_type": "longrope",
        "rope_theta": 10_000.0,
        "short_factor": [1.0] * 8,
        "long_factor": [2.0] * 8,
        "original_max_position_embeddings": 128,
    }
    make_model(folder, "llama", {**_SMALL, "rope_parameters": longrope})
    with pytest.raises(OwnersFault, match="longrope"):
        _stage(folder)
