"""``qmigrate hosts``: the hosts of the inventory, without asking them anything."""

import argparse
from dataclasses import asdict

from qmigrate.cli.context import Context
from qmigrate.cli.render import Table

NAME = "hosts"
HELP = "the hosts of the inventory, as it is written; nothing is asked of them"
EXAMPLES = """\
qmigrate hosts                          which hosts are known, and how they are reached
qmigrate hosts --names                  one name a line, as completion reads them
qmigrate hosts --config lab.toml --json"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    parser.add_argument("--names", action="store_true", help="names only, one a line")


def run(context: Context, args: argparse.Namespace) -> int:
    """Show the inventory; not under trio, whose import would be felt at every TAB."""
    if args.names and not context.out.json:
        from qmigrate.controller import inventory_text

        context.out.lines(inventory_text.names(context.config))
        return 0
    found = context.inventory()
    if context.out.json:
        hosts = [asdict(host) for host in found.hosts]
        context.out.document("qmigrate.hosts/1", {"path": found.path, "hosts": hosts})
        return 0
    rows = (
        (
            host.name,
            host.ssh or "this machine",
            host.python or "newest",
            "yes" if host.sudo else "no",
            ", ".join(host.migration_addresses) or "any",
            "{}-{}".format(*host.port_range) if host.port_range else "any",
        )
        for host in found.hosts
    )
    titles = ("HOST", "SSH", "PYTHON", "SUDO", "MIGRATION ADDRESSES", "PORTS")
    context.out.table(Table(titles, tuple(rows)))
    if not found.hosts:
        where = f"{found.path} names none" if found.path else "there is no inventory"
        context.out.say(f"{where}; a host needs none: qmigrate list root@alpha")
    return 0
