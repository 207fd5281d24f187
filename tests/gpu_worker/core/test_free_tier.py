"""The free requests of an hour: counted for each client, never more than there are, and bounded in memory."""

from collections import defaultdict

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from gpu_worker.core.inference.free_tier import CLIENTS_MAX, HOUR_S, SWEEP_S, FreeTier, client_of

CLIENTS = ("192.0.2.1", "192.0.2.2", "2001:db8::1")


class FreeTierMachine(RuleBasedStateMachine):
    """The tier beside a list of what was taken when."""

    def __init__(self) -> None:
        super().__init__()
        self.tier, self.now_s, self.count = FreeTier(3), 0.0, 0
        self.taken: dict[str, list[tuple[float, str]]] = defaultdict(list)

    def fresh(self, client: str) -> list[tuple[float, str]]:
        return [each for each in self.taken[client] if each[0] + HOUR_S > self.now_s]

    @rule(client=st.sampled_from(CLIENTS))
    def take(self, client: str) -> None:
        self.count += 1
        session = f"s{self.count}"
        expected = len(self.fresh(client)) < 3
        assert self.tier.take(client, session, self.now_s) is expected
        if expected:
            self.taken[client].append((self.now_s, session))

    @rule(client=st.sampled_from(CLIENTS), number=st.integers(0, 5))
    def give_back(self, client: str, number: int) -> None:
        known = [session for _, session in self.taken[client]]
        session = known[number] if number < len(known) else "of nobody"
        self.tier.give_back(client, session)
        self.taken[client] = [each for each in self.taken[client] if each[1] != session]

    @rule(seconds=st.sampled_from([0.5, 600.0, 1_800.0, HOUR_S]))
    def wait(self, seconds: float) -> None:
        self.now_s += seconds

    @invariant()
    def tells_what_is_left(self) -> None:
        for client in CLIENTS:
            fresh, quota = self.fresh(client), self.tier.quota(client, self.now_s)
            assert (quota.limit, quota.left) == (3, 3 - len(fresh))
            if fresh:
                waits_s = fresh[0][0] + HOUR_S - self.now_s
                assert waits_s <= quota.reset_s < waits_s + 1


TestFreeTier = FreeTierMachine.TestCase


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:0:7:1:2:3:4", "2001:db8:0:7::/64"),
        ("2001:db8:0:7::", "2001:db8:0:7::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("", ""),
        ("a name", "a name"),
    ],
)
def test_a_client_is_an_address_or_the_network_of_one(address: str, expected: str) -> None:
    assert client_of(address) == expected


def test_more_clients_than_there_is_room_for_have_none_free_until_others_are_forgotten() -> None:
    tier = FreeTier(1, clients_max=2)
    assert tier.take("192.0.2.1", "a", 0.0)
    assert tier.take("192.0.2.2", "b", 10.0)
    assert not tier.take("192.0.2.3", "c", 11.0)
    assert tier.quota("192.0.2.3", 11.0).left == 0
    assert not tier.take("192.0.2.3", "c", HOUR_S - 1)
    assert tier.take("192.0.2.3", "c", HOUR_S + SWEEP_S)
    assert CLIENTS_MAX == 65_536
