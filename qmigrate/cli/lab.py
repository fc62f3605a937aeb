"""``qmigrate lab``: make, look at, enter and remove a lab of hosts on this machine."""

import argparse
import re
import signal
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

from qmigrate.cli.context import Context
from qmigrate.cli.parser import common_options
from qmigrate.cli.render import Table
from qmigrate.core.errors import UsageError

if TYPE_CHECKING:
    import subprocess

    from qmigrate.lab.state import LabStatus

NAME: Final = "lab"
HELP: Final = "make hosts on this machine to try everything on"
EXAMPLES: Final = """\
qmigrate lab up                                   hosts alpha and beta, a client, a switch
qmigrate lab exec client -- qmigrate list         as a user would, with the lab's own config
qmigrate lab exec alpha -- bash                   a shell on a host
qmigrate lab up --lab thin --rate 200mbit         a second lab beside the first
qmigrate lab up --topology two-subnets             as the others of `qmigrate lab topologies`
qmigrate lab status --json
qmigrate lab down                                 nothing is left"""
SCHEMA: Final = "qmigrate.lab/1"
TOPOLOGIES_SCHEMA: Final = "qmigrate.lab.topologies/1"
_RATE: Final = re.compile(r"(\d+(?:\.\d+)?)(k|m|g)?bit", re.IGNORECASE)
_FACTORS: Final = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9}


def rate_bps(text: str) -> int:
    """Read a rate as tc(8) writes it: 200mbit, 1gbit."""
    found = _RATE.fullmatch(text)
    if not found or float(found[1]) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no rate; write it as in 200mbit or 1gbit")
    return round(float(found[1]) * _FACTORS[(found[2] or "").lower()])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add up, down, topologies, status and exec."""
    parser.add_argument(
        "--lab", metavar="NAME", default="lab", help="which lab; several can stand side by side"
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    common = [common_options()]
    up = actions.add_parser(
        "up", parents=common, help="make it; one that stands already is left as it is"
    )
    up.add_argument(
        "--topology", default="same-segment", metavar="NAME", help="what it consists of"
    )
    up.add_argument("--mtu", type=int, metavar="BYTES", help="of every cable and bridge")
    up.add_argument("--rate", type=rate_bps, metavar="RATE", help="of every cable, as in 200mbit")
    down = actions.add_parser("down", parents=common, help="end all that runs in it and remove it")
    known = actions.add_parser("topologies", parents=common, help="show which there are to make")
    status = actions.add_parser("status", parents=common, help="show what stands")
    enter = actions.add_parser("exec", parents=common, help="run a command in one of its hosts")
    enter.add_argument("host", metavar="HOST", help="alpha, beta, client, ...")
    enter.add_argument("argv", metavar="COMMAND", nargs=argparse.REMAINDER)
    for action in (up, down, known, status, enter):
        # `lab up --lab x` is what fingers write; SUPPRESS keeps `lab --lab x up` working too.
        action.add_argument(
            "--lab", metavar="NAME", default=argparse.SUPPRESS, help=argparse.SUPPRESS
        )


def run(ctx: Context, args: argparse.Namespace) -> int:
    """Do what `args.action` says; the status of ``exec`` is that of its command."""
    from qmigrate.lab.lab import Lab

    lab = Lab(args.lab)
    match args.action:
        case "up":
            from qmigrate.lab.topologies import find

            topology = find(args.topology)
            if args.mtu is not None:
                topology = topology.with_mtu(args.mtu)
            if args.rate is not None:
                topology = topology.with_rate(args.rate)
            lab.up(topology)
            show(ctx, lab.status())
        case "down":
            lab.down()
            if ctx.out.json:
                show(ctx, lab.status())
        case "topologies":
            show_topologies(ctx)
        case "status":
            show(ctx, lab.status())
        case "exec":
            argv = inner(args)
            if not argv:
                raise UsageError("nothing to run", next_step="qmigrate lab exec HOST -- COMMAND")
            return follow(lambda: lab.popen(args.host, argv, **in_the_foreground()))
        case other:
            raise AssertionError(other)
    return 0


def inner(args: argparse.Namespace) -> list[str]:
    """Return the command of ``exec``; whether argparse leaves the ``--`` depends on its version."""
    argv: list[str] = args.argv
    return argv[1:] if argv[:1] == ["--"] else argv


def show(ctx: Context, status: "LabStatus") -> None:
    """Write `status` as a table, or as ``qmigrate.lab/1``."""
    if ctx.out.json:
        ctx.out.document(SCHEMA, asdict(status))
        return
    if not status.nodes:
        ctx.out.say(f"lab {status.name}: {status.state}")
        return
    rows = tuple(
        (
            node.name,
            node.kind,
            "on" if node.powered else "off",
            {True: "listens", False: "down", None: None}[node.sshd],
            {"both": "cut", "in": "cut in", "out": "cut out", None: "whole"}[node.cut]
            if node.kind != "switch"
            else None,
            str(node.processes),
            " ".join(node.addresses) or None,
        )
        for node in status.nodes
    )
    titles = ("HOST", "KIND", "POWER", "SSHD", "CABLE", "PROCESSES", "ADDRESSES")
    ctx.out.table(Table(titles, rows, right=("PROCESSES",)))


def show_topologies(ctx: Context) -> None:
    """Write what `up --topology` takes as a table, or as ``qmigrate.lab.topologies/1``."""
    from qmigrate.lab.topologies import TOPOLOGIES

    known = TOPOLOGIES.values()
    if ctx.out.json:
        fields = [
            {"name": t.name, "about": t.about, "hosts": [host.name for host in t.hosts]}
            for t in known
        ]
        ctx.out.document(TOPOLOGIES_SCHEMA, {"topologies": fields})
        return
    rows = tuple((t.name, " ".join(host.name for host in t.hosts), t.about) for t in known)
    ctx.out.table(Table(("TOPOLOGY", "HOSTS", "ABOUT"), rows))


def in_the_foreground() -> dict[str, Any]:
    """Return the options of `Popen` that give a command our terminal and, if it can, our place."""
    from pathlib import Path

    return {"stdin": None, "start_new_session": False, "cwd": str(Path.cwd())}


def follow(start: Callable[[], "subprocess.Popen[bytes]"]) -> int:
    """Run what `start` starts as a shell does, passing signals on; 128+n if it was killed.

    Ctrl-C reaches it by itself: it is in the terminal's foreground group, as we are. The handlers
    stand before it starts, for it may answer, and be signalled, at once; and SIGINT is caught, not
    ignored, for what is ignored would be so in the command too.
    """
    early: list[int] = []
    process: subprocess.Popen[bytes] | None = None

    def pass_on(signum: int, _: object) -> None:
        if process is None:
            early.append(signum)
        else:
            process.send_signal(signum)

    before = {signum: signal.signal(signum, pass_on) for signum in (signal.SIGTERM, signal.SIGHUP)}
    before[signal.SIGINT] = signal.signal(signal.SIGINT, lambda *_: None)
    try:
        process = start()
        for signum in early:
            process.send_signal(signum)
        status = process.wait()
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
    return status if status >= 0 else 128 - status
