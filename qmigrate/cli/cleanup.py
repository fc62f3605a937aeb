"""``qmigrate cleanup``: what of ours on a host serves nobody, listed and removed."""

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from qmigrate.cli.context import Context
from qmigrate.cli.render import Output
from qmigrate.core.errors import UsageError

if TYPE_CHECKING:
    from qmigrate.agent.requests import Removal
    from qmigrate.core.belongings import Thing

NAME = "cleanup"
HELP = "remove from a host what is ours and serves nobody"
EXAMPLES = """\
qmigrate cleanup alpha --dry-run        only look
qmigrate cleanup alpha                  look, ask, remove
qmigrate cleanup root@alpha --peer root@beta --yes
qmigrate cleanup alpha --logs 30        what was said in jobs more than 30 days ago, too"""

INCOMPLETE = 8  # something could not be removed


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this command."""
    from qmigrate.cli.parser import complete_with

    host = parser.add_argument("host", metavar="HOST", help="where to look")
    parser.add_argument("--dry-run", action="store_true", help="list, and remove nothing")
    parser.add_argument("-y", "--yes", action="store_true", help="do not ask")
    days = "logs of jobs that ended more than DAYS ago, too"
    parser.add_argument("--logs", metavar="DAYS", type=_days, help=days)
    peer = parser.add_argument(
        "--peer", metavar="HOST", help="the other host of the jobs there, if no inventory names it"
    )
    for option in (host, peer):
        complete_with(option, "host")


def _days(text: str) -> float:
    try:
        days = float(text)
    except ValueError:
        days = -1.0
    if not 0 <= days <= 36500:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of days")
    return days


async def run(context: Context, args: argparse.Namespace) -> int:
    """List, ask unless told not to, remove; 8 if something could not be removed.

    What is to be resolved first is listed and left alone, and no failure.
    """
    if not args.dry_run and not args.yes and (context.out.json or not sys.stdin.isatty()):
        raise UsageError("nobody can be asked here", next_step="add --yes, or --dry-run to look")
    inventory = context.inventory()
    host, peer = inventory.host(args.host), args.peer and inventory.host(args.peer)

    from qmigrate.controller.cleanup import Cleanup
    from qmigrate.controller.remote import open_agent
    from qmigrate.core.belongings import LogWish

    wish = LogWish(None if args.logs is None else args.logs * 86400)
    async with open_agent(host) as agent:
        cleanup = Cleanup(agent, wish, inventory.hosts, peer)
        things = await cleanup.look()
        out = context.out
        for problem in cleanup.problems:
            out.say(f"{host.name}: {problem}")
        if not out.json:
            show_things(out, host.name, things)
        done: tuple[Removal, ...] | None = None
        if cleanup.removable and not args.dry_run:
            if not args.yes and not await _agreed(out, len(cleanup.removable)):
                out.say("nothing was removed")
                return 0
            done = (await cleanup.remove()).removals
    if out.json:
        body = document(host.name, things, done, dry_run=args.dry_run)
        out.document("qmigrate.cleanup/1", body)
    elif done is not None:
        show_done(out, host.name, done)
    failed = done is not None and not all(one.removed for one in done)
    return INCOMPLETE if failed else 0


async def _agreed(out: Output, count: int) -> bool:
    """Ask a person; whatever is not a yes is a no."""
    import trio

    out.say(f"remove {'it' if count == 1 else f'these {count}'}? [y/N]")
    line = await trio.to_thread.run_sync(sys.stdin.readline, abandon_on_cancel=True)
    return line.strip().lower() in ("y", "yes")


def show_things(out: Output, host: str, things: Sequence["Thing"]) -> None:
    """Write what was found: what may go to stdout, what is to be resolved first to stderr."""
    from qmigrate.core.belongings import Verdict

    removable = [thing for thing in things if thing.verdict is Verdict.REMOVABLE]
    out.lines(f"{thing.kind} {thing.name}: {thing.why}" for thing in removable)
    for thing in things:
        if thing.verdict is Verdict.RESOLVE:
            out.say(f"left alone: {thing.kind} {thing.name}: {thing.why}; {thing.next_step}")
    if not removable:
        out.say(f"nothing of ours on {host} is to be removed")


def show_done(out: Output, host: str, done: Sequence["Removal"]) -> None:
    """Write what came of it."""
    gone = sum(one.removed for one in done)
    out.say(f"{gone} of {len(done)} removed from {host}")
    for one in done:
        if not one.removed:
            out.say(f"still there: {one.thing.kind} {one.thing.name}: {one.why}")


def document(
    host: str, things: Sequence["Thing"], done: Sequence["Removal"] | None, *, dry_run: bool
) -> dict[str, Any]:
    """Return the body of ``qmigrate.cleanup/1``; `removed` is null where nothing was tried."""
    results = {(one.thing.kind, one.thing.name): one for one in done or ()}
    found = []
    for thing in things:
        result = results.get((thing.kind, thing.name))
        found.append(
            {
                "kind": str(thing.kind),
                "name": thing.name,
                "verdict": str(thing.verdict),
                "why": thing.why,
                "job": thing.job,
                "next_step": thing.next_step,
                "removed": result.removed if result else None,
                "problem": result.why if result and not result.removed else None,
            }
        )
    return {"host": host, "dry_run": dry_run, "things": found}
