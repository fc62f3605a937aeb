"""A process that carries a tunnel's frames between its inner end and a raw socket.

For hosts where no program may be loaded, for IPv6 outside, and beside the programs for what they
leave: frames too big for the path (the kernel cuts the outer packet) and what came in cut (the
kernel has put it together before a raw socket sees it). Only the standard library: it starts in a
tenth of a second, and once it runs it reads no file, so that it survives the removal of its own.

It ends with the tunnel: the kernel tells of every interface that goes. It answers whoever connects
to its socket, an abstract one that only its network namespace knows, with what it does and has
counted; so there is one for each tunnel, and it is found without a file.
"""

import json
import os
import select
import socket
import struct
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from errno import EADDRINUSE, EAGAIN, ENETDOWN

from netsetup.bpf_load import SOCKET_FILTER, loaded
from netsetup.errors import HostError, RefusedError
from netsetup.mtu import ETHERNET_BYTES, VLAN_TAG_BYTES
from netsetup.relay_filter import finish_checksum, too_big_program
from netsetup.wire import TTL, Fate, Wire, of_one_wire

BATCH = 64  # frames of one direction before the other has its turn
BUFFER_BYTES = 4 << 20  # a tenth of a second at 300 Mbit/s
_LONGEST_BYTES = 1 << 16
_MACS = 12

_ALL_PROTOCOLS = 0x0003
_SOL_PACKET, _AUXDATA, _IGNORE_OUTGOING = 263, 8, 23
# struct tpacket_auxdata: status, length, captured; header's place; tag, its protocol
_AUX = struct.Struct("=IIIHHHH")
_HAS_TAG = 0x10  # TP_STATUS_VLAN_VALID
_SUM_NOT_READY = 0x08  # TP_STATUS_CSUMNOTREADY: left to a card, of a port that has offloads
_ATTACH_BPF, _RCVBUFFORCE, _SNDBUFFORCE = 50, 33, 32
_MTU_DISCOVER = {4: (socket.IPPROTO_IP, 10), 6: (socket.IPPROTO_IPV6, 23)}
_PMTUDISC_DONT = 0  # the kernel cuts what does not fit
_TTL_OPTION = {4: (socket.IPPROTO_IP, 2), 6: (socket.IPPROTO_IPV6, 16)}
_RTMGRP_LINK = 1


@dataclass(frozen=True, slots=True)
class RelaySpec:
    """What a relay carries; `longer_than` only frames that programs leave to it."""

    tunnel: str
    interface: str
    wire: Wire
    longer_than: int | None = None


def control_address(tunnel: str) -> str:
    """Return the abstract socket's name."""
    return f"\0netsetup-relay-{tunnel}"


def arguments(spec: RelaySpec) -> list[str]:
    """Return the words behind ``netsetup relay``; what is running is known by them."""
    wire = spec.wire
    words = [spec.tunnel, "--interface", spec.interface, "--kind", wire.kind]
    words += ["--local", str(wire.local), "--remote", str(wire.remote), "--key", str(wire.key)]
    words += ["--reversed-header"] if wire.reversed_header else []
    return words + ([] if spec.longer_than is None else ["--longer-than", str(spec.longer_than)])


@dataclass(frozen=True, slots=True)
class RelaySockets:
    """What a relay holds: the port's inner end, the wire, who asks it, and word of interfaces."""

    inner: socket.socket
    outer: socket.socket
    control: socket.socket
    links: socket.socket


def open_sockets(spec: RelaySpec) -> RelaySockets:
    """Open them; raise `RefusedError`, or `HostError` if the tunnel has a relay already."""
    try:
        # In this order: who has the name is the relay, and misses nothing from then on.
        control, links = _listen(spec.tunnel), _link_events()
        return RelaySockets(_inner_socket(spec), _outer_socket(spec.wire), control, links)
    except OSError as exc:
        raise RefusedError(f"carry frames of {spec.interface}", exc.errno or 0) from exc


