"""Character devices of the guest, rewritten: sockets move beside it, host devices are refused."""

from collections.abc import Iterator
from dataclasses import replace

from qmigrate.core.argv import Option, parse_text
from qmigrate.core.guestline import YES, opts_of
from qmigrate.core.rewriting import Work, keep, shown


def pidfile(work: Work, option: Option) -> Iterator[tuple[Option | None, str]]:
    """Let the pid file live beside the guest."""
    yield replace(option, value=work.relocated(option.value or "pid")), "lives beside the guest"


_HOST_DEVICES = ("tty", "serial", "parport", "parallel", "braille")
_PORTS = ("tcp", "udp", "telnet", "websocket", "tn3270")


def _backend(work: Work, option: Option, kind: str, *, listens: bool) -> None:
    """Judge a character device by what it is on this host."""
    words = shown(option)
    if kind in _HOST_DEVICES or kind.startswith("/dev/"):
        work.refuse(
            f"{words}: a device of this host", "connect it to a socket, or start without it"
        )
    elif kind == "pipe":
        work.refuse(f"{words}: whoever reads the pipe stays on this host", "use a socket instead")
    elif kind in ("pty", "stdio"):
        work.warn(
            f"{words}: whoever looks at it here does not see the guest any more",
            "use a socket: it is made anew on the destination",
        )
    elif kind in _PORTS and listens:
        work.warn(
            f"{words}: the port is on the destination afterwards, and must be free there",
            "connect there",
        )
    elif kind in _PORTS:
        work.warn(f"{words}: it connects anew from the destination", "see that it may from there")


def old_chardev(work: Work, option: Option) -> Iterator[tuple[Option | None, str]]:
    """Map -qmp, -monitor, -serial …: the old form of a character device (chardev/char.c)."""
    value = option.value or ""
    mon, rest = ("mon:", value[4:]) if value.startswith("mon:") else ("", value)
    kind, _, address = rest.partition(":")
    opts = parse_text(address, implied="path")
    listens = opts.get("server") in YES
    path = opts.get("path")
    if kind != "unix" or path is None:
        _backend(work, option, kind.partition(",")[0], listens=listens)
        yield from keep(work, option)
    elif opts.get("abstract") in YES:
        yield from keep(work, option)
    elif listens:
        new = f"{mon}unix:{opts.put('path', work.relocated(path)).render()}"
        yield replace(option, value=new), "the socket lives beside the guest"
    else:
        yield from _client(work, option, path)


def _client(work: Work, option: Option, path: str) -> Iterator[tuple[Option | None, str]]:
    words = shown(option)
    work.refuse(
        f"{words}: whoever listens at {path} stays on this host",
        "let the guest listen instead (server=on)",
    )
    yield option, "kept"


_PLACES = ("", "addr.", "addr.data.", "backend.data.", "backend.data.addr.data.")


def chardev(work: Work, option: Option) -> Iterator[tuple[Option | None, str]]:
    """Map -chardev in all its spellings, JSON and text."""
    opts = opts_of(option)
    kind = opts.get("backend") or opts.get("backend.type") or ""
    server = opts.get("server") or opts.get("backend.data.server")
    listens = server in YES or (opts.json and server is None)
    if kind != "socket":
        _backend(work, option, kind, listens=listens)
        yield from keep(work, option)
        return
    for prefix in _PLACES:
        if opts.get(f"{prefix}fd") is not None or (
            opts.get(f"{prefix}str") is not None and opts.json
        ):
            work.refuse(
                f"-chardev {opts.get('id')} is a socket that QEMU inherited",
                "give it a path instead of a descriptor",
            )
            yield option, "kept"
            return
        path = opts.get(f"{prefix}path")
        if path is None:
            continue
        if opts.get(f"{prefix}abstract") in YES:
            yield from keep(work, option)
        elif listens:
            new = option.put(f"{prefix}path", work.relocated(path))
            yield new, "the socket lives beside the guest"
        else:
            yield from _client(work, option, path)
        return
    _backend(work, option, "tcp", listens=listens)
    yield from keep(work, option)
