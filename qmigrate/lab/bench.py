"""``scripts/bench moves``: many moves in a row, and what they cost.

One guest goes to and fro between two hosts of a lab of its own. A linux guest is watched by a
probe, which would see an older copy answer, and walks its memory after every move; of `tiny` only
migrate's own result is taken. At the end the host that the guest has left is searched for
leftovers. No outlier is removed; the machine's load is printed, since both hosts, the guest and
the probe share its cores.
"""

import argparse
import json
import math
import os
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qmigrate.core.errors import HostError, QmigrateError
from qmigrate.lab import overhead
from qmigrate.lab.accel import working_accelerator
from qmigrate.lab.demo import (
    GUEST_IP4,
    MOVE_DEADLINE_S,
    Probe,
    left_behind,
    linux_guest,
    move,
    probing,
)
from qmigrate.lab.guests import LabGuest, start
from qmigrate.lab.images import TinyBoot, linux_image
from qmigrate.lab.lab import Lab
from qmigrate.lab.tiny import image_path
from qmigrate.lab.topologies import TOPOLOGIES

SETTLE_S = 0.8  # after a move: the probe calls half a second without a reply an end
HOSTS = ("beta", "alpha")  # in turn, beginning with the guest on alpha


@dataclass(frozen=True, slots=True)
class Sample:
    """One move: what it cost, or why it does not count."""

    problem: str | None
    wall_s: float | None = None
    blackout_ms: float | None = None
    downtime_ms: float | None = None
    lost_ms: float | None = None
    pause_ms: float | None = None
    go_ms: float | None = None
    copy_ms: float | None = None

    @property
    def excess_ms(self) -> float | None:
        """What the guest stood still longer than QEMU alone accounts for."""
        if self.blackout_ms is None or self.downtime_ms is None:
            return None
        return self.blackout_ms - self.downtime_ms


def sample_of(result: dict[str, Any], *, watched: bool) -> Sample:
    """Return what a result says; `watched`: a probe has looked on."""
    problem = None
    if result["outcome"] != "migrated" or result["exit"] != 0:
        error = result["error"] or {}
        problem = f"{result['outcome']}: {error.get('what')} {result['leftovers']}"
    elif watched and not all(result["checks"].values()):
        problem = f"checks: {result['checks']} {result['seen']['problem']}"
    outage = result["outage"] or {}
    return Sample(
        problem,
        result["wall_s"],
        result["blackout_ms"],
        result["qemu"]["downtime_ms"],
        outage.get("lost_ms"),
        result["costs"]["pause_ms"],
        result["costs"]["go_ms"],
        result["qemu"]["total_ms"],
    )


def summary(samples: Sequence[Sample]) -> list[tuple[str, str]]:
    """Return rows of a table: median, p95 and maximum (nearest rank) of what was measured."""
    rows = [("moves", str(len(samples))), ("failures", str(sum(bool(s.problem) for s in samples)))]
    figures = {
        "wall s": [s.wall_s for s in samples],
        "blackout ms": [s.blackout_ms for s in samples],
        "QEMU's downtime ms": [s.downtime_ms for s in samples],
        "blackout - downtime ms": [s.excess_ms for s in samples],
        "lost-probe span ms": [s.lost_ms for s in samples],
        "pause ms (checks, journal)": [s.pause_ms for s in samples],
        "completed to proved ms": [s.go_ms for s in samples],
        "QEMU's total ms": [s.copy_ms for s in samples],
    }
    for name, values in figures.items():
        known = sorted(v for v in values if v is not None)
        if known:
            p95 = known[math.ceil(0.95 * len(known)) - 1]
            middle = statistics.median(known)
            rows.append((name, f"{middle:9.3f} {p95:9.3f} {known[-1]:9.3f}   n={len(known)}"))
    return rows


