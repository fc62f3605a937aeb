"""What each of QEMU's options needs on another host: kept, rewritten, dropped or refused, and why.

A rule takes one option and yields what stands for it on the destination (None: nothing) with a
reason; what stands in the way becomes a finding. `Work` carries what rules share: the guest's
facts, the taps to be made, where its sockets will live.
"""

import posixpath
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

from qmigrate.core.argv import Option, Opts, parse_text
from qmigrate.core.guestline import YES, opts_of
from qmigrate.core.job import TapPlan, tap_token
from qmigrate.core.model import Finding, GuestDetail, Nic, Severity

RULE = "unmappable"


@dataclass(slots=True)
class Work:
    """What the rules read and add to; lives for one call of `twin`."""

    detail: GuestDetail
    host: str
    directory: str
    bridges: dict[str, str]
    taps: list[TapPlan] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    sockets: dict[str, str] = field(default_factory=dict)
    nic_number: int = 0

    def refuse(self, message: str, fix: str) -> None:
        """Add a blocker."""
        self.findings.append(Finding(RULE, Severity.BLOCKER, self.host, message, fix))

    def warn(self, message: str, fix: str) -> None:
        """Add a warning."""
        self.findings.append(Finding(RULE, Severity.WARNING, self.host, message, fix))

    def relocated(self, path: str) -> str:
        """Return where a socket or pid file of the guest's lives on the destination."""
        if path not in self.sockets:
            name, taken = posixpath.basename(path) or "socket", set(self.sockets.values())
            number = 1
            while f"{self.directory}/{name}" in taken or name == "monitor":
                number += 1
                name = f"{posixpath.basename(path)}.{number}"
            self.sockets[path] = f"{self.directory}/{name}"
        return self.sockets[path]


Rule = Callable[[Work, Option], Iterator[tuple[Option | None, str]]]


def mapped(work: Work, option: Option) -> Iterator[tuple[Option | None, str]]:
    """Yield what stands for `option` on the destination, with the reason; see the module."""
    rule = RULES.get(option.flag)
    if rule is not None:
        yield from rule(work, option)
    elif option.flag in _KEPT or option.spelling == "":
        yield from _keep(work, option)
    else:
        work.refuse(
            f"{' '.join(option.words())[:120]}: whether this can move is not known",
            "start the guest without it, or tell us what it needs",
        )
        yield option, "kept"


def _keep(work: Work, option: Option) -> Iterator[tuple[Option | None, str]]:
    if option.value and option.value.startswith("{") and not opts_of(option).items:
        work.refuse(f"{option.words()[0]} begins as JSON and is not", "correct it")
    yield option, "kept"


def _drop(why: str) -> Rule:
    def rule(_work: Work, _option: Option) -> Iterator[tuple[Option | None, str]]:
        yield None, why

    return rule


def _refused(what: str, fix: str) -> Rule:
    def rule(work: Work, option: Option) -> Iterator[tuple[Option | None, str]]:
        work.refuse(f"{' '.join(option.words())[:120]}: {what}", fix)
        yield option, "kept"

    return rule


def _file(work: Work, option: Option) -> Iterator[tuple[Option | None, str]]:
    if option.value:
        work.files.append(option.value)
    yield option, "kept"


def _directory(work: Work, option: Option) -> Iterator[tuple[Option | None, str]]:
    """Memory in a file: QEMU makes it anew, in a directory that has to be there."""
    work.files.append(option.value or "")
    yield option, "kept"


def _gdb(work: Work, option: Option) -> Iterator[tuple[Option | None, str]]:
    if (option.value or "").startswith(("unix:", "stdio", "none")):
        yield from _old_chardev(work, option)
    else:
        yield from _port(work, option)


def _file_in(*keys: str) -> Rule:
    def rule(work: Work, option: Option) -> Iterator[tuple[Option | None, str]]:
        opts = opts_of(option)
        work.files += [value for key in keys if (value := opts.get(key))]
        yield option, "kept"

    return rule


def _pidfile(work: Work, option: Option) -> Iterator[tuple[Option | None, str]]:
    yield replace(option, value=work.relocated(option.value or "pid")), "lives beside the guest"


_HOST_DEVICES = ("tty", "serial", "parport", "parallel", "braille")
_PORTS = ("tcp", "udp", "telnet", "websocket", "tn3270")


