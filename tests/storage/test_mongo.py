"""storage.mongo and what the agent's store makes of it: replica sets, write concerns, loops, servers that are away."""

import asyncio
import gc
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from pymongo import ReadPreference, monitoring

from agent.core.errors import StoreUnavailable
from agent.edges.store_mongo import MongoStore
from storage.errors import Refused, ReplicaSetNeeded, Unavailable
from storage.mongo import Database, Mongo, Session
from tests.contracts.store_values import a_run
from tests.fixtures.mongod import Mongod, MongoPlace

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def lonely_url() -> Iterator[str]:
    """A mongod that is no replica set."""
    server = Mongod(replica_set=False)
    yield server.url
    server.stop()


async def test_a_server_without_transactions_is_named_as_what_it_is(lonely_url: str) -> None:
    store = MongoStore(lonely_url, "livery")
    for refused in (store.read_run("run_1"), store.insert_run(a_run(), (), None, ""), store.migrate(), store.now()):
        with pytest.raises(StoreUnavailable, match="replica set"):
            await refused
    await store.close()


async def test_a_transaction_on_a_server_alone_is_named_too(lonely_url: str) -> None:
    async def insert(database: Database, session: Session) -> None:
        await database.lines.insert_one({"line": "first"}, session=session)

    mongo = Mongo(lonely_url, "livery")
    with pytest.raises(ReplicaSetNeeded):
        await mongo.transaction(insert)
    await mongo.close()


# PyMongo 4.20 forgets the socket of a connection attempt that closing the client cancels.
@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
async def test_a_server_that_is_away_is_unavailable_and_its_password_is_not_told() -> None:
    store = MongoStore("mongodb://livery:s3cret@127.0.0.1:1/?timeoutMS=200", "livery")
    with pytest.raises(StoreUnavailable) as refusal:
        await store.read_run("run_1")
    assert refusal.value.retryable
    assert "s3cret" not in str(refusal.value)
    await store.close()
    gc.collect()


async def test_what_a_transaction_raises_undoes_all_of_it(mongo_place: MongoPlace) -> None:
    async def half(database: Database, session: Session) -> None:
        await database.lines.insert_one({"line": "first"}, session=session)
        raise LookupError("no second")

    mongo = Mongo(mongo_place.url, mongo_place.database)
    with pytest.raises(LookupError):
        await mongo.transaction(half)
    assert await mongo.run(lambda database: database.lines.count_documents({})) == 0
    await mongo.close()


async def test_a_transaction_that_takes_too_long_is_in_nobodys_way(mongo_place: MongoPlace) -> None:
    async def write(database: Database, session: Session) -> None:
        await database.lines.replace_one({"_id": 1}, {"line": "first"}, upsert=True, session=session)
        # The process is busy with something else until the time is over: the next word of it is not even sent.
        await asyncio.sleep(0.6)
        await database.lines.find_one({}, session=session)

    slow = Mongo(mongo_place.url, mongo_place.database, transaction_s_max=0.5)
    await slow.run(lambda database: database.lines.insert_one({"_id": 1}))
    with pytest.raises(Unavailable):
        await slow.transaction(write)
    other = Mongo(mongo_place.url, mongo_place.database)
    await other.run(lambda database: database.lines.update_one({"_id": 1}, {"$set": {"line": "second"}}))
    assert await other.run(lambda database: database.lines.find_one({"_id": 1})) == {"_id": 1, "line": "second"}
    for mongo in (slow, other):
        await mongo.close()


@pytest.mark.parametrize("options", ["w=1", "readPreference=secondaryPreferred", "w=1&journal=false"])
async def test_no_url_makes_a_write_stand_on_one_server_alone(mongo_place: MongoPlace, options: str) -> None:
    mongo = Mongo(f"{mongo_place.url}{'&' if '?' in mongo_place.url else '?'}{options}", mongo_place.database)
    database = await mongo.database()
    assert database.write_concern.document == {"w": "majority"}
    assert database.read_concern.document == {"level": "majority"}
    assert database.read_preference == ReadPreference.PRIMARY
    await mongo.close()


class Commits(monitoring.CommandListener):
    """Notes the write concern of every commit, as it goes over the wire."""

    def __init__(self) -> None:
        self.concerns: list[object] = []

    def started(self, event: monitoring.CommandStartedEvent) -> None:
        if event.command_name == "commitTransaction":
            self.concerns.append(event.command.get("writeConcern"))

    def succeeded(self, event: monitoring.CommandSucceededEvent) -> None: ...

    def failed(self, event: monitoring.CommandFailedEvent) -> None: ...


async def test_a_durable_commit_waits_for_the_journals_of_a_majority(mongo_place: MongoPlace) -> None:
    async def insert(database: Database, session: Session) -> None:
        await database.lines.insert_one({"line": "first"}, session=session)

    commits = Commits()
    mongo = Mongo(mongo_place.url, mongo_place.database, listeners=[commits])
    for durable in (False, True):
        await mongo.transaction(insert, durable=durable)
    assert commits.concerns == [{"w": "majority"}, {"w": "majority", "j": True}]
    await mongo.close()


async def test_what_the_server_does_not_take_is_refused(mongo_place: MongoPlace) -> None:
    mongo = Mongo(mongo_place.url, mongo_place.database)
    for document in ({"nul\0": 1}, {"big": 2**70}, {"half": "\ud800"}, {"long": "x" * 17_000_000}, {"_id": [1]}):
        with pytest.raises(Refused):
            await mongo.run(lambda database, document=document: database.lines.insert_one(document))
    await mongo.close()


def test_what_is_no_url_is_refused_before_anything_is_done() -> None:
    with pytest.raises(ValueError, match="URL"):
        Mongo("mongodb://[::1", "livery")


async def test_a_url_that_the_driver_does_not_take_is_unavailable() -> None:
    with pytest.raises(Unavailable):
        await Mongo("http://localhost", "livery").hello()


def test_loops_that_end_take_their_clients_with_them(mongo_place: MongoPlace) -> None:
    mongo = Mongo(mongo_place.url, mongo_place.database)
    clients = []

    async def use() -> None:
        await mongo.hello()
        clients.append((await mongo.database()).client)

    for _ in range(3):
        asyncio.run(use())
    assert len({id(client) for client in clients}) == 3
    assert all(client._closed for client in clients)


def test_a_sqlite_store_does_not_bring_the_mongo_driver() -> None:
    program = "import sys, agent.edges.store_sqlite; sys.exit('pymongo' in sys.modules or 'bson' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)
