"""The running guest's command line → its twin's, option by option.

Every option is either known to be harmless, or rewritten for a reason that is said, or refused by
name: nothing is dropped silently. What qmigrate itself added for an earlier move is taken away
first, so that a line does not grow from host to host.

::

    -netdev tap,fd=31,id=n0      →  -netdev tap,id=n0,ifname=<made there>,script=no,downscript=no
    -qmp unix:/run/w.qmp,server  →  -qmp unix:/run/qmigrate/guests/<id>/w.qmp,server
    -machine q35                 →  -machine pc-q35-10.0
    -S -incoming -daemonize …    →  ours: -S -incoming defer, a monitor on an inherited socket
"""

import posixpath
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

from qmigrate.core.argv import CommandLine, Option, Opts, escape
from qmigrate.core.errors import BlockedError
from qmigrate.core.job import MONITOR_TOKEN, RUN_DIRECTORY, TapPlan, TwinPlan, tap_token
from qmigrate.core.model import Finding, GuestDetail, Nic, Severity

RULE = "unmappable"
MONITOR_ID = "qmigrate-monitor"


@dataclass(frozen=True, slots=True)
class Change:
    """An option before and after, and why; None: there is none."""

    before: str | None
    after: str | None
    why: str


@dataclass(frozen=True, slots=True)
class Twin:
    """The plan, how it came about, and what stands in its way."""

    plan: TwinPlan
    changes: tuple[Change, ...]
    findings: tuple[Finding, ...]
    files: tuple[str, ...]  # besides disks, what QEMU will open there, as the line names it


@dataclass(slots=True)
class _Work:
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


Rule = Callable[[_Work, Option], Iterator[tuple[Option | None, str]]]


def guest_tag(detail: GuestDetail) -> str:
    """Return the id by which what a guest lives on is marked: its UUID, or else its name."""
    guest = detail.guest
    raw = guest.uuid or guest.name or f"pid-{guest.pid}"
    return "".join(c if c.isalnum() or c in "-._" else "_" for c in raw)[:64]


def twin(
    detail: GuestDetail,
    *,
    host: str,
    executable: str,
    bridges: dict[str, str] | None = None,
) -> Twin:
    """Return the twin's plan for a destination whose QEMU is `executable`.

    `detail.guest.argv` must be whole and with its `-readconfig` files put in. `bridges` maps the
    source's bridges to the destination's where their names differ. `host` is the source's name,
    for findings.
    """
    line = CommandLine.parse(detail.guest.argv)
    tag = guest_tag(detail)
    directory = f"{RUN_DIRECTORY}/guests/{tag}"
    work = _Work(detail, host, directory, bridges or {})
    ours = _ours(line)
    options: list[Option] = []
    changes: list[Change] = []
    for option in line.options:
        if option in ours:
            continue
        for new, why in _mapped(work, option):
            if new is not None:
                options.append(new)
            if new != option:
                after = " ".join(new.words()) if new else None
                changes.append(Change(" ".join(option.words()), after, why))
    options = _with_machine(detail, options, changes)
    added = _added()
    changes += [Change(None, " ".join(option.words()), "qmigrate's own") for option in added]
    rendered = CommandLine(executable, (*options, *added)).render()
    plan = TwinPlan(executable, rendered, detail.process, directory, tuple(work.taps), tag)
    return Twin(plan, tuple(changes), tuple(work.findings), tuple(dict.fromkeys(work.files)))


def _ours(line: CommandLine) -> tuple[Option, ...]:
    """Find what an earlier move added: our monitor."""
    return tuple(
        option
        for option in line.every("chardev", "mon")
        if MONITOR_ID in (_opts(option).get("id"), _opts(option).get("chardev"))
    )


def _added() -> tuple[Option, ...]:
    chardev = f"socket,id={MONITOR_ID},fd={MONITOR_TOKEN},server=on,wait=off"
    return (
        Option("-chardev", chardev),
        Option("-mon", f"chardev={MONITOR_ID},mode=control"),
        Option("-S"),
        Option("-incoming", "defer"),
    )


def _opts(option: Option) -> Opts:
    try:
        return option.opts
    except BlockedError:
        return Opts(())


def _mapped(work: _Work, option: Option) -> Iterator[tuple[Option | None, str]]:
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


def _keep(work: _Work, option: Option) -> Iterator[tuple[Option | None, str]]:
    if option.value and option.value.startswith("{") and not _opts(option).items:
        work.refuse(f"{option.words()[0]} begins as JSON and is not", "correct it")
    yield option, "kept"


def _drop(why: str) -> Rule:
    def rule(_work: _Work, _option: Option) -> Iterator[tuple[Option | None, str]]:
        yield None, why

    return rule


def _refused(what: str, fix: str) -> Rule:
    def rule(work: _Work, option: Option) -> Iterator[tuple[Option | None, str]]:
        work.refuse(f"{' '.join(option.words())[:120]}: {what}", fix)
        yield option, "kept"

    return rule


def _file(work: _Work, option: Option) -> Iterator[tuple[Option | None, str]]:
    if option.value:
        work.files.append(option.value)
    yield option, "kept"


def _file_in(*keys: str) -> Rule:
    def rule(work: _Work, option: Option) -> Iterator[tuple[Option | None, str]]:
        opts = _opts(option)
        work.files += [value for key in keys if (value := opts.get(key))]
        yield option, "kept"

    return rule


