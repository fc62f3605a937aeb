"""What hosts said of their guests, as a table, as JSON, or as names."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import PurePath
from typing import Any

from qmigrate.cli.context import Context
from qmigrate.cli.render import Table, printable
from qmigrate.controller.survey import HostAnswer
from qmigrate.core.model import Disk, Guest, Nic, Owner
from qmigrate.core.quantities import human_bytes, human_seconds

_OWNERS = {
    Owner.LIBVIRT: "libvirt looks after it: move it with `virsh migrate`",
    Owner.PROXMOX: "Proxmox looks after it: move it with `qm migrate`",
    Owner.INCUS: "Incus looks after it: move it with `incus move`",
    Owner.UNIT: "a systemd unit restarts it: {unit}",
    Owner.SUPERVISOR: "its parent process restarts it",
}


def show(context: Context, answers: Sequence[HostAnswer], *, names: bool) -> None:
    """Write the answers as the user wants them: results to stdout, trouble to stderr."""
    out = context.out
    if out.json:
        out.document("qmigrate.list/1", document(answers))
        return
    if names:
        out.lines(sorted({g.name for a in answers for g in a.guests if g.name}))
    elif any(answer.guests for answer in answers):
        whole = not out.fits_to_terminal()
        out.table(table(answers, whole=whole, verbose=context.verbose > 0))
        if not whole:
            _say_notes(context, answers)
    for answer in answers:
        if answer.problem:
            out.problem(answer.problem)
        elif not answer.guests and not names:
            out.say(f"no QEMU runs on {printable(answer.host.name)}")
    if context.verbose:
        for answer in answers:
            steps = ", ".join(f"{s.name} {human_seconds(s.duration_s)}" for s in answer.steps)
            out.say(f"{printable(answer.host.name)}: {steps or 'nothing was reached'}")


def document(answers: Sequence[HostAnswer]) -> dict[str, Any]:
    """Return the body of ``qmigrate.list/1``: guests, and every host with its error if any."""
    return {
        "guests": [
            {"host": answer.host.name, **asdict(guest), "notes": list(notes(guest, answer.guests))}
            for answer in answers
            for guest in answer.guests
        ],
        "hosts": [
            {
                "host": answer.host.name,
                "error": asdict(answer.problem) if answer.problem else None,
                "exit": answer.exit_code,
                "steps": [asdict(step) for step in answer.steps],
            }
            for answer in answers
        ],
    }


def table(answers: Sequence[HostAnswer], *, whole: bool, verbose: bool = False) -> Table:
    """Return the guests as a table; `whole`: everything, with full paths, for a pipe."""
    titles = ["GUEST", "HOST", "STATE", "MEMORY", "VCPUS", "QEMU", "ACCEL", "DISKS", "NICS"]
    titles += ["PID", "UUID", "MACHINE", "MONITOR"] if whole or verbose else []
    titles += ["NOTES"] if whole else []
    rows = (
        _row(answer, guest, titles, whole=whole)
        for answer in answers
        for guest in sorted(answer.guests, key=lambda g: (g.name or "", g.pid))
    )
    return Table(tuple(titles), tuple(rows), right=("MEMORY", "VCPUS", "PID"))


def _row(
    answer: HostAnswer, guest: Guest, titles: Sequence[str], *, whole: bool
) -> tuple[str | None, ...]:
    cells: dict[str, str | None] = {
        "GUEST": label(guest),
        "HOST": answer.host.name,
        "STATE": guest.state,
        "MEMORY": None if guest.memory_bytes is None else human_bytes(guest.memory_bytes),
        "VCPUS": None if guest.vcpus is None else str(guest.vcpus),
        "QEMU": guest.qemu_version,
        "ACCEL": guest.accelerator,
        "DISKS": ", ".join(_disk(disk, whole=whole) for disk in guest.disks) or None,
        "NICS": ", ".join(map(_nic, guest.nics)) or None,
        "PID": str(guest.pid),
        "UUID": guest.uuid,
        "MACHINE": guest.machine,
        "MONITOR": guest.monitor,
        "NOTES": "; ".join(notes(guest, answer.guests)) or None,
    }
    return tuple(cells[title] for title in titles)


def label(guest: Guest) -> str:
    """Return the guest's name, or for one without a name the pid that means it too."""
    return guest.name or f"(pid {guest.pid})"


def notes(guest: Guest, others: Sequence[Guest]) -> Iterator[str]:
    """Yield what stands in a guest's way among `others` on its host, each with the way out."""
    if guest.monitor_problem:
        fix = f" ({guest.monitor_fix})" if guest.monitor_fix else ""
        yield guest.monitor_problem + fix
    if guest.owner in _OWNERS:
        yield _OWNERS[guest.owner].format(unit=guest.unit or "its name is not known")
    if guest.job:
        yield f"it is part of job {guest.job}"
    if guest.name and [other.name for other in others].count(guest.name) > 1:
        yield f"another guest here has this name: say {guest.pid}, its pid"


def _disk(disk: Disk, *, whole: bool) -> str:
    path = disk.path or disk.node or disk.device
    name = path if whole else PurePath(path).name or path
    words = (name, "ro" if disk.read_only else "")
    return " ".join(filter(None, words))


def _nic(nic: Nic) -> str:
    if nic.tap:
        return f"{nic.tap}@{nic.bridge}" if nic.bridge else nic.tap
    return nic.backend or nic.netdev or nic.model


def _say_notes(context: Context, answers: Sequence[HostAnswer]) -> None:
    for answer in answers:
        for guest in answer.guests:
            for note in notes(guest, answer.guests):
                who = f"{label(guest)} on {answer.host.name}"
                context.out.say(printable(f"note: {who}: {note}"))
