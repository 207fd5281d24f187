"""The models of a folder: which there are, what names them, what is never loaded."""

import asyncio
import json
from pathlib import Path

import pytest

from gpu_worker.core.errors import BadInput
from gpu_worker.edges.machine.models_folder import ModelsFolder


def _make(folder: Path, name: str, **config: object) -> Path:
    model = folder / name
    model.mkdir(parents=True)
    (model / "config.json").write_text(json.dumps({"model_type": "llama", **config}))
    (model / "tokenizer.json").write_text("{}")
    (model / "model.safetensors").write_bytes(b"weights")
    (model / "README.md").write_text("hello")
    return model


@pytest.fixture
def models(tmp_path: Path) -> ModelsFolder:
    return ModelsFolder(tmp_path / "models", tmp_path / "data" / "hashes.json")


async def test_models_are_known_by_their_folders(models: ModelsFolder, tmp_path: Path) -> None:
    assert await models.names() == ()
    _make(tmp_path / "models", "tiny-llm")
    _make(tmp_path / "models", "meta/small")
    (tmp_path / "models" / "empty").mkdir()
    assert await models.names() == ("meta/small", "tiny-llm")
    found = await models.find("meta/small")
    assert found is not None
    assert (found.name, found.folder) == ("meta/small", str(tmp_path / "models" / "meta/small"))
    assert found.config["model_type"] == "llama"
    for name in ("empty", "nobody", "../models/tiny-llm", "/etc", ".", "meta"):
        assert await models.find(name) is None


async def test_the_hash_is_of_weights_shape_and_tokens_and_of_nothing_else(
    models: ModelsFolder, tmp_path: Path
) -> None:
    model = _make(tmp_path / "models", "tiny-llm")
    same = _make(tmp_path / "models", "other-name")

    async def hash_of(name: str = "tiny-llm") -> str:
        found = await models.find(name)
        assert found is not None
        return found.model_hash

    first = await hash_of()
    assert first == await hash_of() == await hash_of("other-name")
    (model / "README.md").write_text("other words")
    assert await hash_of() == first
    for changed in ("model.safetensors", "tokenizer.json"):
        (model / changed).write_bytes((model / changed).read_bytes() + b" ")
        assert await hash_of() != first
        (same / changed).write_bytes((model / changed).read_bytes())
        first = await hash_of()
        assert first == await hash_of("other-name")


async def test_what_was_hashed_once_is_not_read_again(models: ModelsFolder, tmp_path: Path) -> None:
    weights = _make(tmp_path / "models", "tiny-llm") / "model.safetensors"
    first = await models.find("tiny-llm")
    about = weights.stat()
    weights.write_bytes(b"WEIGHTS")  # as many bytes, at the same time: what nobody does but who wants to see this
    import os

    os.utime(weights, ns=(about.st_atime_ns, about.st_mtime_ns))
    assert await ModelsFolder(tmp_path / "models", tmp_path / "data" / "hashes.json").find("tiny-llm") == first
    (tmp_path / "data" / "hashes.json").write_text("[broken")
    assert await models.find("tiny-llm") != first


async def test_those_who_ask_at_once_lose_nothing_of_what_was_hashed(models: ModelsFolder, tmp_path: Path) -> None:
    names = [f"model-{number}" for number in range(12)]
    for name in names:
        _make(tmp_path / "models", name)
    found = await asyncio.gather(*(models.find(name) for name in names for _ in range(2)))
    assert None not in found
    # The config, the tokenizer and the weights of each.
    assert len(json.loads((tmp_path / "data" / "hashes.json").read_text())) == 3 * len(names)


async def test_a_model_that_cannot_be_used_is_refused_by_name(models: ModelsFolder, tmp_path: Path) -> None:
    _make(tmp_path / "models", "own-code", auto_map={"AutoModel": "modeling.Mine"})
    with pytest.raises(BadInput, match="own-code needs code of its own"):
        await models.find("own-code")
    pickled = _make(tmp_path / "models", "pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    with pytest.raises(BadInput, match="pickled has no safetensors"):
        await models.find("pickled")
    (pickled / "config.json").write_text("{")
    with pytest.raises(BadInput, match=r"config\.json of pickled cannot be read"):
        await models.find("pickled")
