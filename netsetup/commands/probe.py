"""`netsetup probe`: whether two hosts' segments are one, by hand from two terminals."""

import argparse
import json
import secrets
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from netsetup.commands.output import RAW, print_json
from netsetup.errors import UsageError
from netsetup.segments import PortFacts, Segment, SegmentFacts, View

if TYPE_CHECKING:
    from netsetup.adjacency import Verdict
    from netsetup.probe_report import ProbeReport
    from netsetup.prober import Prober

RESPOND_FOR_S = 120.0  # a person has to walk to the other terminal
ASKER_QUIET_S = 0.6  # more than the longest pause between two asks of the other side
QUIET_S = 2.0  # longer than any prober asks: then the other side has finished
NOT_ADJACENT, UNKNOWN = 3, 7  # exit codes, besides `netsetup.errors`
_REPORT = "netsetup.probe/1"

_EXAMPLES = """\
examples:
  netsetup probe respond --bridge br0
        on one host: prints the line to run on the other, and answers
  netsetup probe ask --bridge br0 --nonce 6b1f…
        on the other: adjacent (exit code 0), not adjacent (3), not known (7), and why
  netsetup probe ask … --vlan 10 --mtu 9000 --guest-mac 52:54:00:12:34:56
        in the guest's VLAN, up to its MTU, and whether somebody there has its address
  netsetup probe respond … --json > beta.json; netsetup probe ask … --json > alpha.json
  netsetup probe judge alpha.json beta.json
        both halves together: which direction fails, and what is in the way
"""


def add_parser(commands: Any) -> None:
    """Add `probe` and its own commands."""
    probe = commands.add_parser(
        "probe",
        help="whether two hosts' segments are one, proved by frames",
        epilog=_EXAMPLES,
        formatter_class=RAW,
    )
    actions = probe.add_subparsers(dest="action", metavar="ACTION", required=True)
    respond = actions.add_parser("respond", help="answer, and ask, until the other side is done")
    respond.add_argument("--nonce", help="32 hex digits; else one is drawn and shown")
    respond.add_argument(
        "--for", dest="for_s", type=float, default=RESPOND_FOR_S, metavar="SECONDS",
        help=f"wait so long for the other side ({RESPOND_FOR_S:.0f})",
    )  # fmt: skip
    ask = actions.add_parser("ask", help="ask, and say what is adjacent")
    ask.add_argument("--nonce", required=True, help="that `respond` shows")
    for parser, action in ((respond, _respond), (ask, _ask)):
        parser.add_argument("--bridge", required=True, help="the segment's bridge on this host")
        parser.add_argument("--vlan", type=int, help="the guest's, 1 to 4094")
        parser.add_argument(
            "--view",
            choices=[str(view) for view in View],
            help="look from the bridge itself, or from a port made for the moment; else as fits",
        )
        parser.add_argument(
            "--isolated", action="store_true", help="as if from an isolated port, as the guest's is"
        )
        parser.add_argument("--guest-mac", metavar="MAC", help="say who has this address here")
        parser.set_defaults(run=action)
    judge = actions.add_parser("judge", help="the verdict from both sides' --json")
    judge.add_argument("reports", nargs=2, metavar="FILE", help="where the guest is; where it goes")
    judge.set_defaults(run=_judge)
    for parser in (respond, ask, judge):
        parser.add_argument("--mtu", type=int, help="the guest's (1500; as was asked)")
        parser.add_argument("--json", action="store_true")


def _nonce(text: str) -> bytes:
    from netsetup.probe_frames import check_nonce

    try:
        return check_nonce(bytes.fromhex(text))
    except ValueError as exc:
        raise UsageError(f"{text!r} is no nonce: 32 hex digits") from exc


def _ask(options: argparse.Namespace) -> int:
    import trio

    nonce = _nonce(options.nonce)
    report = trio.run(_probe, options, Segment(options.bridge, options.vlan), nonce, None)
    return _print_half(report, "the other side", options)


def _respond(options: argparse.Namespace) -> int:
    import trio

    nonce = secrets.token_bytes(16) if options.nonce is None else _nonce(options.nonce)
    segment = Segment(options.bridge, options.vlan)
    more = "".join(
        f" --{name} {value}"
        for name, value in (("vlan", options.vlan), ("mtu", options.mtu))
        if value is not None
    )
    line = f"netsetup probe ask --bridge {options.bridge} --nonce {nonce.hex()}{more}"
    print(f"on the other host: {line}", file=sys.stderr, flush=True)
    report = trio.run(_probe, options, segment, nonce, options.for_s)
    return _print_half(report, "the other side", options)


