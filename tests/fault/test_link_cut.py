"""The link between two processes in two namespaces, cut in every way that a wire or host has."""

import signal
from collections.abc import Callable

import pytest
import trio

from qmigrate.core.errors import LinkBrokenError, LinkError
from qmigrate.transport.link import DEAD_PEER_S, PING_INTERVAL_S
from tests.net.test_link_blocked import Wire, _connect, _exchange, peers, wire
from tests.support.link_peer import Remote

pytestmark = [pytest.mark.net, pytest.mark.fault]

NOTICED_WITHIN_S = DEAD_PEER_S + 2 * PING_INTERVAL_S + 3  # 3: a loaded machine


def _reset(hosts: Wire) -> None:
    for place in (hosts.alpha, hosts.beta):
        place.run("ss", "-K", "-t", "state", "established")


def _pull(hosts: Wire) -> None:
    hosts.alpha.run("ip", "link", "set", "eth0", "down")


def _plug(hosts: Wire) -> None:
    hosts.alpha.run("ip", "link", "set", "eth0", "up")


def _nothing(hosts: Wire) -> None:
    """Undo nothing."""


@pytest.mark.parametrize(
    ("cut", "mend"),
    [
        pytest.param(_reset, _nothing, id="both ends are reset"),
        pytest.param(_pull, _plug, id="the wire is pulled"),
    ],
)
async def test_both_sides_notice_a_cut_in_time_and_link_again(
    cut: Callable[[Wire], None], mend: Callable[[Wire], None]
) -> None:
    with wire() as hosts:
        async with peers(hosts) as (source, destination):
            await _connect(source, destination)
            await _exchange(source, destination)
            cut(hosts)
            with trio.fail_after(NOTICED_WITHIN_S):
                for peer in (source, destination):
                    with pytest.raises(LinkBrokenError):
                        await peer.ask("receive")
            mend(hosts)
            a, _ = await _connect(source, destination)
            assert a["count"] == 2
            await _exchange(source, destination)


async def test_a_wire_that_comes_back_in_time_breaks_nothing() -> None:
    with wire() as hosts:
        async with peers(hosts) as (source, destination):
            await _connect(source, destination)
            _pull(hosts)
            await trio.sleep(DEAD_PEER_S / 2)  # the fault itself lasts this long
            _plug(hosts)
            with trio.fail_after(NOTICED_WITHIN_S):
                await _exchange(source, destination)


async def test_a_stopped_agent_is_noticed_and_links_again_when_it_goes_on() -> None:
    with wire() as hosts:
        async with peers(hosts) as (source, destination):
            await _connect(source, destination)
            destination.process.send_signal(signal.SIGSTOP)
            with trio.fail_after(NOTICED_WITHIN_S), pytest.raises(LinkBrokenError, match="heard"):
                await source.ask("receive")
            destination.process.send_signal(signal.SIGCONT)
            a, _ = await _connect(source, destination)
            assert a["count"] == 2
            await _exchange(source, destination)


async def test_an_agent_that_was_stopped_itself_does_not_blame_the_peer() -> None:
    with wire() as hosts:
        async with peers(hosts) as (source, destination):
            await _connect(source, destination)
            source.process.send_signal(signal.SIGSTOP)
            await trio.sleep(DEAD_PEER_S / 2)  # shorter than the peer's patience
            source.process.send_signal(signal.SIGCONT)
            with trio.fail_after(NOTICED_WITHIN_S):
                await _exchange(source, destination)


async def test_a_killed_agent_is_noticed_at_once() -> None:
    with wire() as hosts:
        async with peers(hosts) as (source, destination):
            await _connect(source, destination)
            destination.process.kill()
            with trio.fail_after(DEAD_PEER_S), pytest.raises(LinkBrokenError):
                await source.ask("receive")


async def test_a_data_connection_over_a_dead_wire_is_an_error_on_both_sides_in_time() -> None:
    with wire() as hosts:
        async with peers(hosts) as (source, destination):
            await _connect(source, destination)
            _pull(hosts)

            async def attempt(peer: Remote) -> None:
                with pytest.raises(LinkError):
                    await peer.ask("data", name="ram", say="")

            with trio.fail_after(NOTICED_WITHIN_S):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(attempt, source)
                    nursery.start_soon(attempt, destination)
