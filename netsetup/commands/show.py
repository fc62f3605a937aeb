"""`netsetup show`: bridges, taps and what qmigrate has made, its tunnels explained."""

import argparse
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from netsetup.commands.output import RAW, print_json
from netsetup.commands.tunnel_json import to_json
from netsetup.links import OUR_ALIAS

if TYPE_CHECKING:
    from netsetup.explain import Explained
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
    tunnels: "tuple[Explained, ...]"


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
            tunnels=[{**asdict(each), "tunnel": to_json(each.tunnel)} for each in shown.tunnels],
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
    for each in shown.tunnels:
        _print_tunnel(each)
    return 0


def _print_tunnel(each: "Explained") -> None:
    tunnel = each.tunnel
    print(f"tunnel  {tunnel.id}  {tunnel.described}, the {tunnel.end} end of {tunnel.home}")
    process = f" (process {each.relay_pid})" if each.relay_pid else ""
    for line in (each.wire, each.carried_by + process, each.arithmetic):
        print(f"  {line}")
    for count in each.counts:
        octets = "" if count.octets is None else f", {count.octets} bytes"
        print(f"  {count.way:3}  {count.by:6}  {count.frames} frames{octets}: {count.what}")
    for problem in tunnel.problems:
        print(f"  wrong: {problem}")


async def _look() -> _Shown:
    from netsetup.explain import explain
    from netsetup.rtnl import Rtnl
    from netsetup.tunnels import list_tunnels

    async with Rtnl() as rtnl:
        tunnels = [await explain(rtnl, tunnel) for tunnel in await list_tunnels(rtnl)]
        return _Shown(await rtnl.links(), await rtnl.bridges(), tuple(tunnels))