def _backend(work: Work, option: Option, kind: str, *, listens: bool) -> None:
    """Judge a character device by what it is on this host."""
    shown = " ".join(option.words())[:120]
    if kind in _HOST_DEVICES or kind.startswith("/dev/"):
        work.refuse(
            f"{shown}: a device of this host", "connect it to a socket, or start without it"
        )
    elif kind == "pipe":
        work.refuse(f"{shown}: whoever reads the pipe stays on this host", "use a socket instead")
    elif kind in ("pty", "stdio"):
        work.warn(
            f"{shown}: whoever looks at it here does not see the guest any more",
            "use a socket: it is made anew on the destination",
        )
    elif kind in _PORTS and listens:
        work.warn(
            f"{shown}: the port is on the destination afterwards, and must be free there",
            "connect there",
        )
    elif kind in _PORTS:
        work.warn(f"{shown}: it connects anew from the destination", "see that it may from there")


def _old_chardev(work: Work, option: Option) -> Iterator[tuple[Option | None, str]]:
    """Map -qmp, -monitor, -serial …: the old form of a character device (chardev/char.c)."""
    value = option.value or ""
    mon, rest = ("mon:", value[4:]) if value.startswith("mon:") else ("", value)
    kind, _, address = rest.partition(":")
    opts = parse_text(address, implied="path")
    listens = opts.get("server") in YES
    path = opts.get("path")
    if kind != "unix" or path is None:
        _backend(work, option, kind.partition(",")[0], listens=listens)
        yield from _keep(work, option)
    elif opts.get("abstract") in YES:
        yield from _keep(work, option)
    elif listens:
        new = f"{mon}unix:{opts.put('path', work.relocated(path)).render()}"
        yield replace(option, value=new), "the socket lives beside the guest"
    else:
        yield from _client(work, option, path)


def _client(work: Work, option: Option, path: str) -> Iterator[tuple[Option | None, str]]:
    shown = " ".join(option.words())[:120]
    work.refuse(
        f"{shown}: whoever listens at {path} stays on this host",
        "let the guest listen instead (server=on)",
    )
    yield option, "kept"


_PLACES = ("", "addr.", "addr.data.", "backend.data.", "backend.data.addr.data.")


def _chardev(work: Work, option: Option) -> Iterator[tuple[Option | None, str]]:
    opts = opts_of(option)
    kind = opts.get("backend") or opts.get("backend.type") or ""
    server = opts.get("server") or opts.get("backend.data.server")
    listens = server in YES or (opts.json and server is None)
    if kind != "socket":
        _backend(work, option, kind, listens=listens)
        yield from _keep(work, option)
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
            yield from _keep(work, option)
        elif listens:
            new = option.put(f"{prefix}path", work.relocated(path))
            yield new, "the socket lives beside the guest"
        else:
            yield from _client(work, option, path)
        return
    _backend(work, option, "tcp", listens=listens)
    yield from _keep(work, option)


_HOST_BOUND = {  # -device: what of this host it stands on
    "vfio-": "a device of this host itself",
    "usb-host": "a USB device of this host",
    "vhost-user-": "a process of this host is part of it",
    "vhost-vdpa": "a device of this host",
    "vdpa-": "a device of this host",
    "vhost-scsi": "a target of this host's kernel",
    "ivshmem": "memory that it shares with others on this host",
    "ccid-card": "a smart card of this host",
    "tpm-": "the TPM's state stays on this host",
}


def _device(work: Work, option: Option) -> Iterator[tuple[Option | None, str]]:
    kind = opts_of(option).get("driver") or ""
    for prefix, what in _HOST_BOUND.items():
        if kind.startswith(prefix):
            work.refuse(
                f"-device {kind}: {what}, and cannot move with the guest",
                "unplug it, or start the guest without it",
            )
    yield from _keep(work, option)


def _usbdevice(work: Work, option: Option) -> Iterator[tuple[Option | None, str]]:
    if (option.value or "").startswith(("host:", "serial:", "braille")):
        work.refuse(f"-usbdevice {option.value}: a device of this host", "start without it")
    yield from _keep(work, option)


def _run_with(work: Work, option: Option) -> Iterator[tuple[Option | None, str]]:
    opts = opts_of(option)
    if opts.get("chroot"):
        work.refuse("-run-with chroot: a changed root is not rebuilt there", "start it without")
    if opts.get("user") is None:
        yield option, "kept"
        return
    rest = option.without("user")
    yield (rest if rest.value else None), "the twin starts as that user"


def _port(work: Work, option: Option) -> Iterator[tuple[Option | None, str]]:
    work.warn(
        f"{' '.join(option.words())[:120]}: a debugger has to connect to the destination",
        "connect there, or start the guest without it",
    )
    yield option, "kept"


def _machine(work: Work, option: Option) -> Iterator[tuple[Option | None, str]]:
    machine = work.detail.guest.machine
    given = opts_of(option).get("type")
    if machine is None or given is None or given == machine:
        yield option, "kept"
    else:
        yield option.put("type", machine), "pinned: an alias means another version elsewhere"


