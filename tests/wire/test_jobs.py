"""What may be asked of each kind of job, and what names the work of one."""

import re
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from wire.jobs import KINDS, STEPS_DEFAULT, FineTune, index_of, input_hash, params_of, spec_hash
from wire.vendor import STEPS_MAX

URL = "https://data.example/text.jsonl.gz"
UPLOADED = "input:" + "0a" * 32


@pytest.mark.parametrize(
    ("kind", "job_params"),
    [
        ("fine_tune", {}),
        ("fine_tune", {"goal": "anything", "count": 2, "env": {"A": "b"}}),
        ("fine_tune", {"model": "tiny-llm", "dataset": UPLOADED, "params": {"method": "lora", "lora": {"rank": 4}}}),
        ("generate", {"model": "llama3.2:1b-q4_K_M", "dataset": UPLOADED}),
        ("fine_tune", {"model": "owner/model-1.5", "params": {"epochs": Decimal("0.5"), "form": "chat"}}),
        ("evaluate", {"dataset": URL}),
        ("evaluate", {"dataset": "http://127.0.0.1:8000/a.txt", "params": {"metric": "exact_match"}}),
        ("generate", {"dataset": URL, "params": {"temperature": Decimal("0.7"), "topP": Decimal("0.9")}}),
        ("container", {"params": {"image": "python:3.13-slim@sha256:" + "0a" * 32, "command": ["python", "-V"]}}),
        ("container", {"env": {"A": "b"}, "dataset": URL, "params": {"image": "python", "gpu": True}}),
    ],
)
def test_what_is_asked_survives_the_wire(kind: str, job_params: dict[str, Any]) -> None:
    read = params_of(kind, job_params)
    assert type(read) is KINDS[kind]
    assert KINDS[kind].from_json(read.to_json()) == read


@pytest.mark.parametrize(
    ("kind", "job_params", "told"),
    [
        ("train", {}, "there are no jobs of the kind 'train': there are fine_tune, evaluate, generate, container"),
        ("fine_tune", {"params": []}, "params: must be an object"),
        ("fine_tune", {"params": [1]}, "params: must be an object"),
        ("fine_tune", {"params": {"learningrate": 1}}, "learningrate: Extra inputs"),
        ("fine_tune", {"params": {"lora": {"ranks": 1}}}, "lora.ranks: Extra inputs"),
        ("fine_tune", {"params": {"steps": 1, "epochs": 1}}, "give `steps` or `epochs`, not both"),
        ("fine_tune", {"params": {"steps": 0}}, "steps: "),
        ("fine_tune", {"params": {"steps": 1_000_001}}, "steps: "),
        ("fine_tune", {"params": {"learningRate": 0}}, "learningRate: "),
        ("fine_tune", {"params": {"learningRate": "0.1"}}, "learningRate: must be a JSON number"),
        ("fine_tune", {"params": {"learningRate": float("nan")}}, "params: NaN"),
        ("fine_tune", {"params": {"sequenceLength": 131_073}}, "sequenceLength: "),
        ("fine_tune", {"params": {"evalShare": 0}}, "evalShare: "),
        ("fine_tune", {"params": {"seed": -1}}, "seed: "),
        ("fine_tune", {"params": {"lora": {"targets": ["q_proj|.*"]}}}, "lora.targets.0: "),
        ("fine_tune", {"model": "a", "params": {"model": "b"}}, "params.model: stands beside"),
        ("fine_tune", {"model": "../secrets"}, "model: "),
        ("fine_tune", {"model": "/etc/passwd"}, "model: "),
        ("fine_tune", {"model": "a/b/c"}, "model: "),
        ("fine_tune", {"model": "a/.."}, "model: "),
        ("fine_tune", {"model": "a:../b"}, "model: "),
        ("fine_tune", {"model": "a:"}, "model: "),
        ("fine_tune", {"dataset": "file:///etc/passwd"}, "dataset: "),
        ("fine_tune", {"dataset": "ftp://host/x"}, "dataset: "),
        ("fine_tune", {"dataset": "wikitext"}, "dataset: "),
        ("fine_tune", {"dataset": "input:" + "0A" * 32}, "dataset: "),
        ("fine_tune", {"dataset": URL + "\n"}, "dataset: "),
        ("evaluate", {}, "dataset: Field required"),
        ("generate", {"dataset": URL, "params": {"temperature": Decimal("2.1")}}, "temperature: "),
        ("container", {}, "image: Field required"),
        ("container", {"params": {"image": "--privileged"}}, "image: "),
        ("container", {"params": {"image": "a", "command": "rm -rf /"}}, "command: "),
    ],
)
def test_what_cannot_be_asked_is_told_by_its_name(kind: str, job_params: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=re.escape(told)) as refused:
        params_of(kind, job_params)
    assert type(refused.value) is ValueError
    assert "\n" not in str(refused.value)


