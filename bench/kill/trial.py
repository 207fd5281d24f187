"""
One trial: a process stops at a point and is killed there, SIGKILL, from outside; others go on to the end; the books are
held against chain and vendors.
"""

import asyncio
import resource
import time
from typing import Any

from bench.kill import books, buyer, plants, seller
from bench.kill.children import KILLED, Child, Phone, fork, gone_after, hear
from bench.kill.lane import Lane
from bench.kill.plants import Plant
from bench.kill.points import POINTS, Draw, Point, draw
from bench.kill.traps import Trap, stop_by
from chain.abi import quantity

# Far more than it takes: other work on the machine is not what is tried.
REACH_S = 120.0
END_S = 120.0


def trial(lane: Lane, point: str, store: str, seed: int, plant: str | None = None) -> dict[str, Any]:
    """
    Return what came of one trial: `kills` (0 where the point was not reached or somebody else ended the process), a
    count of each wrong, and in `details` what they were.
    """
    began_s, began_cpu_s = time.monotonic(), _cpu_s()
    here, drawn = POINTS[point], draw(POINTS[point], seed)
    planted = plants.NONE if plant is None else plants.PLANTS[plant]
    lane.forget_vendors()
    since = quantity(lane.chain.rpc("eth_blockNumber"))
    holders = [lane.payer.address, *lane.vendors.values()]
    before = books.balances(lane.chain, holders)
    children: dict[str, Child] = {}
    with gone_after(children):
        kills, run_id, trouble = _killed_and_ended(lane, store, here, drawn, planted, children)
        # Time was moved, or may have been by one that never said so; the next trial's is now.
        ended = children["buyer"].take("result")
        is_late = ended is None or ended["is_late"]
    after = books.balances(lane.chain, holders)
    moved = {holder: after[holder] - before[holder] for holder in holders}
    found: dict[str, int] = dict.fromkeys(books.WRONGS, 0)
    details = list(trouble)
    if run_id is None:
        found["stuck"] += 1
    else:
        heard = _audited(lane, store, run_id, since, moved)
        found |= heard["found"]
        details += heard["details"]
    if is_late:
        lane.rewind()
    found["invariants_broken"] += sum("invariant" in line for line in trouble)
    found["stuck"] += sum("stuck" in line for line in trouble)
    return {
        **{"point": point, "store": store, "seed": seed, "plant": plant, "scene": drawn.scene, "kills": kills},
        **found,
        "wrongs": sum(found.values()),
        "details": details,
        "wall_s": round(time.monotonic() - began_s, 3),
        "cpu_s": round(_cpu_s() - began_cpu_s, 3),
    }


def _killed_and_ended(
    lane: Lane, store: str, point: Point, drawn: Draw, plant: Plant, children: dict[str, Child]
) -> tuple[int, str | None, list[str]]:
    """Return how many were killed (1, or 0), the run's id and what went wrong on the way."""

    def selling(phone: Phone, trap: Trap | None) -> None:
        seller.sell(lane.shop, lane.door, drawn, trap, plant)

    def trap_of(phone: Phone) -> Trap:
        return Trap(point, drawn.call, stop_by(lambda: phone.tell(reached=point.name), phone.go))

    def first_seller(phone: Phone) -> None:
        selling(phone, trap_of(phone) if point.at == "seller" else None)

    def first_buyer(phone: Phone) -> None:
        lane.forget(store)
        _buying(lane, store, drawn, plant, phone, trap_of(phone) if point.at == "buyer" else None)

    children["seller"] = fork(first_seller)
    children["buyer"] = fork(first_buyer)
    heard = hear("reached", children, REACH_S)
    run_id: str | None = children["buyer"].take("run")
    if run_id is None or heard is None or heard[1] is None:
        return 0, run_id, [f"not reached: {heard}, {children['buyer'].said}"]
    victim = children[point.victim]
    if victim.kill() != KILLED:
        return 0, run_id, [f"the {point.victim} ended by itself: {victim.code}"]
    if point.victim == "seller":
        children["seller"] = fork(lambda phone: selling(phone, None))
    else:
        if point.at == "seller":
            children["seller"].let_go()
        children["buyer"] = fork(lambda phone: _buying(lane, store, drawn, plant, phone, None, run_id))
    heard = hear("result", {"buyer": children["buyer"]}, END_S)
    if heard is None or heard[1] is None:
        return 1, run_id, [f"stuck: the run was not brought to its end: {heard}, {children['buyer'].said}"]
    return 1, run_id, [f"invariant {line}" for line in heard[1]["broken"]]


def _buying(
    lane: Lane,
    store: str,
    drawn: Draw,
    plant: Plant,
    phone: Phone,
    trap: Trap | None,
    run_id: str | None = None,
) -> None:
    def tell(begun: str) -> None:
        phone.tell(run=begun)

    ended = asyncio.run(buyer.buy(lane.places[store].agent, lane.chain, drawn, trap, plant, tell, run_id))
    told = {"status": ended.status, "sweeps": ended.sweeps, "is_late": bool(ended.ahead)}
    phone.tell(result={**told, "broken": [str(broken) for broken in ended.broken]})


def _audited(lane: Lane, store: str, run_id: str, since: int, moved: dict[str, int]) -> dict[str, Any]:
    """Return the wrongs of the trial, read by a process that had no part in it."""

    def audit(phone: Phone) -> None:
        run, replay, results = asyncio.run(books.read_run(lane.places[store].agent, run_id))
        settlements, transfers = books.read_chain(lane.chain, since)
        seen = books.Seen(
            run=run,
            payer=lane.payer.address,
            settlements=settlements,
            transfers=transfers,
            jobs=books.read_jobs(lane.street.database),
            balances=moved,
            replay=replay,
            results=results,
        )
        found, details = books.wrongs(seen)
        phone.tell(result={"found": found, "details": details})

    children = {"audit": fork(audit)}
    with gone_after(children):
        heard = hear("result", children, REACH_S)
        if heard is None or heard[1] is None:
            return {"found": {"books_differ": 1}, "details": [f"no audit: {children['audit'].said}"]}
        result: dict[str, Any] = heard[1]
        return result


def _cpu_s() -> float:
    own, children = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime
