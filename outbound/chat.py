"""
One question to an OpenAI-compatible chat endpoint, answered in the form that was asked for, or not at all.

Endpoints differ in how they keep a model to a form, and some say yes and ignore it. So the ways are tried from the
strictest to the loosest, every answer is read by the caller's own reader, and the way that worked is remembered for
the endpoint and model as long as the process lives. One round asks the model to mend an answer that cannot be used.

Whatever goes wrong is a value: a `Reply` without one, and `why`. What an endpoint says of its errors is never
repeated, because it may repeat the key.
"""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

from outbound.http import HttpClient, OutboundError
from wire import decimal_json

if TYPE_CHECKING:
    import openai

ANSWER_BYTES_MAX = 64 * 1024
TEMPERATURE = 0.2
# What endpoints answer that do not know a way of asking; other statuses speak of the key, the
# model or the day.
_UNKNOWN_FORM = frozenset({400, 404, 415, 422, 501})
_SENT_HEADERS = ("authorization", "content-type", "accept")
_REPEATED_CHARS_MAX = 2_000

Level = Literal["json_schema", "json_object", "tool"]
ValueT = TypeVar("ValueT")


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatQuestion:
    """What is asked, and the JSON Schema of the answer; `name` is what the schema and the tool are called."""

    system: str
    user: str
    name: str
    schema: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Unusable:
    """Why an answer cannot be used. `formed`: it had the form asked for, so the way of asking works."""

    problem: str
    formed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply(Generic[ValueT]):
    """`value` is None where nothing usable came, and `why` says so. `raw` is the last answer as it came."""

    value: ValueT | None
    why: str = ""
    raw: str = ""


@dataclass(frozen=True, slots=True)
class _Silent:
    """No answer to read. `form`: the endpoint does not know this way of asking."""

    why: str
    form: bool = False


Reader = Callable[[str], ValueT | Unusable]
Messages = list[dict[str, str]]

# The way that worked, by base URL and model.
_WORKING: dict[tuple[str, str], Level] = {}


def _by_schema(question: ChatQuestion) -> dict[str, Any]:
    schema = {"name": question.name, "strict": True, "schema": question.schema}
    return {"response_format": {"type": "json_schema", "json_schema": schema}}


def _by_object(question: ChatQuestion) -> dict[str, Any]:
    return {"response_format": {"type": "json_object"}}


def _by_tool(question: ChatQuestion) -> dict[str, Any]:
    function = {"name": question.name, "parameters": question.schema}
    return {
        "tools": [{"type": "function", "function": function}],
        "tool_choice": {"type": "function", "function": {"name": question.name}},
    }


_FORMS: Mapping[Level, Callable[[ChatQuestion], dict[str, Any]]] = {
    "json_schema": _by_schema,
    "json_object": _by_object,
    "tool": _by_tool,
}


