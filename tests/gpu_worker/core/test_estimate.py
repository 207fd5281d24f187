"""What a job needs, from config.json alone: the numbers of real families, what is missing, how long it takes."""

from decimal import Decimal

import pytest

from gpu_worker.core.errors import BadInput
from gpu_worker.core.estimate import (
    REFERENCE,
    RUNTIME_BYTES,
    Fits,
    ModelShape,
    Need,
    TooLarge,
    eta_s,
    look,
    need_of,
    step_s,
)
from gpu_worker.core.forecast import forecast, number_bytes_of
from gpu_worker.core.hardware import MIB, Device, Speed
from wire.jobs import Evaluate, FineTune, Generate, Params
from wire.money import BASE_SEPOLIA_USDC

_LLAMA_1B = {
    "model_type": "llama",
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "tie_word_embeddings": True,
}
_QWEN_HALF_B = {
    "model_type": "qwen2",
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "vocab_size": 151936,
    "max_position_embeddings": 32768,
    "tie_word_embeddings": True,
}
_MISTRAL_7B = {
    "model_type": "mistral",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 32000,
    "max_position_embeddings": 32768,
    "tie_word_embeddings": False,
}
_MIXTRAL = {**_MISTRAL_7B, "model_type": "mixtral", "num_local_experts": 8}
_GPT2 = {"model_type": "gpt2", "n_embd": 768, "n_head": 12, "n_layer": 12, "n_positions": 1024, "vocab_size": 50257}
_PYTHIA = {
    "model_type": "gpt_neox",
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "vocab_size": 50304,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
}
_TINYLLAMA = {
    "model_type": "llama",
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 22,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "vocab_size": 32000,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
}


@pytest.mark.parametrize(
    ("config", "published"),
    [
        (_LLAMA_1B, 1_235_814_400),
        (_QWEN_HALF_B, 494_032_768),
        (_MISTRAL_7B, 7_241_732_096),
        (_MIXTRAL, 46_702_792_704),
        (_GPT2, 124_439_808),
        (_PYTHIA, 162_322_944),
        (_TINYLLAMA, 1_100_048_384),
    ],
    ids=lambda value: value["model_type"] if isinstance(value, dict) else str(value),
)
def test_the_parameters_are_those_that_the_models_were_published_with(config: dict, published: int) -> None:
    assert ModelShape.from_config(config).parameters == published


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"hidden_size": None}, "says no hidden_size"),
        ({"hidden_size": "2048"}, "hidden_size is not a whole number"),
        ({"vocab_size": -1}, "vocab_size is not"),
        ({"num_hidden_layers": True}, "num_hidden_layers is not"),
        ({"intermediate_size": 10**12}, "intermediate_size is not"),
    ],
)
def test_a_config_of_no_model_is_refused_by_the_number_that_is_wrong(change: dict, words: str) -> None:
    with pytest.raises(BadInput, match=words) as refused:
        ModelShape.from_config({**_LLAMA_1B, **change})
    assert refused.value.code == "model_unknown"


def test_what_does_not_fit_says_exactly_how_much_is_missing() -> None:
    params = FineTune(steps=10, batch_size=1, sequence_length=512)
    found = look(_MISTRAL_7B, params, "cuda", 24 * 1024 * MIB, None)
    assert isinstance(found, TooLarge)
    enough = look(_MISTRAL_7B, params, "cuda", 24 * 1024 * MIB + found.missing_bytes, None)
    assert enough == Fits(memory_bytes=found.memory_bytes, spare_bytes=0, eta_s=None)
    one_less = look(_MISTRAL_7B, params, "cuda", 24 * 1024 * MIB + found.missing_bytes - 1, None)
    assert isinstance(one_less, TooLarge)
    assert one_less.missing_bytes == 1


def test_adapters_need_a_small_part_of_what_full_training_needs() -> None:
    shape = ModelShape.from_config(_MISTRAL_7B)
    full = need_of(shape, FineTune(steps=1, batch_size=1), "cuda")
    lora = need_of(shape, FineTune(steps=1, batch_size=1, method="lora"), "cuda")
    assert full.memory_bytes > 16 * shape.parameters
    # The weights, twice two bytes at most, and little more.
    assert 2 * shape.parameters < lora.memory_bytes < 3 * shape.parameters
    # Rank 8 on every linear module of Mistral 7B: the figure that peft prints.
    assert lora.trained == 20_971_520


def test_more_tokens_at_once_need_more_memory_and_accumulation_does_not() -> None:
    shape = ModelShape.from_config(_LLAMA_1B)
    one = need_of(shape, FineTune(batch_size=1, steps=1), "cpu")
    many = need_of(shape, FineTune(batch_size=8, steps=1), "cpu")
    gathered = need_of(shape, FineTune(batch_size=1, accumulation=8, steps=1), "cpu")
    assert many.memory_bytes > gathered.memory_bytes == one.memory_bytes
    assert many.step_tokens == gathered.step_tokens == 8 * one.step_tokens


