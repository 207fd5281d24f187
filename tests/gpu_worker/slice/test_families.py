"""Which sessions share a pass, and that those of a family which may not would harm each other."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from gpu_worker.core.errors import OwnersFault
from gpu_worker.core.inference.families import FAMILIES, REFUSED, Family, family
from gpu_worker.core.inference.layers import Layers
from gpu_worker.engine.slice.hf import HfStage
from gpu_worker.engine.slice.loading import load_slice, look_at
from tests.fixtures.tiny_families import LAYERS, TinyFamilies, change_config
from tests.gpu_worker.slice.pipeline import CACHE_BYTES, Pipeline

LENGTHS = {"a": 4, "b": 9, "c": 9, "d": 15}


def _whole(folder: Path, batching: str | None = None) -> tuple[HfStage, list[int]]:
    """Return an unsplit stage, of another class where one is given, and what its passes were: their sessions."""
    seen = look_at(folder)
    if batching is not None:
        seen = replace(seen, family=Family(seen.family.name, batching))  # type: ignore[arg-type]
    loaded = load_slice(seen, Layers(0, LAYERS, LAYERS))
    passes: list[int] = []
    loaded.model.get_input_embeddings().register_forward_pre_hook(lambda _, rows: passes.append(rows[0].shape[0]))
    return HfStage(loaded, cache_bytes_max=CACHE_BYTES), passes


def _after_prompts(stage: HfStage, sessions: str, steps: int) -> Pipeline:
    pipeline = Pipeline([stage])
    for session in sessions:
        length = LENGTHS[session]
        pipeline.open(session, [(7 * length + 31 * at) % 500 + 2 for at in range(length)], steps + 1)
        pipeline.step([session], chunk=length)
    for _ in range(steps):
        pipeline.step(list(sessions))
    return pipeline


@pytest.mark.parametrize(
    ("name", "batching", "passes"),
    [("llama", "ragged", [4]), ("phi3_longrope", "equal", [1, 2, 1]), ("qwen3_next", "one", [1, 1, 1, 1])],
)
def test_sessions_share_a_pass_as_their_class_allows(
    tiny_families: TinyFamilies, name: str, batching: str, passes: list[int]
) -> None:
    stage, seen = _whole(tiny_families.folder(name))
    assert stage.info.batching == batching
    pipeline = _after_prompts(stage, "abcd", steps=0)
    seen.clear()
    pipeline.step(["a", "b", "c", "d"])
    assert seen == passes


def test_a_neighbour_beyond_its_first_length_would_turn_a_longrope_session_otherwise(
    tiny_families: TinyFamilies,
) -> None:
    folder = tiny_families.folder("phi3_longrope")
    logits = {}
    for batching in ("equal", "ragged"):
        for sessions in ("a", "ad"):
            told = _after_prompts(_whole(folder, batching)[0], sessions, steps=3).told["a"]
            logits[batching, sessions] = torch.stack(told.logits)
    assert torch.equal(logits["equal", "a"], logits["ragged", "a"])
    assert (logits["equal", "ad"] - logits["equal", "a"]).abs().max() < 1e-4
    assert (logits["ragged", "ad"] - logits["ragged", "a"]).abs().max() > 1e-2


def test_a_state_without_positions_has_no_room_for_a_neighbour(tiny_families: TinyFamilies) -> None:
    stage, _ = _whole(tiny_families.folder("qwen3_next"), "ragged")
    with pytest.raises(RuntimeError, match="size"):
        _after_prompts(stage, "ab", steps=1)


def test_a_longrope_pipeline_goes_step_by_step_as_the_unsplit_model_does(tiny_families: TinyFamilies) -> None:
    from transformers import AutoModelForCausalLM, DynamicCache

    folder = tiny_families.folder("phi3_longrope")
    told = _after_prompts(_whole(folder)[0], "d", steps=4).told["d"]
    unsplit = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    kept, rows = DynamicCache(config=unsplit.config), told.tokens[: told.prompt]
    for logits, token in zip(told.logits, told.tokens[told.prompt :], strict=True):
        with torch.inference_mode():
            place = torch.arange(kept.get_seq_length(), kept.get_seq_length() + len(rows))[None]
            made = unsplit(torch.tensor([rows]), position_ids=place, past_key_values=kept).logits[0, -1]
        assert (made - logits).abs().max() < 1e-4
        rows = [token]


@pytest.mark.parametrize("name", [*REFUSED, "", "some_model_of_tomorrow"])
def test_what_cannot_be_sliced_is_refused_by_name(name: str) -> None:
    with pytest.raises(OwnersFault, match=f"of the family {name or '.none.'} cannot be sliced: ...") as refused:
        family(name)
    assert REFUSED.get(name, "nobody has shown") in str(refused.value)
    assert name not in FAMILIES


def test_a_rotation_by_the_longest_session_so_far_is_refused(tiny_families: TinyFamilies, tmp_path: Path) -> None:
    folder = tiny_families.copy("llama", tmp_path)
    rotation = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    change_config(folder, lambda config: config.update(rope_parameters=rotation))
    with pytest.raises(OwnersFault, match="longest session so far"):
        look_at(folder)
