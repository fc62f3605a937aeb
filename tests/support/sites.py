"""Two sites with a router between them, in network namespaces: what a tunnel is for.

::

    client ─ br0 alpha eth0 ── router ── eth0 beta br0 ─ neighbour
            tap0 │
           guest-home                  (guests away are plugged into beta by the tests)

The underlay is 10.77.1.2 and fd77:1::2 on alpha, 10.77.2.2 and fd77:2::2 on beta; the guests'
segment is 192.0.2.0/24 and 2001:db8::/64.
"""

import json
import os
import select
import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

from tests.support.netns import Namespace, fresh_namespace

CLIENT_MAC, GUEST_MAC = "52:54:00:00:00:c1", "52:54:00:00:00:99"
ALPHA = {4: ip_address("10.77.1.2"), 6: ip_address("fd77:1::2")}
BETA = {4: ip_address("10.77.2.2"), 6: ip_address("fd77:2::2")}


@dataclass(frozen=True)
class Sites:
    """The hosts, the wire between them, and who is on the two segments."""

    alpha: Namespace
    beta: Namespace
    router: Namespace
    client: Namespace  # in br0 of alpha, 192.0.2.1
    neighbour: Namespace  # in br0 of beta, 192.0.2.1 as well: the other site's segment
    stack: ExitStack

    def guest(self, host: Namespace, bridge: str, address: str = "192.0.2.9") -> Namespace:
        """Plug a guest into `bridge` of `host`; a veth stands for its tap."""
        number = int(address.rsplit(".", 1)[1])
        guest = self.stack.enter_context(fresh_namespace())
        mac = f"52:54:00:00:00:{number:02d}"
        batch(
            guest,
            *cable("eth0", host, f"tap{number}", 1500, mac),
            *address_lines("eth0", f"{address}/24", f"2001:db8::{number}/64"),
        )
        batch(host, f"link set tap{number} master {bridge} up")
        return guest


def batch(place: Namespace, *lines: str) -> None:
    """Do lines of ip(8), by one process: each takes 0.1 s in user-mode Linux."""
    with place.entered():
        done = subprocess.run(
            ["ip", "-batch", "-"],
            input="\n".join(lines),
            text=True,
            capture_output=True,
            check=False,
        )
    assert done.returncode == 0, f"{lines}: {done.stderr}"


def cable(its: str, other: Namespace, others: str, mtu: int, mac: str = "") -> tuple[str, str]:
    """Return the lines that lay a cable to `other`; the far end is for the other to set up."""
    address = f"address {mac} " if mac else ""
    far = f"peer name {others} mtu {mtu} netns {other.path}"
    return f"link add {its} {address}mtu {mtu} type veth {far}", f"link set {its} up"


def address_lines(interface: str, *addresses: str) -> list[str]:
    """Return the lines that give it addresses which are good at once."""
    return [
        f"address add {address} dev {interface}{' nodad' if ':' in address else ''}"
        for address in addresses
    ]


def addressed(place: Namespace, interface: str, *addresses: str) -> None:
    """Give it addresses that are good at once."""
    batch(place, *address_lines(interface, *addresses))


@contextmanager
def two_sites(mtu: int = 1500, *, narrow: int | None = None) -> Iterator[Sites]:
    """Make `Sites` with `mtu` on the underlay; `narrow` is that of the router's second cable."""
    with ExitStack() as stack:
        alpha, beta, router, client, neighbour = (
            stack.enter_context(fresh_namespace()) for _ in range(5)
        )
        for key in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
            with router.entered():
                Path("/proc/sys/net", key).write_text("1")
        for number, host, underlay in ((1, alpha, mtu), (2, beta, narrow or mtu)):
            v4, v6 = f"10.77.{number}", f"fd77:{number}:"
            batch(
                host,
                *cable("eth0", router, f"port{number}", underlay),
                # The host believes in the wide one: only a probe finds out.
                f"link set eth0 mtu {mtu}",
                *address_lines("eth0", f"{v4}.2/24", f"{v6}:2/64"),
                "link add br0 type bridge stp_state 0 forward_delay 0 mcast_snooping 0",
                "link set br0 up",
            )
            batch(
                router,
                f"link set port{number} up",
                *address_lines(f"port{number}", f"{v4}.1/24", f"{v6}:1/64"),
            )
            batch(host, f"route add default via {v4}.1", f"route add default via {v6}:1")
        for host, place, mac in ((alpha, client, CLIENT_MAC), (beta, neighbour, "")):
            batch(
                place,
                *cable("eth0", host, "port0", 1500, mac),
                *address_lines("eth0", "192.0.2.1/24", "2001:db8::1/64"),
            )
            batch(host, "link set port0 master br0 up")
        yield Sites(alpha, beta, router, client, neighbour, stack)


