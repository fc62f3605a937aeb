"""Every network that has a trap in it, probed through the real kernel: the verdict is the truth."""

import pytest

from netsetup.adjacency import Adjacency
from tests.support.adjacency_pair import built, differences, pair_on
from tests.support.adjacency_places import NETWORKS

pytestmark = pytest.mark.net
TRIES = 2  # `python -m tests.support.adjacency_places --tries 100` is the table


@pytest.mark.parametrize("name", NETWORKS)
async def test_the_verdict_is_what_is_true_of_the_network(name: str) -> None:
    network = NETWORKS[name]
    with built(network) as ground:
        async with pair_on(ground) as pair:
            for _ in range(TRIES):
                verdict, _, _ = await pair.probe(network)
                assert differences(verdict, network.truth) == [], verdict.why


async def test_while_stp_lets_a_port_forward_no_probe_says_that_the_segments_are_apart() -> None:
    """The state of a port before and after the last ask, and everything between."""
    network = NETWORKS["stp listens"]
    with built(network) as ground:
        beta = ground.beta
        beta.run("ip", "link", "set", "br0", "type", "bridge", "forward_delay", "200")
        beta.run("ip", "link", "set", "eth0", "down")
        beta.run("ip", "link", "set", "eth0", "up")
        seen = []
        async with pair_on(ground) as pair:
            while not seen or (seen[-1] is not Adjacency.ADJACENT and len(seen) < 10):
                verdict, _, _ = await pair.probe(network)
                seen.append(verdict.adjacency)
    assert seen[-1] is Adjacency.ADJACENT
    assert set(seen[:-1]) == {Adjacency.UNKNOWN}