def run(words: argparse.Namespace) -> int:
    """Do the moves; exit code 1 if one failed or something is left."""
    lab = Lab(words.lab)
    lab.up(TOPOLOGIES["same-segment"])
    try:
        tiny = words.guest == "tiny"
        mib, _, rate = words.load.partition(":")
        guest = (
            LabGuest(
                "tiny1",
                TinyBoot(shared_tiny(lab)),
                memory_mib=32,
                accelerator=working_accelerator(),
            )
            if tiny
            else linux_guest(lab, linux_image(), int(mib), int(rate))
        )
        before = {host: lab.snapshot_host(host) for host in ("alpha", "beta")}
        start(lab, "alpha", guest)
        samples = moves(lab, guest, words, watched=not tiny)
        last = HOSTS[(words.count - 1) % 2]
        other = "alpha" if last == "beta" else "beta"
        left = left_behind(before[other], lab.snapshot_host(other))
    finally:
        lab.down()
    for name, value in (*summary(samples), ("load average", f"{os.getloadavg()[0]:.2f}")):
        print(f"{name:28} {value}")
    for text in left:
        print(f"left on {other}: {text}")
    return 1 if left or any(s.problem for s in samples) else 0


def moves(lab: Lab, guest: LabGuest, words: argparse.Namespace, *, watched: bool) -> list[Sample]:
    """Move the guest `words.count` times; one that fails is counted, and the rest goes on."""
    samples: list[Sample] = []

    def one(number: int, probe: Probe | None) -> None:
        destination = HOSTS[number % 2]
        if probe is not None:
            result = move(lab, probe, destination, words.migrate, control_s=0, margin_s=SETTLE_S)
        else:
            result = bare_move(lab, guest.name, destination, words.migrate)
        sample = sample_of(result, watched=probe is not None)
        samples.append(sample)
        if sample.problem or words.verbose:
            print(f"{number + 1}: {sample}", file=sys.stderr, flush=True)
        if sample.problem and result["outcome"] != "migrated":
            raise HostError(f"move {number + 1} failed: {sample.problem}")

    try:
        if watched:
            with probing(lab, GUEST_IP4) as probe:
                for number in range(words.count):
                    one(number, probe)
        else:
            for number in range(words.count):
                one(number, None)
    except HostError as exc:
        print(f"bench: {exc}", file=sys.stderr)
    return samples


def bare_move(lab: Lab, guest: str, destination: str, options: Sequence[str]) -> dict[str, Any]:
    """Move a guest that nothing can be asked over a network; return migrate's own result."""
    command = ["qmigrate", "migrate", guest, destination, "--json", *options]
    done = lab.run("client", command, check=False, timeout_s=MOVE_DEADLINE_S)
    try:
        result: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        raise HostError("no result", last_words=done.stderr[-1000:]) from None
    return result


def shared_tiny(lab: Lab) -> Any:
    """Copy the tiny image to where all hosts of the lab see it."""
    copy = lab.images / "tiny.img"
    copy.write_bytes(image_path().read_bytes())
    return copy


def main(words: Sequence[str] | None = None) -> int:
    """Run one benchmark; errors are said in words."""
    parser = argparse.ArgumentParser(prog="scripts/bench", description=(__doc__ or "")[:80])
    what = parser.add_subparsers(dest="what", required=True)
    many = what.add_parser("moves", help="many moves in a row")
    many.add_argument("--count", type=int, default=20)
    many.add_argument("--guest", choices=("linux", "tiny"), default="linux")
    many.add_argument("--load", default="0:0", metavar="MIB:RATE", help="what linux dirties")
    many.add_argument("--lab", default="bench", metavar="NAME")
    many.add_argument("-v", "--verbose", action="store_true")
    many.add_argument("migrate", nargs="*", help="options of migrate, after --")
    beside = what.add_parser("overhead", help="beside a bare QMP script, interleaved")
    beside.add_argument("--rounds", type=int, default=20)
    beside.add_argument("--warmup", type=int, default=1, help="rounds that are not counted")
    beside.add_argument("--load", default="0:0", metavar="MIB:RATE", help="what linux dirties")
    beside.add_argument("--lab", default="bench", metavar="NAME")
    beside.add_argument("--samples", type=Path, metavar="FILE", help="where all samples are kept")
    beside.add_argument("-v", "--verbose", action="store_true")
    try:
        known = parser.parse_args(words)
        return overhead.run(known) if known.what == "overhead" else run(known)
    except QmigrateError as exc:
        print(f"bench: {exc.problem.what} {exc.problem.last_words or ''}", file=sys.stderr)
        return exc.exit_code


if __name__ == "__main__":
    sys.exit(main())
