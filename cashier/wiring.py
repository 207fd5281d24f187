"""Joins the cashier: `Cashier` is the whole door for those who sell."""

import hashlib
import logging
import secrets
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from cashier.charge import charge
from cashier.core.dialects import X402, Dialects
from cashier.core.model import Answer, PaidRequest, Price, Refund
from cashier.credit import pay_back, withdraw
from cashier.edges.chain_rpc import RpcChain, RpcSender
from cashier.edges.credit_sqlite import SqliteCredit
from cashier.edges.facilitator_http import HttpFacilitator
from cashier.edges.till_sqlite import SCHEMA, SqliteTill
from cashier.ports import Admit, Desk, HasCapacity, Start
from cashier.recover import Recovered, recover
from cashier.refund import refund
from chain.rpc import Rpc
from chain.sender import TokenSender
from chain.token import TokenReader
from outbound.http import HttpClient
from storage.sqlite import Sqlite
from wire.money import Asset

_LOG = logging.getLogger("livery.cashier")


class Cashier:
    """
    Takes payments for requests and pays refunds; see `charge`, `recover`, `refund` and `credit`.

    `credit` is the book of accounts, one for all counters.
    """

    def __init__(self, desk: Desk, db: Sqlite, counter: str = "") -> None:
        self.desk = replace(desk, till=SqliteTill(db, counter)) if counter else desk
        self.credit = SqliteCredit(db, desk.asset)
        self._db = db

    def at(self, counter: str) -> "Cashier":
        """Return the cashier of another counter of the same house: it recovers its own payments alone."""
        return Cashier(self.desk, self._db, counter)

    async def charge(
        self,
        request: PaidRequest,
        price: Price,
        has_capacity: HasCapacity,
        start: Start,
        admit: Admit | None = None,
    ) -> Answer:
        return await charge(self.desk, request, price, has_capacity, start, admit)

    async def recover(self, start: Start) -> Recovered:
        return await recover(self.desk, start)

    async def open_bodies(self) -> list[bytes]:
        """Return the bodies of the requests whose payments have no answer yet."""
        return [taking.body for taking in await self.desk.till.unfinished()]

    async def refund(self, payment_id: str, amount_atomic: int, key: str) -> str:
        return await refund(self.desk, payment_id, amount_atomic, key)

    async def withdraw(self, wanted: Refund, least_atomic: int = 1) -> tuple[int, str]:
        return await withdraw(self.desk, self.credit, wanted, least_atomic)

    async def pay_back(self, pay_to: str, least_atomic: int, idle_s: int = 0) -> int:
        return await pay_back(self.desk, self.credit, pay_to, least_atomic, idle_s)

    async def close(self) -> None:
        await self._db.close()


def open_cashier(
    *,
    asset: Asset,
    database: Path,
    facilitator_url: str,
    rpc_url: str,
    keys: Iterable[str] = (),
    facilitator_http: HttpClient | None = None,
    chain_http: HttpClient | None = None,
    now_s: Callable[[], int] = lambda: int(time.time()),
) -> Cashier:
    """
    Return a cashier that takes `asset`; making it does no I/O but importing MPP's codec.

    Args:
        keys: private keys (0x-hex) of the addresses that are paid; refunds are sent from them, and the secret
            that signs MPP's challenges is made of them. Without any, a challenge is good in this process alone.
        facilitator_http, chain_http: clients for tests; None is the network.
        now_s: Unix seconds, for leases and lapsed cheques.
    """
    keys = tuple(keys)
    rpc = Rpc(rpc_url, chain_http or HttpClient())
    db = Sqlite(database, SCHEMA)
    senders = [RpcSender(TokenSender(rpc, asset, key)) for key in keys]
    desk = Desk(
        asset=asset,
        till=SqliteTill(db),
        facilitator=HttpFacilitator(facilitator_url, facilitator_http or HttpClient()),
        chain=RpcChain(TokenReader(rpc, asset)),
        now_s=now_s,
        senders={sender.address: sender for sender in senders},
        dialects=_dialects(asset, keys),
    )
    return Cashier(desk, db)


def _dialects(asset: Asset, keys: tuple[str, ...]) -> Dialects:
    """Return x402 in both versions, and MPP where its codec is installed and whole."""
    try:
        from cashier.edges.mpp_pympp import open_mpp
    except ImportError as error:
        # Not to install it is a choice, to have it broken is not.
        is_absent = isinstance(error, ModuleNotFoundError) and error.name == "mpp"
        _LOG.log(logging.INFO if is_absent else logging.WARNING, "no payments in MPP: %s", error)
        return X402
    secret = "".join(sorted(keys)) or secrets.token_hex(32)
    mpp = open_mpp(asset, hashlib.sha256(f"livery mpp challenges {secret}".encode()).hexdigest())
    return {**X402, mpp.name: mpp}
