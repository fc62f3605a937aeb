"""``qmigrate list``: every QEMU on the hosts, also one that cannot be moved, with the reason."""

import argparse
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from qmigrate.cli.context import Context

if TYPE_CHECKING:
    from qmigrate.controller.survey import HostAnswer

NAME = "list"
HELP = "every QEMU on the hosts, and why one cannot be reached or moved"
EXAMPLES = """\
qmigrate list                           the hosts of the inventory, else this machine
qmigrate list alpha root@192.0.2.7      hosts by inventory name, ssh alias or ssh destination
qmigrate list ssh://root@beta:2222 -v   another port; -v tells where the time went
qmigrate list --json | jq -r '.guests[] | select(.state == "running") | .name'
qmigrate list | cut -f 1-3              in a pipe: tab-separated, nothing cut"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this command."""
    from qmigrate.cli.parser import complete_with  # it imports this module's neighbours

    hosts = parser.add_argument("hosts", nargs="*", metavar="HOST", help="instead of all known")
    complete_with(hosts, "host")
    parser.add_argument("--names", action="store_true", help="names of guests only, one a line")


async def run(context: Context, args: argparse.Namespace) -> int:
    """Ask the hosts side by side; exit code 4 if one failed, the others are shown all the same."""
    inventory = context.inventory()
    hosts = inventory.select(args.hosts)

    from qmigrate.cli.guests import show
    from qmigrate.controller.remote import open_agent
    from qmigrate.controller.survey import survey

    answers = [with_hint(a, inventory.suggestion) for a in await survey(hosts, open_agent)]
    show(context, answers, names=args.names)
    return max(answer.exit_code for answer in answers)


def with_hint(answer: "HostAnswer", suggestion: Callable[[str], str | None]) -> "HostAnswer":
    """Add "did you mean …?" where a host could not be reached that is no inventory name."""
    problem = answer.problem
    if problem is None or problem.next_step or problem.code != "unreachable":
        return answer
    return replace(answer, problem=replace(problem, next_step=suggestion(answer.host.name)))
