"""Adapters beside frozen weights (LoRA), by peft."""

from pathlib import Path
from typing import Any

from torch.nn import Linear

from gpu_worker.core.errors import BadInput
from wire.jobs import Lora

ADAPTER = "adapter_model.safetensors"


def with_adapters(model: Any, lora: Lora) -> Any:
    """
    Return `model` with adapters, which alone are trained, in single precision.

    Raises:
        BadInput: it has no such modules.
    """
    from peft import LoraConfig, get_peft_model

    _check_targets(model, lora)
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=float(lora.alpha),
        lora_dropout=float(lora.dropout),
        target_modules=list(lora.targets) or "all-linear",
        task_type="CAUSAL_LM",
    )
    try:
        return get_peft_model(model, config)
    except ValueError as error:
        raise BadInput("invalid_field", f"params.lora.targets: {str(error).splitlines()[0][:300]}") from error


def _check_targets(model: Any, lora: Lora) -> None:
    # peft is content with one of them that is there.
    names = [name for name, _ in model.named_modules()]
    unknown = [each for each in lora.targets if not any(f".{name}".endswith(f".{each}") for name in names)]
    if unknown:
        linear = {name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, Linear)}
        raise BadInput(
            "invalid_field",
            f"params.lora.targets: this model has no {', '.join(unknown[:5])}; it has {', '.join(sorted(linear)[:20])}",
        )


def save_adapters(model: Any, folder: Path, name: str) -> None:
    """Write the adapters and their config into `folder`; `name` is what the buyer calls the model beneath."""
    # Else it names a folder of this machine.
    model.peft_config["default"].base_model_name_or_path = name
    model.save_pretrained(folder, safe_serialization=True, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)
