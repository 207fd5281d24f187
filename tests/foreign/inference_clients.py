"""
Clients of inference that others wrote, each asked to do one thing; run by the Python that has them.

    python inference_clients.py CLIENT URL MODEL KEY

prints one JSON object of what the client made of the answers.
"""

import asyncio
import json
import sys
from typing import Any

HELLO = [{"role": "user", "content": "Say a word."}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Oslo", "Rome"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}


def openai_sync(url: str, model: str, key: str) -> dict[str, Any]:
    import openai
    from pydantic import BaseModel

    class City(BaseModel):
        capital: bool

    client = openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0)
    chat = client.chat.completions.create(model=model, messages=HELLO, max_tokens=8, seed=1, logprobs=True)
    parsed = client.chat.completions.parse(model=model, messages=HELLO, max_tokens=256, response_format=City)
    called = client.chat.completions.create(
        model=model, messages=HELLO, max_tokens=256, tools=[WEATHER], tool_choice="required", parallel_tool_calls=False
    )
    plain = client.completions.create(model=model, prompt="Once", max_tokens=8, echo=True)
    try:
        client.chat.completions.create(model="nobody", messages=HELLO)
        missing = None
    except openai.NotFoundError as error:
        missing = error.code
    return {
        "models": [each.id for each in client.models.list()],
        "model": client.models.retrieve(model).id,
        "text": chat.choices[0].message.content,
        "usage": chat.usage.completion_tokens,
        "logprobs": len(chat.choices[0].logprobs.content),
        "parsed": type(parsed.choices[0].message.parsed.capital).__name__,
        "call": json.loads(called.choices[0].message.tool_calls[0].function.arguments),
        "finish": called.choices[0].finish_reason,
        "plain": plain.choices[0].text,
        "missing": missing,
    }


def openai_async(url: str, model: str, key: str) -> dict[str, Any]:
    import openai

    async def ask() -> dict[str, Any]:
        client = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0)
        wanted: Any = {"model": model, "messages": HELLO, "max_tokens": 12, "temperature": 0.0}
        stream = await client.chat.completions.create(stream=True, stream_options={"include_usage": True}, **wanted)
        chunks = [chunk async for chunk in stream]
        whole = await client.chat.completions.create(**wanted)
        return {
            "streamed": "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices),
            "whole": whole.choices[0].message.content,
            "usage": chunks[-1].usage.total_tokens == whole.usage.total_tokens,
            "finish": chunks[-2].choices[0].finish_reason,
            "ids": len({chunk.id for chunk in chunks}),
        }

    return asyncio.run(ask())


def langchain(url: str, model: str, key: str) -> dict[str, Any]:
    from langchain_openai import ChatOpenAI

    chat = ChatOpenAI(base_url=f"{url}/v1", api_key=key, model=model, max_tokens=256, temperature=0, max_retries=0)
    schema = {
        "title": "City",
        "type": "object",
        "properties": {"capital": {"type": "boolean"}},
        "required": ["capital"],
    }
    said = chat.invoke("Say a word.")
    called = chat.bind_tools([WEATHER], tool_choice="weather").invoke("Say a word.")
    return {
        "text": said.content,
        "usage": said.usage_metadata["output_tokens"],
        "streamed": "".join(part.content for part in chat.stream("Say a word.")),
        "structured": chat.with_structured_output(schema).invoke("Say a word."),
        "call": called.tool_calls[0]["args"],
    }


def litellm(url: str, model: str, key: str) -> dict[str, Any]:
    import litellm

    wanted: Any = {"model": f"openai/{model}", "api_base": f"{url}/v1", "api_key": key, "max_tokens": 8}
    said = litellm.completion(messages=HELLO, temperature=0, **wanted)
    parts = list(litellm.completion(messages=HELLO, temperature=0, stream=True, **wanted))
    plain = litellm.text_completion(prompt="Once", **{**wanted, "model": f"text-completion-openai/{model}"})
    try:
        litellm.completion(messages=[{"role": "user", "content": "x" * 4_000_000}], **wanted)
        refused = None
    except litellm.ContextWindowExceededError:
        refused = "ContextWindowExceededError"
    return {
        "text": said.choices[0].message.content,
        "usage": said.usage.completion_tokens,
        "finish": said.choices[0].finish_reason,
        "streamed": "".join(part.choices[0].delta.content or "" for part in parts),
        "plain": plain.choices[0].text,
        "refused": refused,
    }


CLIENTS = {each.__name__: each for each in (openai_sync, openai_async, langchain, litellm)}

if __name__ == "__main__":
    name, *told = sys.argv[1:]
    print(json.dumps(CLIENTS[name](*told)))
