"""
Calls of tools in the text of an answer: how models write them, and how they are found while the text still comes.

A call is told once it is complete and names a tool that was offered; until then its text is held back, and what turns
out to be none stays text. So the arguments are JSON always, and the same is found wherever the pieces were cut.
"""

import json
from collections.abc import Collection
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, NamedTuple

from pydantic_core import from_json

from gpu_worker.core.inference.stops import beginning


class Call(NamedTuple):
    """`arguments` is a JSON object as text."""

    name: str
    arguments: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """
    How a kind of model writes a call.

    `opener` stands before a JSON value of one call or a list of several, `closer` behind it. An empty opener: a call
    stands at the beginning of the answer, or behind another one. `arguments` are the names of that field. A template
    that has one of `signs` in it tells its model to write so. `id_chars`: how long an id must be, None: any will do.
    """

    name: str
    opener: str = ""
    closer: str = ""
    arguments: tuple[str, ...] = ("arguments",)
    between: str = ""
    signs: tuple[str, ...] = ()
    id_chars: int | None = None

    @property
    def marks(self) -> tuple[str, ...]:
        """What must be in the text even where it is a special token of the model's."""
        return tuple(each for each in (self.opener, self.closer) if each)


FORMATS = (
    Format(name="hermes", opener="<tool_call>", closer="</tool_call>", signs=("<tool_call>",)),
    Format(name="mistral", opener="[TOOL_CALLS]", signs=("[TOOL_CALLS]",), id_chars=9),
    Format(
        name="llama3",
        arguments=("parameters", "arguments"),
        between=";",
        signs=("<|python_tag|>", '"parameters": ', "'parameters': "),
    ),
)
# What an answer is held to where a call is demanded: a list, and nothing else.
FORCED = Format(name="forced")


def format_of(template: str) -> Format | None:
    """Return how a chat template tells its model to write calls, None where it does not."""
    return next((each for each in FORMATS if any(sign in template for sign in each.signs)), None)


_SPACE = " \t\r\n"


class _State(Enum):
    TEXT = auto()  # looking for the opener
    BEHIND = auto()  # at the beginning, or behind a call: a call follows, or text
    VALUE = auto()  # behind an opener
    CLOSER = auto()  # behind a value


