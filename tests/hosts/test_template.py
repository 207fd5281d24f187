"""The SAM template: what the handler counts on is in it, and what it sets is read."""

import ast
import json
from typing import Any

import pytest
import yaml

from docs.generate import settings_classes, variables
from tests.house.tree import ROOT


class Loader(yaml.SafeLoader):
    """YAML with CloudFormation's tags, each read as its argument."""


Loader.add_multi_constructor("!", lambda loader, suffix, node: loader.construct_scalar(node))


@pytest.fixture(scope="module")
def resources() -> dict[str, Any]:
    document = yaml.load((ROOT / "template.yaml").read_text(), Loader)  # noqa: S506 - a safe loader, with tags
    assert document["Transform"] == "AWS::Serverless-2016-10-31"
    assert "Default" not in document["Parameters"]["ApiSecret"]
    return {name: resource["Properties"] for name, resource in document["Resources"].items()}


def test_the_handler_is_there(resources: dict[str, Any]) -> None:
    module, _, name = resources["ControlPlane"]["Handler"].rpartition(".")
    tree = ast.parse(ROOT.joinpath(*module.split(".")).with_suffix(".py").read_text())
    assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_failed_messages_come_again_and_end_among_the_dead_letters(resources: dict[str, Any]) -> None:
    function, ticks = resources["ControlPlane"], resources["Ticks"]
    source = function["Events"]["Ticks"]["Properties"]
    assert source["FunctionResponseTypes"] == ["ReportBatchItemFailures"]
    assert source["Queue"] == "Ticks.Arn"
    assert ticks["VisibilityTimeout"] >= 6 * function["Timeout"]
    assert ticks["RedrivePolicy"]["deadLetterTargetArn"] == "DeadTicks.Arn"


def test_the_schedule_is_a_sweep(resources: dict[str, Any]) -> None:
    sweep = resources["ControlPlane"]["Events"]["Sweep"]
    assert sweep["Type"] == "ScheduleV2"
    assert json.loads(sweep["Properties"]["Input"]) == {"agent": "sweep"}


def test_what_it_sets_is_read_by_a_setting_and_the_door_has_a_secret(resources: dict[str, Any]) -> None:
    names = {name for _, settings in settings_classes() for variable in variables(settings) for name in variable.names}
    told = resources["ControlPlane"]["Environment"]["Variables"]
    assert set(told) <= names
    assert told["LIVERY_API_SECRET"] == "ApiSecret"
