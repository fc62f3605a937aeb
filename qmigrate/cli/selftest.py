"""``qmigrate selftest``: every fault of the handover struck on purpose, and the end looked at."""

import argparse
import signal
from typing import TYPE_CHECKING, Any

from qmigrate.cli.context import Context
from qmigrate.cli.render import Table
from qmigrate.core.errors import UsageError

if TYPE_CHECKING:
    from qmigrate.lab.selftest.cells import Cell
    from qmigrate.lab.selftest.ground import Ground
    from qmigrate.lab.selftest.runner import Outcome
    from qmigrate.lab.selftest.walk import Walk

NAME = "selftest"
HELP = "strike a move with every fault there is, and see that one copy runs whatever dies"
EXAMPLES = """\
qmigrate selftest                             all cells, in a lab of its own: half an hour
qmigrate selftest --list                      what is struck, when, and the end expected
qmigrate selftest --cells source?agent*       some of them
qmigrate selftest root@alpha root@beta        two real hosts; only a throw-away guest is struck
qmigrate selftest --random 300 --seed 7       there and back, a fault in one move of three"""
SCHEMA = "qmigrate.selftest/1"
FAILED = 1  # a cell did not end as the table says: a defect of ours


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this command."""
    from qmigrate.cli.parser import complete_with

    hosts = parser.add_argument(
        "hosts", nargs="*", metavar="HOST", help="two real hosts instead of a lab"
    )
    complete_with(hosts, "host")
    parser.add_argument("--cells", metavar="PATTERN", help="only cells with this in their name")
    parser.add_argument("--list", action="store_true", help="show the cells and strike nothing")
    parser.add_argument("--lab", metavar="NAME", help="what the lab is called")
    walk = parser.add_argument_group("random walk")
    walk.add_argument("--random", type=int, metavar="N", help="so many moves instead of the cells")
    walk.add_argument("--seed", type=int, metavar="S", help="to repeat a walk")


def run(context: Context, args: argparse.Namespace) -> int:
    """Play the cells; 0 only if every one of them ended as the table says."""
    from qmigrate.lab.selftest.runner import choose
    from qmigrate.lab.selftest.table import CELLS

    if len(args.hosts) not in (0, 2):
        raise UsageError("it takes two hosts, or none for a lab of its own")
    cells = choose(CELLS, args.cells)
    if args.hosts:
        cells = tuple(cell for cell in cells if not cell.only_in_a_lab)
        if not cells:
            raise UsageError("what --cells names can be struck in a lab only")
    if args.list:
        return _list(context, cells)
    # A lab is taken down again, whoever ends us: what they raise finds the way out.
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, signal.default_int_handler)
    with _ground(context, args) as ground:
        if args.random is not None:
            return _walk(context, ground, cells, args)
        return _play(context, ground, cells)


def _ground(context: Context, args: argparse.Namespace) -> Any:
    if not args.hosts:
        from qmigrate.lab.selftest.lab_ground import lab_ground

        return lab_ground(args.lab)
    from qmigrate.lab.selftest.hosts_ground import hosts_ground

    inventory = context.inventory()
    first, second = map(inventory.host, args.hosts)
    return hosts_ground(first, second, (context.config, context.ssh_config))


def _list(context: Context, cells: tuple["Cell", ...]) -> int:
    if context.out.json:
        context.out.document(SCHEMA, {"cells": [_described(cell) for cell in cells]})
        return 0
    titles = ("CELL", "EXPECTED")
    context.out.table(Table(titles, tuple((cell.name, cell.expected) for cell in cells)))
    return 0


def _described(cell: "Cell") -> dict[str, Any]:
    return {
        "name": cell.name,
        "victim": str(cell.victim),
        "fault": str(cell.fault),
        "phase": str(cell.phase),
        "expected": cell.expected,
    }


def _play(context: Context, ground: "Ground", cells: tuple["Cell", ...]) -> int:
    from qmigrate.lab.selftest.runner import run_cells

    out, total = context.out, len(cells)
    done = 0

    def tell(outcome: "Outcome") -> None:
        nonlocal done
        done += 1
        word = "ok" if outcome.ok else "FAILED"
        out.say(f"{done:3}/{total} {word:6} {outcome.took_s:5.1f} s  {outcome.cell.name}")
        for why in outcome.why:
            out.say(f"        {why}")
        if context.verbose and outcome.logs:
            out.say(outcome.logs)

    outcomes = run_cells(ground, cells, tell)
    failed = [outcome for outcome in outcomes if not outcome.ok]
    if out.json:
        out.document(SCHEMA, {"cells": [_result(outcome) for outcome in outcomes]})
    else:
        rows = tuple(
            (
                "ok" if outcome.ok else "FAILED",
                f"{outcome.took_s:.1f}",
                outcome.cell.name,
                outcome.cell.expected,
                "; ".join(outcome.why) or None,
            )
            for outcome in outcomes
        )
        out.table(Table(("", "SECONDS", "CELL", "EXPECTED", "WHY"), rows, right=("SECONDS",)))
    took_s = sum(outcome.took_s for outcome in outcomes)
    out.say(f"{total - len(failed)} of {total} cells ended as expected, in {took_s:.0f} s")
    return FAILED if failed else 0


def _result(outcome: "Outcome") -> dict[str, Any]:
    why = "; ".join(outcome.why) or None
    return {**_described(outcome.cell), "ok": outcome.ok, "why": why}


def _walk(
    context: Context, ground: "Ground", cells: tuple["Cell", ...], args: argparse.Namespace
) -> int:
    from dataclasses import asdict

    from qmigrate.lab.selftest.walk import draw_seed, walk

    seed = args.seed if args.seed is not None else draw_seed()
    context.out.say(f"{args.random} moves there and back; again: --seed {seed}")
    found: Walk = walk(ground, cells, args.random, seed, context.out.say)
    if context.out.json:
        context.out.document(SCHEMA, {"cells": [], "random": asdict(found)})
    else:
        context.out.lines([str(found)])
    return 0 if found.ok else FAILED
