"""The process that sells: the mock vendors on a socket that outlives them. And the facilitator, who is never killed."""

import asyncio
import socket
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI
from pydantic import SecretStr

from bench.kill.plants import Plant
from bench.kill.points import Draw
from bench.kill.traps import Trap, trap_shop
from cashier.ports import Declined, Facilitator, Pending, Settled
from vendor_mock.config import VendorMockSettings
from vendor_mock.faults import Faults
from wire.x402 import PaymentRequirements

SECRETS = "gpu_vendor_1=first-secret,gpu_vendor_2=second-secret,gpu_vendor_3=third-secret"
FAILING = "gpu_vendor_1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Street:
    """Where a lane's sellers live: the chain, the facilitator, the vendors' address and their books."""

    rpc_url: str
    facilitator_url: str
    vendors_url: str
    database: Path

    def settings(self) -> VendorMockSettings:
        return VendorMockSettings.model_validate(
            {
                "secret": SecretStr(SECRETS),
                "rpc_url": self.rpc_url,
                "facilitator_url": self.facilitator_url,
                "database": self.database,
            }
        )


class Late:
    """A facilitator that has no final word `times` times; where it settles all the same, nobody is told."""

    def __init__(self, inner: Facilitator, times: int, is_sent: bool) -> None:
        self._inner, self._left, self._is_sent = inner, times, is_sent

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def settle(self, payload: Mapping[str, Any], asked: PaymentRequirements) -> Settled | Pending | Declined:
        if self._left == 0:
            return await self._inner.settle(payload, asked)
        self._left -= 1
        if self._is_sent:
            await self._inner.settle(payload, asked)
        return Pending()


def sell(app: FastAPI, door: socket.socket, draw: Draw, trap: Trap | None, plant: Plant) -> None:
    """Serve the vendors of `app` at `door` until the process ends."""
    shop = app.state.shop
    if draw.scene == "fails":
        shop.faults.script(FAILING, Faults(fail_at_epoch=draw.fails_at_epoch))
    if draw.scene == "late":
        late: Any = Late(shop.cashier.desk.facilitator, draw.late, draw.is_sent)
        shop.cashier.desk = replace(shop.cashier.desk, facilitator=late)
    plant.spoil_shop(shop)
    if trap is not None:
        trap_shop(shop, trap)
    serve(app, door)


def serve(app: FastAPI, door: socket.socket) -> None:
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="on"))
    asyncio.run(server.serve([door]))
