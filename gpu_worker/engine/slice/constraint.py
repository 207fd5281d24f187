"""
Output that matches a JSON schema: which tokens may come next, from the generated tokens alone.

So a stage that takes over a session knows as much as the one that is gone.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from decimal import Decimal
from functools import lru_cache
from typing import Any

import numpy as np
from pydantic_core import from_json

from gpu_worker.core.inference.codes import InferenceError
from gpu_worker.engine.slice.schema_trial import SchemaFault, check, compiled, tried

# What is known to take minutes is refused at once; what is not known is tried in a process of its own.
SCHEMA_CHARS_MAX = 32 * 1024
PATTERNS_MAX = 32
# Where several of them may have to hold for one string.
JOINT_PATTERNS_MAX = 4
BRANCHES_MAX = 16
# A multiple is found by an automaton of so many states.
MULTIPLE_MAX = 1_000
_CACHED = 64


class Grammars:
    """
    Compiles schemas for one tokenizer, each once.

    Args:
        tokenizer: one of transformers, which must be a fast one.
        vocab_size: the model's, which may be more than the tokenizer's.
        eos: the tokens that may end an output; the first is the one that the compiled grammar knows.
    """

    def __init__(self, tokenizer: Any, vocab_size: int, eos: Sequence[int]) -> None:
        from llguidance.hf import from_tokenizer

        if not eos:
            raise InferenceError("invalid_argument", "this model has no token that ends an output, so no schema can")
        try:
            self._tokens = from_tokenizer(tokenizer, n_vocab=vocab_size, eos_token=eos[0])
        except (
            Exception
        ) as error:  # a library of many kinds of tokenizers: it may raise anything for one it cannot read
            raise InferenceError("invalid_argument", "this model's tokenizer cannot be held to a schema") from error
        self.vocab_size = vocab_size
        self.eos = eos[0]
        self._compiled = lru_cache(_CACHED)(self._compile)

    def prepare(self, schema: str) -> None:
        """
        Compile a schema for the `constraint` that comes; any thread may call it, and takes its time.

        Raises InferenceError invalid_argument: the schema cannot be compiled or is too large.
        """
        self._compiled(canonical(schema))

    def constraint(self, schema: str, generated: Sequence[int] = ()) -> "Constraint":
        """
        Return the state after the tokens `generated`; at once where the schema is prepared.

        Raises:
            InferenceError: invalid_argument: the schema cannot be compiled or is too large, or the tokens do not match.
        """
        found = Constraint(self._compiled(canonical(schema)).deep_copy(), self)
        for token in generated:
            found.take(token)
        return found

    def _compile(self, schema: str) -> Any:
        check_schema(schema)
        with _told():
            return compiled(self._tokens, schema)


class Constraint:
    """What one session may still say."""

    def __init__(self, matcher: Any, grammars: Grammars) -> None:
        self._matcher = matcher
        self._grammars = grammars

    @property
    def is_over(self) -> bool:
        """Whether nothing but the end may follow."""
        return bool(self._matcher.is_stopped())

    def allowed(self, ends: Sequence[int]) -> np.ndarray:
        """
        Return which tokens may come next, [V] bool: those of `ends` where the output may end.

        Raises InferenceError invalid_argument: the schema is more than what its masks may cost.
        """
        mask = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        with _told():
            check(self._matcher)
        found: np.ndarray = np.unpackbits(mask, count=self._grammars.vocab_size, bitorder="little").view(np.bool_)
        may_end = found[self._grammars.eos]
        found[self._grammars.eos] = False
        found[list(ends)] = may_end
        return found

    def take(self, token: int) -> None:
        """Go on behind `token`. Raises InferenceError: it does not match."""
        self._matcher.consume_token(token)
        with _told():
            check(self._matcher)


def check_schema(schema: str) -> None:
    """
    Return if a schema can be compiled, which is tried in a process of its own; it is waited for.

    Raises InferenceError: invalid_argument: it cannot be; no_capacity: this machine is too busy to say.
    """
    try:
        why = tried(canonical(schema))
    except OSError as busy:  # a TimeoutError is one
        raise InferenceError("no_capacity", f"the JSON schema could not be tried: {busy}") from None
    if why is not None:
        raise InferenceError("invalid_argument", f"the JSON schema cannot be used: {why}")


def canonical(schema: str) -> str:
    """Return a schema as JSON that is nothing else besides. Raises InferenceError."""
    why = f"it has more than {SCHEMA_CHARS_MAX} characters" if len(schema) > SCHEMA_CHARS_MAX else None
    found: Any = True
    if why is None:
        try:
            found = from_json(schema, allow_inf_nan=False)
        except ValueError:
            why = "it is no JSON"  # or deeper than anyone writes
    if why is None:
        why = _flaw(found) if isinstance(found, dict | bool) else "it is neither an object nor true"
    if why is not None:
        raise InferenceError("invalid_argument", f"the JSON schema cannot be used: {why}")
    # Without spaces of the sender's, so that equal ones are compiled once.
    return json.dumps(found)


@contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except SchemaFault as fault:
        raise InferenceError("invalid_argument", f"the JSON schema cannot be used: {fault}") from fault


def _flaw(schema: Any) -> str | None:
    """Return why a schema is not given to the compiler, None where it may be."""
    patterns, branches, has_all = 0, 0, False
    nodes = [schema]
    while nodes:
        node = nodes.pop()
        if isinstance(node, list):
            nodes += node
        if not isinstance(node, dict):
            continue
        nodes += node.values()
        if "x-guidance" in node:
            return "x-guidance is the compiler's, and not told by a schema"
        patterns += isinstance(node.get("pattern"), str)
        patterns += len(node["patternProperties"]) if isinstance(node.get("patternProperties"), dict) else 0
        if isinstance(all_of := node.get("allOf"), list):
            has_all, branches = True, branches + len(all_of)
        multiple = node.get("multipleOf", 1)
        if isinstance(multiple, int | float) and not _is_small(multiple):
            return f"multipleOf has at most {MULTIPLE_MAX} steps, decimals taken as whole numbers"
    if patterns > (JOINT_PATTERNS_MAX if has_all else PATTERNS_MAX):
        return f"it has more than {PATTERNS_MAX} patterns, or beside an allOf more than {JOINT_PATTERNS_MAX}"
    return f"its allOf have more than {BRANCHES_MAX} branches" if branches > BRANCHES_MAX else None


def _is_small(multiple: float) -> bool:
    """Whether a number without its decimal point (0.25 is 25) is no more than MULTIPLE_MAX."""
    _, digits, exponent = Decimal(str(multiple)).normalize().as_tuple()
    if not isinstance(exponent, int) or abs(exponent) > len(str(MULTIPLE_MAX)) + 2:
        return False
    whole: int = int("".join(map(str, digits))) * 10 ** max(0, exponent)
    return whole <= MULTIPLE_MAX
