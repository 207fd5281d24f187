"""What an OpenAI request is in Ollama's own API. Its OpenAI door takes neither a context length nor token ids back."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic_core import from_json

from gpu_worker.core.inference.codes import InferenceError
from wire.openai import ChatMessage, ChatRequest, CompletionRequest

# What a chat may tell its template of thinking, and the efforts that Ollama knows.
_SWITCHES = ("enable_thinking", "thinking")
_EFFORT = "reasoning_effort"
_EFFORTS = ("low", "medium", "high")
# Ollama takes a seed as a C integer, and the negative ones as chance.
_SEED_MODULUS = 2**31
# Fields of a request that go into `options` under another name, or as they are.
_OPTIONS = {
    "temperature": "temperature",
    "top_p": "top_p",
    "min_p": "min_p",
    "repetition_penalty": "repeat_penalty",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """
    What a request is served with: the variant of the model, its context, and how many tokens may follow at most.

    `keep_alive` is how long the model stays loaded after it, in Ollama's words: `10m`.
    """

    model: str
    context: int
    tokens_max: int
    thinks: bool = False
    keep_alive: str = "10m"


def tokens_max_of(wanted: int | None, usual: int | None, context: int) -> int:
    """
    Return how many tokens may follow at most.

    Raises:
        InferenceError: context_length_exceeded: so many have no room, however short the prompt is.
    """
    if wanted is None:
        return context if usual is None else min(usual, context)
    if wanted > context:
        raise InferenceError(
            "context_length_exceeded",
            f"This model's maximum context length is {context} tokens. However, you requested {wanted} tokens in the "
            "completion alone. Please reduce the length of the completion.",
        )
    return wanted


def path_and_body(request: ChatRequest | CompletionRequest, terms: Terms) -> tuple[str, dict[str, Any]]:
    """
    Return where a request is sent, and what.

    A prompt that is too long is refused there, never cut: `truncate` and `shift` are off.

    Raises:
        InferenceError: invalid_argument: something of it is not done by an Ollama.
    """
    if request.logit_bias:
        raise InferenceError("invalid_argument", "logit_bias is not done by this model's engine", "logit_bias")
    if request.ignore_eos:
        raise InferenceError("invalid_argument", "ignore_eos is not done by this model's engine", "ignore_eos")
    body: dict[str, Any] = {
        "model": terms.model,
        "stream": True,
        "truncate": False,
        "shift": False,
        "keep_alive": terms.keep_alive,
        "options": _options(request, terms),
    }
    if (schema := request.schema_text) is not None:
        body["format"] = from_json(schema)
    if isinstance(request, CompletionRequest):
        return "/api/generate", body | _completion(request)
    return "/api/chat", body | _chat(request, terms)


def _options(request: ChatRequest | CompletionRequest, terms: Terms) -> dict[str, Any]:
    """Return the options, every one of them a number but the stops. No limit is 0 there, so one token is asked for."""
    options: dict[str, Any] = {"num_ctx": terms.context, "num_predict": max(1, terms.tokens_max)}
    for field, name in _OPTIONS.items():
        if (value := getattr(request, field)) is not None:
            options[name] = float(value)
    if request.top_k is not None:
        options["top_k"] = max(0, request.top_k)
    if request.seed is not None:
        options["seed"] = request.seed % _SEED_MODULUS
    if request.stop:
        options["stop"] = list(request.stop)
    return options


def _completion(request: CompletionRequest) -> dict[str, Any]:
    prompt = request.only_prompt
    if not isinstance(prompt, str):
        raise InferenceError("invalid_argument", "this model's engine takes a prompt as text alone", "prompt")
    if not prompt:
        raise InferenceError("invalid_argument", "the prompt has no tokens", "prompt")
    return {"prompt": prompt, "raw": True, **_logprobs(request.logprobs)}


def _chat(request: ChatRequest, terms: Terms) -> dict[str, Any]:
    body: dict[str, Any] = {"messages": messages_of(request.messages), **_logprobs(request.logprobs_count)}
    if request.offered_tools:
        body["tools"] = [tool.for_template() for tool in request.offered_tools]
    think = _think(request.chat_template_kwargs or {})
    if think is not None and terms.thinks:
        body["think"] = think
    return body


def _logprobs(count: int | None) -> dict[str, Any]:
    return {} if count is None else {"logprobs": True, "top_logprobs": count}


def _think(told: Mapping[str, Any]) -> bool | str | None:
    """Return what a chat tells its template of thinking, None: nothing. Raises InferenceError: it tells more."""
    known = all(isinstance(told[name], bool) for name in _SWITCHES if name in told)
    if not known or set(told) - {*_SWITCHES, _EFFORT} or told.get(_EFFORT, "none") not in ("none", *_EFFORTS):
        options = f"{', '.join(_SWITCHES)} as bool, {_EFFORT} as none, {', '.join(_EFFORTS)}"
        raise InferenceError("invalid_argument", f"a template may be told {options}", "chat_template_kwargs")
    if _EFFORT in told:
        effort: str = told[_EFFORT]
        return False if effort == "none" else effort
    return next((bool(told[name]) for name in _SWITCHES if name in told), None)


def messages_of(messages: Sequence[ChatMessage]) -> list[dict[str, Any]]:
    """
    Return a chat's messages. Ollama wants to hear which tool a result is of, and arguments as objects.

    Raises:
        InferenceError: invalid_argument: the arguments of a call are no object.
    """
    told: list[dict[str, Any]] = []
    tools: dict[str | None, str] = {}
    for message in messages:
        plain = message.for_template()
        body = {"role": plain["role"], "content": plain["content"]}
        if "reasoning_content" in plain:
            body["thinking"] = plain["reasoning_content"]
        if calls := plain.get("tool_calls"):
            body["tool_calls"] = [_call(call, at) for at, call in enumerate(calls)]
            tools |= {call["id"]: call["function"]["name"] for call in calls if call["id"]}
        if message.role == "tool":
            named = {"tool_call_id": message.tool_call_id, "tool_name": message.name or tools.get(message.tool_call_id)}
            body |= {key: value for key, value in named.items() if value}
        told.append(body)
    return told


def _call(call: dict[str, Any], at: int) -> dict[str, Any]:
    name, arguments = call["function"]["name"], call["function"]["arguments"]
    if arguments == "":
        arguments = {}
    if not isinstance(arguments, dict):
        raise InferenceError("invalid_argument", f"the arguments of the call of {name[:100]} are no object", "messages")
    return {"id": call["id"] or "", "function": {"index": at, "name": name, "arguments": arguments}}