def test_a_number_that_became_a_float_on_its_way_is_what_was_typed() -> None:
    read = params_of("fine_tune", {"params": {"learningRate": 0.0003, "epochs": 1.5}})
    assert isinstance(read, FineTune)
    assert (read.learning_rate, read.epochs) == (Decimal("0.0003"), Decimal("1.5"))


@pytest.mark.parametrize(
    ("asked", "sequences", "steps"),
    [
        ({}, 1_000, STEPS_DEFAULT),
        ({"steps": 7}, 1_000, 7),
        ({"epochs": 1, "batchSize": 4}, 8, 2),
        ({"epochs": 1, "batchSize": 4}, 9, 3),
        ({"epochs": Decimal("0.1"), "batchSize": 4}, 9, 1),
        ({"epochs": 3, "batchSize": 2, "accumulation": 5}, 100, 30),
        ({"epochs": 3}, 0, 1),
        ({"epochs": 1_000, "batchSize": 1}, 10**9, STEPS_MAX),
    ],
)
def test_steps_are_those_asked_for_or_whole_epochs(asked: dict[str, Any], sequences: int, steps: int) -> None:
    assert FineTune.model_validate(asked).steps_of(sequences) == steps


@pytest.mark.parametrize(("sent", "index"), [({}, 0), ({"index": 3}, 3), ({"index": 99}, 99)])
def test_the_piece_of_work_is_the_first_where_none_is_named(sent: dict[str, Any], index: int) -> None:
    assert index_of(sent) == index


@pytest.mark.parametrize("index", [-1, 100, True, "1", None, Decimal(1)])
def test_what_is_no_piece_of_work_is_refused(index: Any) -> None:
    with pytest.raises(ValueError, match=r"^index: "):
        index_of({"index": index})


def test_work_is_named_by_what_changes_its_result_and_by_nothing_else() -> None:
    def named(sha256: str | None = "0a" * 32, index: int = 0, kind: str = "fine_tune", **asked: Any) -> str:
        return spec_hash(kind, FineTune.model_validate(asked), sha256, index)

    same = {named(), named(checkpointSteps=5), named(dataset=URL), named(model="tiny-llm"), named(seed=0)}
    others = {
        named(seed=1),
        named(steps=61),
        named(learningRate=Decimal("0.002")),
        named(lora={"rank": 9}),
        named(sha256="0b" * 32),
        named(sha256=None),
        named(index=1),
        named(kind="evaluate"),
    }
    assert len(same) == 1
    assert len(others) == 8
    assert not same & others


def test_an_upload_is_known_by_its_hash() -> None:
    assert input_hash(UPLOADED) == "0a" * 32
    assert input_hash(URL) is None


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=20), inner, max_size=3),
    max_leaves=5,
)


@given(
    kind=st.sampled_from([*KINDS, "other"]),
    params=_JSON,
    name=st.sampled_from(["steps", "epochs", "lora", "model", "dataset", "image", "command", "env", "seed"]),
    value=_JSON,
)
def test_whatever_is_sent_it_is_read_or_refused_in_one_line(kind: str, params: Any, name: str, value: Any) -> None:
    for job_params in ({"params": params}, {"params": {name: value}}, {name: value}):
        try:
            read = params_of(kind, job_params)
        except ValidationError:
            raise
        except ValueError:
            continue
        assert KINDS[kind].from_json(read.to_json()) == read
