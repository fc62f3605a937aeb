"""`netsetup tunnel`: one end of a tunnel made, verified, listed, mended and removed by hand."""

import argparse
import json
import sys
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from netsetup.commands.output import RAW, print_json
from netsetup.commands.tunnel_json import LIST_SCHEMA, to_json, tunnels_from_json
from netsetup.errors import NetsetupError, UsageError
from netsetup.homes import parse_home
from netsetup.tunnel_spec import (
    VXLAN_PORT,
    Address,
    End,
    Tag,
    Tunnel,
    TunnelSpec,
    choose_key,
    mirrored,
    pair,
    spec_of,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from netsetup.choice import Choice
    from netsetup.rtnl import Rtnl
    from netsetup.tunnel_build import Removal
    from netsetup.tunnels import Made

_T = TypeVar("_T")

_EXAMPLES = """\
examples:
  on alpha, where the guest was born on br0:
    netsetup tunnel create --end home --home alpha/br0 --guest web1 \\
        --local 10.1.0.2 --remote 10.2.0.2
  on gamma, where it goes; its tap belongs into the private bridge that this names:
    netsetup tunnel create --end away --home alpha/br0 --guest web1 \\
        --local 10.2.0.2 --remote 10.1.0.2
  netsetup tunnel list --json > alpha.json
        what is here, found in the kernel alone
  netsetup tunnel list --beside alpha.json
        on gamma: tunnels with one end only, and ends that do not fit each other
  netsetup tunnel repair --lost alpha.json
        on gamma, after it rebooted: what alpha still remembers is made again
  netsetup tunnel remove 29d1aa8f --guest web1
        the tunnel goes when the last guest that needs it has gone
"""


def add_parser(commands: Any) -> None:
    """Add `tunnel` and its own commands."""
    tunnel = commands.add_parser(
        "tunnel",
        help="join a private bridge on one host to a segment of another",
        epilog=_EXAMPLES,
        formatter_class=RAW,
    )
    actions = tunnel.add_subparsers(dest="action", metavar="ACTION", required=True)
    _add_create(actions)
    for name, words, run_ in (
        ("verify", "say what is not as it should be; 4 if anything", _run_verify),
        ("list", "what is here", _run_list),
        ("remove", "take a guest's claim away, and the tunnel with the last", _run_remove),
        ("repair", "mend every tunnel here, and make lost ones again", _run_repair),
        ("gc", "remove what nobody claims or lives on", _run_gc),
    ):
        parser = actions.add_parser(name, help=words)
        if name in ("verify", "remove"):
            parser.add_argument("tunnel", metavar="ID", nargs=None if name == "remove" else "?")
        if name == "remove":
            parser.add_argument("--guest", help="whose claim; without it everybody's")
        if name == "list":
            parser.add_argument(
                "--beside", metavar="FILE", help="`list --json` of the other host; - is stdin"
            )
        if name == "repair":
            parser.add_argument(
                "--lost", metavar="FILE", help="make the ends that `list --json` of the other "
                "host still has its own of; - is stdin",
            )  # fmt: skip
            parser.add_argument(
                "--local", type=_address, help="only those that end at this address of this host"
            )
        if name == "gc":
            parser.add_argument("--live-job", action="append", default=[], metavar="JOB")
            parser.add_argument(
                "--live-guest", action="append", metavar="GUEST",
                help="claims of all others are void; without it every claim holds",
            )  # fmt: skip
        parser.add_argument("--json", action="store_true")
        parser.set_defaults(run=run_)


def _add_create(actions: Any) -> None:
    create = actions.add_parser("create", help="make one end, or finish and mend it")
    create.add_argument("--end", required=True, choices=[str(end) for end in End])
    create.add_argument("--home", required=True, type=_home, metavar="HOST/BRIDGE[@VLAN]")
    create.add_argument("--local", required=True, type=_address, help="this host's address")
    create.add_argument("--remote", required=True, type=_address, help="the other's")
    create.add_argument(
        "--kind",
        default="auto",
        help="auto (the default), vxlan, gretap, etherip; with who carries it: etherip/relay",
    )
    create.add_argument(
        "--key", type=int, help="VNI or GRE key, 0 for a GRE without; follows from the ends"
    )
    create.add_argument("--mtu", type=int, default=1500, help="the guests' (1500)")
    create.add_argument(
        "--path-mtu", type=int, help="of the path between the hosts; what this host believes"
    )
    create.add_argument(
        "--reversed-header", action="store_true", help="send EtherIP as NetBSD and old FreeBSD do"
    )
    create.add_argument("--udp-port", type=int, default=VXLAN_PORT)
    create.add_argument("--guest", action="append", default=[], help="who needs it; again for each")
    create.add_argument("--owner", default=Tag().owner)
    create.add_argument("--job", default=Tag().job)
    create.add_argument(
        "--no-split-horizon", action="store_true", help="let guests behind tunnels of one bridge "
        "reach each other",
    )  # fmt: skip
    create.add_argument("--json", action="store_true")
    create.set_defaults(run=_run_create)


def _address(text: str) -> Address:
    try:
        return ip_address(text)
    except ValueError as exc:
        raise argparse.ArgumentTypeError(f"{text!r} is no IPv4 or IPv6 address") from exc


def _home(text: str) -> Any:
    try:
        return parse_home(text)
    except UsageError as exc:
        raise argparse.ArgumentTypeError(exc.what) from exc


def _with_rtnl(work: "Callable[[Rtnl], Awaitable[_T]]") -> _T:
    import trio

    from netsetup.rtnl import Rtnl

    async def _main() -> _T:
        async with Rtnl() as rtnl:
            return await work(rtnl)

    return trio.run(_main)


def _read(path: str) -> tuple[Tunnel, ...]:
    try:
        text = sys.stdin.read() if path == "-" else Path(path).read_text()
        return tunnels_from_json(json.loads(text))
    except OSError as exc:
        raise UsageError(f"{path} cannot be read: {exc.strerror}") from exc
    except ValueError as exc:
        raise UsageError(f"{path} is no JSON: {exc}") from exc


def _run_create(options: argparse.Namespace) -> int:
    made, choice = _with_rtnl(lambda rtnl: _create(rtnl, options))
    if options.json:
        print_json(
            "netsetup.tunnel/1",
            tunnel=to_json(made.tunnel),
            mended=made.mended,
            why=choice.why,
            passed_over=choice.passed_over,
        )
        return 0
    _print(made.tunnel)
    for line in (choice.why, *made.mended):
        print(f"  {line}")
    return 0


async def _create(rtnl: "Rtnl", options: argparse.Namespace) -> "tuple[Made, Choice]":
    from netsetup.choice import Path as Way
    from netsetup.choice import choose
    from netsetup.path_mtu import believed_mtu
    from netsetup.tunnels import abilities, create

    # One host alone: the other is taken to be able to do the same.
    able = await abilities(rtnl, options.local, options.remote)
    path_mtu = options.path_mtu or believed_mtu(options.local, options.remote)
    choice = choose(
        able,
        able,
        [Way(options.local, options.remote, path_mtu)],
        mtu_bytes=options.mtu,
        wanted=options.kind,
    )
    key = options.key
    if key is None:
        key = choose_key(options.home, options.local, options.remote, taken=frozenset())
    spec = TunnelSpec(
        kind=choice.kind,
        local=options.local,
        remote=options.remote,
        home=options.home,
        end=End(options.end),
        key=key,
        mtu_bytes=options.mtu,
        manner=choice.fit.manner,
        tag=Tag(options.owner, options.job),
        guests=tuple(options.guest),
        udp_port=options.udp_port,
        isolated=not options.no_split_horizon,
        path_mtu_bytes=path_mtu,
        reversed_header=options.reversed_header,
    )
    return await create(rtnl, spec, backend=choice.backend), choice


def _run_verify(options: argparse.Namespace) -> int:
    from netsetup.tunnels import describe, list_tunnels

    if options.tunnel is None:
        tunnels = _with_rtnl(list_tunnels)
    else:
        tunnels = (_with_rtnl(lambda rtnl: describe(rtnl, options.tunnel)),)
    if options.json:
        print_json("netsetup.tunnel-verify/1", tunnels=[to_json(tunnel) for tunnel in tunnels])
    else:
        for tunnel in tunnels:
            _print(tunnel)
    return 4 if any(tunnel.problems for tunnel in tunnels) else 0


def _run_list(options: argparse.Namespace) -> int:
    from netsetup.tunnels import list_tunnels

    tunnels = _with_rtnl(list_tunnels)
    beside = None if options.beside is None else pair(tunnels, _read(options.beside))
    alone = () if beside is None else (*beside.home_only, *beside.away_only)
    differing = () if beside is None else beside.differing
    if options.json:
        print_json(
            LIST_SCHEMA,
            tunnels=[to_json(tunnel) for tunnel in tunnels],
            one_end_only=None if beside is None else [to_json(tunnel) for tunnel in alone],
            differing=None if beside is None else list(differing),
        )
        return 0
    for tunnel in tunnels:
        _print(tunnel)
    for tunnel in alone:
        print(f"one end only: {tunnel.id}, the {tunnel.end} end of {tunnel.home}")
    for line in differing:
        print(line)
    return 0


def _run_remove(options: argparse.Namespace) -> int:
    from netsetup.tunnels import remove

    _print_removal(
        _with_rtnl(lambda rtnl: remove(rtnl, options.tunnel, guest=options.guest)),
        as_json=options.json,
    )
    return 0


def _run_gc(options: argparse.Namespace) -> int:
    from netsetup.tunnels import collect

    removal = _with_rtnl(
        lambda rtnl: collect(rtnl, live_jobs=options.live_job, live_guests=options.live_guest)
    )
    _print_removal(removal, as_json=options.json)
    return 0


def _run_repair(options: argparse.Namespace) -> int:
    from netsetup.tunnels import repair

    told = _read(options.lost) if options.lost else ()
    specs = [mirrored(spec) for tunnel in told if (spec := spec_of(tunnel)) is not None]
    lost = [spec for spec in specs if options.local in (None, spec.local)]
    results = _with_rtnl(lambda rtnl: repair(rtnl, lost))
    errors = [result for result in results if isinstance(result, NetsetupError)]
    made = [result for result in results if not isinstance(result, NetsetupError)]
    if options.json:
        print_json(
            "netsetup.tunnel-repair/1",
            tunnels=[to_json(each.tunnel) | {"mended": list(each.mended)} for each in made],
            errors=[error.what for error in errors],
        )
    else:
        for each in made:
            _print(each.tunnel)
            for line in each.mended:
                print(f"  mended: {line}")
        for error in errors:
            print(f"not mended: {error.what}")
    return 4 if errors else 0


def _print(tunnel: Tunnel) -> None:
    where = f"{tunnel.local} to {tunnel.remote}" if tunnel.local else "without its device"
    print(f"{tunnel.id}  {tunnel.end:4}  of {tunnel.home}  {tunnel.described}  {where}")
    needed = ", ".join((*tunnel.guests, *tunnel.taps)) or "nobody"
    print(f"  port {tunnel.port} in {tunnel.bridge}, mtu {tunnel.mtu_bytes}; needed by {needed}")
    for line in tunnel.problems:
        print(f"  wrong: {line}")
    for line in tunnel.notes:
        print(f"  {line}")


def _print_removal(removal: "Removal", *, as_json: bool) -> None:
    if as_json:
        print_json("netsetup.tunnel-removal/1", removed=removal.removed, kept=removal.kept)
        return
    print(f"removed: {', '.join(removal.removed) or 'nothing'}")
    if removal.kept:
        print(f"kept: {removal.kept}")
