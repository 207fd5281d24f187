"""
Compiling a JSON schema, and a program that tries it first, in a process with limits of its own.

The compiler's own limits do not hold for every schema: some of a hundred characters take minutes and gigabytes, and
what has begun cannot be broken off. A process can. It knows no tokenizer but bytes, so it is there at once. It tries
the first mask alone; what a later one may cost the compiler's limits bound.
"""

import os
import subprocess
import sys
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

# Of the processor, all of the program. A schema that people write takes some hundredths.
TRIAL_CPU_S = 2
# Where the machine has no time for it.
TRIAL_S = 20.0
TRIAL_BYTES = 1 << 30
ERROR_CHARS = 300
_TOO_MUCH = 3
_TRIED = 256
_LIMITS = {
    "initial_lexer_fuel": 500_000,
    "step_lexer_fuel": 100_000,
    "step_max_items": 20_000,
    "max_lexer_states": 20_000,
    "max_grammar_size": 50_000,
    "verbose_errors": False,
}
# A line and its indent between two words of JSON: a model that says nothing but spaces would never come to an end.
_OPTIONS: Any = {"lenient": False, "whitespace_pattern": "\\n? {0,16}"}


class SchemaFault(Exception):
    """The schema cannot be used; the message says why."""


def compiled(tokens: Any, schema: str) -> Any:
    """
    Return the matcher of a schema for a tokenizer of the compiler's, its first mask made.

    Raises SchemaFault.
    """
    from llguidance import LLMatcher, LLParserLimits

    try:
        grammar = LLMatcher.grammar_from_json_schema(schema, overrides=_OPTIONS)
    except ValueError as error:
        raise SchemaFault(str(error)[:ERROR_CHARS]) from error
    matcher = LLMatcher(tokens, grammar, log_level=0, limits=LLParserLimits(**_LIMITS))
    # The first mask finds what compiling does not: a schema that nothing matches.
    matcher.is_error() or matcher.compute_bitmask()
    check(matcher)
    return matcher


def check(matcher: Any) -> None:
    """Raises SchemaFault: the matcher is broken."""
    if matcher.is_error():
        said = " ".join(matcher.get_error().split("<state>")[0].split())
        raise SchemaFault(said[:ERROR_CHARS])


@lru_cache(_TRIED)
def tried(schema: str) -> str | None:
    """
    Return why a schema is not compiled here, None where it may be. It takes a tenth of a second, or TRIAL_CPU_S.

    Raises OSError: it could not be tried; TimeoutError, which is one: the machine is too busy to say.
    """
    try:
        done = subprocess.run(  # noqa: S603
            [sys.executable, "-P", str(Path(__file__).resolve())],
            input=schema.encode("utf-8", "surrogatepass"),
            capture_output=True,
            timeout=TRIAL_S,
            check=False,
            env={"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
    except subprocess.TimeoutExpired:
        raise TimeoutError(f"the schema was not compiled within {TRIAL_S:g} s") from None
    if done.returncode < 0 or done.returncode == _TOO_MUCH:  # a limit kills by a signal
        return f"it takes more than {TRIAL_CPU_S} s or {TRIAL_BYTES >> 20} MiB to compile"
    if done.returncode:
        raise OSError(f"the trial ended with {done.returncode}")
    return done.stdout.decode("utf-8", "replace") or None


def main() -> None:
    _be_bounded()
    from llguidance import LLTokenizer

    schema = sys.stdin.buffer.read().decode("utf-8", "surrogatepass")
    try:
        compiled(LLTokenizer("byte"), schema)
    except MemoryError:
        sys.exit(_TOO_MUCH)
    except SchemaFault as why:
        sys.stdout.buffer.write(str(why).encode("utf-8", "replace"))


def _be_bounded() -> None:
    """Die by the limits below, also where nobody waits any more."""
    with suppress(ImportError, OSError, ValueError):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_CPU, (TRIAL_CPU_S, TRIAL_CPU_S))
        resource.setrlimit(resource.RLIMIT_AS, (TRIAL_BYTES, TRIAL_BYTES))


if __name__ == "__main__":
    main()
