"""``qmigrate network``: whether two hosts' segments are one, and the tunnels that join them."""

import argparse
from typing import TYPE_CHECKING, Any, Final

from qmigrate.cli.context import Context
from qmigrate.cli.parser import common_options, complete_with
from qmigrate.core.errors import UsageError

if TYPE_CHECKING:
    from qmigrate.core.model import HostSpec

NAME: Final = "network"
HELP: Final = "prove that two hosts' segments are one; tunnels where they are not"
EXAMPLES: Final = """\
qmigrate network probe alpha beta                 adjacent (exit code 0), not (3), not known (7)
qmigrate network probe alpha beta --bridge br0=lan --vlan 10 --mtu 9000
qmigrate network tunnel list                      of every host of the inventory
qmigrate network tunnel verify alpha gamma        do frames pass, of the guests' size, both ways
qmigrate network tunnel repair alpha gamma        after one of them rebooted
qmigrate network tunnel remove 29d1aa8f alpha gamma
qmigrate network tunnel create alpha gamma --guest web1"""

NOT_ADJACENT, UNKNOWN, WRONG = 3, 7, 4  # exit codes, as netsetup has them


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add probe and tunnel."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    common = [common_options()]
    probe = actions.add_parser("probe", parents=common, help="by frames, both ways")
    _add_two_hosts(probe)
    _add_segment(probe)
    probe.add_argument("--guest-mac", metavar="MAC", help="say whether somebody there has it")
    tunnel = actions.add_parser("tunnel", parents=common, help="build, look at, mend, remove")
    what = tunnel.add_subparsers(dest="tunnel_action", required=True, metavar="ACTION")
    create = what.add_parser(
        "create", parents=common, help="from the first host's bridge to a private one on the other"
    )
    _add_two_hosts(create)
    _add_segment(create)
    create.add_argument("--guest", default="by-hand", help="who needs it; default: by-hand")
    create.add_argument("--kind", default="auto", help="auto (the default), vxlan, gretap")
    create.add_argument("--dry-run", action="store_true", help="say which it would be, and why")
    for name, words in (
        ("list", "what there is; ends that are alone"),
        ("verify", "whether frames pass; 4 if not"),
        ("repair", "mend what is there, make again what a host has lost"),
    ):
        each = what.add_parser(name, parents=common, help=words)
        _add_hosts(each)
    remove = what.add_parser(
        "remove", parents=common, help="take claims away; a tunnel goes with the last one"
    )
    remove.add_argument("tunnel", metavar="ID")
    _add_hosts(remove)
    remove.add_argument("--guest", help="whose claim; without it everybody's")


def _add_two_hosts(parser: argparse.ArgumentParser) -> None:
    for name in ("near", "far"):
        complete_with(parser.add_argument(name, metavar="HOST"), "host")


def _add_hosts(parser: argparse.ArgumentParser) -> None:
    hosts = parser.add_argument("hosts", metavar="HOST", nargs="*", help="default: the inventory's")
    complete_with(hosts, "host")


def _add_segment(parser: argparse.ArgumentParser) -> None:
    bridge = "default: br0; with = where the hosts call it differently"
    parser.add_argument("--bridge", default="br0", metavar="HERE[=THERE]", help=bridge)
    parser.add_argument("--vlan", type=int, metavar="VLAN", help="of bridges that filter VLANs")
    parser.add_argument("--mtu", type=int, default=1500, metavar="BYTES", help="the guests' (1500)")


async def run(context: Context, args: argparse.Namespace) -> int:
    """Do what was asked for."""
    if args.action == "probe":
        return await _probe(context, args)
    match args.tunnel_action:
        case "create":
            return await _create(context, args)
        case "list" | "verify":
            return await _list(context, args, verify=args.tunnel_action == "verify")
        case "repair":
            return await _repair(context, args)
        case _:
            return await _remove(context, args)


def _two(context: Context, args: argparse.Namespace) -> "tuple[HostSpec, HostSpec]":
    inventory = context.inventory()
    near, far = inventory.host(args.near), inventory.host(args.far)
    if near.name == far.name:
        raise UsageError(f"{near.name} twice: two hosts are needed")
    return near, far


def _bridges(args: argparse.Namespace) -> tuple[str, str]:
    here, _, there = args.bridge.partition("=")
    return here, there or here


async def _probe(context: Context, args: argparse.Namespace) -> int:
    specs = _two(context, args)

    from qmigrate.controller.network import Place, probe
    from qmigrate.controller.tunnels import asked
    from qmigrate.core.errors import HostError

    here, there = _bridges(args)
    async with asked(specs) as hosts:
        if hosts.problems:
            raise HostError("; ".join(hosts.problems))
        near, far = (stand.agent for stand in hosts.stands)
        verdict = await probe(
            Place(near, here, args.vlan),
            Place(far, there, args.vlan),
            mtu_bytes=args.mtu,
            guest_mac=args.guest_mac,
        )
    code = {"adjacent": 0, "not-adjacent": NOT_ADJACENT}.get(verdict.adjacency, UNKNOWN)
    out = context.out
    if out.json:
        out.document("qmigrate.adjacency/1", verdict_document(verdict))
        return code
    lines = [f"{verdict.adjacency.replace('-', ' ')}: {verdict.why}"]
    if verdict.latency_us is not None:
        lines.append(f"there and back in {verdict.latency_us / 1000:.2f} ms")
    if verdict.retry_after_s is not None:
        lines.append(f"ask again in {verdict.retry_after_s:.0f} s")
    out.lines(lines)
    for trap in verdict.traps if verdict.adjacency == "adjacent" else ():
        out.say(f"but: {trap.text}")
    return code


