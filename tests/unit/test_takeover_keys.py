"""New keys in the middle of a job: the living side answers to the successor, and to nobody else."""

import pytest
import trio

from qmigrate.controller.keys import _make_keys
from qmigrate.core.errors import LinkBrokenError, LinkUnreachableError
from tests.support.link_pair import (
    DEADLINE_S,
    both,
    destination_spec,
    endpoints,
    linked,
    open_endpoint,
    source_spec,
)

VAIN_S = 0.6  # of dialling somebody who will not have us; what is waited for is known not to come


async def test_a_link_ends_when_new_keys_come_and_the_next_is_made_with_them() -> None:
    new = _make_keys("job-1 again")
    async with linked() as pair, trio.open_nursery() as nursery:
        pair.source.rekey(new.source)
        with pytest.raises(LinkBrokenError, match="new keys"):
            await pair.a.receive()
        successor = destination_spec(identity=new.destination, incarnation=2)
        async with open_endpoint(successor, nursery) as destination:
            pair.source.set_peer(destination.addresses)
            destination.set_peer(pair.source.addresses)
            a, b = await both(
                lambda: pair.source.connect(DEADLINE_S), lambda: destination.connect(DEADLINE_S)
            )
            await a.send(b"welcome")
            assert await b.receive() == b"welcome"


async def test_who_has_the_old_keys_is_a_stranger_from_then_on() -> None:
    new = _make_keys("job-1 again")
    async with endpoints(source_spec(), destination_spec()) as (source, destination):
        source.set_peer(destination.addresses)
        destination.set_peer(source.addresses)
        source.rekey(new.source)

        async def dial_in_vain(side: object) -> None:
            with pytest.raises(LinkUnreachableError):
                await side.connect(VAIN_S)  # type: ignore[attr-defined]

        async with trio.open_nursery() as nursery:
            nursery.start_soon(dial_in_vain, source)
            nursery.start_soon(dial_in_vain, destination)
