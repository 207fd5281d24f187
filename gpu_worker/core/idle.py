"""Why this machine earns nothing now: every reason there is, the one to mend first in front."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from gpu_worker.core.owner import Yield


@dataclass(frozen=True, slots=True, kw_only=True)
class IdleFacts:
    """
    What is known of a worker. `state` None: none runs here.

    `refunds`: for how many of them its ether will do, None: not known. `refusals` counts, by code, what was refused in
    the last day; `offers` how often somebody asked what it sells, `quotes` how often it named a price.
    """

    state: str | None
    missing_packages: tuple[str, ...] = ()
    has_key: bool = True
    refunds: int | None = None
    kinds: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    running: int = 0
    jobs_max: int = 1
    disk_room_bytes: int | None = None
    yielded: Yield | None = None
    offers: int = 0
    quotes: int = 0
    sold: int = 0
    refusals: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reason:
    """`code` is for programs; `remedy` says what to type or to do, empty where there is nothing to do."""

    code: str
    sentence: str
    remedy: str = ""


def why_idle(facts: IdleFacts) -> tuple[Reason, ...]:
    """Return why nothing is earned now, the first to mend first; a machine that works has the one reason `working`."""
    if facts.state is None:
        return (*_missing(facts), Reason(code="not_running", sentence="No worker runs here.", remedy=_START))
    if facts.running >= facts.jobs_max:
        return (Reason(code="working", sentence=f"It is not idle: it runs {_jobs(facts.running)}, all it may."),)
    reasons = (*_missing(facts), *_not_ready(facts), *_not_selling(facts), *_resting(facts), *_market(facts))
    if facts.running:
        working = Reason(code="working", sentence=f"It runs {_jobs(facts.running)} of {facts.jobs_max} that it may.")
        return (working, *(one for one in reasons if one.code not in _MARKET))
    return reasons


_START = "livery worker start"
_MARKET = {"nobody_asked", "too_dear", "unknown_here"}


def _jobs(count: int) -> str:
    return "one job" if count == 1 else f"{count} jobs"


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def _missing(facts: IdleFacts) -> tuple[Reason, ...]:
    if not facts.missing_packages:
        return ()
    names = ", ".join(facts.missing_packages)
    sentence = f"What trains is not installed: {names} cannot be found."
    return (Reason(code="not_installed", sentence=sentence, remedy="pip install 'livery[worker]'"),)


def _not_ready(facts: IdleFacts) -> tuple[Reason, ...]:
    if facts.state == "draining":
        return (Reason(code="draining", sentence="It is shutting down: it ends its jobs and takes no more."),)
    if facts.state not in ("online", "measuring", "loading", "registering", "probing"):
        return (Reason(code="gone", sentence="It has ended.", remedy=_START),)
    if facts.state != "online":
        return (Reason(code="starting", sentence=f"It is not ready yet: it is {facts.state}."),)
    return ()


def _not_selling(facts: IdleFacts) -> tuple[Reason, ...]:
    found = []
    if not facts.has_key:
        sentence = "It has no key to be paid at, so it sells nothing."
        found.append(Reason(code="no_key", sentence=sentence, remedy="livery wallet new --worker"))
    elif facts.refunds == 0:
        sentence = "Its address has no ether: it could not send a refund, so it sells nothing."
        found.append(Reason(code="no_ether", sentence=sentence, remedy="send some ether to the address it is paid at"))
    elif facts.refunds is None:
        sentence = "The chain does not answer it: nothing can be paid until it does."
        found.append(Reason(code="no_chain", sentence=sentence, remedy="LIVERY_WORKER_RPC_URL is the node it asks"))
    if not facts.kinds:
        sentence = "No kind of job is turned on: none is until you say which."
        found.append(Reason(code="no_kind", sentence=sentence, remedy="livery worker start --kinds fine_tune"))
    if facts.kinds and set(facts.kinds) != {"container"} and not facts.models:
        sentence = "It has no model: a job names one, and it must be here before."
        found.append(Reason(code="no_model", sentence=sentence, remedy="livery worker models says where they go"))
    if facts.disk_room_bytes is not None and facts.disk_room_bytes <= 0:
        sentence = "The disk is full up to the reserve that you keep."
        found.append(Reason(code="disk_full", sentence=sentence, remedy="free some, or LIVERY_WORKER_DISK_RESERVE_MB"))
    return tuple(found)


_REMEDIES = {
    "gpu": "end the program, or leave `gpu` out of LIVERY_WORKER_YIELD_ON",
    "hot": "let it cool; LIVERY_WORKER_TEMPERATURE_MAX_C is the limit",
    "power": "LIVERY_WORKER_POWER_MAX_W is the limit",
    "battery": "plug it in, or leave `battery` out of LIVERY_WORKER_YIELD_ON",
    "hours": "LIVERY_WORKER_HOURS are its hours",
}


def _resting(facts: IdleFacts) -> tuple[Reason, ...]:
    if facts.yielded is None:
        return ()
    one = facts.yielded
    sentence = f"It rests: {one.reason}."
    return (Reason(code=f"yielded_{one.cause}", sentence=sentence, remedy=_REMEDIES[one.cause]),)


# What buyers were told, and what the owner may do about it.
_REFUSED = {
    "kind_off": ("asked for kinds of jobs that are off", "LIVERY_WORKER_KINDS turns them on"),
    "model_unknown": ("asked for models that are not here", "livery worker models says which are"),
    "model_too_large": ("asked for models that do not fit", "LIVERY_WORKER_MEMORY_MAX_MB and _VRAM_MAX_MB limit them"),
    "dataset_too_large": ("came with datasets that are too large", "LIVERY_WORKER_DATASET_BYTES_MAX is the limit"),
    "requester_refused": ("came from payers that you do not name", "LIVERY_WORKER_REQUESTERS names them"),
    "no_capacity": ("came while it was busy", "LIVERY_WORKER_JOBS_MAX is how many run at once"),
    "not_selling": ("came outside its hours or below its price", "LIVERY_WORKER_HOURS and _PRICE_MIN are the limits"),
}


def _market(facts: IdleFacts) -> tuple[Reason, ...]:
    found = []
    for code, count in sorted(facts.refusals.items(), key=lambda pair: (-pair[1], pair[0])):
        what, remedy = _REFUSED.get(code, (f"were refused: {code}", ""))
        found.append(Reason(code=f"refused_{code}", sentence=f"{count} in the last day {what}.", remedy=remedy))
    if facts.quotes and not facts.sold:
        sentence = f"It named a price {_times(facts.quotes)} and nobody ever bought."
        found.append(Reason(code="too_dear", sentence=sentence, remedy="LIVERY_WORKER_PRICE_PER_HOUR is what it asks"))
    elif not facts.quotes and not facts.refusals:
        if facts.offers:
            sentence = f"Buyers looked {_times(facts.offers)} at what it sells and asked for no job."
            remedy = "look at its price and its kinds: livery worker status"
            found.append(Reason(code="nobody_asked", sentence=sentence, remedy=remedy))
        else:
            sentence = "Nobody has asked since it started: no buyer that runs knows of it."
            remedy = "on the buyer's machine: livery vendors add ID URL (livery worker status shows both)"
            found.append(Reason(code="unknown_here", sentence=sentence, remedy=remedy))
    return tuple(found)
