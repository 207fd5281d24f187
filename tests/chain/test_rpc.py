"""JSON-RPC against nodes that answer anything."""

import asyncio
from typing import Any

import httpx
import pytest

from chain.devchain import DevChain
from chain.errors import RpcRefused, RpcUnavailable
from chain.rpc import Rpc
from outbound.http import HttpClient
from wire import decimal_json


def node(status: int, content: bytes) -> Rpc:
    return Rpc("http://node", HttpClient(httpx.MockTransport(lambda _: httpx.Response(status, content=content))))


def body(**fields: Any) -> bytes:
    return decimal_json.dumps({"jsonrpc": "2.0", **fields})


async def test_the_result_of_the_call_is_returned_whatever_it_is() -> None:
    assert await node(200, body(id=1, result=None)).call("eth_x") is None
    assert await node(200, body(id=1, result=["0x1"])).call("eth_x") == ["0x1"]


async def test_each_call_bears_another_id() -> None:
    asked: list[Any] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(decimal_json.loads(request.content))
        return httpx.Response(200, content=body(id=asked[-1]["id"], result=True))

    rpc = Rpc("http://node", HttpClient(httpx.MockTransport(answer)))
    await asyncio.gather(rpc.call("eth_x", "0x1", {"a": 1}), rpc.call("eth_y"))
    assert {call["id"] for call in asked} == {1, 2}
    first = next(call for call in asked if call["id"] == 1)
    assert first == {"jsonrpc": "2.0", "id": 1, "method": "eth_x", "params": ["0x1", {"a": 1}]}


@pytest.mark.parametrize("status", [200, 400])
@pytest.mark.parametrize("number", [1, None])
async def test_an_error_of_the_node_is_a_refusal_with_its_code_and_words(status: int, number: int | None) -> None:
    with pytest.raises(RpcRefused, match="eth_x: execution reverted") as caught:
        await node(status, body(id=number, error={"code": 3, "message": "execution reverted"})).call("eth_x")
    assert (caught.value.rpc_code, caught.value.retryable) == (3, False)


@pytest.mark.parametrize(
    ("status", "content"),
    [
        (200, body(id=2, result=1)),
        (200, body(id=True, result=1)),
        (200, body(id="1", result=1)),
        (200, body(result=1)),
        (200, body(id=1)),
        (200, body(id=1, error="no")),
        (200, b"[]"),
        (200, b"null"),
        (200, b"<html>"),
        (429, body(id=1, error={"code": -32005, "message": "slow down"})),
        (503, body(id=1, result=1)),
        (200, b"x" * (8 * 1024 * 1024 + 1)),
    ],
)
async def test_anything_else_is_unavailable_and_may_be_tried_again(status: int, content: bytes) -> None:
    with pytest.raises(RpcUnavailable) as caught:
        await node(status, content).call("eth_x")
    assert caught.value.retryable


async def test_a_node_that_is_not_there_is_unavailable() -> None:
    with pytest.raises(RpcUnavailable):
        await Rpc("http://127.0.0.1:9", HttpClient()).call("eth_chainId")


def test_one_rpc_serves_two_event_loops_in_turn(chain: DevChain) -> None:
    rpc = Rpc(chain.url, HttpClient())
    assert [asyncio.run(rpc.call("eth_chainId")) for _ in range(2)] == ["0x14a34", "0x14a34"]