def _pidfile(work: _Work, option: Option) -> Iterator[tuple[Option | None, str]]:
    yield replace(option, value=work.relocated(option.value or "pid")), "lives beside the guest"


def _old_chardev(work: _Work, option: Option) -> Iterator[tuple[Option | None, str]]:
    """Map -qmp, -monitor, -serial …: the old form of a character device (chardev/char.c)."""
    value = option.value or ""
    mon, rest = ("mon:", value[4:]) if value.startswith("mon:") else ("", value)
    if not rest.startswith("unix:"):
        yield from _keep(work, option)
        return
    path, comma, words = rest.removeprefix("unix:").partition(",")
    listens = any(word in ("server", "server=on", "server=yes") for word in words.split(","))
    if not listens:
        yield from _keep(work, option)
        return
    new = f"{mon}unix:{escape(work.relocated(path))}{comma}{words}"
    yield replace(option, value=new), "the socket lives beside the guest"


def _chardev(work: _Work, option: Option) -> Iterator[tuple[Option | None, str]]:
    opts = _opts(option)
    kind = opts.get("backend") or opts.get("backend.type")
    if kind != "socket":
        yield from _keep(work, option)
        return
    for prefix in ("", "addr.", "addr.data.", "backend.data.", "backend.data.addr.data."):
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
        server = opts.get("server") or opts.get("backend.data.server")
        if path is not None and (server in ("on", "yes", "true") or (opts.json and server is None)):
            new = option.put(f"{prefix}path", work.relocated(path))
            yield new, "the socket lives beside the guest"
            return
    yield from _keep(work, option)


def _machine(work: _Work, option: Option) -> Iterator[tuple[Option | None, str]]:
    machine = work.detail.guest.machine
    given = _opts(option).get("type")
    if machine is None or given is None or given == machine:
        yield option, "kept"
    else:
        yield option.put("type", machine), "pinned: an alias means another version elsewhere"


def _with_machine(
    detail: GuestDetail, options: list[Option], changes: list[Change]
) -> list[Option]:
    """Name the machine type where the line does not: the default differs between versions."""
    named = any(_opts(option).get("type") for option in options if option.flag in ("machine", "M"))
    if named or detail.guest.machine is None:
        return options
    option = Option("-machine", detail.guest.machine)
    why = "pinned: the default means another version elsewhere"
    changes.append(Change(None, " ".join(option.words()), why))
    return [*options, option]


_HELPER_KEYS = ("br", "helper", "script", "downscript", "fd", "fds", "vhostfd", "vhostfds")


def _netdev(work: _Work, option: Option) -> Iterator[tuple[Option | None, str]]:
    """Map -netdev, -nic and -net alike: they share the backend's keys."""
    opts = _opts(option)
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


def _tapped(work: _Work, option: Option, opts: Opts) -> Option:
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


def _display(work: _Work, option: Option) -> Iterator[tuple[Option | None, str]]:
    kind = _opts(option).get("type")
    if kind in ("gtk", "sdl", "curses", "cocoa", "spice-app", "dbus"):
        work.refuse(
            f"-display {kind} shows the guest on this host's own screen",
            "start it with -display none, vnc or egl-headless",
        )
    yield option, "kept"


def _vnc(work: _Work, option: Option) -> Iterator[tuple[Option | None, str]]:
    address = _opts(option).get("vnc") or ""
    if address.startswith("unix:"):
        new = option.put("vnc", "unix:" + work.relocated(address.removeprefix("unix:")))
        yield new, "the socket lives beside the guest"
    else:
        yield option, "kept"


_OBJECTS = frozenset(
    """
    iothread rng-random rng-builtin rng-egd memory-backend-ram memory-backend-memfd throttle-group
    cryptodev-backend-builtin filter-buffer filter-replay main-loop thread-context authz-simple
    authz-list authz-pam monitor-qmp monitor-hmp pr-manager-helper secret_keyring acpi-generic-port
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


def _object(work: _Work, option: Option) -> Iterator[tuple[Option | None, str]]:
    opts = _opts(option)
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


def _tpmdev(work: _Work, option: Option) -> Iterator[tuple[Option | None, str]]:
    kind = _opts(option).get("type")
    work.refuse(
        f"-tpmdev {kind}: the TPM's own process and state stay on this host",
        "moving a TPM's state is not built yet",
    )
    yield option, "kept"


def _virtfs(work: _Work, option: Option) -> Iterator[tuple[Option | None, str]]:
    work.files += [path for path in (_opts(option).get("path"),) if path]
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
    "gdb": _old_chardev,
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
    accel action append audio audiodev blockdev boot cdrom compat cpu d D device dfilter drive
    echr enable-kvm fda fdb full-screen global hda hdb hdc hdd icount id iscsi k L m mem-path
    mem-prealloc mon msg mtdblock name no-fd-bootchk no-reboot no-shutdown no-user-config
    nodefaults nographic no-acpi no-hpet numa only-migratable overcommit pflash plugin rtc s
    run-with sandbox sd seed semihosting set shim smp spice trace usb usbdevice uuid vga
    watchdog watchdog-action win2k-hack async-teardown jitdump perfmap tb-size
    """.split()  # noqa: SIM905 - as in core/argv
)