async def _probe(
    options: argparse.Namespace, segment: Segment, nonce: bytes, for_s: float | None
) -> "ProbeReport":
    """Ask once, or for `for_s` until the other side has been heard and is quiet."""
    import trio

    from netsetup.prober import GUEST_MTU_BYTES, open_prober
    from netsetup.rtnl import Rtnl

    mtu_bytes = options.mtu or GUEST_MTU_BYTES
    async with (
        Rtnl() as rtnl,
        trio.open_nursery() as nursery,
        open_prober(
            nursery,
            rtnl,
            segment,
            nonce,
            view=View(options.view) if options.view else None,
            isolated=options.isolated,
            mtu_bytes=mtu_bytes,
        ) as prober,
    ):
        with trio.move_on_after(for_s or 0):
            while for_s and prober.quiet_s == float("inf"):
                await prober.ask(mtu_bytes=mtu_bytes)
        # To the end: the other side may have come when this one had all but given up.
        await prober.ask(mtu_bytes=mtu_bytes)
        await _stay(prober, ASKER_QUIET_S if for_s is None else QUIET_S)
        return await prober.report(guest_mac=options.guest_mac)
    raise AssertionError("a nursery swallows nothing")


async def _stay(prober: "Prober", quiet_s: float) -> None:
    """Answer until the other side has been quiet for `quiet_s`; not at all if it never spoke."""
    import trio

    while (left_s := quiet_s - prober.quiet_s) > 0:  # noqa: ASYNC110  silence is no event
        await trio.sleep(left_s)


def _print_half(report: "ProbeReport", far: str, options: argparse.Namespace) -> int:
    from netsetup.adjacency import judge_alone

    verdict = judge_alone("this host", report, far, mtu_bytes=report.wanted_bytes)
    if options.json:
        print_json(_REPORT, verdict=_verdict_fields(verdict), report=asdict(report))
    else:
        _print_verdict(verdict)
        _print_facts(report.facts)
    return _exit_code(verdict)


def _judge(options: argparse.Namespace) -> int:
    from netsetup.adjacency import judge
    from netsetup.traps import Side

    sides = [Side(Path(name).stem, _read_report(name)) for name in options.reports]
    wanted = [side.report.wanted_bytes for side in sides if side.report is not None]
    verdict = judge(sides[0], sides[1], mtu_bytes=options.mtu or max(wanted))
    if options.json:
        print_json("netsetup.adjacency/1", **_verdict_fields(verdict))
        return _exit_code(verdict)
    _print_verdict(verdict)
    for side in sides:
        print(f"{side.name}:")
        if side.report is not None:
            _print_facts(side.report.facts)
    return _exit_code(verdict)


def _read_report(name: str) -> "ProbeReport":
    import cattrs

    from netsetup.probe_report import ProbeReport

    try:
        text = sys.stdin.read() if name == "-" else Path(name).read_text()
        found = json.loads(text)
        if found["schema"] != _REPORT:
            raise UsageError(f"{name} is a {found['schema']}, not a {_REPORT}")
        return cattrs.Converter().structure(found["report"], ProbeReport)
    except OSError as exc:
        raise UsageError(f"{name}: {exc.strerror}") from exc
    except (ValueError, TypeError, KeyError, cattrs.BaseValidationError) as exc:
        raise UsageError(f"{name} is no output of `netsetup probe … --json`") from exc


def _verdict_fields(verdict: "Verdict") -> dict[str, Any]:
    return {
        **asdict(verdict),
        "joined": verdict.joined,
        "failed": [direction.source for direction in verdict.failed],
    }


def _print_verdict(verdict: "Verdict") -> None:
    print(f"{verdict.adjacency.replace('-', ' ')}: {verdict.why}")
    if verdict.latency_us is not None:
        print(f"  there and back in {verdict.latency_us / 1000:.2f} ms")
    if verdict.retry_after_s is not None:
        print(f"  ask again in {verdict.retry_after_s:.0f} s")
    for trap in verdict.traps if verdict.adjacency == "adjacent" else ():
        print(f"  but: {trap.text}")


def _print_facts(facts: SegmentFacts) -> None:
    """Print what netlink says: it explains, and proves nothing."""
    words = [f"mtu {facts.mtu_bytes}", "up" if facts.up else "down"]
    words += [f"STP, {facts.forward_delay_s:g} s forward delay"] if facts.stp else []
    words += ["filters VLANs"] if facts.vlan_filtering else []
    print(f"  {facts.bridge:15}  {', '.join(words)}")
    for port in facts.ports:
        print(f"    {port.name:13}  {', '.join(_port_words(port, facts))}")
    if facts.guest_port:
        print(f"  the guest's address is at {facts.guest_port}")


def _port_words(port: PortFacts, facts: SegmentFacts) -> list[str]:
    words = [port.state or "no port"]
    if port.bridge not in (None, facts.bridge):
        words.append(f"of {port.bridge}")
    words.append(f"mtu {port.mtu_bytes}")
    words += ["no carrier"] if not port.carrier else []
    words += ["isolated"] if port.isolated else []
    if port.vlans is not None:
        ranges = (str(r.first) if r.first == r.last else f"{r.first}-{r.last}" for r in port.vlans)
        words.append("VLANs " + (" ".join(ranges) or "none"))
        words += [f"untagged is {port.pvid}"] if port.pvid else []
    words += [port.alias] if port.alias else []
    return words


def _exit_code(verdict: "Verdict") -> int:
    return {"adjacent": 0, "not-adjacent": NOT_ADJACENT}.get(verdict.adjacency, UNKNOWN)
