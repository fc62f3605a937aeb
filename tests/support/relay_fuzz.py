"""Mutated packets and frames through a relay: `python -m tests.support.relay_fuzz 1000000`.

The relay's own code with pairs of sockets in place of the wire and the port.
"""

import random
import socket
import sys
from collections import Counter

from netsetup.errors import FrameError
from netsetup.relay import Relay, RelaySockets, RelaySpec
from netsetup.wire import ipv4_header, of_one_wire, payload_untrusted
from tests.support.wire_forms import FORMS, OF_ONE_WIRE, mutated
from tests.support.wire_fuzz import WIRES, far

_IP_BYTES = 20


def fuzz_relay(times: int, seed: int) -> Counter[str]:
    """Try `times` frames out and as many packets in, shared among the wire formats."""
    chance = random.Random(seed)  # noqa: S311  to be had again, not to be secret
    frames = [*FORMS.values(), *OF_ONE_WIRE.values()]
    seen: Counter[str] = Counter()
    for wire in WIRES:
        pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM) for _ in range(3)]
        (inner, port), (outer, cable), (idle, other) = pairs
        for each in (inner, port, outer, cable):
            each.setblocking(False)
        relay = Relay(RelaySpec("fuzz", "none", wire), RelaySockets(inner, outer, idle, idle))
        for _ in range(times // len(WIRES)):
            frame = mutated(chance.choice(frames), chance)
            port.send(frame)
            relay.send()
            sent = _waiting(cable)
            assert sent == (None if of_one_wire(frame[:6]) else wire.shim + frame)
            seen["sent" if sent else "not sent"] += 1
            payload = mutated(far(wire).shim + frame, chance)
            # The kernel hands on what is from the peer and has a right header.
            cable.send(ipv4_header(far(wire), _IP_BYTES + len(payload), 1, fragment=True) + payload)
            relay.receive()
            got = _waiting(port)
            try:
                told = payload_untrusted(wire, payload)
            except FrameError:
                told = None
            assert got == (None if told is None or of_one_wire(told[:6]) else told)
            seen["got" if got else "not got"] += 1
        for each in (inner, port, outer, cable, idle, other):
            each.close()
    return seen


def _waiting(wire: socket.socket) -> bytes | None:
    try:
        return wire.recv(1 << 16)
    except BlockingIOError:
        return None


if __name__ == "__main__":
    number = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    print(dict(fuzz_relay(number, seed=int(sys.argv[2]) if len(sys.argv) > 2 else 1)))
