"""
One trial: a process stops at a point and is killed there, SIGKILL, from outside; others go on to the end; the books are
held against chain and vendors.
"""

import asyncio
import resource
import time
from collections import Counter
from typing import Any

from bench.books import read_chain, read_holds, vendor_jobs
from bench.kill import books, buyer, plants, seller
from bench.kill.children import KILLED, Child, Phone, fork, gone_after, hear
from bench.kill.lane import Lane
from bench.kill.plants import Plant
from bench.kill.points import POINTS, Draw, Point, draw
from bench.kill.traps import Trap, stop_by
from chain.abi import quantity

# What went wrong: its name, one of WRONGS or why nobody was killed, and a sentence.
Trouble = list[tuple[str, str]]

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
        kills, trouble = _killed_and_ended(lane, store, here, drawn, planted, children)
    run_id: str | None = children["buyer"].take("run")
    # Time was moved, or may have been by one that never said so; the next trial's is now.
    ended = children.get("next buyer", children["buyer"]).take("result")
    is_late = ended is None or ended["is_late"]
    trouble += [told for child in children.values() for told in _told(child)]
    after = books.balances(lane.chain, holders)
    moved = {holder: after[holder] - before[holder] for holder in holders}
    if run_id is None:
        trouble.append(("stuck", "no run was begun"))
    else:
        trouble += _audited(lane, store, run_id, since, moved)
    if is_late:
        lane.rewind()
    counts = Counter(name for name, _ in trouble)
    found = {name: counts[name] for name in books.WRONGS}
    return {
        **{"point": point, "store": store, "seed": seed, "plant": plant, "scene": drawn.scene, "kills": kills},
        **found,
        "wrongs": sum(found.values()),
        "details": [f"{name}: {detail}" for name, detail in trouble],
        "wall_s": round(time.monotonic() - began_s, 3),
        "cpu_s": round(_cpu_s() - began_cpu_s, 3),
    }


def _killed_and_ended(
    lane: Lane, store: str, point: Point, drawn: Draw, plant: Plant, children: dict[str, Child]
) -> tuple[int, Trouble]:
    """Return how many were killed (1, or 0) and what went wrong on the way; `children` are all that took part."""

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
    first = children["buyer"]
    if first.take("run") is None or heard is None or heard[1] is None:
        return 0, [("not reached", f"{heard}, {first.each('crashed')}")]
    victim = children[point.victim]
    if victim.kill() != KILLED:
        return 0, [("not killed", f"the {point.victim} ended by itself: {victim.code}")]
    going = first
    if point.victim == "seller":
        children["next seller"] = fork(lambda phone: selling(phone, None))
    else:
        if point.at == "seller":
            children["seller"].let_go()
        # What was stored last, by the victim's own word: the next one's first step is a step from there.
        last = buyer.unpacked(first.each("saved")[-1])
        going = fork(lambda phone: _buying(lane, store, drawn, plant, phone, None, last))
        children["next buyer"] = going
    heard = hear("result", {"buyer": going}, END_S)
    if heard is None or heard[1] is None:
        return 1, [("stuck", f"the run was not brought to its end: {heard}, {going.each('crashed')}")]
    return 1, []


def _told(child: Child) -> Trouble:
    """Return what a process told of while it ran, whether or not it was killed then."""
    broken = [("invariants_broken", line) for lines in child.each("broken") for line in lines]
    return broken + [("bugs", line) for lines in child.each("bugs") for line in lines]


def _buying(
    lane: Lane,
    store: str,
    drawn: Draw,
    plant: Plant,
    phone: Phone,
    trap: Trap | None,
    last: buyer.Saved | None = None,
) -> None:
    ended = asyncio.run(buyer.buy(lane.places[store].agent, lane.chain, drawn, trap, plant, phone.tell, last))
    phone.tell(result={"status": ended.status, "sweeps": ended.sweeps, "is_late": bool(ended.ahead)})


def _audited(lane: Lane, store: str, run_id: str, since: int, moved: dict[str, int]) -> Trouble:
    """Return the wrongs of the trial, read by a process that had no part in it."""
    settings = lane.places[store].settings

    def audit(phone: Phone) -> None:
        run, replay, results = asyncio.run(books.read_run(lane.places[store].agent, run_id))
        settlements, transfers = read_chain(lane.chain, since)
        seen = books.Seen(
            run=run,
            payer=lane.payer.address,
            settlements=settlements,
            transfers=transfers,
            jobs=vendor_jobs(lane.street.database),
            holds=read_holds(settings.database_url.get_secret_value(), settings.database_name),
            balances=moved,
            replay=replay,
            results=results,
        )
        phone.tell(result=books.wrongs(seen))

    children = {"audit": fork(audit)}
    with gone_after(children):
        heard = hear("result", children, REACH_S)
        if heard is None or heard[1] is None:
            return [("books_differ", f"no audit: {children['audit'].said}")]
        return [(name, detail) for name, detail in heard[1]]


def _cpu_s() -> float:
    own, children = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime
