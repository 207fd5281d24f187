"""
What a job's program and its worker say to each other where the worker's own model answers: lines of JSON, over a socket
that the program has inherited.

The worker begins: `Answered.at_once` is how many records the program may have open. Each `Asked` is answered by one
line with a `text` or with a `fault`; before it there may be others, with the tokens that were made so far.
"""

from decimal import Decimal
from typing import Literal

from pydantic import Field

from gpu_worker.core.errors import Fault
from gpu_worker.core.folder import Message
from wire.decimal_json import DecimalNumber
from wire.model import Body, Many

# A prompt or a chat; every character of it may be six in JSON.
PROMPT_CHARS_MAX = 1024 * 1024
LINE_BYTES_MAX = 8 * 1024 * 1024
# An answer has thousands of tokens at most; what makes more of it is broken.
TEXT_CHARS_MAX = 1024 * 1024


class Turn(Body):
    """One message of a chat."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str


class Asked(Body):
    """
    Record `number`: a prompt, or a chat where there are `messages`.

    Temperature 0 is greedy; chance is a function of `seed`.
    """

    number: int = Field(ge=0)
    prompt: str = ""
    messages: Many[Turn] = ()
    tokens_max: int = Field(ge=1)
    temperature: DecimalNumber = Decimal(0)
    top_p: DecimalNumber = Decimal(1)
    seed: int = Field(0, ge=0, lt=2**31)


class Answered(Body):
    """
    Of record `number`: its `text`, or whose `fault` it is that there is none; without either, how far it is.

    `tokens` were made of it so far. `at_once` stands in the first line alone.
    """

    number: int = Field(0, ge=0)
    at_once: int | None = Field(None, ge=1)
    tokens: int = Field(0, ge=0)
    text: str | None = Field(None, max_length=TEXT_CHARS_MAX)
    fault: Fault | None = None
    detail: Message | None = None
