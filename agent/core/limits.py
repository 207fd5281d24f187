"""How long the agent waits, how often it tries, when it gives up."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """
    Durations in seconds.

    A job that its vendor is silent about is lost when `misses_max` of the polls that are kept (`core.evidence`) failed
    and none was answered for `missed_s_max`. One that was paid for, and that nobody could ask for, is given up as long
    after its cheque's end; where the vendor says that it has none, after `unserved_sends_max` sends. A job is cancelled
    `overdue_s` after the hours that were paid for, and given up `missed_s_max` after that if the vendor goes on. One
    tick fetches artifacts for `artifacts_s`, none above `artifact_bytes_max`. Vendors are asked for jobs that nobody
    wants every `orphans_interval_s`; one that ended in our books is left alone for `orphan_grace_s`, the time of the
    ticks and of the vendor itself.
    """

    lease_s: int = 60
    poll_interval_s: int = 5
    attempts_max: int = 10
    misses_max: int = 18
    missed_s_max: int = 600
    unserved_sends_max: int = 10
    refund_wait_s: int = 60
    refund_days_max: int = 7
    overdue_s: int = 3_600
    artifacts_s: int = 30
    artifact_bytes_max: int = 1024**3
    orphans_interval_s: int = 120
    orphan_grace_s: int = 60
