"""`netsetup announce`: tell a segment by hand where a guest is now."""

import argparse
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

from netsetup.commands.output import RAW, or_null, print_json
from netsetup.errors import HostError
from netsetup.frames import Address, parse_mac
from netsetup.links import check_name

if TYPE_CHECKING:
    from netsetup.announce import AnnouncePlan, AnnounceRecord

_EXAMPLES = """\
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


def add_parser(commands: Any) -> None:
    """Add `announce`."""
    announce = commands.add_parser(
        "announce",
        help="tell a segment where a guest is now",
        epilog=_EXAMPLES,
        formatter_class=RAW,
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
    announce.set_defaults(run=run)


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


def run(options: argparse.Namespace) -> int:
    """Announce, or show the plan; 0. Raises `HostError` if no frame could be sent."""
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
                "address": or_null(frame.address),
                "vlan": frame.vlan,
                "hex": frame.octets.hex(),
            }
            for frame in planned.frames
        ]
        print_json("netsetup.announce-plan/1", mac=planned.mac, note=planned.note, frames=frames)
        return
    for frame in planned.frames:
        about = or_null(frame.address) or planned.mac
        print(f"{frame.at_ms:6d} ms  {frame.kind:10}  {about:39}  {frame.octets.hex()}")
    if planned.note:
        print(planned.note)


def _print_record(record: "AnnounceRecord", *, as_json: bool) -> None:
    if as_json:
        sent = [
            {
                "at_ms": round(frame.at_ms, 3),
                "kind": frame.kind,
                "address": or_null(frame.address),
                "vlan": frame.vlan,
                "interface": frame.interface,
                "problem": frame.problem,
            }
            for frame in record.sent
        ]
        print_json(
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
