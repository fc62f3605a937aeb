"""What each of QEMU's options needs on another host: kept, rewritten, dropped or refused, and why.

A rule takes one option and yields what stands for it on the destination (None: nothing) with a
reason; what stands in the way becomes a finding. `Work` carries what rules share: the guest's
facts, the taps to be made, where its sockets will live.
"""

import posixpath
from collections.abc import Iterator

from qmigrate.core.argv import Option
from qmigrate.core.guestline import YES, opts_of
from qmigrate.core.rewrite_chardev import chardev, old_chardev, pidfile
from qmigrate.core.rewrite_net import netdev
from qmigrate.core.rewriting import Rule, Work, directory, drop, file, file_in, keep, refused, shown


def mapped(work: Work, option: Option) -> Iterator[tuple[Option | None, str]]:
    """Yield what stands for `option` on the destination, with the reason; see the module."""
    rule = RULES.get(option.flag)
    if rule is not None:
        yield from rule(work, option)
    elif option.flag in _KEPT or option.spelling == "":
        yield from keep(work, option)
    else:
        work.refuse(
            f"{shown(option)}: whether this can move is not known",
            "start the guest without it, or tell us what it needs",
        )
        yield option, "kept"


def _gdb(work: Work, option: Option) -> Iterator[tuple[Option | None, str]]:
    if (option.value or "").startswith(("unix:", "stdio", "none")):
        yield from old_chardev(work, option)
    else:
        yield from _port(work, option)


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
    yield from keep(work, option)


def _usbdevice(work: Work, option: Option) -> Iterator[tuple[Option | None, str]]:
    if (option.value or "").startswith(("host:", "serial:", "braille")):
        work.refuse(f"-usbdevice {option.value}: a device of this host", "start without it")
    yield from keep(work, option)


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
        f"{shown(option)}: a debugger has to connect to the destination",
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
    "S": drop("the twin always waits"),
    "incoming": drop("of an earlier move"),
    "daemonize": drop("qmigrate holds the process itself"),
    "loadvm": drop("the state comes with the move"),
    "writeconfig": drop("written once already"),
    "runas": drop("the twin starts as that user"),
    "pidfile": pidfile,
    "qmp": old_chardev,
    "qmp-pretty": old_chardev,
    "monitor": old_chardev,
    "serial": old_chardev,
    "parallel": old_chardev,
    "debugcon": old_chardev,
    "gdb": _gdb,
    "s": _port,
    "device": _device,
    "usbdevice": _usbdevice,
    "run-with": _run_with,
    "spice": _spice,
    "mem-path": directory,
    "L": file,
    "plugin": file_in("file"),
    "chardev": chardev,
    "machine": _machine,
    "M": _machine,
    "netdev": netdev,
    "nic": netdev,
    "net": netdev,
    "display": _display,
    "vnc": _vnc,
    "kernel": file,
    "initrd": file,
    "dtb": file,
    "bios": file,
    "option-rom": file_in("romfile"),
    "fw_cfg": file_in("file"),
    "acpitable": file_in("file", "data"),
    "smbios": file_in("file"),
    "object": _object,
    "tpmdev": _tpmdev,
    "fsdev": _virtfs,
    "virtfs": _virtfs,
    "snapshot": refused(
        "what the guest wrote lies in temporary files of this QEMU", "start it without -snapshot"
    ),
    "add-fd": refused("a descriptor that QEMU inherited", "name the file instead"),
    "chroot": refused("a changed root is not rebuilt there", "start the guest without it"),
    "readconfig": refused("the file could not be read on the source", "make it readable again"),
    "curses": refused("it shows the guest in this host's terminal", "use -display none"),
    "sdl": refused("it shows the guest on this host's screen", "use -display none"),
    "preconfig": refused("the guest was never configured to its end", "finish its configuration"),
    "xen-attach": refused("a Xen guest", "move it with Xen's tools"),
    "xen-domid": refused("a Xen guest", "move it with Xen's tools"),
    "qtest": refused("a test harness drives this QEMU", "start the guest without it"),
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