_HELPER_KEYS = ("br", "helper", "script", "downscript", "fd", "fds", "vhostfd", "vhostfds")


def _netdev(work: Work, option: Option) -> Iterator[tuple[Option | None, str]]:
    """Map -netdev, -nic and -net alike: they share the backend's keys."""
    opts = opts_of(option)
    kind = opts.get("type")
    if kind in ("none", "hubport", None) or (option.flag == "net" and kind == "nic"):
        yield from _keep(work, option)
        return
    if kind == "user":
        work.warn(
            f"-{option.flag} user: connections that are open through QEMU's own network end",
            "use a tap in a bridge where they must survive",
        )
        yield from _keep(work, option)
        return
    if kind not in ("tap", "bridge"):
        work.refuse(
            f"-{option.flag} {kind}: its other end stays on this host",
            "attach the guest to a bridge by a tap",
        )
        yield option, "kept"
        return
    yield _tapped(work, option, opts), "a tap made there, in the same bridge"


def _tapped(work: Work, option: Option, opts: Opts) -> Option:
    number, work.nic_number = work.nic_number, work.nic_number + 1
    netdev = opts.get("id") or f"{option.flag}{number}"
    nic = _nic_of(work.detail, netdev, opts, number)
    bridge = nic.bridge if nic else opts.get("br")
    if bridge is None:
        work.refuse(
            f"network card {netdev} hangs on {nic.tap if nic and nic.tap else 'a tap'}, which is "
            "in no bridge",
            "put its tap into a bridge that the destination has too",
        )
        bridge = ""
    queues = int(opts.get("queues") or 1)
    queues = max(queues, *(len((opts.get(k) or "").split(":")) for k in ("fds", "vhostfds")))
    work.taps.append(
        TapPlan(
            netdev=netdev,
            wanted=nic.tap if nic else opts.get("ifname"),
            bridge=work.bridges.get(bridge, bridge),
            mac=nic.mac if nic else opts.get("mac"),
            queues=queues,
        )
    )
    new = option.without(*_HELPER_KEYS)
    if opts.get("type") == "bridge":
        new = new.put("type", "tap")
    if opts.get("vhostfd") or opts.get("vhostfds"):
        new = new.put("vhost", "on")
    if queues > 1 and not opts.get("queues"):
        new = new.put("queues", str(queues))
    new = new.put("ifname", tap_token(netdev))
    return new.put("script", "no").put("downscript", "no")


def _nic_of(detail: GuestDetail, netdev: str, opts: Opts, number: int) -> Nic | None:
    nics = [nic for nic in detail.guest.nics if nic.backend in ("tap", "bridge", None)]
    by_id = [nic for nic in nics if nic.netdev == netdev]
    by_tap = [nic for nic in nics if nic.tap is not None and nic.tap == opts.get("ifname")]
    in_order = nics[number : number + 1]
    return next(iter((*by_id, *by_tap, *in_order)), None)


def _display(work: Work, option: Option) -> Iterator[tuple[Option | None, str]]:
    kind = opts_of(option).get("type")
    if kind in ("gtk", "sdl", "curses", "cocoa", "spice-app", "dbus"):
        work.refuse(
            f"-display {kind} shows the guest on this host's own screen",
            "start it with -display none, vnc or egl-headless",
        )
    yield option, "kept"


def _vnc(work: Work, option: Option) -> Iterator[tuple[Option | None, str]]:
    address = opts_of(option).get("vnc") or ""
    if address.startswith("unix:"):
        new = option.put("vnc", "unix:" + work.relocated(address.removeprefix("unix:")))
        yield new, "the socket lives beside the guest"
        return
    if address not in ("", "none"):
        work.warn(
            f"-vnc {address}: viewers have to connect to the destination, where it must be free",
            "connect there, or use a unix socket",
        )
    yield option, "kept"


def _spice(work: Work, option: Option) -> Iterator[tuple[Option | None, str]]:
    opts = opts_of(option)
    address = opts.get("addr")
    if opts.get("unix") in YES and address:
        new = option.put("addr", work.relocated(address))
        yield new, "the socket lives beside the guest"
        return
    work.files += [path for path in (opts.get("x509-dir"),) if path]
    work.warn(
        f"-spice port {opts.get('port') or opts.get('tls-port')}: viewers have to connect to the "
        "destination, where it must be free",
        "connect there, or use a unix socket",
    )
    yield option, "kept"