class Relay:
    """Frames of one tunnel, carried until its interface goes."""

    def __init__(self, spec: RelaySpec, sockets: RelaySockets) -> None:
        self._spec = spec
        self._inner, self._outer = sockets.inner, sockets.outer
        self._control, self._links = sockets.control, sockets.links
        self._counted: dict[str, Counter[Fate]] = {"out": Counter(), "in": Counter()}
        self._octets: Counter[str] = Counter()
        shim = spec.wire.shim
        self._out = bytearray(len(shim) + VLAN_TAG_BYTES + _LONGEST_BYTES)
        self._in = bytearray(_LONGEST_BYTES)
        # A frame is read so that a tag finds room before it, and the shim before that.
        self._out_frame = [memoryview(self._out)[len(shim) + VLAN_TAG_BYTES :]]
        self._out[VLAN_TAG_BYTES : VLAN_TAG_BYTES + len(shim)] = shim

    def carry(self) -> None:
        """Carry frames until the interface has gone."""
        handlers = {
            self._inner: self.send,
            self._outer: self.receive,
            self._control: self._answer,
        }
        index = socket.if_nametoindex(self._spec.interface)
        poll = select.epoll()
        by_descriptor = {wire.fileno(): work for wire, work in handlers.items()}
        for descriptor in (*by_descriptor, self._links.fileno()):
            poll.register(descriptor, select.EPOLLIN)
        while True:
            for descriptor, _ in poll.poll():
                if descriptor == self._links.fileno():
                    if self._has_gone(index):
                        return
                else:
                    by_descriptor[descriptor]()

    def send(self) -> None:
        """Send a batch of frames that wait at the inner end."""
        out, view, frame = self._out, memoryview(self._out), self._out_frame
        shim, counted = self._spec.wire.shim, self._counted["out"]
        start = len(shim) + VLAN_TAG_BYTES
        receive, send = self._inner.recvmsg_into, self._outer.send
        for _ in range(BATCH):
            try:
                length, beside, _, _ = receive(frame, 64)
            except OSError as exc:
                if exc.errno not in (EAGAIN, ENETDOWN):
                    counted[Fate.FAILED] += 1
                return
            if out[start] == 1 and of_one_wire(out[start : start + 6]):
                counted[Fate.OF_ONE_WIRE] += 1
                continue
            begin = VLAN_TAG_BYTES
            tag, unsummed = _beside(beside[0][2]) if beside else (b"", False)
            if unsummed and not finish_checksum(view[start : start + length]):
                counted[Fate.FAILED] += 1
                continue
            if tag:
                begin = 0
                out[0 : len(shim)] = shim
                out[len(shim) : len(shim) + _MACS] = out[start : start + _MACS]
                out[len(shim) + _MACS : start + _MACS] = tag
            packet = view[begin : start + length]
            try:
                send(packet)
            except OSError:
                # Perhaps the answer to an earlier one: an ICMP error waits at a connected socket.
                try:
                    send(packet)
                except OSError:
                    counted[Fate.FAILED] += 1
                    out[VLAN_TAG_BYTES:start] = shim
                    continue
            counted[Fate.PASSED] += 1
            self._octets["out"] += length + VLAN_TAG_BYTES - begin
            if begin == 0:
                out[VLAN_TAG_BYTES:start] = shim

    def receive(self) -> None:
        """Hand on a batch of frames that wait at the wire."""
        octets, view = self._in, memoryview(self._in)
        wire, counted = self._spec.wire, self._counted["in"]
        accepted, shim_bytes = wire.accepted, len(wire.shim)
        with_header = wire.local.version == 4
        receive, send = self._outer.recv_into, self._inner.send
        for _ in range(BATCH):
            try:
                length = receive(view)
            except OSError as exc:
                if exc.errno == EAGAIN:
                    return
                continue  # the peer's ICMP: nobody listens there yet
            shim_at = (octets[0] & 0x0F) * 4 if with_header else 0
            at = shim_at + shim_bytes
            if octets[shim_at:at] not in accepted:
                # Of GRE it may be another tunnel's, which has a socket of its own.
                counted[Fate.BAD_HEADER] += shim_bytes == 2
                continue
            if length < at + ETHERNET_BYTES:
                counted[Fate.SHORT] += 1
                continue
            if octets[at] == 1 and of_one_wire(octets[at : at + 6]):
                counted[Fate.OF_ONE_WIRE] += 1
                continue
            try:
                send(view[at:length])
            except OSError:
                counted[Fate.FAILED] += 1
                continue
            counted[Fate.PASSED] += 1
            self._octets["in"] += length - at

    def _answer(self) -> None:
        """Tell what this is; who is too slow to hear it goes without."""
        with suppress(OSError):
            caller, _ = self._control.accept()
            with caller:
                caller.setblocking(False)
                caller.send(json.dumps(self._status()).encode())

    def _status(self) -> dict[str, object]:
        return {
            "pid": os.getpid(),
            "arguments": arguments(self._spec),
            **{
                way: {
                    "octets": self._octets[way],
                    "frames": {fate.name: number for fate, number in counted.items()},
                }
                for way, counted in self._counted.items()
            },
        }

    def _has_gone(self, index: int) -> bool:
        with suppress(BlockingIOError):
            while self._links.recv(1 << 16):
                pass
        try:
            return socket.if_indextoname(index) != self._spec.interface
        except OSError:
            return True


