"""The command `netsetup`: announce a guest by hand, show what the network is."""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

from netsetup.errors import HostError, NetsetupError
from netsetup.frames import Address, parse_mac
from netsetup.links import OUR_ALIAS, check_name

if TYPE_CHECKING:
    from netsetup.announce import AnnouncePlan, AnnounceRecord
    from netsetup.links import Bridge, Link

_ANNOUNCE_EXAMPLES = """\
examples:
  netsetup announce --interface br0 --mac 52:54:00:12:34:56
        switches learn where the guest is (RARP; no address is known)
  netsetup announce --interface br0 --tap tap0 --mac 52:54:00:12:34:56 \\
        --address 192.0.2.9 --address 2001:db8::9
        this host's bridge and the neighbours as well
  netsetup announce … --vlan 10 --schedule 0,500,1000
        tagged, three rounds
  netsetup announce … --dry-run
        the frames in hex and their times; nothing is sent
"""
_SHOW_EXAMPLES = """\
examples:
  netsetup show             taps, bridges, and what qmigrate has made
  netsetup show --json      the same for scripts
"""


def _address(text: str) -> Address:
    try:
        return ip_address(text)
    except ValueError as exc:
        raise argparse.ArgumentTypeError(
            f"{text!r} is neither an IPv4 nor an IPv6 address"
        ) from exc


def _schedule(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as exc:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no list of milliseconds such as 0,150,400"
        ) from exc


def build_parser() -> argparse.ArgumentParser:
    """Return the parser; nothing heavy is imported for it."""
    parser = argparse.ArgumentParser(
        prog="netsetup", description="Make the network follow a guest that has moved."
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    raw = argparse.RawDescriptionHelpFormatter

    announce = commands.add_parser(
        "announce",
        help="tell a segment where a guest is now",
        epilog=_ANNOUNCE_EXAMPLES,
        formatter_class=raw,
    )
    announce.add_argument("--interface", required=True, help="the guest's bridge, or a plain link")
    announce.add_argument("--mac", required=True, help="the guest's")
    announce.add_argument(
        "--address",
        action="append",
        default=[],
        type=_address,
        metavar="IP",
        help="of the guest, IPv4 or IPv6; again for each",
    )
    announce.add_argument("--tap", help="the guest's port: frames go out of all the others")
    announce.add_argument("--vlan", type=int, help="tag the frames, 1 to 4094")
    announce.add_argument(
        "--schedule", type=_schedule, metavar="MS,…", help="rounds (0,150,400,2000,5000)"
    )
    announce.add_argument(
        "--reply-form", action="store_true", help="send ARP's reply form as well, for old gear"
    )
    announce.add_argument("--dry-run", action="store_true", help="show the frames, send nothing")
    announce.add_argument("--json", action="store_true")

    show = commands.add_parser(
        "show",
        help="bridges, taps and what qmigrate has made",
        epilog=_SHOW_EXAMPLES,
        formatter_class=raw,
    )
    show.add_argument("--json", action="store_true")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return 0, 1 a defect, 2 usage, 4 this host cannot or refuses."""
    options = build_parser().parse_args(argv)
    try:
        return _announce(options) if options.command == "announce" else _show(options)
    except NetsetupError as exc:
        print(f"netsetup: {exc}", file=sys.stderr)
        if exc.next_step:
            print(f"  {exc.next_step}", file=sys.stderr)
        return exc.exit_code
    except (KeyboardInterrupt, BaseExceptionGroup) as exc:  # trio's nursery wraps it
        if isinstance(exc, BaseExceptionGroup) and exc.split(KeyboardInterrupt)[1] is not None:
            raise
        return 130
    except BrokenPipeError:
        sys.stderr.close()  # what reads us has gone; say nothing more
        return 0


def _announce(options: argparse.Namespace) -> int:
    import trio

    from netsetup.announce import SCHEDULE_MS, plan

    parse_mac(options.mac)
    check_name(options.interface)
    planned = plan(
        options.address,
        options.mac,
        vlan=options.vlan,
        schedule_ms=options.schedule or SCHEDULE_MS,
        reply_form=options.reply_form,
    )
    if options.dry_run:
        _print_plan(planned, as_json=options.json)
        return 0
    record = trio.run(_send, planned, options.interface, options.tap)
    _print_record(record, as_json=options.json)
    if not any(sent.problem is None for sent in record.sent):
        raise HostError(
            "no frame could be sent: " + ("; ".join(record.problems) or "no port is up")
        )
    return 0


async def _send(planned: "AnnouncePlan", interface: str, tap: str | None) -> "AnnounceRecord":
    import trio

    from netsetup.announce import arm
    from netsetup.rtnl import Rtnl

    async with Rtnl() as rtnl, arm(rtnl, planned, interface=interface, tap=tap) as announcer:
        async with trio.open_nursery() as nursery:
            await announcer.fire(nursery)
        return announcer.record


def _print_plan(planned: "AnnouncePlan", *, as_json: bool) -> None:
    if as_json:
        frames = [
            {
                "at_ms": frame.at_ms,
                "kind": frame.kind,
                "address": _text(frame.address),
                "vlan": frame.vlan,
                "hex": frame.octets.hex(),
            }
            for frame in planned.frames
        ]
        _print_json("netsetup.announce-plan/1", mac=planned.mac, note=planned.note, frames=frames)
        return
    for frame in planned.frames:
        about = _text(frame.address) or planned.mac
        print(f"{frame.at_ms:6d} ms  {frame.kind:10}  {about:39}  {frame.octets.hex()}")
    if planned.note:
        print(planned.note)


def _print_record(record: "AnnounceRecord", *, as_json: bool) -> None:
    if as_json:
        sent = [
            {
                "at_ms": round(frame.at_ms, 3),
                "kind": frame.kind,
                "address": _text(frame.address),
                "vlan": frame.vlan,
                "interface": frame.interface,
                "problem": frame.problem,
            }
            for frame in record.sent
        ]
        _print_json(
            "netsetup.announce/1",
            mac=record.mac,
            interfaces=record.interfaces,
            fdb_port=record.fdb_port,
            note=record.note,
            problems=record.problems,
            sent=sent,
        )
        return
    good = sum(frame.problem is None for frame in record.sent)
    print(f"{record.mac}: {good} frames sent on {', '.join(record.interfaces) or 'no port'}")
    if record.fdb_port:
        print(f"this host's bridge sends to it at {record.fdb_port}")
    for line in (*record.problems, *([record.note] if record.note else ())):
        print(line)


@dataclass(frozen=True, slots=True)
class _Shown:
    links: "tuple[Link, ...]"
    bridges: "tuple[Bridge, ...]"


def _show(options: argparse.Namespace) -> int:
    import trio

    shown = trio.run(_look)
    ours = [link for link in shown.links if (link.alias or "").startswith(OUR_ALIAS)]
    taps = [link for link in shown.links if link.kind == "tun"]
    if options.json:
        _print_json(
            "netsetup.show/1",
            bridges=[_as_json(bridge) for bridge in shown.bridges],
            taps=[_as_json(link) for link in taps],
            ours=[_as_json(link) for link in ours],
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


def _as_json(noun: Any) -> dict[str, Any]:
    return {name: getattr(noun, name) for name in noun.__dataclass_fields__}


def _text(address: Address | None) -> str | None:
    return None if address is None else str(address)


def _print_json(schema: str, **fields: Any) -> None:
    print(json.dumps({"schema": schema, **fields}, ensure_ascii=False))


if __name__ == "__main__":
    sys.exit(main())
