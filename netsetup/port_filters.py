"""What may pass a tunnel's interfaces: tc filters, put there whole and compared with what is there.

Everything here blocks and runs in the thread of `netsetup.rtnl`, with its socket `ip`.

The u32 filter goes out by a socket of its own: pyroute2 0.9.7 can neither write an offset below 0
nor read a key back, and below 0 is where the outer header lies: a tunnel device hands the frame on
with its packet's head still in front of it, and u32 counts from the inner network header
(net/sched/cls_u32.c, `u32_classify`).
"""

import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from errno import EIO
from typing import Any

from netsetup.bpf import name_of
from netsetup.bpf_load import loaded

INGRESS, EGRESS = 0xFFFFFFF2, 0xFFFFFFF3  # of clsact
ALL_PROTOCOLS = 0x0003
TAGS = (0x8100, 0x88A8)

_ANSWER_S = 5.0  # the kernel answers within the call; this bounds a defect
_RTM_NEWTFILTER, _RTM_GETTFILTER = 44, 46
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_REQUEST_ACK_CREATE_EXCL = 0x1 | 0x4 | 0x400 | 0x200
_REQUEST_DUMP = 0x1 | 0x300
_TCA_KIND, _TCA_OPTIONS = 1, 2
_BPF_NAME, _BPF_ID = 7, 11
_U32_CLASS, _U32_SELECTOR, _U32_ACTION, _U32_FLAGS = 1, 5, 7, 11
_NESTED = 0x8000
_TCMSG = struct.Struct("=BxxxiIII")
_NLMSG = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_TERMINAL = 1  # TC_U32_TERMINAL: a match is the last word
_SELECTOR = struct.Struct("=BBBxHHhhI")
_KEY = struct.Struct("=4s4sii")
_MIRRED = struct.Struct("=IIiiiiI")
_STOLEN, _EGRESS_REDIRECT = 4, 1
_SKIP_HARDWARE = 1


@dataclass(frozen=True, slots=True)
class ProgramFilter:
    """A BPF program (`netsetup.bpf`)."""

    parent: int
    priority: int
    program: bytes
    protocol: int = ALL_PROTOCOLS


@dataclass(frozen=True, slots=True)
class OuterFilter:
    """Accept frames whose outer packet has `octets` at `offset` from the inner network header."""

    priority: int
    octets: bytes  # words of four
    offset: int
    protocol: int = ALL_PROTOCOLS
    redirect: int | None = None  # to this interface, rather than to whom the frame came to
    parent: int = INGRESS


Filter = ProgramFilter | OuterFilter
# What of a filter the kernel tells again: where it is, what it is called, what it compares.
_Print = tuple[int, int, int, str]


def ensure_filters(ip: Any, index: int, wanted: tuple[Filter, ...]) -> bool:
    """Make `wanted` the filters of interface `index`; return whether anything had to change.

    Between the removal of wrong ones and the last of the new nothing is filtered: see to it that
    the interface is in no bridge or down, if `filters_differ`.
    """
    if not filters_differ(index, wanted):
        return False
    if any(qdisc.get("kind") == "clsact" for qdisc in ip.get_qdiscs(index=index)):
        ip.tc("del", "clsact", index)
    ip.tc("add", "clsact", index)
    for each in wanted:
        if isinstance(each, ProgramFilter):
            name = name_of(each.program)
            with loaded(each.program, name) as descriptor:
                ip.tc(
                    "add-filter",
                    "bpf",
                    index,
                    fd=descriptor,
                    name=name,
                    parent=each.parent,
                    classid=1,
                    direct_action=True,
                    prio=each.priority,
                    protocol=each.protocol,
                )
        else:
            _add_outer(index, each)
    return True


def filters_differ(index: int, wanted: tuple[Filter, ...]) -> bool:
    """Whether the filters of interface `index` are others than `wanted`, or in another order."""
    return sorted(_prints(index)) != sorted(_print_of(each) for each in wanted)


def _print_of(wanted: Filter) -> _Print:
    if isinstance(wanted, ProgramFilter):
        text = name_of(wanted.program)
    else:
        text = f"{wanted.octets.hex()}@{wanted.offset}>{wanted.redirect or 0}"
    return wanted.parent, wanted.priority, wanted.protocol, text


def _prints(index: int) -> list[_Print]:
    """Return the filters of interface `index`; each is listed in one message, tables beside it."""
    found: list[_Print] = []
    for parent in (INGRESS, EGRESS):
        for message in _dump(_TCMSG.pack(socket.AF_UNSPEC, index, 0, parent, 0)):
            *_, its_parent, info = _TCMSG.unpack_from(message)
            told = _attributes(message[_TCMSG.size :])
            options = _attributes(told.get(_TCA_OPTIONS, b""))
            kind = told.get(_TCA_KIND, b"").rstrip(b"\0").decode(errors="replace")
            if kind == "bpf":
                text = options.get(_BPF_NAME, b"").rstrip(b"\0").decode(errors="replace")
            elif kind == "u32":
                text = _outer_text(options)
            else:
                text = kind
            if its_parent == parent and options and text:
                found.append((parent, info >> 16, socket.ntohs(info & 0xFFFF), text))
    return found


@dataclass(frozen=True, slots=True)
class AttachedProgram:
    """A BPF program on an interface, anybody's."""

    handle: int
    priority: int
    name: str
    program_id: int


