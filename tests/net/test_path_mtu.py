"""The path's MTU, found by packets that nobody may cut."""

import secrets

import pytest
import trio

from netsetup.errors import HostError, UsageError
from netsetup.path_mtu import NONCE_BYTES, measure, open_responder, parse_untrusted
from tests.support.sites import ALPHA, BETA, two_sites

pytestmark = pytest.mark.net

NONCE = secrets.token_bytes(NONCE_BYTES)


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize(
    ("mtu", "narrow", "expected"),
    [(1500, None, 1500), (9000, None, 9000), (9000, 1500, 1500), (1500, 1400, 1400)],
)
async def test_the_largest_packet_that_arrives_is_found(
    version: int, mtu: int, narrow: int | None, expected: int
) -> None:
    with two_sites(mtu, narrow=narrow) as sites:
        with sites.beta.entered():
            responder = open_responder(BETA[version], NONCE)
            port = await responder.__aenter__()
        try:
            with sites.alpha.entered():
                found = await measure(ALPHA[version], BETA[version], port, NONCE)
                assert (found.mtu_bytes, found.believed_bytes) == (expected, mtu)
                limited = await measure(
                    ALPHA[version], BETA[version], port, NONCE, limit_bytes=1333
                )
                assert limited.mtu_bytes == 1333
        finally:
            await responder.__aexit__(None, None, None)


async def test_a_router_that_tells_nobody_is_found_by_what_does_not_arrive() -> None:
    with two_sites(9000, narrow=1400) as sites:
        with sites.router.entered():  # a black hole: its ICMP finds no way back
            sites.router.run("ip", "rule", "add", "ipproto", "icmp", "prohibit")
        with sites.beta.entered():
            responder = open_responder(BETA[4], NONCE)
            port = await responder.__aenter__()
        try:
            with sites.alpha.entered():
                found = await measure(ALPHA[4], BETA[4], port, NONCE)
                lines = sites.alpha.run("cat", "/proc/net/snmp").splitlines()
            names, counts = (line.split() for line in lines if line.startswith("Icmp:"))
            told = dict(zip(names, counts, strict=True))
            assert told["InDestUnreachs"] == "0"
            assert found.mtu_bytes == 1400
            assert "though this host believes in 9000" in found.why
        finally:
            await responder.__aexit__(None, None, None)


async def test_silence_another_nonce_and_a_reflector_are_no_answer() -> None:
    with two_sites() as sites, sites.alpha.entered():
        async with open_responder(ALPHA[4], secrets.token_bytes(NONCE_BYTES)) as port:
            with trio.fail_after(5):
                found = await measure(ALPHA[4], ALPHA[4], port, NONCE)
        assert found.mtu_bytes is None
        assert "nobody answers" in found.why
    assert parse_untrusted(NONCE + b"\5\334", NONCE[::-1]) is None


async def test_no_route_is_said() -> None:
    with two_sites() as sites, sites.alpha.entered():
        sites.alpha.run("ip", "route", "del", "default")
        with pytest.raises(HostError, match="no route"):
            await measure(ALPHA[4], BETA[4], 9, NONCE)
        with pytest.raises(UsageError):
            await measure(ALPHA[4], BETA[4], 9, b"short")
