"""The worker's settings: names of ours and of others, in their order; what a job's program is told of them: nothing."""

import os
from pathlib import Path

import pytest
from pydantic import ValidationError

from gpu_worker.config import WorkerSettings, listed, program_environment


@pytest.mark.parametrize(
    ("alias", "value", "field", "read"),
    [
        ("DEVICE", "cpu", "device", "cpu"),
        ("RAM_MB", "2048", "ram_mb", 2048),
        ("API_HOST", "::1", "host", "::1"),
        ("API_PORT", "4444", "port", 4444),
        ("MODEL_NAME", "tiny-llm", "default_model", "tiny-llm"),
        ("PLUMISE_RPC_URL", "http://chain", "rpc_url", "http://chain"),
        ("PLUMISE_CHAIN_ID", "8453", "chain_id", 8453),
        ("ORACLE_API_URL", "http://oracle", "oracle_url", "http://oracle"),
        ("NODE_ENDPOINT", "http://node", "public_url", "http://node"),
        ("GRPC_ENDPOINT", "node:50051", "grpc_endpoint", "node:50051"),
        ("GRPC_PORT", "50052", "grpc_port", 50052),
        ("GRPC_HOST", "::1", "grpc_host", "::1"),
        ("MODEL_HASH", "ab" * 32, "model_hash", "ab" * 32),
    ],
)
def test_names_that_others_use_are_read(monkeypatch: pytest.MonkeyPatch, alias, value, field, read) -> None:
    monkeypatch.setenv(alias, value)
    assert getattr(WorkerSettings(), field) == read


def test_what_is_typed_wins_over_ours_over_others_over_the_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".env").write_text("DEVICE=cuda\nRAM_MB=1\nLIVERY_WORKER_NAME=from-the-file\n")
    assert (WorkerSettings().device, WorkerSettings().ram_mb) == ("cuda", 1)
    monkeypatch.setenv("DEVICE", "mps")
    assert WorkerSettings().device == "mps"
    monkeypatch.setenv("LIVERY_WORKER_DEVICE", "cpu")
    assert WorkerSettings().device == "cpu"
    assert WorkerSettings.model_validate({"device": "auto"}).device == "auto"
    assert WorkerSettings().name == "from-the-file"


def test_layers_are_served_where_something_asks_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    assert WorkerSettings.model_validate({"default_model": "tiny"}).served_model is None
    assert WorkerSettings.model_validate({"model": "tiny"}).served_model == "tiny"
    for asked in ({"layers": "0:2"}, {"next": "a:1"}, {"topology": "who.toml"}, {"layer_start": 0, "layer_end": 2}):
        assert WorkerSettings.model_validate({"default_model": "tiny", **asked}).served_model == "tiny"
    monkeypatch.setenv("MODEL_NAME", "tiny")
    monkeypatch.setenv("ORACLE_API_URL", "http://127.0.0.1:1")
    assert WorkerSettings().served_model == "tiny"
    monkeypatch.setenv("LAYER_START", "1")
    monkeypatch.setenv("LAYER_END", "3")
    assert WorkerSettings().layers_text == "1:3"
    monkeypatch.setenv("LIVERY_WORKER_LAYERS", "2:4")
    assert WorkerSettings().layers_text == "2:4"


def test_nothing_is_sold_until_its_owner_says_so() -> None:
    assert listed(WorkerSettings().kinds) == ()
    assert WorkerSettings.model_validate({"kinds": "fine_tune, evaluate"}).is_sold("evaluate")
    assert not WorkerSettings.model_validate({"kinds": "none"}).is_sold("fine_tune")


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("kinds", "mining", "there are no jobs of the kind 'mining'"),
        ("hours", "25:00-26:00", "hours"),
        ("yield_on", "rain", "rain"),
        ("layer_start", 3, "LAYER_START and LAYER_END come together"),
        ("layers", "0-4", "layers"),
        ("model_hash", "abc", "model_hash"),
        ("grpc_tls_key", "key.pem", "GRPC_TLS_CERT and GRPC_TLS_KEY come together"),
        ("grpc_port", 70_000, "less than or equal to 65535"),
        ("jobs_max", 0, "greater than or equal to 1"),
        ("price_per_hour", 0, "greater than 0"),
        ("chain_id", 1, "there is no chain 1 here"),
    ],
)
def test_what_cannot_be_is_told(field: str, value: object, said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        WorkerSettings.model_validate({field: value})


def test_a_secret_is_shown_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    key = "0x" + "ab" * 32
    for name in (
        "PLUMISE_PRIVATE_KEY",
        "HF_TOKEN",
        "LIVERY_WORKER_SECRET",
        "LIVERY_WORKER_KEYSTORE_PASSWORD",
        "API_SECRET",
    ):
        monkeypatch.setenv(name, key)
    settings = WorkerSettings()

    assert settings.private_key is not None
    assert key not in repr(settings)
    assert key not in str(settings.model_dump())


@pytest.mark.row(80)
def test_a_job_s_program_is_told_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PLUMISE_PRIVATE_KEY", "HF_TOKEN", "LIVERY_WORKER_SECRET", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "not for you")
    told = program_environment(3, visible="GPU-1")

    assert "not for you" not in told.values()
    assert (told["OMP_NUM_THREADS"], told["CUDA_VISIBLE_DEVICES"], told["HF_HUB_OFFLINE"]) == ("3", "GPU-1", "1")
    assert told["PATH"] == os.environ["PATH"]


def test_folders_have_their_places() -> None:
    settings = WorkerSettings.model_validate({"data": "~/there", "name": "My GPU 1"})

    assert settings.vendor_id == "my-gpu-1"
    assert settings.folder == Path.home() / "there"
    assert settings.models_folder == settings.folder / "models"
    assert settings.keystore == settings.folder / "wallet.json"
