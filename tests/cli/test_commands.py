"""The command tree as a user meets it: help, tables, JSON, errors, exit codes."""

import hashlib
import logging
from pathlib import Path

import click
import pytest
import typer
from typer.testing import CliRunner

from cli.app import app
from tests.cli.conftest import Livery, Street

pytestmark = pytest.mark.slow


def _tree(command: click.Command, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    if not isinstance(command, click.Group) and not hasattr(command, "commands"):
        return [path]
    return [path, *(leaf for name, child in command.commands.items() for leaf in _tree(child, (*path, name)))]


@pytest.mark.row(148)
@pytest.mark.parametrize("path", _tree(typer.main.get_command(app)), ids=" ".join)
def test_every_command_has_help_that_exits_with_0(path: tuple[str, ...]) -> None:
    result = CliRunner().invoke(app, [*path, "--help"])
    assert result.exit_code == 0
    assert "Usage:" in result.output


@pytest.mark.row(148)
def test_the_help_lists_what_exists_and_hides_the_old_names(livery: Livery) -> None:
    shown = livery("--help").out
    for name in (
        "demo",
        "up",
        "serve",
        "run",
        "vendors",
        "vendor-mock",
        "facilitator",
        "chain",
        "db",
        "wallet",
        "seed",
    ):
        assert f" {name} " in shown
    assert "control-plane" not in shown
    assert "mock-vendor" not in shown
    assert livery("control-plane", "--help").code == 0


def test_a_command_that_serves_leaves_the_log_of_this_process_as_it_was(livery: Livery) -> None:
    root = logging.getLogger()
    before = [*root.handlers], root.level
    # It sends all logs to its stderr before it finds out that it cannot serve.
    assert livery("worker", "start", "--env-file", "/no/such/file").code == 1
    assert ([*root.handlers], root.level) == before


@pytest.mark.row(36)
def test_seeding_vendors_twice_leaves_two(livery: Livery) -> None:
    assert livery("vendors", "seed").code == 0
    assert livery("vendors", "seed").code == 0
    found = livery("vendors", "list", "--json").json
    assert [(one["vendorId"], one["name"], one["pricePerHour"], one["reliability"], one["gpus"]) for one in found] == [
        ("gpu_vendor_1", "FastGPU", 1.4, 0.9, ["A10", "A100"]),
        ("gpu_vendor_2", "ReliableGPU", 1.8, 0.95, ["A10", "A100"]),
    ]


@pytest.mark.row(36)
def test_a_vendor_is_added_from_its_own_offers_changed_and_removed(buyer: Livery, street: Street) -> None:
    added = buyer("vendors", "add", "gpu_vendor_3", street.vendors_url, "--json")
    assert added.code == 0, added.err
    assert added.json["gpus"] == ["A10", "A100"]
    assert buyer("vendors", "add", "gpu_vendor_3", street.vendors_url, "--pay-to", "0x" + "11" * 20).code == 0
    assert [one["payTo"] for one in buyer("vendors", "list", "--json").json][2] == "0x" + "11" * 20
    assert buyer("vendors", "remove", "gpu_vendor_3").code == 0
    assert buyer("vendors", "remove", "gpu_vendor_3").code == 1
    assert buyer("vendors", "add", "nobody", street.vendors_url).code == 1


@pytest.mark.row(25)
def test_the_store_can_be_migrated_twice_and_lacks_nothing(livery: Livery) -> None:
    first, second = livery("db", "migrate", "--json"), livery("db", "migrate", "--json")
    assert first.json == second.json
    checked = livery("db", "check", "--json")
    assert (checked.code, checked.json) == (0, {"missing": []})


@pytest.mark.row(39)
def test_the_mock_does_not_start_without_a_secret(livery: Livery) -> None:
    refused = livery("vendor-mock", GPU_VENDOR_SECRET="")
    assert refused.code == 1
    assert "GPU_VENDOR_SECRET is not set" in refused.err


def _brings_what_the_job_left(buyer: Livery, run_id: str) -> None:
    results = buyer.home / "results"
    brought = buyer("run", "artifacts", run_id, "--to", str(results), "--local", "--json")
    assert brought.code == 0, brought.err
    assert [line["name"] for line in brought.json] == ["model.json", "training.log"]
    for line in brought.json:
        content = Path(line["path"]).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (line["bytes"], line["sha256"])
        assert Path(line["path"]) == results / line["jobId"] / line["name"]
    shown = buyer("run", "artifacts", run_id, "--local")
    assert "training.log" in shown.out
    assert "training.log" in buyer("run", "status", run_id, "--local").out
    # What cannot be written is said in a sentence.
    (buyer.home / "file").write_text("")
    refused = buyer("run", "artifacts", run_id, "--to", str(buyer.home / "file"), "--local")
    assert (refused.code, "Not a directory" in refused.err) == (1, True)


@pytest.mark.row(7)
def test_watching_a_run_ticks_it_to_its_end(buyer: Livery) -> None:
    started = buyer("run", "start", "Fine-tune tiny-llm", "--budget", "5", "--local", "--json")
    assert started.code == 0, started.err
    run_id = started.json["_id"]
    watched = buyer("run", "watch", "--run", run_id, "--interval", "0.2", "--local")
    assert watched.code == 0, watched.err
    assert "completed" in watched.out
    shown = buyer("run", "status", run_id, "--local", "--json").json
    assert shown["run"]["budgetSpent"] == 1.4
    assert shown["payments"][0]["x402TxId"].startswith("0x")
    replayed = buyer("run", "replay", run_id, "--json")
    assert (replayed.code, replayed.json["repeats"]) == (0, True)
    _brings_what_the_job_left(buyer, run_id)
    listed = buyer("run", "list", "--local", "--json").json
    assert [one["_id"] for one in listed["runs"]] == [run_id]


def test_a_dry_run_decides_and_quotes_and_stores_nothing(buyer: Livery) -> None:
    seen = buyer("run", "start", "Fine-tune tiny-llm", "--budget", "5", "--dry-run", "--json")
    assert seen.code == 0, seen.err
    assert (seen.json["action"], seen.json["vendorId"], seen.json["price"]) == ("start_job", "gpu_vendor_1", 1.4)
    assert buyer("run", "list", "--local", "--json").json["runs"] == []


def test_cron_ticks_the_runs_that_are_due(buyer: Livery) -> None:
    run_id = buyer("run", "start", "x", "--budget", "5", "--local", "--json").json["_id"]
    assert buyer("run", "tick", "--due", "--json").json == [{"runId": run_id, "message": "Job started"}]
    assert buyer("run", "tick").code == 2


def test_offers_show_what_each_vendor_has(buyer: Livery) -> None:
    found = buyer("vendors", "offers", "--json").json
    assert [one["vendorId"] for one in found] == ["gpu_vendor_1", "gpu_vendor_2"]
    assert found[0]["offers"][0]["pricePerHour"] == 1.4
    refused = buyer("vendors", "offers", GPU_VENDOR_SECRET="wrong")
    assert "bearer secret is wrong" in refused.out


def test_a_wallet_is_made_once_and_shown_with_how_to_fund_it(livery: Livery, street: Street) -> None:
    none = livery("wallet", "show", "--json")
    assert (none.code, none.json["code"]) == (1, "no_signer")
    made = livery("wallet", "new", "--json")
    assert made.code == 0, made.err
    assert livery("wallet", "new").code == 1
    funded = livery("chain", "fund", made.json["address"], "--usdc", "7.5", "--port", str(street.chain.port))
    assert funded.code == 0, funded.err
    shown = livery("wallet", "show", WEB3_PROVIDER_URL=street.chain.url)
    assert made.json["address"] in shown.out
    assert "7.5 USDC" in shown.out
    assert "livery chain fund" in shown.out


def test_mainnet_needs_a_typed_confirmation_once(livery: Livery) -> None:
    livery("wallet", "new")
    refused = livery("wallet", "show", "--network", "base", typed="yes\n")
    assert refused.code == 1
    assert "mainnet was not confirmed" in refused.err
    assert not (livery.home / ".livery" / "mainnet-confirmed").exists()
    confirmed = livery("wallet", "show", "--network", "base", "--json", typed="pay with real money\n")
    assert "chain_unavailable" in confirmed.out
    assert livery("wallet", "show", "--network", "base", "--json").json["code"] == "chain_unavailable"


def test_a_control_plane_that_is_not_there_is_said_in_a_sentence(livery: Livery) -> None:
    refused = livery("run", "list")
    assert refused.code == 1
    assert "no control plane answers at http://127.0.0.1:9" in refused.err
    assert "livery up" in refused.err


def test_the_control_plane_is_not_bound_where_others_reach_it(livery: Livery) -> None:
    refused = livery("serve", "--host", "0.0.0.0")  # noqa: S104 - it must be refused
    assert refused.code == 1
    assert "LIVERY_API_SECRET is not set" in refused.err


def test_the_environments_secret_goes_neither_in_the_open_nor_to_whom_a_folders_env_file_names(
    livery: Livery, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = {"LIVERY_API_SECRET": "the-secret"}
    for to in ({"LIVERY_URL": "http://plane.example"}, {"LIVERY_CLI_URL": "http://192.0.2.1:3000"}):
        refused = livery("run", "list", "--json", **secret, **to)
        assert (refused.code, refused.json["code"]) == (1, "secret_exposed")
    assert "over https" in livery("run", "list", "--url", "http://plane.example", **secret).err
    monkeypatch.chdir(livery.home)
    (livery.home / ".env").write_text("LIVERY_URL=http://127.0.0.1:8\n")
    found = {"LIVERY_URL": "", **secret}
    refused = livery("run", "list", "--json", **found)
    assert (refused.code, refused.json["code"]) == (1, "secret_exposed")
    assert "127.0.0.1:8" in refused.json["detail"]
    # The address is the owner's own where it is typed, and the file's secret may go where the file says.
    assert "answers at http://127.0.0.1:9" in livery("run", "list", "--url", "http://127.0.0.1:9", **found).err
    assert "answers at http://127.0.0.1:9" in livery("run", "list", **secret).err
    (livery.home / ".env").write_text("LIVERY_URL=http://127.0.0.1:8\nLIVERY_CLI_SECRET=the-files\n")
    assert "answers at http://127.0.0.1:8" in livery("run", "list", LIVERY_URL="").err


@pytest.mark.parametrize(
    ("budget", "code"),
    [
        ("-1", "amount_not_positive"),
        ("0", "amount_not_positive"),
        ("1e30", "amount_too_large"),
        ("0.0000001", "too_many_decimals"),
    ],
)
def test_a_budget_that_is_none_is_refused_with_its_code(livery: Livery, budget: str, code: str) -> None:
    refused = livery("run", "start", "x", "--budget", budget, "--local", "--json")
    assert (refused.code, refused.json["code"]) == (1, code)


def test_words_that_are_no_number_are_a_usage_error(livery: Livery) -> None:
    assert livery("run", "start", "x", "--budget", "five").code == 2
    assert livery("bench", "nothing").code == 2


def test_a_benchmark_tells_what_it_takes(livery: Livery) -> None:
    every, one = livery("bench", "--help"), livery("bench", "decode", "--help")
    assert every.code == one.code == 0
    assert "livery bench decode --scene single" in every.out
    assert "--scene" in one.out
    assert "profile" in one.out


def test_chain_commands_answer_for_a_running_chain(livery: Livery, street: Street) -> None:
    port = str(street.chain.port)
    assert livery("chain", "deploy", "--port", port, "--json").json["asset"].startswith("0x036C")
    funded = livery("chain", "fund", "0x" + "22" * 20, "--usdc", "3", "--port", port, "--json")
    assert livery("chain", "balance", "0x" + "22" * 20, "--port", port, "--json").json["usdc"] == 3
    assert "succeeded" in livery("chain", "tx", funded.json["transaction"], "--port", port).out
    assert livery("chain", "balance", "0x" + "22" * 20, "--port", "9").code == 1


def test_seeding_the_demo_twice_starts_its_runs_once(livery: Livery) -> None:
    first, second = livery("seed", "demo", "--json").json, livery("seed", "demo", "--json").json
    assert len(first["runs"]) == 3
    assert first["runs"] == second["runs"]
    assert second["vendors"] == []


@pytest.mark.parametrize("command", [("serve",), ("run", "list", "--local"), ("vendors", "list")])
def test_a_setting_that_cannot_work_is_said_in_a_sentence_without_its_secret(
    livery: Livery, command: tuple[str, ...]
) -> None:
    refused = livery(*command, DATABASE_URL="postgres://me:hush@host/db")
    assert refused.code == 1
    assert "not postgres" in refused.err
    assert "hush" not in refused.err + refused.out
