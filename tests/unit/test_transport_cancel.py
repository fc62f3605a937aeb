"""Cancelled at any moment, the link leaves nothing open and works the next time."""

import random

import pytest
import trio

from qmigrate.core.errors import LinkError
from qmigrate.transport import endpoint as endpoint_module
from tests.support.link_pair import DEADLINE_S, Pair, both, endpoints, linked, open_descriptors
from tests.support.netns import eventually

ROUNDS = 40
LONGEST_S = 0.008  # a connect takes about half of it


async def _until(deadline_s: float, call: object) -> object:
    """Run a call and cut it off; what it made in time is returned."""
    with trio.move_on_after(deadline_s):
        try:
            return await call()  # type: ignore[operator]
        except LinkError:
            return None
    return None


@pytest.mark.parametrize("seed", range(3))
async def test_connect(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint_module, "REVERSE_DELAY_S", 0)
    chance = random.Random(seed)  # noqa: S311 - moments, not keys
    async with endpoints() as (source, destination):
        with open_descriptors() as opened:
            source.set_peer(destination.addresses)
            destination.set_peer(source.addresses)
            for _ in range(ROUNDS):
                await both(
                    lambda: _until(chance.uniform(0, LONGEST_S), lambda: source.connect(1)),
                    lambda: _until(chance.uniform(0, LONGEST_S), lambda: destination.connect(1)),
                )
            a, b = await both(
                lambda: source.connect(DEADLINE_S), lambda: destination.connect(DEADLINE_S)
            )
            while b.generation != a.generation:  # a link that a cancelled call left comes first
                b = await destination.connect(DEADLINE_S)
            await a.send(b"whole")
            assert await b.receive() == b"whole"
            await a.aclose()
            await b.wait_ended()
            await eventually(lambda: not opened(), "all that was left half made is closed")


@pytest.mark.parametrize("seed", range(3))
async def test_data_socket(seed: int) -> None:
    chance = random.Random(seed)  # noqa: S311 - moments, not keys
    async with linked() as pair:
        with open_descriptors() as opened:
            for _ in range(ROUNDS):
                for sock in await both(
                    lambda: _data(chance.uniform(0, 0.002), pair, source=True),
                    lambda: _data(chance.uniform(0, 0.002), pair, source=False),
                ):
                    if sock is not None:
                        sock.close()  # type: ignore[attr-defined]
            for sock in await pair.data_sockets("ram"):
                sock.close()
            await eventually(lambda: not opened(), "all that was left half made is closed")
            assert not pair.source._data._expected._by_digest
            assert not pair.destination._data._expected._by_digest


async def _data(deadline_s: float, pair: Pair, *, source: bool) -> object:
    endpoint, link = (pair.source, pair.a) if source else (pair.destination, pair.b)
    return await _until(deadline_s, lambda: endpoint.data_socket(link, "ram", DEADLINE_S))
