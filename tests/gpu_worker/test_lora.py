"""Adapters: trained alone, bound to no folder of this machine, gone on with to the bit, dropout and all."""

import json

import pytest

from tests.fixtures.tiny import Job
from tests.gpu_worker.second_opinion import read_safetensors

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


def test_targets_that_the_model_does_not_have_are_refused(worked: dict[str, Job]) -> None:
    assert worked["no_targets"].exit_code == 65
    assert worked["no_targets"].state["message"].startswith("params.lora.targets: ")