def _beside(auxiliary: bytes) -> tuple[bytes, bool]:
    """Return the four octets of the tag beside the frame, or none; whether its sum is missing."""
    status, _, _, _, _, tag, protocol = _AUX.unpack_from(auxiliary)
    octets = struct.pack("!HH", protocol, tag) if status & _HAS_TAG else b""
    return octets, bool(status & _SUM_NOT_READY)


def _listen(tunnel: str) -> socket.socket:
    wire = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        wire.bind(control_address(tunnel))
    except OSError as exc:
        if exc.errno != EADDRINUSE:
            raise
        raise HostError(f"tunnel {tunnel} has a relay already") from exc
    wire.listen()
    return wire


def _link_events() -> socket.socket:
    wire = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
    wire.bind((0, _RTMGRP_LINK))
    wire.setblocking(False)
    return wire


def _inner_socket(spec: RelaySpec) -> socket.socket:
    # Of no protocol until it is bound: it would hear every interface for a moment.
    wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0)
    wire.setsockopt(_SOL_PACKET, _AUXDATA, 1)
    wire.setsockopt(_SOL_PACKET, _IGNORE_OUTGOING, 1)
    _enlarge(wire)
    if spec.longer_than is not None:
        with loaded(too_big_program(spec.longer_than), "relay", SOCKET_FILTER) as descriptor:
            wire.setsockopt(socket.SOL_SOCKET, _ATTACH_BPF, descriptor)
    wire.bind((spec.interface, _ALL_PROTOCOLS))
    return wire


def _outer_socket(tunnel: Wire) -> socket.socket:
    version = tunnel.local.version
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    wire = socket.socket(family, socket.SOCK_RAW | socket.SOCK_NONBLOCK, tunnel.protocol)
    wire.setsockopt(*_MTU_DISCOVER[version], _PMTUDISC_DONT)
    wire.setsockopt(*_TTL_OPTION[version], TTL)
    _enlarge(wire)
    wire.bind((str(tunnel.local), 0))
    wire.connect((str(tunnel.remote), 0))  # the kernel drops what others send
    return wire


def _enlarge(wire: socket.socket) -> None:
    for option in (_RCVBUFFORCE, _SNDBUFFORCE):
        wire.setsockopt(socket.SOL_SOCKET, option, BUFFER_BYTES)


def try_sockets(tunnel: Wire) -> None:
    """Open what a relay needs and close it; raise `RefusedError`."""
    try:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as inner:
            _enlarge(inner)
        family = socket.AF_INET if tunnel.local.version == 4 else socket.AF_INET6
        socket.socket(family, socket.SOCK_RAW, tunnel.protocol).close()
    except OSError as exc:
        raise RefusedError("open a relay's sockets", exc.errno or 0) from exc


def run_detached(relay: Relay, close: Sequence[int] = (0, 1, 2)) -> None:
    """Return in the process that was started, once its child carries frames in its own session."""
    if os.fork():
        return
    os.setsid()
    os.chdir("/")
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in close:
        os.dup2(nowhere, descriptor)
    try:
        relay.carry()
    finally:
        os._exit(0)
