from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from chain.devchain import DevAccount, DevChain
from tests.vendor_mock.world import BASE_URL, SECRETS, Buyer
from vendor_mock.app import create_app
from vendor_mock.config import VendorMockSettings

Open = Callable[..., httpx.AsyncClient]


@pytest.fixture
async def vendors(chain: DevChain, facilitator: FastAPI, tmp_path: Path) -> AsyncIterator[Open]:
    """Yield what opens the vendors' app on one database, as a new process would; its `.app` is the app."""
    opened: list[Any] = []

    def open_app(
        *,
        plans: Any = None,
        clock: Any = None,
        transport: httpx.AsyncBaseTransport | None = None,
        files: httpx.AsyncBaseTransport | None = None,
        **settings: Any,
    ) -> httpx.AsyncClient:
        fields = {"secret": SECRETS, "rpc_url": chain.url, "database": tmp_path / "vendors.db", **settings}
        given = {} if clock is None else {"clock": clock}
        carrier = transport or httpx.ASGITransport(facilitator)
        app = create_app(VendorMockSettings(**fields), plans=plans, transport=carrier, files=files, **given)
        client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=BASE_URL)
        client.app = app  # type: ignore[attr-defined]
        opened.append(client)
        return client

    yield open_app
    for client in opened:
        await client.aclose()
        await client.app.state.shop.close()


@pytest.fixture
def buyer(vendors: Open, payer: DevAccount) -> Buyer:
    return Buyer(vendors(), payer)
