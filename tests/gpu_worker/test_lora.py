"""Adapters: trained alone, bound to no folder of this machine, gone on with to the bit, dropout and all."""

import json
import shutil
from pathlib import Path

import pytest

from tests.fixtures.tiny import Job, Tiny
from tests.gpu_worker.second_opinion import held_out_loss, read_safetensors, write_safetensors

pytestmark = pytest.mark.slow


def test_adapters_alone_are_the_artifact_and_lower_the_loss(worked: dict[str, Job]) -> None:
    job = worked["lora"]
    assert job.state["artifact"] == "adapter_model.safetensors"
    tensors = read_safetensors(job.result / "adapter_model.safetensors")
    assert tensors
    assert all("lora_" in name for name in tensors)
    assert not (job.result / "model.safetensors").exists()
    assert job.report["heldOut"]["lossEnd"] < job.report["heldOut"]["lossStart"]


def test_the_head_has_no_adapter_and_named_targets_are_the_only_ones(worked: dict[str, Job]) -> None:
    every = read_safetensors(worked["lora"].result / "adapter_model.safetensors")
    assert not any("lm_head" in name or "embed" in name for name in every)
    named = read_safetensors(worked["lora_targets"].result / "adapter_model.safetensors")
    assert all("q_proj" in name for name in named)
    assert {tensor.shape[0] for name, tensor in named.items() if "lora_A" in name} == {2}


def test_the_adapter_names_the_model_and_no_folder_of_the_machine(worked: dict[str, Job]) -> None:
    config = json.loads((worked["lora"].result / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "tiny-llm"
    assert all(
        str(worked["lora"].path.parent.parent) not in path.read_text(encoding="utf-8")
        for path in worked["lora"].result.iterdir()
        if path.suffix in (".json", ".jinja")
    )


def test_with_dropout_too_a_resumed_job_is_the_same_to_the_bit(worked: dict[str, Job]) -> None:
    whole, resumed = (worked[name].result / "adapter_model.safetensors" for name in ("lora", "lora_resumed"))
    assert worked["lora_resumed"].losses("loss").keys() == {*range(11, 21)}
    assert resumed.read_bytes() == whole.read_bytes()


def test_a_checkpoint_of_adapters_has_nothing_of_the_model(worked: dict[str, Job]) -> None:
    saved = read_safetensors(worked["lora"].path / "checkpoints" / "10" / "model.safetensors")
    assert all("lora_" in name for name in saved)


def test_adapters_are_scaled_by_alpha_over_rank(tiny: Tiny, worked: dict[str, Job], tmp_path: Path) -> None:
    job = worked["lora"]
    shutil.copytree(tiny.model, tmp_path / "merged")
    tensors = read_safetensors(tiny.model / "model.safetensors")
    adapters = read_safetensors(job.result / "adapter_model.safetensors")
    for name, low in adapters.items():
        if name.endswith(".lora_A.weight"):
            stem = name.removesuffix(".lora_A.weight")
            # Where nothing else is asked for, alpha is 16 and the rank 8.
            tensors[stem.removeprefix("base_model.model.") + ".weight"] += (
                16 / 8 * (adapters[f"{stem}.lora_B.weight"] @ low)
            )
    write_safetensors(tensors, tmp_path / "merged" / "model.safetensors")
    loss = held_out_loss(tmp_path / "merged", job.path / "input" / "data.jsonl")
    assert job.report["heldOut"]["lossEnd"] == pytest.approx(loss, abs=1e-4)


def test_dropout_is_drawn_anew_at_every_step(worked: dict[str, Job]) -> None:
    losses = worked["drawn"].losses("loss")
    # There is one sequence, and in the last steps nearly nothing is learned.
    last = [losses[step] for step in range(17, 21)]
    assert max(last) - min(last) > 0.2


def test_targets_that_the_model_does_not_have_are_refused(worked: dict[str, Job]) -> None:
    assert worked["no_targets"].exit_code == 65
    assert worked["no_targets"].state["message"].startswith("params.lora.targets: this model has no no_such_proj; ")


def test_one_target_that_the_model_has_does_not_hide_one_that_it_has_not(worked: dict[str, Job]) -> None:
    assert worked["one_target"].exit_code == 65
    assert worked["one_target"].state["message"] == (
        "params.lora.targets: this model has no w_pack; "
        "it has down_proj, gate_proj, k_proj, lm_head, o_proj, q_proj, up_proj, v_proj"
    )
