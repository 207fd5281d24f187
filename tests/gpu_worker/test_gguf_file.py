"""GGUF files on disk: read without reading the weights, in parts, and held against what another reader says."""

import os
from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFReader

from gpu_worker.core.errors import OwnersFault
from gpu_worker.core.quantization.header import BLOCK_TYPES, FILE_TYPES, BadGguf
from gpu_worker.edges.engines.gguf_file import FIRST_BYTES, check_lora, models_in, read_header, read_model
from tests.fixtures.gguf_bytes import Shape, TensorInfo, gguf, llama, llama_tensors, model_bytes, write


def test_a_model_is_read_as_the_format_s_own_reader_reads_it(tmp_path: Path) -> None:
    path = write(tmp_path / "tiny-Q8_0.gguf", model_bytes(Shape(kind="Q8_0", layers=3)))
    model, other = read_model(path), GGUFReader(path)

    assert {tensor.name: (tensor.bytes, model.header.size + tensor.offset) for tensor in model.header.tensors} == {
        tensor.name: (int(tensor.n_bytes), int(tensor.data_offset)) for tensor in other.tensors
    }
    assert model.weights.bytes == sum(int(tensor.n_bytes) for tensor in other.tensors)
    assert model.bytes == path.stat().st_size
    assert (model.name, model.weights.quant, model.files) == ("tiny-Q8_0", "Q8_0", (path,))


def test_the_tables_of_types_are_the_format_s() -> None:
    import gguf as other

    sizes = {int(kind): (kind.name, *size) for kind, size in other.GGML_QUANT_SIZES.items()}
    assert {
        number: (block.name, block.numbers, block.bytes) for number, block in BLOCK_TYPES.items()
    }.items() <= sizes.items()
    names = {int(kind): kind.name for kind in other.LlamaFileType}
    assert all(names[number].endswith((name, f"{name}_MOE")) for number, name in FILE_TYPES.items())


def test_a_header_longer_than_the_first_reading_is_read_whole(tmp_path: Path) -> None:
    shape = Shape(vocabulary=120_000, width=32, inner=32, heads=1, kv_heads=1, layers=1)
    model = read_model(write(tmp_path / "wide.gguf", model_bytes(shape)))

    assert model.header.size > FIRST_BYTES
    assert model.weights.vocabulary == 120_000


def parts(folder: Path, count: int = 3, **more: Any) -> Path:
    """Write a model in three files, as llama.cpp's own tool cuts it, and return the first."""
    shape = Shape(layers=2)
    tensors = llama_tensors(shape)
    cuts = [tensors[:5], tensors[5:12], tensors[12:]]
    for number, some in enumerate(cuts, start=1):
        split = {"split.no": number - 1, "split.count": count, "split.tensors.count": len(tensors)}
        values = llama(shape, **more) | split if number == 1 else split
        write(folder / f"big-{number:05}-of-00003.gguf", gguf(values, some))
    return folder / "big-00001-of-00003.gguf"


def test_a_model_in_several_files_is_one_model_whichever_of_them_is_named(tmp_path: Path) -> None:
    first = parts(tmp_path)
    whole = read_model(write(tmp_path / "whole.gguf", model_bytes(Shape(layers=2))))

    for path in (first, tmp_path / "big-00002-of-00003.gguf"):
        model = read_model(path)
        assert (model.path, model.name, len(model.files)) == (first, "big", 3)
        assert model.weights.layers == whole.weights.layers
        assert model.weights.bytes == whole.weights.bytes
    assert models_in(tmp_path) == (first, tmp_path / "whole.gguf")


def test_a_part_that_is_not_there_or_is_cut_off_is_named(tmp_path: Path) -> None:
    first, second = parts(tmp_path), tmp_path / "big-00002-of-00003.gguf"
    data = second.read_bytes()
    second.write_bytes(data[:-100])
    with pytest.raises(BadGguf, match=r"^big-00002-of-00003\.gguf: the file is cut off"):
        read_model(first)
    second.unlink()
    with pytest.raises(OwnersFault, match=r"big-00002-of-00003\.gguf is not there"):
        read_model(first)


def test_a_part_under_another_name_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(BadGguf, match="one of 3 files"):
        read_model(write(tmp_path / "renamed.gguf", parts(tmp_path).read_bytes()))


@pytest.mark.parametrize("keep", [0, 3, 30, 3_000, 100_000])
def test_a_file_cut_off_anywhere_is_refused_by_its_name_and_not_its_place(tmp_path: Path, keep: int) -> None:
    path = write(tmp_path / "cut.gguf", model_bytes()[:keep])

    with pytest.raises(BadGguf, match=r"^cut\.gguf: ") as refused:
        read_model(path)
    assert str(tmp_path) not in str(refused.value)


def test_what_is_no_file_is_the_owners_to_mend(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.gguf")
    for path in (tmp_path / "none.gguf", tmp_path, tmp_path / "pipe.gguf"):
        with pytest.raises(OwnersFault, match="cannot be read") as refused:
            read_header(path)
        assert str(tmp_path.parent) not in str(refused.value)


def test_an_adapter_is_held_against_its_model(tmp_path: Path) -> None:
    model = read_model(write(tmp_path / "base.gguf", model_bytes()))
    kind = {"general.type": "adapter", "adapter.type": "lora", "general.architecture": "llama"}
    check_lora(write(tmp_path / "a.gguf", gguf(kind, [TensorInfo("blk.0.attn_q.weight.lora_a", (256, 4))])), model)

    with pytest.raises(BadGguf, match=r"^base\.gguf: this GGUF file is no LoRA adapter"):
        check_lora(model.path, model)
    with pytest.raises(BadGguf, match="of the type adapter"):
        read_model(tmp_path / "a.gguf")
