"""Which back end a checkpoint gets, and what is said where it is not the fast one."""

from pathlib import Path
from typing import Any

import pytest
import torch

from gpu_worker.core.errors import OwnersFault
from gpu_worker.core.inference.families import FAMILIES
from gpu_worker.core.inference.step import Run
from gpu_worker.engine.slice.admission import admit
from tests.fixtures.tiny_families import CONFIGURATIONS, TinyFamilies, change_config, make_model

_CACHE = 2**22


def _admit(folder: Path, layers: str = "2:5", **how: Any) -> Any:
    return admit(folder, layers, cache_bytes_max=_CACHE, **how)


# One of them turns its heads by how long the whole batch is.
_LEAN = [name for name, (family, _) in CONFIGURATIONS.items() if FAMILIES[family].lean and "longrope" not in name]


@pytest.mark.parametrize("name", _LEAN)
def test_every_family_that_lean_knows_passes_its_self_test(name: str, tiny_families: TinyFamilies) -> None:
    stage = _admit(tiny_families.folder(name))
    assert (stage.info.back_end, stage.info.notes) == ("lean fp32", ())
    assert 1 in stage.info.cost_s


@pytest.mark.parametrize(
    ("how", "back_end"),
    [
        ({"quant": "int8"}, "lean int8"),
        ({"quant": "int4"}, "lean int4"),
        ({"dtype": "fp16"}, "lean fp16"),
        ({"dtype": "bf16"}, "lean fp16"),
        ({"back_end": "hf"}, "hf"),
    ],
    ids=["int8", "int4", "fp16", "bf16", "hf"],
)
def test_a_slice_is_served_as_it_is_asked_for(how: dict[str, Any], back_end: str, tiny_families: TinyFamilies) -> None:
    info = _admit(tiny_families.folder("qwen2"), "0:2", **how).info
    assert (info.back_end, info.notes, str(info.layers)) == (back_end, (), "0:2")


def test_a_family_that_lean_does_not_know_is_served_by_hf_and_says_so(tiny_families: TinyFamilies) -> None:
    info = _admit(tiny_families.folder("gpt2")).info
    assert info.back_end == "hf"
    assert info.notes == ("not lean: the lean back end does not know the family gpt2",)


@pytest.fixture
def odd_llama(tmp_path: Path) -> Path:
    """A checkpoint whose config has a window, which lean heeds and this family's own code does not."""
    folder = tmp_path / "odd"
    make_model(folder, *CONFIGURATIONS["llama"])
    change_config(folder, lambda config: config.update(sliding_window=4))
    return folder


def test_a_checkpoint_that_lean_computes_otherwise_is_served_by_hf(odd_llama: Path) -> None:
    stage = _admit(odd_llama)
    assert stage.info.back_end == "hf"
    (note,) = stage.info.notes
    assert note.startswith("not lean: layer 2 is ")
    assert "off what hf computes" in note
    stage.open("a", 9)
    hidden = torch.ones(9, stage.info.hidden_size)
    assert stage.forward(hidden, [Run(session="a", epoch=0, position=0, count=9, samples=True)]).shape == (1, 512)


def test_a_config_that_lean_stumbles_over_is_served_by_hf(odd_llama: Path) -> None:
    change_config(odd_llama, lambda config: config.update(embedding_multiplier="two"))
    info = _admit(odd_llama).info
    assert info.back_end == "hf"
    assert info.notes[0].startswith("not lean: its self-test ended with ValueError")


def test_lean_alone_or_a_quantisation_asked_for_is_refused_then_with_the_reason(odd_llama: Path) -> None:
    with pytest.raises(OwnersFault, match="off what hf computes"):
        _admit(odd_llama, back_end="lean")
    with pytest.raises(OwnersFault, match="the hf back end serves no int8, the lean one alone does: layer 2 is"):
        _admit(odd_llama, quant="int8")


def test_hf_serves_no_quantised_weights(tiny_families: TinyFamilies) -> None:
    with pytest.raises(OwnersFault, match="the hf back end serves no int4, the lean one alone does"):
        _admit(tiny_families.folder("llama"), back_end="hf", quant="int4")
    with pytest.raises(OwnersFault, match="none of the back ends auto, lean, hf"):
        _admit(tiny_families.folder("llama"), back_end="gguf")


def test_weights_that_a_quantisation_cannot_hold_are_found_before_they_serve(tmp_path: Path) -> None:
    """One weight far beyond the others takes the whole scale of its group: the rest of it rounds to nothing."""
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "spiked"
    make_model(folder, *CONFIGURATIONS["llama"])
    for path in folder.glob("*.safetensors"):
        weights = load_file(path)
        for name, weight in weights.items():
            if "layers.2" in name and weight.ndim == 2:
                weight[:, ::32] *= 1_000.0
        save_file(weights, path, metadata={"format": "pt"})
    assert _admit(folder, quant="none").info.back_end == "lean fp32"
    with pytest.raises(OwnersFault, match=r"layer 2 is .* off single precision, more than 0.5"):
        _admit(folder, quant="int4")


def test_a_slice_that_the_model_does_not_have_is_refused(tiny_families: TinyFamilies) -> None:
    with pytest.raises(OwnersFault, match="3:9 is no slice of a model with 5 layers"):
        _admit(tiny_families.folder("llama"), "3:9")