class ChatEndpoint:
    """
    One model at one endpoint. It holds no connection, so any event loop may ask.

    Args:
        timeout_s: for one question in all, however many requests it takes.
    """

    def __init__(self, http: HttpClient, *, base_url: str, model: str, api_key: str, timeout_s: float) -> None:
        self._http = http
        self._base_url = base_url
        self._model = model
        self._api_key = api_key
        self._timeout_s = timeout_s

    async def ask(self, question: ChatQuestion, read: Reader[ValueT]) -> Reply[ValueT]:
        """Return what `read` made of the answer; never raises for anything the endpoint does."""
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._descend(question, read)
        except TimeoutError:
            return Reply(value=None, why=f"no answer in {self._timeout_s:g} s")

    async def _descend(self, question: ChatQuestion, read: Reader[ValueT]) -> Reply[ValueT]:
        """Ask in every way that may work until an answer can be read; then once more where none could."""
        key = (self._base_url, self._model)
        known = _WORKING.get(key)
        levels = list(_FORMS)
        why, last = "", None
        for level in levels[levels.index(known) if known else 0 :]:
            messages = _messages(question, level)
            text = await self._send(question, level, messages)
            if isinstance(text, _Silent):
                why = text.why
                if not text.form:
                    return Reply(value=None, why=why)
                if level == known:
                    _WORKING.pop(key, None)
                continue
            found = read(text)
            if not isinstance(found, Unusable):
                _WORKING[key] = level
                return Reply(value=found, raw=text)
            last = level, messages, text, found.problem
            if found.formed or level == known:
                break
        if last is None:
            return Reply(value=None, why=why)
        return await self._mend(question, read, *last)

    async def _mend(
        self, question: ChatQuestion, read: Reader[ValueT], level: Level, messages: Messages, text: str, problem: str
    ) -> Reply[ValueT]:
        told = f"That cannot be used: {problem}. Answer again with the one JSON object, and nothing else."
        again = [
            *messages,
            {"role": "assistant", "content": text[:_REPEATED_CHARS_MAX]},
            {"role": "user", "content": told},
        ]
        mended = await self._send(question, level, again)
        if isinstance(mended, _Silent):
            return Reply(value=None, why=mended.why, raw=text)
        found = read(mended)
        if isinstance(found, Unusable):
            if not found.formed:
                # It worked once and does no longer: the next question is asked in every way again.
                _WORKING.pop((self._base_url, self._model), None)
            return Reply(value=None, why=found.problem, raw=mended)
        _WORKING[self._base_url, self._model] = level
        return Reply(value=found, raw=mended)

    async def _send(self, question: ChatQuestion, level: Level, messages: Messages) -> str | _Silent:
        """Return the text of one answer."""
        # Importing the library takes a second: not on the event loop.
        await asyncio.to_thread(_library)
        from openai import APIStatusError

        try:
            answer = await self._client.chat.completions.with_raw_response.create(
                model=self._model,
                temperature=TEMPERATURE,
                messages=messages,  # type: ignore[arg-type]  # plain dicts of the roles it declares one by one
                **_FORMS[level](question),
            )
        except APIStatusError as error:
            return _Silent(f"the endpoint answered {error.status_code}", form=error.status_code in _UNKNOWN_FORM)
        except OutboundError as error:
            return _Silent(str(error))
        except Exception as error:
            # Whatever the library makes of an answer from a hostile machine: there is none.
            return _Silent(f"no answer: {type(error).__name__}")
        text = _text(answer.content)
        # What a model says is kept for people, and it may say the key.
        return text.replace(self._api_key, "***") if isinstance(text, str) and self._api_key else text

    @cached_property
    def _client(self) -> "openai.AsyncOpenAI":
        import httpx2
        from openai import AsyncOpenAI

        http, timeout_s = self._http, self._timeout_s

        class Guarded(httpx2.AsyncBaseTransport):
            """Carries the library's requests over our one way out, and nothing that the environment adds to them."""

            async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
                reply = await http.request(
                    request.method,
                    str(request.url),
                    headers={name: request.headers[name] for name in _SENT_HEADERS if name in request.headers},
                    content=await request.aread(),
                    timeout_s=timeout_s,
                    body_bytes_max=ANSWER_BYTES_MAX,
                )
                # No other header comes back: a Location is not followed, an encoded body is not inflated.
                headers = {"content-type": reply.headers.get("content-type", "")}
                return httpx2.Response(reply.status, headers=headers, content=reply.content)

        return AsyncOpenAI(
            # A model on this machine asks for no key; the library wants one all the same.
            api_key=self._api_key or "none",
            base_url=self._base_url,
            max_retries=0,
            # A proxy of the environment would be mounted before the transport.
            http_client=httpx2.AsyncClient(transport=Guarded(), trust_env=False, follow_redirects=False, timeout=None),
        )


def _library() -> None:
    import openai  # noqa: F401


def _messages(question: ChatQuestion, level: Level) -> Messages:
    user = question.user
    if level == "json_object":
        user += f"\nJSON Schema of the answer: {decimal_json.dumps(question.schema).decode()}"
    return [{"role": "system", "content": question.system}, {"role": "user", "content": user}]


def _text(content: bytes) -> str | _Silent:
    """Return what the model said in a chat completion: the arguments of its tool call, else its content."""
    try:
        message = decimal_json.loads(content)["choices"][0]["message"]
        calls = message.get("tool_calls")
        said = calls[0]["function"]["arguments"] if calls else message.get("content")
    except (ValueError, LookupError, TypeError, AttributeError):
        return _Silent("the answer is not a chat completion")
    return said if isinstance(said, str) else ""
