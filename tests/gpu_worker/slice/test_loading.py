"""What of a model is loaded, and what is refused before it is."""

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from gpu_worker.core.errors import BadInput, OwnersFault, WorkerError
from gpu_worker.core.inference.integrity import check_hash
from gpu_worker.core.inference.layers import Layers
from gpu_worker.core.inference.step import Run
from gpu_worker.edges.machine.models_folder import local_model
from gpu_worker.engine.slice.loading import load_slice, look_at, weights_of
from tests.fixtures.tiny_families import LAYERS, VOCABULARY, TinyFamilies, change_config
from tests.gpu_worker.slice.pipeline import run_sessions, stage_of


def _tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: each for path in folder.glob("*.safetensors") for name, each in load_file(path).items()}


def test_a_model_is_known_without_reading_its_weights(tiny_families: TinyFamilies) -> None:
    seen = look_at(tiny_families.folder("qwen3"))
    assert (seen.family.name, seen.layers, seen.hidden_size, seen.vocab_size) == ("qwen3", LAYERS, 64, VOCABULARY)
    assert (seen.context, seen.dtype) == (256, "fp32")
    assert look_at(tiny_families.folder("bloom")).context == 2_048
    assert look_at(tiny_families.folder("mpt")).context == 256


def test_a_slice_has_its_own_layers_and_what_stands_at_its_end(tiny_families: TinyFamilies) -> None:
    folder = tiny_families.folder("llama")
    seen, stored = look_at(folder), _tensors(folder)
    of = {
        layers: {name for name, _ in load_slice(seen, Layers(*layers, LAYERS)).model.named_parameters()}
        for layers in ((0, 2), (2, 4), (4, 5))
    }
    assert set().union(*of.values()) == set(stored)
    assert "model.embed_tokens.weight" in of[0, 2] - of[2, 4] - of[4, 5]
    assert {"model.norm.weight", "lm_head.weight"} <= of[4, 5] - of[2, 4] - of[0, 2]
    assert {name.split(".")[2] for name in of[2, 4]} == {"2", "3"}


def test_tied_heads_are_on_the_last_slice_the_embedding_again(tiny_families: TinyFamilies) -> None:
    folder = tiny_families.folder("llama_tied")
    model = load_slice(look_at(folder), Layers(4, 5, LAYERS)).model
    assert torch.equal(model.get_output_embeddings().weight, _tensors(folder)["model.embed_tokens.weight"])


def test_weights_by_name_are_those_of_the_files(tiny_families: TinyFamilies) -> None:
    folder = tiny_families.folder("llama")
    found, stored = weights_of(folder, Layers(1, 3, LAYERS)), _tensors(folder)
    assert {name for name in found if ".layers." in name} == {
        name for name in stored if ".layers.1." in name or ".layers.2." in name
    }
    assert all(torch.equal(found[name], stored[name]) for name in found)
    assert "lm_head.weight" in found
    with pytest.raises(KeyError):
        found["model.layers.0.mlp.up_proj.weight"]


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_a_dtype_is_the_checkpoints_or_the_one_that_is_asked_for(
    tiny_families: TinyFamilies, tmp_path: Path, dtype: str
) -> None:
    kind = {"bf16": torch.bfloat16, "fp16": torch.float16}[dtype]
    folder = tiny_families.copy("qwen3", tmp_path)
    for path in folder.glob("*.safetensors"):
        save_file({name: each.to(kind) for name, each in load_file(path).items()}, path, metadata={"format": "pt"})
    stages = [stage_of(folder, 0, 2), stage_of(folder, 2, LAYERS)]
    assert {stage.info.dtype for stage in stages} == {dtype}
    assert {len(told.tokens) - told.prompt == told.wanted for told in run_sessions(stages, seed=1).values()} == {True}
    stage = stage_of(folder, 0, 2, dtype="fp32")
    stage.open("a", 4)
    made = stage.forward(torch.tensor([3, 4]), [Run(session="a", epoch=0, position=0, count=2)])
    assert (made.dtype, tuple(made.shape), stage.info.dtype) == (torch.float32, (2, 64), "fp32")


def test_loading_tells_how_far_it_is(tiny_families: TinyFamilies) -> None:
    told: list[tuple[int, int]] = []
    seen = look_at(tiny_families.folder("mixtral"))
    loaded = load_slice(seen, Layers(2, 4, LAYERS), on_progress=lambda done, total: told.append((done, total)))
    total = sum(1 for _ in loaded.model.parameters())
    assert told == [(done, total) for done in range(total + 1)]


def test_a_model_that_does_not_fit_is_refused_and_says_what_is_missing(tiny_families: TinyFamilies) -> None:
    seen = look_at(tiny_families.folder("llama"))
    told: list[tuple[int, int]] = []
    with pytest.raises(
        OwnersFault, match=r"the layers 0:5 of llama need 65 MiB in fp32 on cpu, 60 are free: 5 are miss"
    ):
        load_slice(
            seen,
            Layers(0, LAYERS, LAYERS),
            free_bytes=60 * 2**20,
            on_progress=lambda done, total: told.append((done, total)),
        )
    assert told == []