_OBJECTS = frozenset(
    """
    iothread rng-random rng-builtin rng-egd memory-backend-ram memory-backend-memfd throttle-group
    cryptodev-backend-builtin filter-buffer filter-replay main-loop thread-context authz-simple
    authz-list authz-pam monitor-qmp monitor-hmp
    """.split()  # noqa: SIM905 - as in core/argv
)
_OBJECT_FILES = {  # the key that names what must be there too
    "memory-backend-file": "mem-path",
    "secret": "file",
    "tls-creds-x509": "dir",
    "tls-creds-psk": "dir",
    "tls-creds-anon": "dir",
    "authz-list-file": "filename",
    "tls-cipher-suites": "",
}


def _object(work: Work, option: Option) -> Iterator[tuple[Option | None, str]]:
    opts = opts_of(option)
    kind = opts.get("qom-type") or ""
    if kind in _OBJECT_FILES:
        path = opts.get(_OBJECT_FILES[kind])
        # Memory in a file: the file is made anew, its directory has to be there.
        if path:
            work.files.append(posixpath.dirname(path) if kind == "memory-backend-file" else path)
    elif kind not in _OBJECTS:
        work.refuse(
            f"-object {kind}: whether this can move is not known",
            "start the guest without it, or tell us what it needs",
        )
    yield option, "kept"


def _tpmdev(work: Work, option: Option) -> Iterator[tuple[Option | None, str]]:
    kind = opts_of(option).get("type")
    work.refuse(
        f"-tpmdev {kind}: the TPM's own process and state stay on this host",
        "moving a TPM's state is not built yet",
    )
    yield option, "kept"


def _virtfs(work: Work, option: Option) -> Iterator[tuple[Option | None, str]]:
    work.files += [path for path in (opts_of(option).get("path"),) if path]
    yield option, "kept"


RULES: dict[str, Rule] = {
    "S": _drop("the twin always waits"),
    "incoming": _drop("of an earlier move"),
    "daemonize": _drop("qmigrate holds the process itself"),
    "loadvm": _drop("the state comes with the move"),
    "writeconfig": _drop("written once already"),
    "runas": _drop("the twin starts as that user"),
    "pidfile": _pidfile,
    "qmp": _old_chardev,
    "qmp-pretty": _old_chardev,
    "monitor": _old_chardev,
    "serial": _old_chardev,
    "parallel": _old_chardev,
    "debugcon": _old_chardev,
    "gdb": _gdb,
    "s": _port,
    "device": _device,
    "usbdevice": _usbdevice,
    "run-with": _run_with,
    "spice": _spice,
    "mem-path": _directory,
    "L": _file,
    "plugin": _file_in("file"),
    "chardev": _chardev,
    "machine": _machine,
    "M": _machine,
    "netdev": _netdev,
    "nic": _netdev,
    "net": _netdev,
    "display": _display,
    "vnc": _vnc,
    "kernel": _file,
    "initrd": _file,
    "dtb": _file,
    "bios": _file,
    "option-rom": _file_in("romfile"),
    "fw_cfg": _file_in("file"),
    "acpitable": _file_in("file", "data"),
    "smbios": _file_in("file"),
    "object": _object,
    "tpmdev": _tpmdev,
    "fsdev": _virtfs,
    "virtfs": _virtfs,
    "snapshot": _refused(
        "what the guest wrote lies in temporary files of this QEMU", "start it without -snapshot"
    ),
    "add-fd": _refused("a descriptor that QEMU inherited", "name the file instead"),
    "chroot": _refused("a changed root is not rebuilt there", "start the guest without it"),
    "readconfig": _refused("the file could not be read on the source", "make it readable again"),
    "curses": _refused("it shows the guest in this host's terminal", "use -display none"),
    "sdl": _refused("it shows the guest on this host's screen", "use -display none"),
    "preconfig": _refused("the guest was never configured to its end", "finish its configuration"),
    "xen-attach": _refused("a Xen guest", "move it with Xen's tools"),
    "xen-domid": _refused("a Xen guest", "move it with Xen's tools"),
    "qtest": _refused("a test harness drives this QEMU", "start the guest without it"),
}

_KEPT = frozenset(
    """
    accel action append audio audiodev blockdev boot cdrom compat cpu d D dfilter drive
    echr enable-kvm fda fdb full-screen global hda hdb hdc hdd icount id iscsi k m
    mem-prealloc mon msg mtdblock name no-fd-bootchk no-reboot no-shutdown no-user-config
    nodefaults nographic no-acpi no-hpet numa only-migratable overcommit pflash rtc
    sandbox sd seed semihosting set shim smp trace usb uuid vga
    watchdog watchdog-action win2k-hack async-teardown jitdump perfmap tb-size
    """.split()  # noqa: SIM905 - as in core/argv
)
