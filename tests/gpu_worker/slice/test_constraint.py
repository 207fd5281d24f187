"""Output that matches a JSON schema: always valid, the same after a failover, and refused before it costs anything."""

import json
import sys
import time
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from transformers import PreTrainedTokenizerFast

from gpu_worker.core.inference.codes import InferenceError
from gpu_worker.core.inference.sampling import Sampling
from gpu_worker.engine.slice.constraint import SCHEMA_CHARS_MAX, Grammars
from gpu_worker.engine.slice.sampler import choose
from gpu_worker.engine.slice.voice import Voice
from tests.fixtures.schemas import SLOW
from tests.fixtures.tiny import Tiny

VOCABULARY = 300  # more than the tokenizer has, as models do
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 3},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}
SCHEMAS = {
    "person": PERSON,
    "number": {"type": "integer", "multipleOf": 25, "minimum": 0, "maximum": 1000},
    "either": {"anyOf": [{"type": "boolean"}, {"type": "null"}, {"const": "é€"}]},
    "pattern": {"type": "string", "pattern": "^[a-z]{2,4}-[0-9]{3}$"},
}


@pytest.fixture(scope="module")
def tokenizer(tiny: Tiny) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast.from_pretrained(tiny.model)


@pytest.fixture(scope="module")
def grammars(tokenizer: PreTrainedTokenizerFast) -> Grammars:
    return Grammars(tokenizer, VOCABULARY, (tokenizer.eos_token_id,))


def voice_of(grammars: Grammars, schema: Any, history: list[int], prompt_len: int, seed: int = 0) -> Voice:
    it = Sampling(schema=json.dumps(schema), seed=seed, eos=(grammars.eos,))
    return Voice(it, history, prompt_len, vocab_size=VOCABULARY, grammars=lambda: grammars)


def logits_at(seed: int, position: int) -> torch.Tensor:
    # What a model would say that knows nothing; some wish to end strings, numbers and lists, so that outputs do end.
    return torch.from_numpy(np.random.default_rng((seed, position)).normal(0, 3, (1, VOCABULARY)).astype(np.float32))


def say(voice: Voice, seed: int, begin: int, most: int = 300) -> list[int]:
    """Return the tokens that are drawn from position `begin` on, the ending one among them."""
    said: list[int] = []
    while len(said) < most:
        (choice,) = choose(logits_at(seed, begin + len(said)), [voice.draw(begin + len(said))])
        assert choice.token is not None
        voice.take(choice.token)
        said.append(choice.token)
        if choice.token in voice.ends:
            return said
    return said


@pytest.mark.parametrize("name", SCHEMAS)
@settings(max_examples=8)
@given(seed=st.integers(0, 2**32))
def test_what_is_said_matches_the_schema(grammars: Grammars, tokenizer: Any, name: str, seed: int):
    said = say(voice_of(grammars, SCHEMAS[name], [1, 2, 3], 3, seed), seed, 3)
    text = tokenizer.decode([token for token in said if token != grammars.eos])
    if said[-1] == grammars.eos:
        Draft202012Validator(SCHEMAS[name]).validate(json.loads(text))
    else:
        grammars.constraint(json.dumps(SCHEMAS[name]), said)  # the limit of tokens: a beginning of what matches


@given(seed=st.integers(0, 2**32), at=st.integers(0, 40))
@settings(max_examples=20)
def test_who_takes_over_says_the_same(grammars: Grammars, seed: int, at: int):
    undisturbed = voice_of(grammars, PERSON, [9, 9], 2, seed)
    said = say(undisturbed, seed, 2, most=60)
    at = min(at, len(said) - 1)
    replacement = voice_of(grammars, PERSON, [9, 9, *said[:at]], 2, seed)
    assert say(replacement, seed, 2 + at, most=60 - at) == said[at:]
    # And so does the same stage where it goes back.
    assert say(undisturbed, seed, 2 + at, most=60 - at) == said[at:]


def test_after_the_end_only_the_end_may_come(grammars: Grammars, tokenizer: Any):
    voice = voice_of(grammars, {"const": 1}, [], 0)
    (one,) = tokenizer("1")["input_ids"]
    allowed = voice.draw(0).allowed
    assert allowed is not None
    assert allowed[one]
    assert not allowed[grammars.eos]
    voice.take(one)
    assert np.flatnonzero(voice.draw(1).allowed).tolist() == [grammars.eos]


