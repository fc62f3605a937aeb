"""Which addresses a guest has, from what it says on its own tap; nothing is asked of it.

ARP and ND are rare and are all read. Of other packets a sample is: their filter passes only what
the sender did not merely forward, the socket's buffer is small and the reader pauses, so that a
guest that sends a million packets a second costs a filter run each and no more.
"""

import itertools
from errno import ENETDOWN
from functools import partial
from typing import Self

import trio
from trio.socket import SocketType

from netsetup.errors import FrameError
from netsetup.frames import (
    ETHERTYPE_ARP,
    ETHERTYPE_IPV4,
    ETHERTYPE_IPV6,
    FRESH_HOPS,
    ICMPV6,
    NEIGHBOUR_ADVERTISEMENT,
    NEIGHBOUR_SOLICITATION,
    Address,
    Sighting,
    parse_mac,
    sighting_untrusted,
)
from netsetup.packets import CONTROL_BYTES, Program, listen, stripped_vlan

MAX_ADDRESSES = 16  # a family; a guest that claims more is scanning, or is a router
BATCH_FRAMES = 32  # then a pause of
PAUSE_S = 0.1  # which bounds the work to 320 frames a second
_SNAP_BYTES = 256  # the longest honest ND message is shorter
_BUFFER_BYTES = 32 * 1024

# Classic BPF: load a word, half or byte; jump if equal, or always; return so many octets.
_LOADS = {4: 0x20, 2: 0x28, 1: 0x30}
_JUMP_EQUAL, _JUMP, _RETURN = 0x15, 0x05, 0x06

# Offset, size, and the values of which the field must have one.
_Test = tuple[int, int, tuple[int, ...]]


def assemble(alternatives: list[list[_Test]]) -> list[tuple[int, int, int, int]]:
    """Return the instructions (code, true, false, k) that pass what passes all of one list."""
    program: list[tuple[int, int, int, int]] = []
    for tests in alternatives:
        left = sum(2 + len(values) for _, _, values in tests) + 1
        for offset, size, values in tests:
            program.append((_LOADS[size], 0, 0, offset))
            for place, value in enumerate(values):
                program.append((_JUMP_EQUAL, len(values) - place, 0, value))
            left -= 2 + len(values)
            program.append((_JUMP, 0, 0, left))  # none of them: to the next alternative
        program.append((_RETURN, 0, 0, _SNAP_BYTES))
    return [*program, (_RETURN, 0, 0, 0)]


def discovery_filter(mac: bytes) -> list[tuple[int, int, int, int]]:
    """Pass ARP and neighbour discovery from `mac`."""
    return assemble(
        [
            [*_sent_by(mac), (12, 2, (ETHERTYPE_ARP,))],
            [
                *_sent_by(mac),
                (12, 2, (ETHERTYPE_IPV6,)),
                (20, 1, (ICMPV6,)),
                (54, 1, (NEIGHBOUR_SOLICITATION, NEIGHBOUR_ADVERTISEMENT)),
            ],
        ]
    )


def packet_filter(mac: bytes) -> list[tuple[int, int, int, int]]:
    """Pass IPv4 and IPv6 from `mac` that it has not forwarded for somebody else."""
    hops = tuple(sorted(FRESH_HOPS))
    return assemble(
        [
            [*_sent_by(mac), (12, 2, (ETHERTYPE_IPV4,)), (22, 1, hops)],
            [*_sent_by(mac), (12, 2, (ETHERTYPE_IPV6,)), (21, 1, hops)],
        ]
    )


def _sent_by(mac: bytes) -> tuple[_Test, _Test]:
    return (6, 4, (int.from_bytes(mac[:4]),)), (10, 2, (int.from_bytes(mac[4:]),))


class AddressWatch:
    """An async iterator of `Sighting`, each address once, the first evidence of it.

    It ends when `MAX_ADDRESSES` of both families are known or the tap has gone down.
    """

    def __init__(self, mac: bytes) -> None:
        self._mac = mac
        self._seen: dict[tuple[Address, int | None], Sighting] = {}
        self._give, self._take = trio.open_memory_channel[Sighting](2 * MAX_ADDRESSES)
        self._scope = trio.CancelScope()

    @property
    def sightings(self) -> tuple[Sighting, ...]:
        """All that were seen so far."""
        return tuple(self._seen.values())

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Sighting:
        try:
            return await self._take.receive()
        except trio.EndOfChannel:
            raise StopAsyncIteration from None

    def close(self) -> None:
        """Stop watching; `sightings` stay."""
        self._scope.cancel()

    async def _run(self, discovery: SocketType, packets: SocketType) -> None:
        with self._give, discovery, packets, self._scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(partial(self._read, discovery, sampled=False))
                nursery.start_soon(partial(self._read, packets, sampled=True))

    async def _read(self, sock: SocketType, *, sampled: bool) -> None:
        for count in itertools.count(1):
            try:
                frame, control, _, _ = await sock.recvmsg(_SNAP_BYTES, CONTROL_BYTES)
            except OSError as exc:
                if exc.errno == ENETDOWN:
                    break
                raise
            self._note(frame, stripped_vlan(control))
            if self._full():
                break
            if sampled and count % BATCH_FRAMES == 0:
                await trio.sleep(PAUSE_S)
        self.close()

    def _note(self, frame: bytes, vlan: int | None) -> None:
        try:
            sighting = sighting_untrusted(frame, self._mac, vlan=vlan)
        except FrameError:
            return  # the guest may send what it likes
        if sighting is None or (sighting.address, sighting.vlan) in self._seen:
            return
        if self._count(sighting.address.version) < MAX_ADDRESSES:
            self._seen[sighting.address, sighting.vlan] = sighting
            self._give.send_nowait(sighting)  # never full: it holds as many as are ever given

    def _count(self, version: int) -> int:
        return sum(address.version == version for address, _ in self._seen)

    def _full(self) -> bool:
        return all(self._count(version) >= MAX_ADDRESSES for version in (4, 6))


def learn_addresses(nursery: trio.Nursery, tap: str, mac: str) -> AddressWatch:
    """Watch the guest's end of `tap` for addresses that `mac` speaks for, in `nursery`.

    Raises `NoSuchLinkError` or `RefusedError` at once, nothing later.
    """
    octets = parse_mac(mac)
    watch = AddressWatch(octets)
    discovery = _listen(tap, discovery_filter(octets))
    try:
        packets = _listen(tap, packet_filter(octets))
    except BaseException:
        discovery.close()
        raise
    nursery.start_soon(watch._run, discovery, packets)
    return watch


def _listen(tap: str, program: Program) -> SocketType:
    """Return a socket that hears what the guest sends."""
    return trio.socket.from_stdlib_socket(listen(tap, program, buffer_bytes=_BUFFER_BYTES))
