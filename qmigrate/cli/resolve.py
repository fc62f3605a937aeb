"""``qmigrate resolve``: who runs a guest whose move was cut short, and the one safe thing to do."""

import argparse
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from qmigrate.cli.context import Context
from qmigrate.cli.render import Output, printable
from qmigrate.core.errors import UsageError

if TYPE_CHECKING:
    from qmigrate.controller.inventory import Inventory
    from qmigrate.controller.resolve import Resolved
    from qmigrate.core.model import HostSpec

NAME = "resolve"
HELP = "find out who runs a guest whose move was cut short, and do the one safe thing"
EXAMPLES = """\
qmigrate resolve web1 --dry-run         who runs it, and what would be done
qmigrate resolve web1                   do it, or say what only you can know
qmigrate resolve web1 --source root@alpha --destination root@beta
qmigrate resolve web1 --host-is-dead alpha          it has lost its power, or will never run again
qmigrate resolve web1 --resume-source-anyway        old memory, though the disks may be newer"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this command."""
    from qmigrate.cli.parser import complete_with

    guest = parser.add_argument("guest", metavar="GUEST", help="its name or UUID, or a job's id")
    complete_with(guest, "guest")
    where = parser.add_argument_group("where to ask, instead of all known hosts")
    source = where.add_argument("--source", metavar="HOST", help="the host that it was to leave")
    there = where.add_argument("--destination", metavar="HOST", help="the one it was to come to")
    known = parser.add_argument_group("what only you can know")
    words = "what was on it is gone for good: its power was lost since the move began, or it is off"
    dead = known.add_argument(
        "--host-is-dead", metavar="HOST", action="append", default=[], help=words
    )
    known.add_argument(
        "--resume-source-anyway",
        action="store_true",
        help="run the copy on the source, whose memory may be older than what is on its disks",
    )
    parser.add_argument("--dry-run", action="store_true", help="only look, and say what would be")
    for option in (source, there, dead):
        complete_with(option, "host")


async def run(context: Context, args: argparse.Namespace) -> int:
    """Resolve; 0: it runs in one place and nothing is left. 7: who runs it is not known."""
    from qmigrate.controller.gathering import Gathering
    from qmigrate.controller.remote import open_agents
    from qmigrate.controller.resolve import Resolving
    from qmigrate.core.testimony import Vouched

    inventory = context.inventory()
    hosts = _hosts(inventory, args)
    vouched = Vouched(frozenset(args.host_is_dead), args.resume_source_anyway)
    out = context.out
    async with open_agents(hosts) as agents:
        gathering = Gathering(
            args.guest,
            hosts,
            agents,
            args.source,
            args.destination,
            inventory.guest(args.guest).addresses,
        )
        resolving = Resolving(gathering, vouched, lambda line: out.say(printable(line)))
        resolved = await resolving.run(dry_run=args.dry_run)
    show(out, resolved, dry_run=args.dry_run)
    return resolved.verdict.exit_code


def _hosts(inventory: "Inventory", args: argparse.Namespace) -> "tuple[HostSpec, ...]":
    """Return whom to ask: the two that were named, else all that are known."""
    named = [word for word in (args.source, args.destination) if word]
    if args.source and args.source == args.destination:
        raise UsageError("the source and the destination are two hosts")
    chosen = {spec.name: spec for spec in inventory.select(named)}
    # One that is said to be dead is asked all the same: it may answer.
    chosen |= {spec.name: spec for spec in map(inventory.host, args.host_is_dead)}
    return tuple(chosen.values())


def show(out: Output, resolved: "Resolved", *, dry_run: bool) -> None:
    """Write what was seen and what it means to stdout; what to do next, to stderr."""
    if out.json:
        out.document("qmigrate.resolve/1", document(resolved, dry_run=dry_run))
        return
    out.lines(lines(resolved, dry_run=dry_run))
    if resolved.verdict.next_step:
        out.say(printable(f"next: {resolved.verdict.next_step}"))


def lines(resolved: "Resolved", *, dry_run: bool) -> Iterator[str]:
    """Yield what a person reads."""
    from qmigrate.core.recounting import recount

    yield from recount(resolved.found)
    yield from (f"→ {word}" for word in resolved.meant.words)
    if resolved.acted:
        yield ""
        for acted in resolved.acted:
            yield f"{acted.act}: {acted.came_to or acted.problem}"
        yield ""
        yield from recount(resolved.evidence)
        yield from (f"→ {word}" for word in resolved.verdict.words)
    if dry_run:
        yield from (f"would: {act}" for act in resolved.verdict.acts)


def document(resolved: "Resolved", *, dry_run: bool) -> dict[str, Any]:
    """Return the body of ``qmigrate.resolve/1``."""
    from qmigrate.core.recounting import recount

    verdict = resolved.verdict
    return {
        "guest": resolved.evidence.guest,
        "ends": str(verdict.ends),
        "exit": verdict.exit_code,
        "host": verdict.host,
        "job": verdict.job,
        "found": {"seen": list(recount(resolved.found)), "means": list(resolved.meant.words)},
        "seen": list(recount(resolved.evidence)),
        "means": list(verdict.words),
        "dry_run": dry_run,
        "would": [str(act) for act in verdict.acts],
        "acted": [
            {"act": str(acted.act), "came_to": acted.came_to, "problem": acted.problem}
            for acted in resolved.acted
        ],
        "next_step": verdict.next_step,
        "hosts": [asdict(host) for host in resolved.evidence.hosts],
    }