def verdict_document(verdict: Any) -> dict[str, Any]:
    """Return a verdict as JSON's plain objects."""
    from dataclasses import asdict

    return asdict(verdict)


async def _create(context: Context, args: argparse.Namespace) -> int:
    specs = _two(context, args)

    from qmigrate.controller.network import built, choose
    from qmigrate.controller.tunnels import asked
    from qmigrate.core.errors import HostError
    from qmigrate.core.home import Home

    home = Home(specs[0].name, _bridges(args)[0], args.vlan)
    async with asked(specs) as hosts:
        if hosts.problems:
            raise HostError("; ".join(hosts.problems))
        near, far = hosts.stands
        choice = await choose(
            home,
            (near.end, far.end),
            mtu_bytes=args.mtu,
            wanted=args.kind,
            guest=args.guest,
            job="by-hand",
        )
        verdict = None
        if not args.dry_run:
            async with built(choice, near.agent, far.agent) as made:
                verdict = made.verdict
    body = {
        "id": choice.id,
        "tunnel": choice.described,
        "why": choice.why,
        "passed_over": list(choice.passed_over),
        "local": choice.home_end.local,
        "remote": choice.home_end.remote,
        "private_bridge": choice.private_bridge,
        "made": verdict is not None,
        "verdict": None if verdict is None else verdict_document(verdict),
    }
    if context.out.json:
        context.out.document("qmigrate.tunnel/1", body)
        return 0
    done = "would be built" if verdict is None else f"carries {choice.home_end.mtu_bytes} bytes"
    way = f"from {home} to {choice.private_bridge} on {specs[1].name}"
    first = f"{choice.id}: {choice.described} {way} {done}"
    context.out.lines([first, choice.why, *choice.passed_over])
    context.out.say("what it carries is not encrypted")
    return 0


async def _list(context: Context, args: argparse.Namespace, *, verify: bool) -> int:
    specs = context.inventory().select(args.hosts)

    from qmigrate.cli.network_render import row_document, row_lines
    from qmigrate.controller.tunnels import asked
    from qmigrate.controller.tunnels import verify as verify_row

    async with asked(specs) as hosts:
        rows = hosts.rows
        verdicts = {row.id: await verify_row(hosts, row) for row in rows} if verify else {}
    for problem in hosts.problems:
        context.out.say(problem)
    if context.out.json:
        told = [row_document(row, verdicts.get(row.id)) for row in rows]
        body = {"tunnels": told, "problems": list(hosts.problems)}
        context.out.document("qmigrate.tunnels/1", body)
    else:
        context.out.lines(line for row in rows for line in row_lines(row, verdicts.get(row.id)))
        if not rows:
            context.out.say("no tunnels")
    good = all(v is not None and v.adjacency == "adjacent" for v in verdicts.values())
    wrong = bool(hosts.problems) or not good or (verify and any(row.problems for row in rows))
    return WRONG if wrong else 0


async def _repair(context: Context, args: argparse.Namespace) -> int:
    specs = context.inventory().select(args.hosts)

    from qmigrate.controller.tunnels import asked, repair

    async with asked(specs) as hosts:
        done = await repair(hosts)
    problems = [*hosts.problems, *(f"{h}: {e}" for h, answer in done for e in answer.errors)]
    if context.out.json:
        made = [
            {"host": host, "id": each.tunnel.id, "mended": list(each.mended)}
            for host, answer in done
            for each in answer.made
        ]
        body = {"tunnels": made, "problems": problems}
        context.out.document("qmigrate.tunnel-repair/1", body)
    else:
        context.out.lines(
            f"{host}: {each.tunnel.id} {'; '.join(each.mended) or 'is as it should be'}"
            for host, answer in done
            for each in answer.made
        )
        for problem in problems:
            context.out.say(problem)
    return WRONG if problems else 0


async def _remove(context: Context, args: argparse.Namespace) -> int:
    specs = context.inventory().select(args.hosts)

    from qmigrate.controller.tunnels import asked, remove

    async with asked(specs) as hosts:
        done = await remove(hosts, args.tunnel, args.guest)
    if context.out.json:
        ends = [
            {"host": host, "removed": list(answer.removed), "kept": list(answer.kept)}
            for host, answer in done
        ]
        body = {"ends": ends, "problems": list(hosts.problems)}
        context.out.document("qmigrate.tunnel-removal/1", body)
    else:
        context.out.lines(
            f"{host}: removed {', '.join(answer.removed) or 'nothing'}" for host, answer in done
        )
        for words in (*hosts.problems, *(k for _, answer in done for k in answer.kept)):
            context.out.say(words)
    return WRONG if hosts.problems else 0
