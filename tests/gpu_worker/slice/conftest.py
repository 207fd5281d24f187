from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack

import grpc
import grpc.aio
import pytest

from gpu_worker.edges.grpc.links_grpc import GrpcLinks
from tests.gpu_worker.slice.doors import Stage, stages


@pytest.fixture
async def last() -> AsyncIterator[Stage]:
    """The last slice of the toy model behind a door."""
    async with stages(stage := Stage(2, 4)):
        yield stage


@pytest.fixture
async def dial() -> AsyncIterator[Callable[[Stage], Awaitable[grpc.aio.Channel]]]:
    """Return a channel to a stage."""
    async with AsyncExitStack() as stack:

        async def channel(stage: Stage) -> grpc.aio.Channel:
            return await stack.enter_async_context(grpc.aio.insecure_channel(stage.endpoint))

        yield channel


@pytest.fixture
async def links() -> AsyncIterator[GrpcLinks]:
    found = GrpcLinks()
    yield found
    await found.close()
