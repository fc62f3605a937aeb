"""Are two segments one? The verdict, from what both sides' probers report; pure.

Adjacent means: what a guest sends here arrives there, and back, in its VLAN and up to its MTU.
Proof is only what a prober heard in the place of a guest. Silence is proof too, if both sides
asked and listened to the end and nothing is about to change by itself; else nobody knows.
Subnets in common, equal VLAN numbers, ARP entries and pings prove nothing: proxies answer them,
and two sites may use the same network.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from netsetup.probe_report import ProbeReport
from netsetup.segments import PortFacts, View
from netsetup.traps import Side, Trap, Way, traps_of


class Adjacency(StrEnum):
    """The three verdicts."""

    ADJACENT = "adjacent"
    NOT_ADJACENT = "not-adjacent"
    UNKNOWN = "unknown"


class Passage(StrEnum):
    """What became of one side's frames."""

    PASSES = "passes"
    SILENT = "silent"  # asked to the end, listened to the end, nothing
    UNKNOWN = "unknown"  # not asked, or not listened, or it may still come


@dataclass(frozen=True, slots=True)
class Direction:
    """One way between the two, measured by what the far end heard."""

    source: str
    destination: str
    passage: Passage
    mtu_bytes: int | None = None  # the longest that arrived; None: none did
    answered: bool = False  # the far end's answers, sent to one address only, came back
    complete: bool = False  # the longest was looked for to the end
    ways: tuple[str, ...] = ()  # ports of the destination's bridge by which they came in
    why: str | None = None  # if it is not known


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether two segments are one, for a guest of `wanted_bytes` of MTU."""

    adjacency: Adjacency
    why: str
    forth: Direction
    back: Direction
    wanted_bytes: int
    mtu_bytes: int | None  # of the narrower direction; None unless both pass
    latency_us: float | None  # there and back; None if no answer came
    through_tunnel: str | None  # the alias of the tunnel of ours that frames came through
    traps: tuple[Trap, ...] = ()
    retry_after_s: float | None = None  # when what is in the way will have ended by itself

    @property
    def joined(self) -> bool:
        """Whether any frame passes any way: a tunnel between the two bridges would be a loop."""
        return any(d.passage is Passage.PASSES for d in (self.forth, self.back))

    @property
    def failed(self) -> tuple[Direction, ...]:
        """The directions in which nothing arrives."""
        return tuple(d for d in (self.forth, self.back) if d.passage is Passage.SILENT)


def judge(a: Side, b: Side, *, mtu_bytes: int, guest_mac: str | None = None) -> Verdict:
    """Return the verdict for a guest with `mtu_bytes` that lives on `a` and would on `b`.

    `guest_mac` is the one that both reports were asked for. Never raises.
    """
    forth, back = _direction(a, b), _direction(b, a)
    reports = [side.report for side in (a, b) if side.report is not None]
    if a.report is None or b.report is None:
        return _verdict(forth, back, mtu_bytes, reports)
    ways = (
        Way(a.name, a.report, b.name, b.report, forth.mtu_bytes),
        Way(b.name, b.report, a.name, a.report, back.mtu_bytes),
    )
    traps = traps_of(*ways, mtu_bytes=mtu_bytes, guest_mac=guest_mac)
    ports = [port for way in ways for port in way.ports]
    return _verdict(forth, back, mtu_bytes, reports, ports, traps)


def judge_alone(near: str, report: ProbeReport, far: str, *, mtu_bytes: int) -> Verdict:
    """Return what one side's report says by itself, of a far side that answers *and* asks.

    An answer proves both ways. A far side that is heard and does not answer does not hear. Of one
    that is not heard at all nobody can say whether it is there. Traps need both reports.
    """
    missing = f"{far} is not heard: it may not be listening"
    forth = Direction(near, far, Passage.UNKNOWN, why=missing)
    back = Direction(far, near, Passage.UNKNOWN, why=missing)
    heard, ports = report.heard_of(None), report.ways_of(None)
    if heard:
        longest = max(h.longest_bytes for h in heard)
        ways = tuple(port.name for port in ports)
        # Not complete: what the far side asked for, and whether to the end, is in its report.
        back = Direction(far, near, Passage.PASSES, mtu_bytes=longest, ways=ways)
        forth = Direction(near, far, Passage.SILENT)
    why = _not_to_the_end(near, report, asks=True)
    if report.answered_bytes is not None:
        forth = Direction(
            *(near, far, Passage.PASSES),
            mtu_bytes=report.answered_bytes,
            answered=True,
            complete=report.complete,
        )
    elif why is not None:
        forth = Direction(near, far, Passage.UNKNOWN, why=why)
    return _verdict(forth, back, mtu_bytes, [report], ports)


def _verdict(
    forth: Direction,
    back: Direction,
    mtu_bytes: int,
    reports: Sequence[ProbeReport],
    ports: Sequence[PortFacts] = (),
    traps: tuple[Trap, ...] = (),
) -> Verdict:
    adjacency, why = _decide(forth, back, mtu_bytes)
    tunnel = next((port for port in ports if port.is_tunnel), None)
    if adjacency is not Adjacency.ADJACENT:
        why = "; ".join(dict.fromkeys([why, *(trap.text for trap in traps)]))
    elif tunnel is not None:
        mark = f"of ours ({tunnel.alias})" if tunnel.is_ours else "which is not ours"
        why += f", through the tunnel {tunnel.name}, {mark}"
    return Verdict(
        adjacency=adjacency,
        why=why,
        forth=forth,
        back=back,
        wanted_bytes=mtu_bytes,
        mtu_bytes=_narrower(forth, back),
        latency_us=min((r.latency_us for r in reports if r.latency_us is not None), default=None),
        through_tunnel=tunnel.alias if tunnel is not None and tunnel.is_ours else None,
        traps=traps,
        retry_after_s=_retry_after_s(reports) if adjacency is Adjacency.UNKNOWN else None,
    )


def _decide(forth: Direction, back: Direction, mtu_bytes: int) -> tuple[Adjacency, str]:
    both = _narrower(forth, back)
    if both is not None:
        return _decide_width(forth, back, both, mtu_bytes)
    silent = [d for d in (forth, back) if d.passage is Passage.SILENT]
    if len(silent) == 2:
        what = f"no frame passes between {forth.source} and {forth.destination}"
        return Adjacency.NOT_ADJACENT, what
    if silent:  # one way is dead for certain: enough, whatever the other does
        what = f"no frame passes from {silent[0].source} to {silent[0].destination}"
        return Adjacency.NOT_ADJACENT, what
    reasons = dict.fromkeys(d.why for d in (forth, back) if d.why)
    return Adjacency.UNKNOWN, "; ".join(reasons)


def _decide_width(
    forth: Direction, back: Direction, both_bytes: int, mtu_bytes: int
) -> tuple[Adjacency, str]:
    """Return the verdict when frames pass both ways."""
    if not (forth.answered or back.answered):
        return Adjacency.UNKNOWN, "broadcasts pass both ways, but what is sent to one address not"
    if both_bytes >= mtu_bytes:
        return Adjacency.ADJACENT, f"frames of {mtu_bytes} bytes pass both ways"
    narrow = forth if forth.mtu_bytes == both_bytes else back
    where = f"from {narrow.source} to {narrow.destination}"
    if not narrow.complete:
        return Adjacency.UNKNOWN, f"the MTU {where} was not measured to the end"
    what = f"{where} frames pass up to {both_bytes} bytes only, and the guest's MTU is {mtu_bytes}"
    return Adjacency.NOT_ADJACENT, what


def _narrower(forth: Direction, back: Direction) -> int | None:
    if forth.mtu_bytes is None or back.mtu_bytes is None:
        return None
    return min(forth.mtu_bytes, back.mtu_bytes)


def _direction(source: Side, destination: Side) -> Direction:
    speaker, listener = source.report, destination.report
    names = source.name, destination.name
    if speaker is None or listener is None:
        missing = source.name if speaker is None else destination.name
        return Direction(*names, Passage.UNKNOWN, why=f"{missing} did not report")
    ways = tuple(port.name for port in listener.ways_of(speaker))
    if heard := listener.heard_of(speaker):
        return Direction(
            *names,
            Passage.PASSES,
            mtu_bytes=max(h.longest_bytes for h in heard),
            answered=speaker.answered_bytes is not None,
            complete=speaker.complete and speaker.asked_frames > 0,
            ways=ways,
        )
    for side, report in ((source, speaker), (destination, listener)):
        if why := _not_to_the_end(side.name, report, asks=report is speaker):
            return Direction(*names, Passage.UNKNOWN, ways=ways, why=why)
    return Direction(*names, Passage.SILENT, ways=ways)


def _not_to_the_end(name: str, report: ProbeReport, *, asks: bool) -> str | None:
    """Return why silence means nothing, as far as this side is to blame."""
    facts, segment = report.facts, report.segment
    if not facts.up:
        return f"{name}'s {facts.bridge} is down"
    if asks and not report.asked_frames:
        words = "; ".join(dict.fromkeys(refused.problem for refused in report.refused))
        return f"{name} could not send on {segment}: {words}" if words else f"{name} did not ask"
    if not report.complete:
        return f"{name} stopped early"
    if report.view is View.BRIDGE and not facts.bridge_carries(segment.vlan):
        return (
            f"{name}'s {facts.bridge} is not in {_vlan(segment.vlan)} itself, and no port can be "
            "added to look from while STP is on"
        )
    for port in report.unsettled_ports():
        if port.changing:
            return f"{name}'s {port.name} is {port.state} for now, and forwards later by itself"
        return f"{name}'s {port.name} has only just begun to forward"
    return None


def _vlan(vlan: int | None) -> str:
    return "the untagged VLAN" if vlan is None else f"VLAN {vlan}"


def _retry_after_s(reports: Sequence[ProbeReport]) -> float | None:
    """Return the longest that a port can still be held back, None where none is."""
    steps = {"listening": 2, "learning": 1}  # forward delays to go
    delays = [
        report.facts.forward_delay_s * steps.get(port.state or "", 0)
        for report in reports
        for port in report.unsettled_ports()
    ]
    return max(delays, default=None)
