"""An echo request whose size and DF bit a test chooses; busybox's ping knows no DF."""

import os
import select
import socket
import struct
import time
from itertools import count

_IP_MTU_DISCOVER = 10
_PMTUDISC = {False: 0, True: 2}  # DONT, DO: <linux/in.h>
_sequence = count(1)


def answers(
    address: str,
    *,
    size_bytes: int = 84,
    df: bool = False,
    ttl: int = 64,
    tries: int = 3,
    wait_s: float = 1.0,
) -> bool:
    """Tell whether `address` answers an IPv4 echo of `size_bytes` in all, headers included.

    Asked from the thread's namespace. With a `ttl` of 1 no router passes it on. A size that the
    route's own link refuses is no answer.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as sock:
        sock.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _PMTUDISC[df])
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, ttl)
        for _ in range(tries):
            request = _echo(os.getpid() & 0xFFFF, next(_sequence) & 0xFFFF, size_bytes - 28)
            try:
                sock.sendto(request, (address, 0))
            except OSError:  # EMSGSIZE once the path is known, EHOSTUNREACH from a router
                continue
            if _heard(sock, request, size_bytes, wait_s):
                return True
    return False


def _heard(sock: socket.socket, request: bytes, size_bytes: int, wait_s: float) -> bool:
    until = time.monotonic() + wait_s
    while (left_s := until - time.monotonic()) > 0 and select.select([sock], [], [], left_s)[0]:
        packet = sock.recv(65536)
        icmp = packet[(packet[0] & 15) * 4 :]
        if icmp[0] == 0 and icmp[4:] == request[4:] and len(packet) == size_bytes:
            return True
    return False


def _echo(identifier: int, sequence: int, data_bytes: int) -> bytes:
    """Return an ICMP echo request (RFC 792)."""
    rest = struct.pack("!HH", identifier, sequence) + bytes(range(256)) * 300
    rest = rest[: 4 + data_bytes]
    words = b"\x08\x00" + rest + b"\0" * (data_bytes % 2)
    total = sum(struct.unpack(f"!{len(words) // 2}H", words))
    total = (total & 0xFFFF) + (total >> 16)
    checksum = ~(total + (total >> 16)) & 0xFFFF
    return struct.pack("!BBH", 8, 0, checksum) + rest