def echo(
    place: Namespace,
    address: str,
    size: int = 56,
    *,
    tries: int = 3,
    patience_s: float = 1.0,
    fragment: bool = False,
) -> str:
    """Ping `address` with `size` octets of data, DF set; return "ok", "silence" or the ICMP error.

    The first tries may teach (ARP, ND); the last one counts.
    """
    said = "silence"
    target = ip_address(address)
    with place.entered(), _echo_socket(target, fragment=fragment) as wire_:
        for number in range(tries):
            said = _echo_once(wire_, target, size, number, patience_s)
            if said == "ok":
                return said
    return said


def _echo_socket(target: IPv4Address | IPv6Address, *, fragment: bool) -> socket.socket:
    if target.version == 4:
        wire_ = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
        wire_.setsockopt(socket.IPPROTO_IP, 10, 0 if fragment else 2)  # IP_MTU_DISCOVER
        return wire_
    wire_ = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
    wire_.setsockopt(socket.IPPROTO_IPV6, 23, 0 if fragment else 2)
    return wire_


def _echo_once(
    wire_: socket.socket,
    target: IPv4Address | IPv6Address,
    size: int,
    number: int,
    patience_s: float,
) -> str:
    request, reply, headers = (8, 0, 20) if target.version == 4 else (128, 129, 0)
    identity = os.getpid() & 0xFFFF
    body = struct.pack("!HH", identity, number) + b"x" * size
    octets = bytes((request, 0)) + struct.pack("!H", _sum(bytes((request, 0)) + body)) + body
    try:
        wire_.sendto(octets, (str(target), 0))
    except OSError as exc:
        return exc.strerror or str(exc)
    end = time.monotonic() + patience_s
    while (left := end - time.monotonic()) > 0:
        if not select.select([wire_], [], [], left)[0]:
            break
        try:
            answer = wire_.recv(65536)[headers:]
        except OSError as exc:
            return exc.strerror or str(exc)
        if answer[0] == reply and answer[4:8] == body[:4] and len(answer) == len(octets):
            return "ok"
    return "silence"


def _sum(octets: bytes) -> int:
    octets += b"\0" * (len(octets) % 2)
    total = sum(struct.unpack(f"!{len(octets) // 2}H", octets))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def nothing_left(place: Namespace) -> dict[str, list[str]]:
    """Return what a tunnel could leave on a host: links, filters, entries, rules."""
    # Not all of `ip link`: states and carriers of what was just made settle by themselves.
    links = json.loads(place.run("ip", "-j", "link", "show"))
    settled = ("ifindex", "ifname", "address", "mtu", "master", "ifalias", "group", "altnames")
    names = [link["ifname"] for link in links]
    shown = {
        "links": [
            " ".join(f"{key}={link.get(key)}" for key in settled) + f" up={'UP' in link['flags']}"
            for link in links
        ],
        # Of IPv6 what the kernel makes by itself comes when it likes.
        "addresses": place.run("ip", "-4", "-o", "address", "show").splitlines(),
        "routes": place.run("ip", "-4", "route", "show", "table", "all").splitlines(),
        "fdb": [
            line
            for line in place.run("bridge", "fdb", "show").splitlines()
            if ("permanent" in line or "static" in line) and not line.startswith("33:33:")
        ],
        "qdiscs": place.run("tc", "qdisc", "show").splitlines(),
    }
    lines = "\n".join(
        f"filter show dev {name} {side}" for name in names for side in ("ingress", "egress")
    )
    with place.entered():
        done = subprocess.run(["tc", "-batch", "-"], input=lines, text=True, capture_output=True)
    shown["filters"] = done.stdout.splitlines()
    return shown
