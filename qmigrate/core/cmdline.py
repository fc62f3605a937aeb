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

import hashlib
import re
from dataclasses import dataclass

from qmigrate.core.argv import CommandLine, Option
from qmigrate.core.guestline import opts_of
from qmigrate.core.job import MONITOR_TOKEN, RUN_DIRECTORY, TOKEN_MARK, TwinPlan
from qmigrate.core.mapping import mapped
from qmigrate.core.model import Finding, Guest, GuestDetail
from qmigrate.core.redact import redact_option
from qmigrate.core.rewriting import Work, shown

MONITOR_ID = "qmigrate-monitor"
_PLAIN_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,59}")


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


def guest_tag(detail: GuestDetail) -> str:
    """Return the id by which what a guest lives on is marked: its UUID, or else its name.

    A name is its owner's to choose and root makes and removes directories by it: "..", what is
    long or has other letters is replaced by something that no other name is replaced by. A guest
    without either keeps the id under which it came here.
    """
    guest = detail.guest
    raw = guest.uuid or guest.name or _home(guest) or f"pid-{guest.pid}-{guest.start_ticks}"
    if _PLAIN_TAG.fullmatch(raw):
        return raw
    words = re.sub(r"[^\w.-]", "_", raw, flags=re.ASCII).lstrip(".-")[:40]
    digest = hashlib.sha256(raw.encode("utf-8", "surrogatepass")).hexdigest()[:12]
    return f"{words or 'guest'}-{digest}"


def _home(guest: Guest) -> str | None:
    found = re.fullmatch(rf"{RUN_DIRECTORY}/guests/([^/]+)/[^/]+", guest.monitor or "")
    return found[1] if found else None


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
    work = Work(detail, host, directory, bridges or {})
    ours = _ours(line)
    options: list[Option] = []
    changes: list[Change] = []
    for option in line.options:
        if option in ours:
            continue
        if any(TOKEN_MARK in word for word in option.words()):
            work.refuse(
                f'{shown(option)}: "{TOKEN_MARK}" is where the destination puts in what it makes',
                "start the guest without these words",
            )
        for new, why in mapped(work, option):
            if new is not None:
                options.append(new)
            if new != option:
                after = " ".join(redact_option(new).words()) if new else None
                changes.append(Change(" ".join(redact_option(option).words()), after, why))
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
        if MONITOR_ID in (opts_of(option).get("id"), opts_of(option).get("chardev"))
    )


def _added() -> tuple[Option, ...]:
    chardev = f"socket,id={MONITOR_ID},fd={MONITOR_TOKEN},server=on,wait=off"
    return (
        Option("-chardev", chardev),
        Option("-mon", f"chardev={MONITOR_ID},mode=control"),
        Option("-S"),
        Option("-incoming", "defer"),
    )


def _with_machine(
    detail: GuestDetail, options: list[Option], changes: list[Change]
) -> list[Option]:
    """Name the machine type where the line does not: the default differs between versions."""
    named = any(
        opts_of(option).get("type") for option in options if option.flag in ("machine", "M")
    )
    if named or detail.guest.machine is None:
        return options
    option = Option("-machine", detail.guest.machine)
    why = "pinned: the default means another version elsewhere"
    changes.append(Change(None, " ".join(option.words()), why))
    return [*options, option]
