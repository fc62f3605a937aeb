"""Every network that has a trap in it, probed through the real kernel: the verdict is the truth."""

import pytest

from tests.support.adjacency_places import NETWORKS, built, differences, pair_on

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