class CallFinder:
    """
    Tells the text of one answer apart into text and calls.

    Args:
        names: of the tools that were offered.
        most: so many calls are told, further ones are left out. None: all.
    """

    def __init__(self, form: Format, names: Collection[str], most: int | None = None) -> None:
        self.count = 0
        self._form, self._names, self._most = form, frozenset(names), most
        # What was not told; in VALUE and CLOSER all before `_at` was looked at.
        self._held, self._at = "", 0
        # What came since: a long value is not put together anew with each piece.
        self._later: list[str] = []
        self._state = _State.TEXT if form.opener else _State.BEHIND
        self._value: _Value | None = None
        self._calls: tuple[Call, ...] = ()

    def push(self, text: str, *, is_end: bool = False) -> list[str | Call]:
        """Return what is certain with `text`, in order; with `is_end` all that is left."""
        said: list[str | Call] = []
        self._later.append(text)
        if self._value is not None and not self._value.push(text) and not is_end:
            return said
        self._held += "".join(self._later)
        self._later.clear()
        while self._step(said, is_end):
            pass
        return said

    def _step(self, said: list[str | Call], is_end: bool) -> bool:
        """Go on in `_held`. Returns whether there may be more to do."""
        match self._state:
            case _State.TEXT:
                return self._in_text(said, is_end)
            case _State.BEHIND:
                return self._behind(is_end)
            case _State.VALUE:
                return self._in_value(said, is_end)
            case _State.CLOSER:
                return self._close(said, is_end)

    def _in_text(self, said: list[str | Call], is_end: bool) -> bool:
        opener = self._form.opener
        at = self._held.find(opener) if opener else -1
        if at < 0:
            keep = 0 if is_end or not opener else beginning(self._held, opener)
            self._tell(said, len(self._held) - keep)
            return False
        self._tell(said, at)
        self._enter(len(opener))
        return True

    def _behind(self, is_end: bool) -> bool:
        """What stands between two calls is not told, unless text follows it."""
        opener = self._form.opener
        rest = self._held.lstrip(_SPACE + self._form.between)
        if rest.startswith(opener or ("{", "[")):
            self._enter(len(self._held) - len(rest) + len(opener))
        elif not is_end and opener.startswith(rest):
            return False
        elif not rest and self.count:
            self._held = ""
            return False
        else:
            self._state = _State.TEXT
        return True

    def _in_value(self, said: list[str | Call], is_end: bool) -> bool:
        held = self._held
        if self._value is None:
            begin = len(held) - len(held[self._at :].lstrip(_SPACE))
            if begin < len(held) and held[begin] not in "{[":
                return self._fail(said, begin)
            if begin < len(held):
                self._at, self._value = begin, _Value(begin)
                self._value.push(held[begin:])
        end = None if self._value is None else self._value.end
        if end is None:
            return is_end and self._fail(said, len(held))
        self._value = None
        self._calls = self._read(held[self._at : end])
        self._at, self._state = end, _State.CLOSER
        return bool(self._calls) or self._fail(said, end)

    def _close(self, said: list[str | Call], is_end: bool) -> bool:
        """The end of the answer closes a call as well."""
        rest, closer = self._held[self._at :].lstrip(_SPACE), self._form.closer
        is_closed = rest.startswith(closer) or (is_end and not rest)
        if not is_closed:
            return False if closer.startswith(rest) and not is_end else self._fail(said, self._at)
        told = self._calls if self._most is None else self._calls[: max(0, self._most - self.count)]
        said += told
        self.count += len(told)
        # Without a closer the space behind may be before a text: whether it is, what follows says.
        self._held = rest.removeprefix(closer) if closer else self._held[self._at :]
        self._state = _State.BEHIND
        return True

    def _enter(self, at: int) -> None:
        self._state, self._at, self._value = _State.VALUE, at, None

    def _tell(self, said: list[str | Call], count: int) -> None:
        """Let the first `count` characters go as text."""
        if count:
            said.append(self._held[:count])
        self._held = self._held[count:]

    def _fail(self, said: list[str | Call], count: int) -> bool:
        """It is no call: the first `count` characters are text."""
        self._tell(said, count)
        self._state, self._value = _State.TEXT, None
        return True

    def _read(self, text: str) -> tuple[Call, ...]:
        """Return the calls of a JSON value, none where anything of it is no call of a tool that was offered."""
        try:
            value = from_json(text, allow_inf_nan=False)
            calls = [self._call(each) for each in (value if isinstance(value, list) else [value])]
        except ValueError:  # it is no JSON, or deeper than anyone writes
            return ()
        return tuple(each for each in calls if each is not None) if None not in calls else ()

    def _call(self, value: Any) -> Call | None:
        name = value.get("name") if isinstance(value, dict) else None
        if not isinstance(name, str) or name not in self._names:
            return None
        arguments = next((value[each] for each in self._form.arguments if each in value), None)
        if not isinstance(arguments, dict):
            return None
        # A number that is too large to be one was read as infinite: it is no JSON.
        return Call(name, json.dumps(arguments, ensure_ascii=False, allow_nan=False))


class _Value:
    """Looks for the `end` of a JSON object or list that begins at `begin`, reading every character once."""

    def __init__(self, begin: int) -> None:
        self.end: int | None = None
        self._at, self._depth = begin, 0
        self._in_string = self._is_escaped = False

    def push(self, text: str) -> bool:
        """Return whether it ends in `text`, which follows what was read."""
        for at, char in enumerate(text, self._at + 1):
            if self._in_string:
                self._in_string = self._is_escaped or char != '"'
                self._is_escaped = char == "\\" and not self._is_escaped
            elif char == '"':
                self._in_string = True
            elif char in "{[":
                self._depth += 1
            elif char in "}]":
                self._depth -= 1
                if not self._depth:
                    self.end = at
                    return True
        self._at += len(text)
        return False