def test_a_sequence_longer_than_the_model_has_positions_is_refused() -> None:
    with pytest.raises(BadInput, match="sequenceLength is 2048, the model has 1024"):
        look(_GPT2, FineTune(sequence_length=2048), "cpu", 2**40, None)


SPEED = Speed(
    memory_bytes_per_s=10**10, flops=10**11, tokens_per_s=Decimal(3_000), layer_s=Decimal("0.002"), start_s=Decimal(5)
)


def test_the_reference_model_trains_at_the_speed_that_was_measured() -> None:
    shape = ModelShape.from_config(REFERENCE)
    need = need_of(shape, FineTune(batch_size=4, sequence_length=128, steps=100), "cpu")
    rate = need.step_tokens / step_s(need, shape, SPEED)
    assert Decimal("0.8") * SPEED.tokens_per_s < rate < SPEED.tokens_per_s * Decimal("1.3")


def test_the_time_grows_with_the_steps_and_starts_with_the_program() -> None:
    shape = ModelShape.from_config(_LLAMA_1B)
    ten, twenty = (need_of(shape, FineTune(steps=steps), "cpu") for steps in (10, 20))
    work_s = [eta_s(need, shape, SPEED) - SPEED.start_s for need in (ten, twenty)]
    assert abs(work_s[1] - 2 * work_s[0]) < 1
    nothing = Need(memory_bytes=0, trained=0, steps=0, step_tokens=0)
    assert eta_s(nothing, shape, SPEED) == 5


def test_epochs_are_steps_over_the_dataset() -> None:
    shape = ModelShape.from_config(_LLAMA_1B)
    params = FineTune(epochs=Decimal(2), batch_size=4, sequence_length=128)
    # 1 MiB is about 262,144 tokens, 2,048 sequences, 512 steps an epoch.
    assert need_of(shape, params, "cpu", dataset_bytes=MIB).steps == 1_024


@pytest.mark.parametrize(
    ("params", "is_known"),
    [
        (FineTune(steps=10), True),
        (FineTune(), True),
        (FineTune(epochs=Decimal(3)), False),
        (Evaluate(dataset="input:" + "0" * 64), False),
        (Generate(dataset="input:" + "0" * 64), False),
    ],
)
def test_how_long_a_dataset_takes_is_not_told_before_it_is_known(params: Params, is_known: bool) -> None:
    found, of_known = (look(_GPT2, params, "cpu", 2**40, SPEED, dataset_bytes=size) for size in (0, 10 * MIB))
    assert isinstance(found, Fits)
    assert isinstance(of_known, Fits)
    assert (found.eta_s is not None) is is_known
    assert of_known.eta_s is not None


@pytest.mark.parametrize("params", [Evaluate(dataset="input:" + "0" * 64), Generate(dataset="input:" + "0" * 64)])
def test_reading_needs_less_than_training(params: Evaluate | Generate) -> None:
    shape = ModelShape.from_config(_LLAMA_1B)
    need = need_of(shape, params, "cpu")
    assert RUNTIME_BYTES["cpu"] + 4 * shape.parameters < need.memory_bytes
    assert need.memory_bytes < need_of(shape, FineTune(), "cpu").memory_bytes
    assert need.trained == 0


def test_a_forecast_says_what_fits_what_is_missing_and_what_an_hour_brings() -> None:
    shape, device = (
        ModelShape.from_config(_MISTRAL_7B),
        Device(kind="cuda", name="cuda:0", gpu_type="A10", memory_bytes=0),
    )
    found = forecast(shape, device, 24 * 1024 * MIB, SPEED, 500_000, BASE_SEPOLIA_USDC)
    by_work = {row.work: row for row in found.rows}
    assert by_work["full"].missing_bytes > 0
    assert by_work["lora"].missing_bytes == by_work["generate"].missing_bytes == 0
    assert all(row.tokens_per_s > 0 for row in found.rows)
    assert (found.per_hour, found.currency) == (Decimal("0.5"), "USDC")
    assert found.weights_bytes == 2 * 7_241_732_096
    none_fits = forecast(shape, device, 1024 * MIB, None, 500_000, BASE_SEPOLIA_USDC)
    assert none_fits.per_hour is None
    assert all(row.missing_bytes > 0 and row.tokens_per_s is None for row in none_fits.rows)


def test_a_type_of_numbers_has_its_size_or_is_named() -> None:
    assert [number_bytes_of(name) for name in ("torch.bfloat16", "float32", None)] == [2, 4, 4]
    with pytest.raises(BadInput, match="'int3'"):
        number_bytes_of("int3")