def attached_programs(index: int, parent: int) -> tuple[AttachedProgram, ...]:
    """Return the BPF programs at `parent` of interface `index`."""
    found = []
    for message in _dump(_TCMSG.pack(socket.AF_UNSPEC, index, 0, parent, 0)):
        _, _, handle, its_parent, info = _TCMSG.unpack_from(message)
        told = _attributes(message[_TCMSG.size :])
        options = _attributes(told.get(_TCA_OPTIONS, b""))
        if its_parent != parent or told.get(_TCA_KIND) != b"bpf\0" or _BPF_ID not in options:
            continue
        (program_id,) = struct.unpack("=I", options[_BPF_ID])
        name = options.get(_BPF_NAME, b"").rstrip(b"\0").decode(errors="replace")
        found.append(AttachedProgram(handle, info >> 16, name, program_id))
    return tuple(found)


def has_filters(index: int) -> bool:
    """Whether anybody has a filter of any kind on interface `index`."""
    return any(
        bool(_dump(_TCMSG.pack(socket.AF_UNSPEC, index, 0, parent, 0)))
        for parent in (INGRESS, EGRESS)
    )


def _outer_text(options: dict[int, bytes]) -> str:
    """Return what a u32 filter compares, empty for the table that u32 makes for itself."""
    selector = options.get(_U32_SELECTOR, b"")
    keys = list(_KEY.iter_unpack(selector[_SELECTOR.size :]))
    if not keys:
        return ""
    octets = b"".join(value for _, value, _, _ in keys)
    (target,) = struct.unpack("=I", options.get(_U32_CLASS, bytes(4)))
    return f"{octets.hex()}@{keys[0][2]}>{target}"


def _attributes(octets: bytes) -> dict[int, bytes]:
    found = {}
    while len(octets) >= _ATTRIBUTE.size:
        length, kind = _ATTRIBUTE.unpack_from(octets)
        if length < _ATTRIBUTE.size:
            break
        found[kind & ~_NESTED] = octets[_ATTRIBUTE.size : length]
        octets = octets[length + -length % 4 :]
    return found


def _attribute(kind: int, octets: bytes) -> bytes:
    length = _ATTRIBUTE.size + len(octets)
    return _ATTRIBUTE.pack(length, kind) + octets + bytes(-length % 4)


def _add_outer(index: int, wanted: OuterFilter) -> None:
    words = [wanted.octets[start : start + 4] for start in range(0, len(wanted.octets), 4)]
    selector = _SELECTOR.pack(_TERMINAL, 0, len(words), 0, 0, 0, 0, 0) + b"".join(
        _KEY.pack(b"\xff" * 4, word, wanted.offset + 4 * number, 0)
        for number, word in enumerate(words)
    )
    options = _attribute(_U32_SELECTOR, selector) + _attribute(
        _U32_FLAGS, struct.pack("=I", _SKIP_HARDWARE)
    )
    if wanted.redirect is not None:
        # The class means nothing here; it shows the target when filters are listed.
        options += _attribute(_U32_CLASS, struct.pack("=I", wanted.redirect))
        parameters = _MIRRED.pack(0, 0, _STOLEN, 0, 0, _EGRESS_REDIRECT, wanted.redirect)
        action = _attribute(1, b"mirred\0") + _attribute(2 | _NESTED, _attribute(2, parameters))
        options += _attribute(_U32_ACTION | _NESTED, _attribute(1 | _NESTED, action))
    body = (
        _TCMSG.pack(
            socket.AF_UNSPEC,
            index,
            0,
            wanted.parent,
            wanted.priority << 16 | socket.htons(wanted.protocol),
        )
        + _attribute(_TCA_KIND, b"u32\0")
        + _attribute(_TCA_OPTIONS | _NESTED, options)
    )
    _talk(_RTM_NEWTFILTER, body)


def _dump(body: bytes) -> list[bytes]:
    """Return the bodies of all filters that the request in `body` asks for."""
    found: list[bytes] = []
    with _ask(_RTM_GETTFILTER, _REQUEST_DUMP, body) as wire:
        while True:
            octets = wire.recv(1 << 18)
            while len(octets) >= _NLMSG.size:
                length, kind, *_ = _NLMSG.unpack_from(octets)
                if kind == _NLMSG_DONE:
                    return found
                if kind == _NLMSG_ERROR:
                    (code,) = struct.unpack_from("=i", octets, _NLMSG.size)
                    raise OSError(-code, os.strerror(-code))
                found.append(octets[_NLMSG.size : length])
                octets = octets[length + -length % 4 :]


def _talk(kind: int, body: bytes) -> None:
    """Send one request and raise `OSError` unless the kernel acknowledges it."""
    with _ask(kind, _REQUEST_ACK_CREATE_EXCL, body) as wire:
        answer = wire.recv(1 << 16)
    _, answered, *_ = _NLMSG.unpack_from(answer)
    (code,) = struct.unpack_from("=i", answer, _NLMSG.size)
    if answered != _NLMSG_ERROR:
        raise OSError(EIO, os.strerror(EIO))
    if code:
        raise OSError(-code, os.strerror(-code))


@contextmanager
def _ask(kind: int, flags: int, body: bytes) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as wire:
        wire.settimeout(_ANSWER_S)
        wire.send(_NLMSG.pack(_NLMSG.size + len(body), kind, flags, 1, 0) + body)
        yield wire