def test_a_session_ends_with_its_own_token(grammars: Grammars, tokenizer: Any):
    it = Sampling(schema='{"const": 1}', eos=(290, 291))
    voice = Voice(it, tokenizer("1")["input_ids"], 0, vocab_size=VOCABULARY, grammars=lambda: grammars)
    assert np.flatnonzero(voice.draw(1).allowed).tolist() == [290, 291]


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ('{"type": "strin"}', "strin"),
        ('{"type": "string", "pattern": "(?<=a)b"}', "look-around"),
        ("nope", "no JSON"),
        ("[]", "neither"),
        ('"x"', "neither"),
        ('{"type": "integer"}, "lark_grammar": "x"}] }', "no JSON"),
        ('{"$ref": "https://example.com/schema"}', "retriev"),
        ('{"$ref": "#"}', "NoExtension"),
        ('{"allOf": [{"type": "string"}, {"type": "integer"}]}', "Unsatisfiable"),
        ('{"type": "object", "not": {}}', "not"),
        ('{"type": "object", "not": {}, "x-guidance": {"lenient": true}}', "x-guidance"),
        ("[" * 100_000, "characters"),
        ('{"items":' * 2_000 + "{}" + "}" * 2_000, "cannot be used"),
        ('{"type": "string"' + " " * SCHEMA_CHARS_MAX + "}", "characters"),
    ],
    ids=[
        "unknown type",
        "look-around",
        "no JSON",
        "list",
        "text",
        "injected",
        "remote",
        "itself",
        "nothing",
        "not",
        "options",
        "long",
        "deep",
        "spaces",
    ],
)
def test_a_schema_that_cannot_be_used_is_refused_with_the_reason(grammars: Grammars, schema: str, said: str):
    with pytest.raises(InferenceError, match=said) as caught:
        grammars.constraint(schema)
    assert caught.value.code == "invalid_argument"


COSTLY: dict[str, Any] = {
    "multiple": {"type": "integer", "multipleOf": 9_999_991},
    "decimal multiple": {"type": "number", "multipleOf": 0.000001234567},
    "huge multiple": {"type": "number", "multipleOf": 1e300},
    "joint patterns": {"allOf": [{"type": "string", "pattern": f".*a.{{{at}}}b"} for at in range(30, 60)]},
    "many patterns": {"properties": {f"a{at}": {"type": "string", "pattern": f"a{{{at}}}"} for at in range(40)}},
    "pattern keys": {"type": "object", "patternProperties": {f"^{at}a": {} for at in range(40)}},
    "branches": {"allOf": [{"minProperties": at} for at in range(40)]},
}


@pytest.mark.parametrize("name", COSTLY)
def test_what_would_take_minutes_to_compile_is_refused_at_once(grammars: Grammars, name: str):
    began_s = time.process_time()
    with pytest.raises(InferenceError) as caught:
        grammars.constraint(json.dumps(COSTLY[name]))
    assert caught.value.code == "invalid_argument"
    assert time.process_time() - began_s < 1.0


def test_tokens_that_do_not_match_are_refused(grammars: Grammars, tokenizer: Any):
    with pytest.raises(InferenceError, match="satisfy"):
        voice_of(grammars, {"type": "integer"}, tokenizer("[")["input_ids"], 0)


def test_a_model_without_an_end_has_no_schemas(tokenizer: Any):
    with pytest.raises(InferenceError, match="no token that ends"):
        Grammars(tokenizer, VOCABULARY, ())


def test_a_schema_that_nobody_knew_to_be_slow_is_given_up_in_time(grammars: Grammars):
    began_s = time.process_time()
    for prepare in (grammars.prepare, grammars.constraint):
        with pytest.raises(InferenceError, match="to compile") as caught:
            prepare(json.dumps(SLOW))
        assert caught.value.code == "invalid_argument"
    # It is another process that works, and once.
    assert time.process_time() - began_s < 1.0


def test_a_prepared_schema_is_compiled_once(grammars: Grammars):
    schema = '{"enum": ["a schema of this test"]}'
    grammars.prepare(schema)
    compiled = grammars._compiled.cache_info().misses
    grammars.constraint(f" {schema} ")
    assert grammars._compiled.cache_info().misses == compiled


def test_a_schema_that_is_deeper_than_anyone_writes_ends_no_process(grammars: Grammars):
    # Libraries of chains raise the limit of recursion to this, and then the parser of the standard library crashes.
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(100_000)
    try:
        with pytest.raises(InferenceError, match="no JSON"):
            grammars.prepare("[" * (SCHEMA_CHARS_MAX - 1))
    finally:
        sys.setrecursionlimit(before)
