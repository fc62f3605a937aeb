"""`netsetup show`: bridges, taps and what qmigrate has made."""

import argparse
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from netsetup.commands.output import RAW, print_json
from netsetup.links import OUR_ALIAS

if TYPE_CHECKING:
    from netsetup.links import Bridge, Link

_EXAMPLES = """\
examples:
  netsetup show             taps, bridges, and what qmigrate has made
  netsetup show --json      the same for scripts
"""


@dataclass(frozen=True, slots=True)
class _Shown:
    links: "tuple[Link, ...]"
    bridges: "tuple[Bridge, ...]"


def add_parser(commands: Any) -> None:
    """Add `show`."""
    show = commands.add_parser(
        "show",
        help="bridges, taps and what qmigrate has made",
        epilog=_EXAMPLES,
        formatter_class=RAW,
    )
    show.add_argument("--json", action="store_true")
    show.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print what is there; 0."""
    import trio

    shown = trio.run(_look)
    ours = [link for link in shown.links if (link.alias or "").startswith(OUR_ALIAS)]
    taps = [link for link in shown.links if link.kind == "tun"]
    if options.json:
        print_json(
            "netsetup.show/1",
            bridges=[asdict(bridge) for bridge in shown.bridges],
            taps=[asdict(link) for link in taps],
            ours=[asdict(link) for link in ours],
        )
        return 0
    for bridge in shown.bridges:
        facts = [f"mtu {bridge.mtu_bytes}", "up" if bridge.up else "down"]
        facts += ["STP"] if bridge.stp else []
        facts += ["filters VLANs"] if bridge.vlan_filtering else []
        ports = " ".join(bridge.ports) or "no ports"
        print(f"bridge  {bridge.name:15}  {', '.join(facts)}: {ports}")
    for word, links in (("tap", taps), ("ours", [link for link in ours if link not in taps])):
        for link in links:
            state = "in use" if link.carrier else "not open" if link.up else "down"
            mark = f"  {link.alias}" if link.alias else ""
            print(f"{word:6}  {link.name:15}  {link.master or 'in no bridge'}, {state}{mark}")
    return 0


async def _look() -> _Shown:
    from netsetup.rtnl import Rtnl

    async with Rtnl() as rtnl:
        return _Shown(await rtnl.links(), await rtnl.bridges())
