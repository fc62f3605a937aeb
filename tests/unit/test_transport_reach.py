"""What is said about a way that is blocked, and what goes into a socket that QEMU gets."""

import socket

import pytest

from qmigrate.core.model import Address, Side
from qmigrate.transport.passing import prepare_for_qemu, send_buffer_bytes
from qmigrate.transport.reach import (
    Dial,
    Reach,
    Tried,
    blocked_ways,
    explain,
    firewall_rule,
    one_way_note,
    remedy,
)

OWN = (Address("10.0.0.1", 4001),)
PEER = Address("10.0.0.2", 4002)


def _reach(*results: Dial, came_in: int = 0, listening: tuple[Address, ...] = OWN) -> Reach:
    return Reach(
        Side.SOURCE,
        tuple(Tried(PEER, result, "10.0.0.1") for result in results),
        listening,
        came_in,
    )


@pytest.mark.parametrize(
    ("reach", "ways", "step"),
    [
        (_reach(Dial.SILENT), "both directions are blocked", "on the destination"),
        (_reach(Dial.REFUSED), "both directions are blocked", "saddr 10.0.0.1 tcp dport 4002"),
        (_reach(Dial.SILENT, came_in=2), "source to destination is blocked", "on the destination"),
        (_reach(Dial.STALLED), "destination to source is blocked", "MTU"),
        (_reach(Dial.STALLED, came_in=1), "both directions are open", "MTU"),
        (_reach(Dial.STRANGER), "destination to source is blocked", "who answers at 10.0.0.2:4002"),
        (_reach(Dial.DISOWNED), "destination to source is blocked", "who answers at 10.0.0.2:4002"),
        (_reach(Dial.LEFT, came_in=1), "both directions are open", "on the source"),
        (_reach(), "both directions are blocked", "on the source"),
        (_reach(listening=()), "both directions are blocked", "--migration-address"),
    ],
)
def test_the_words_claim_what_was_seen_and_name_a_way_out(
    reach: Reach, ways: str, step: str
) -> None:
    assert blocked_ways(reach) == ways
    assert step in remedy(reach)
    said = explain(reach)
    assert "source → destination (tcp)" in said
    assert "destination → source (tcp)" in said
    assert all(f"{tried.address} {tried.result}" in said for tried in reach.tried)


@pytest.mark.parametrize(
    ("source", "like", "rule"),
    [
        (
            "10.0.0.1",
            "10.0.0.2",
            (
                "nft add rule inet filter input ip saddr 10.0.0.1 tcp dport 4002 accept"
                " | iptables -I INPUT -s 10.0.0.1 -p tcp --dport 4002 -j ACCEPT"
                ' | firewall-cmd --add-rich-rule=\'rule family="ipv4" source address="10.0.0.1"'
                ' port port="4002" protocol="tcp" accept\''
            ),
        ),
        (
            None,
            "2001:db8::2",
            (
                "nft add rule inet filter input tcp dport 4002 accept"
                " | ip6tables -I INPUT -p tcp --dport 4002 -j ACCEPT"
                ' | firewall-cmd --add-rich-rule=\'rule family="ipv6"'
                ' port port="4002" protocol="tcp" accept\''
            ),
        ),
    ],
)
def test_the_rule_can_be_pasted(source: str | None, like: str, rule: str) -> None:
    assert firewall_rule(4002, source=source, like=like) == rule


def test_a_detour_is_told_and_a_straight_way_is_not() -> None:
    assert one_way_note(_reach(Dial.LEFT)) is None
    note = one_way_note(_reach(Dial.SILENT))
    assert note == "source → destination: 10.0.0.2:4002 gave no answer; another way was found"


@pytest.mark.parametrize(
    ("rate_bps", "kernel_bytes"),
    [(None, None), (25e6, 256 * 1024), (125e6, 625_000), (1.25e9, 6_250_000)],
)
def test_the_send_buffer_holds_five_milliseconds_of_the_link(
    rate_bps: float | None, kernel_bytes: int | None
) -> None:
    size = send_buffer_bytes(rate_bps)
    assert (size and size * 2) == kernel_bytes  # the kernel doubles it, socket(7)
    if size is not None and size * 2 <= 256 * 1024:  # within any host's net.core.wmem_max
        with socket.socket() as sock:
            prepare_for_qemu(sock, send_buffer=size)
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) == kernel_bytes
