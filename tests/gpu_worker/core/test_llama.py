"""What llama.cpp's process is told, and what its last words mean."""

import pytest
from pydantic import ValidationError

from gpu_worker.core.inference.llama import LlamaSpec, reason_of


def spec_of(**more: object) -> LlamaSpec:
    fields = {"package": "xllamacpp", "path": "m.gguf", "name": "m", "key": "k" * 16, "context": 512, "slots": 2}
    return LlamaSpec.model_validate({**fields, "threads": 1, **more})


def test_a_spec_is_what_it_was_on_the_other_side_of_a_pipe() -> None:
    spec = spec_of(lora=(("a.gguf", 0.5),), kv_dtype="q8_0", memory_bytes_max=2**30)
    assert LlamaSpec.model_validate_json(spec.model_dump_json()) == spec
    assert "\n" not in spec.model_dump_json()


@pytest.mark.parametrize(
    "wrong",
    [
        {"slots": 0},
        {"slots": 257},
        {"context": 0},
        {"context": 2**25},
        {"context": 2**24, "slots": 65},
        {"batch": 1},
        {"slots": 64, "batch": 32},
        {"threads": 0},
        {"gpu_layers": -1},
        {"kv_dtype": "f64"},
        {"key": "short"},
        {"lora": (("a.gguf", float("nan")),)},
        {"memory_bytes_max": 1},
        {"package": "someone's"},
        {"rpc": "10.0.0.1:50052"},
    ],
)
def test_what_llama_cpp_would_end_or_hang_over_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        spec_of(**wrong)


@pytest.mark.parametrize(
    ("said", "code", "reason"),
    [
        ("E gguf_init_from_reader: invalid magic characters: '<!do', expected 'GGUF'", 1, "the file is no GGUF file"),
        ("E tensor 'a' data is not within the file bounds, model is corrupted", 1, "the file is cut off"),
        ("E unknown model architecture: 'hippogriff'", 1, "llama.cpp does not know the architecture hippogriff"),
        ("E of type 31 (TYPE_Q4_0_4_4 REMOVED, use Q4_0 with runtime repacking)", 1, "take Q4_0, which is repacked"),
        (
            "check_tensor_dims: tensor 'token_embd.weight' has wrong shape; expected 4, got 5",
            1,
            "another number of tok",
        ),
        ("check_tensor_dims: tensor 'blk.1.attn_v.weight' not found", 1, "the tensor blk.1.attn_v.weight is missing"),
        ("ggml_backend_cuda_buffer_type_alloc_buffer: failed to allocate CUDA0 buffer", 1, "does not fit into the mem"),
        ("terminate called after throwing an instance of 'std::bad_alloc'", -6, "does not fit into the memory"),
        ("ModuleNotFoundError: No module named 'xllamacpp'", 1, "pip install 'livery[gguf]'"),
        ("", -11, "llama.cpp ended by signal 11"),
        ("/srv/me/secret: something new", 3, "llama.cpp ended with exit code 3"),
        ("", None, "does not come to an end with loading"),
    ],
)
def test_what_it_said_last_is_told_in_words_of_ours(said: str, code: int | None, reason: str) -> None:
    told = reason_of(said, code)
    assert reason in told
    assert "secret" not in told
    assert len(told) < 200


@pytest.mark.parametrize("name", ["{a}", "/etc/passwd", "x" * 500, "a' b"])
def test_a_name_that_stands_in_a_file_is_not_repeated_unless_it_is_a_plain_one(name: str) -> None:
    told = reason_of(f"error loading model: unknown model architecture: '{name}'", 1)
    assert name not in told
