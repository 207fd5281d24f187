"""
Output that matches a JSON schema: which tokens may come next, from the generated tokens alone.

So a stage that takes over a session knows as much as the one that is gone.
"""

import json
from collections.abc import Sequence
from decimal import Decimal
from functools import lru_cache
from typing import Any

import numpy as np

from gpu_worker.core.inference.codes import InferenceError

# What a schema from outside may cost: some tenths of a second to compile, some tens of megabytes. The compiler has
# limits of its own; what it does not hold to them (each of these was seen to take minutes) is refused before it.
SCHEMA_CHARS_MAX = 32 * 1024
PATTERNS_MAX = 32
# Where several of them may have to hold for one string.
JOINT_PATTERNS_MAX = 4
BRANCHES_MAX = 16
# A multiple is found by an automaton of so many states.
MULTIPLE_MAX = 1_000
_LIMITS = {
    "initial_lexer_fuel": 500_000,
    "step_lexer_fuel": 100_000,
    "step_max_items": 20_000,
    "max_lexer_states": 20_000,
    "max_grammar_size": 50_000,
    "verbose_errors": False,
}
_CACHED = 64
_ERROR_CHARS = 300


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

    def constraint(self, schema: str, generated: Sequence[int] = ()) -> "Constraint":
        """
        Return the state after the tokens `generated`.

        Raises:
            InferenceError: invalid_argument: the schema cannot be compiled or is too large, or the tokens do not match.
        """
        found = Constraint(self._compiled(_canonical(schema)).deep_copy(), self)
        for token in generated:
            found.take(token)
        return found

    def _compile(self, schema: str) -> Any:
        from llguidance import LLMatcher, LLParserLimits

        try:
            grammar = LLMatcher.grammar_from_json_schema(schema, overrides={"lenient": False})
        except ValueError as error:
            raise InferenceError("invalid_argument", f"the JSON schema cannot be used: {error}") from error
        matcher = LLMatcher(self._tokens, grammar, log_level=0, limits=LLParserLimits(**_LIMITS))
        # The first mask finds what compiling does not: a schema that nothing matches.
        matcher.is_error() or matcher.compute_bitmask()
        _check(matcher)
        return matcher


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
        _check(self._matcher)
        found: np.ndarray = np.unpackbits(mask, count=self._grammars.vocab_size, bitorder="little").view(np.bool_)
        may_end = found[self._grammars.eos]
        found[self._grammars.eos] = False
        found[list(ends)] = may_end
        return found

    def take(self, token: int) -> None:
        """Go on behind `token`. Raises InferenceError: it does not match."""
        self._matcher.consume_token(token)
        _check(self._matcher)


def _canonical(schema: str) -> str:
    """Return a schema as JSON that is nothing else besides. Raises InferenceError."""
    why = f"it has more than {SCHEMA_CHARS_MAX} characters" if len(schema) > SCHEMA_CHARS_MAX else None
    found: Any = True
    if why is None:
        try:
            found = json.loads(schema)
        except (ValueError, RecursionError):
            why = "it is no JSON"  # or deeper than anyone writes
    if why is None:
        why = _flaw(found) if isinstance(found, dict | bool) else "it is neither an object nor true"
    if why is not None:
        raise InferenceError("invalid_argument", f"the JSON schema cannot be used: {why}")
    # Without spaces of the sender's, so that equal ones are compiled once.
    return json.dumps(found)


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


def _check(matcher: Any) -> None:
    if matcher.is_error():
        said = " ".join(matcher.get_error().split("<state>")[0].split())
        raise InferenceError("invalid_argument", f"the JSON schema cannot be used: {said[:_ERROR_CHARS]}")