@pytest.mark.parametrize(("start", "end", "total"), [(3, 9, 5), (2, 2, 5), (0, 5, 9)])
def test_a_slice_outside_the_model_is_refused(tiny_families: TinyFamilies, start: int, end: int, total: int) -> None:
    with pytest.raises(OwnersFault, match=r"slice of a model with 5 layers|is a slice of 9 layers, llama has 5"):
        load_slice(look_at(tiny_families.folder("llama")), Layers(start, end, total))


def test_a_dtype_that_is_none_is_refused(tiny_families: TinyFamilies) -> None:
    with pytest.raises(OwnersFault, match="none of auto, fp32"):
        load_slice(look_at(tiny_families.folder("llama")), Layers(0, 1, LAYERS), dtype="fp8")


def _cut(folder: Path) -> None:
    path = max(folder.glob("*.safetensors"), key=lambda each: each.stat().st_size)
    os.truncate(path, path.stat().st_size - 100)


def _pickle(folder: Path) -> None:
    for path in folder.glob("*.safetensors*"):
        path.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04cposix\nsystem\n.")


def _lose(folder: Path) -> None:
    max(folder.glob("*.safetensors")).unlink()


def _climb(folder: Path) -> None:
    index = folder / "model.safetensors.index.json"
    said = json.loads(index.read_text())
    said["weight_map"]["lm_head.weight"] = "../elsewhere.safetensors"
    index.write_text(json.dumps(said))


def _boast(folder: Path) -> None:
    path = min(folder.glob("*.safetensors"))
    path.write_bytes(struct.pack("<Q", 2**60) + path.read_bytes()[8:])


def _forget(folder: Path) -> None:
    """Drop a tensor of layer 1 from the files and from the index."""
    index = folder / "model.safetensors.index.json"
    said = json.loads(index.read_text())
    name = "model.layers.1.mlp.up_proj.weight"
    path = folder / said["weight_map"].pop(name)
    kept = {each: tensor.clone() for each, tensor in load_file(path).items() if each != name}
    save_file(kept, path, metadata={"format": "pt"})
    index.write_text(json.dumps(said))


def _config(**fields: object) -> Callable[[Path], None]:
    return lambda folder: change_config(folder, lambda config: config.update(fields))


BAD: dict[str, tuple[Callable[[Path], None], type[WorkerError], str]] = {
    "cut off": (_cut, OwnersFault, "is cut off or broken"),
    "pickle alone": (_pickle, OwnersFault, r"has no model.safetensors, and nothing else is loaded"),
    "a file that is not there": (_lose, OwnersFault, "which is no file of it"),
    "a file of another folder": (_climb, OwnersFault, "names '../elsewhere.safetensors', which is no file of it"),
    "a header without end": (_boast, OwnersFault, "is cut off or broken"),
    "a tensor that is not there": (_forget, OwnersFault, "lack 1 tensors of the layers 0:2, model.layers.1.mlp.up_pro"),
    "another shape": (_config(intermediate_size=96), OwnersFault, "cannot be loaded|lack"),
    "more layers than it has": (_config(num_hidden_layers=9), OwnersFault, "says 9 layers, its files have 5"),
    "code of its own": (_config(auto_map={"AutoModelForCausalLM": "evil.py"}), BadInput, "code of its own"),
    "another family": (_config(model_type="gemma3n"), OwnersFault, "gemma3n cannot be sliced: its layers take"),
    "no family": (_config(model_type="unheard_of"), OwnersFault, "unheard_of cannot be sliced"),
    "quantised already": (_config(quantization_config={"quant_method": "fp8"}), OwnersFault, "quantised already"),
    "no config": (lambda folder: (folder / "config.json").unlink(), OwnersFault, "has no config.json"),
    "an adapter": (lambda folder: (folder / "adapter_config.json").write_text("{}") and None, OwnersFault, "adapter"),
}


@pytest.mark.parametrize("what", BAD)
def test_what_is_wrong_with_a_folder_is_named(tiny_families: TinyFamilies, tmp_path: Path, what: str) -> None:
    spoil, kind, said = BAD[what]
    folder = tiny_families.copy("llama", tmp_path)
    spoil(folder)
    with pytest.raises(kind, match=said):
        load_slice(look_at(folder), Layers(0, 2, LAYERS))


@pytest.mark.row(57)
def test_a_model_hash_is_over_the_weights_and_enforced(tiny_families: TinyFamilies, tmp_path: Path) -> None:
    folder = tiny_families.copy("llama", tmp_path)
    model = local_model(folder, "llama", tmp_path / "hashes.json")
    for wanted in (None, model.model_hash, "0x" + model.model_hash.upper()):
        check_hash(model, wanted)
    with pytest.raises(OwnersFault, match="is no SHA-256"):
        check_hash(model, "abc")
    (folder / "README.md").write_text("other words")
    assert local_model(folder, "llama", tmp_path / "hashes.json").model_hash == model.model_hash
    for path in (max(folder.glob("*.safetensors")), folder / "model.safetensors.index.json", folder / "merges.txt"):
        before = local_model(folder, "llama", tmp_path / "hashes.json").model_hash
        path.write_bytes((path.read_bytes() if path.exists() else b"a b\n")[:-1] + b"\x01")
        changed = local_model(folder, "llama", tmp_path / "hashes.json")
        with pytest.raises(OwnersFault, match=f"have the hash {changed.model_hash}, wanted is {before}"):
            check_hash(changed, before)
