"""``scripts/demo``: a real guest moves to another host and back, watched from outside.

Everything is as a user has it: two hosts with their own sshd, a client on the same segment where
`qmigrate migrate` is run, a Linux guest with an open TCP connection to the client and a memory
that proves itself. What is left on the hosts afterwards is compared with what was there before.
"""

import argparse
import json
import select
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from qmigrate.core.errors import HostError, QmigrateError, UnknownOutcomeError, UsageError
from qmigrate.lab.accel import working_accelerator
from qmigrate.lab.guests import LabGuest, shared_image, start
from qmigrate.lab.hosts import HostSnapshot
from qmigrate.lab.images import LinuxBoot, LinuxImage, create_disk, linux_image
from qmigrate.lab.lab import Lab
from qmigrate.lab.state import LabState
from qmigrate.lab.topologies import TOPOLOGIES, guest_addresses
from qmigrate.lab.topology import Topology

GUEST = "web1"
GUEST_ADDRESSES = guest_addresses(TOPOLOGIES["same-segment"], "alpha")
GUEST_IP4 = GUEST_ADDRESSES[0].partition("/")[0]
BOOT_DEADLINE_S = 60.0  # under TCG on a busy machine; 3 s on a quiet one
MOVE_DEADLINE_S = 180.0  # a whole `qmigrate migrate`, whose own deadlines are shorter
REPORT_DEADLINE_S = 10.0
KEPT = ("/var/cache/qmigrate",)  # the agent itself stays on a host, to be found again
CONTROL_S = 3.0  # watched without a move: the noise floor
MARGIN_S = 1.0  # watched after a move, for stragglers and a late second copy


@dataclass(slots=True)
class Probe:
    """The program that watches the guest from the lab's client."""

    process: "subprocess.Popen[str]"

    def _say(self, line: str) -> None:
        if self.process.stdin is None:
            raise HostError("the probe has no standard input")
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def hear(self, event: str, deadline_s: float) -> dict[str, Any]:
        """Return the next answer of that kind; raise `HostError` after `deadline_s`."""
        stream = self.process.stdout
        if stream is None:
            raise HostError("the probe has no standard output")
        until = time.monotonic() + deadline_s
        while (left := until - time.monotonic()) > 0:
            if not select.select([stream], [], [], left)[0]:
                break
            line = stream.readline()
            if not line:
                raise HostError("the probe ended")
            message: dict[str, Any] = json.loads(line)
            if message.get("event") == event:
                return message
        raise HostError(f"the guest was not heard of ({event}) within {deadline_s:g} s")

    def mark(self, name: str) -> None:
        """Begin a new period."""
        self._say(f"mark {name}")
        self.hear("marked", REPORT_DEADLINE_S)

    def report(self) -> dict[str, Any]:
        """Return what was seen since the last mark."""
        self._say("report")
        return self.hear("report", REPORT_DEADLINE_S)


@contextmanager
def probing(lab: Lab, address: str) -> Any:
    """Watch the guest from the client; yields a `Probe` that has heard it."""
    process: subprocess.Popen[str] = lab.popen(
        "client",
        [sys.executable, "-m", "qmigrate.lab.probe", address],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
    )
    try:
        probe = Probe(process)
        probe.hear("ready", BOOT_DEADLINE_S)
        yield probe
    finally:
        process.kill()
        process.communicate()


def move(
    lab: Lab,
    probe: Probe,
    destination: str,
    options: Sequence[str],
    *,
    guest: str = GUEST,
    address: str = GUEST_IP4,
    control_s: float = CONTROL_S,
    margin_s: float = MARGIN_S,
) -> dict[str, Any]:
    """Run `qmigrate migrate` as a user on the client; return its result with outage and checks."""
    probe.mark("control")
    time.sleep(control_s)  # noqa: TID251 - the length of the control period is what is wanted
    probe.mark("move")
    command = ["qmigrate", "migrate", guest, destination, "--json", *options]
    done = lab.run("client", command, check=False, timeout_s=MOVE_DEADLINE_S)
    time.sleep(margin_s)  # noqa: TID251 - as above
    seen = probe.report()
    try:
        result: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        raise UnknownOutcomeError(
            f"qmigrate migrate said no result (exit status {done.returncode})",
            last_words=done.stderr.strip()[-2000:],
        ) from None
    result["outage"] = seen["outage"]
    result["checks"] = {
        "memory": seen["problem"] is None and intact(lab, address),
        "tcp": seen["tcp"] is not None and not seen["tcp"]["broken"],
    }
    result["seen"] = {"problem": seen["problem"], "tcp": seen["tcp"], "guest": seen["guest"]}
    return result


def intact(lab: Lab, address: str) -> bool:
    """Have the guest walk its whole memory and its disk's log now; tell whether all is there."""
    command = [sys.executable, "-m", "qmigrate.lab.workload", address, "verify"]
    done = lab.run("client", command, check=False)
    if done.returncode:
        return False
    state: dict[str, str] = json.loads(done.stdout)
    return "broken" not in (state["memory"], state["disk"])


def linux_guest(
    lab: Lab,
    image: LinuxImage,
    dirty_mib: int,
    dirty_rate_mib: int,
    addresses: Sequence[str] = GUEST_ADDRESSES,
) -> LabGuest:
    """Return the demo's guest: two addresses, a shared disk with a log, a load."""
    ip4, ip6 = addresses
    boot = LinuxBoot(
        shared_image(lab, image),
        ip4=ip4,
        ip6=ip6,
        dirty_mib=dirty_mib,
        dirty_rate_mib=dirty_rate_mib,
        disk_log=True,
    )
    disk = lab.images / f"{GUEST}.img"
    disk.unlink(missing_ok=True)
    return LabGuest(
        GUEST,
        boot,
        memory_mib=256,
        disk=create_disk(disk),
        accelerator=working_accelerator(),
    )


def left_behind(before: HostSnapshot, after: HostSnapshot) -> list[str]:
    """Return what is on a host now and was not before."""
    return [what for what in after.added_since(before) if not any(kept in what for kept in KEPT)]


@dataclass(frozen=True, slots=True)
class Options:
    """What the demo itself is told; the rest goes to `qmigrate migrate`."""

    as_json: bool
    lab: str
    load_mib: int
    load_rate_mib: int
    keep: bool
    migrate: tuple[str, ...]
    cross_subnet: bool = False

    @property
    def topology(self) -> Topology:
        """Where it happens."""
        return TOPOLOGIES["two-subnets" if self.cross_subnet else "same-segment"]

    @property
    def far(self) -> str:
        """The host that the guest goes to first."""
        return "gamma" if self.cross_subnet else "beta"


def parse(words: Sequence[str]) -> Options:
    """Return the options of a command line."""
    parser = argparse.ArgumentParser(
        prog="scripts/demo",
        description="Move a real guest to another host and back; other options go to migrate.",
        allow_abbrev=False,
    )
    parser.add_argument("--json", action="store_true", help="a list of results, one a move")
    parser.add_argument("--lab", default="demo", metavar="NAME", help="default: demo")
    parser.add_argument(
        "--load",
        default="16:10",
        metavar="MIB:RATE",
        help="the guest dirties MIB MiB at RATE MiB/s; default: %(default)s",
    )
    parser.add_argument(
        "--cross-subnet",
        action="store_true",
        help="to a host in another subnet, with no segment in common; --tunnel KIND says how",
    )
    parser.add_argument("--keep", action="store_true", help="leave the lab and the guest standing")
    known, rest = parser.parse_known_args(words)
    mib, _, rate = known.load.partition(":")
    if not (mib.isdecimal() and rate.isdecimal()):
        parser.error(f"--load: {known.load!r} is not MIB:RATE")
    return Options(
        known.json, known.lab, int(mib), int(rate), known.keep, tuple(rest), known.cross_subnet
    )


def run(options: Options) -> int:
    """Do the demo; exit code 0 if every move succeeded and every check holds."""

    def say(text: str) -> None:
        if not options.as_json:
            print(text, flush=True)

    say("building the guest's image (from the cache after the first time)")
    image = linux_image()
    lab = Lab(options.lab)
    if lab.status().state is not LabState.DOWN:
        raise UsageError(
            f"a lab called {options.lab} stands already, kept or in use by another demo",
            next_step=f"qmigrate lab --lab {options.lab} down, or give this one a --lab NAME",
        )
    try:
        topology, far = options.topology, options.far
        say(f"bringing up a lab: {topology.about}")
        lab.up(topology)
        addresses = guest_addresses(topology, "alpha")
        guest = linux_guest(lab, image, options.load_mib, options.load_rate_mib, addresses)
        ip4 = addresses[0].partition("/")[0]
        before = {host: lab.snapshot_host(host) for host in ("alpha", far)}
        say(f"booting {GUEST} on alpha")
        start(lab, "alpha", guest)
        results = []
        with probing(lab, ip4) as probe:
            for destination in (far, "alpha"):
                say(f"\n$ qmigrate migrate {GUEST} {destination}")
                result = move(lab, probe, destination, options.migrate, address=ip4)
                results.append(result)
                say(_sentences(result))
                if result["exit"] not in (0, 8):
                    break
        left = left_behind(before[far], lab.snapshot_host(far))
        if results[-1]["destination"] == "alpha" and left:
            say(f"left on {far}: " + "; ".join(left))
        good = len(results) == 2 and not left and all(map(_good, results))
        if options.as_json:
            json.dump(results, sys.stdout, indent=1)
            print()
        else:
            end = _KEPT.format(lab=options.lab) if options.keep else "nothing is left"
            say(f"\nboth moves succeeded, {end}" if good else "\nsomething went wrong")
        return 0 if good else 1
    finally:
        if not options.keep:
            lab.down()


_KEPT = """the lab and its guest are kept
look around:    .venv/bin/qmigrate lab exec --lab {lab} client -- qmigrate list
remove it all:  .venv/bin/qmigrate lab down --lab {lab}"""


def _good(result: dict[str, Any]) -> bool:
    return result["outcome"] == "migrated" and all(result["checks"].values())


def _sentences(result: dict[str, Any]) -> str:
    outage, checks = result["outage"], result["checks"]
    if result["outcome"] != "migrated":
        error = result["error"] or {}
        return f"{result['outcome']}: {error.get('what')}\n  {error.get('next_step') or ''}"

    def ms(value: float | None) -> str:
        return "unknown" if value is None else f"{value:.1f} ms"

    tcp, memory = checks["tcp"], checks["memory"]
    problem = result["seen"]["problem"]
    way = f"; its network goes through {result['tunnel']}" if result.get("tunnel") else ""
    lines = [
        f"moved in {result['wall_s']:.2f} s; blackout {ms(result['blackout_ms'])}{way}",
        f"QEMU's own downtime: {result['qemu']['downtime_ms']} ms",
        f"seen from the client: {outage['lost_probes']} probes lost, {ms(outage['lost_ms'])}",
        f"longest silence {ms(outage['longest_gap_ms'])}, noise {ms(outage['noise_floor_ms'])}",
        f"memory {'intact' if memory else 'DAMAGED'}, TCP {'alive' if tcp else 'BROKEN'}",
    ]
    return "\n".join((*lines, *([problem] if problem else ())))


def main(words: Sequence[str] | None = None) -> int:
    """Run the demo; errors are said in words."""
    options = parse(sys.argv[1:] if words is None else words)
    try:
        return run(options)
    except QmigrateError as exc:
        problem = exc.problem
        print(f"demo: {problem.what}", file=sys.stderr)
        for more in (problem.last_words, problem.next_step):
            if more:
                print(f"  {more}", file=sys.stderr)
        return exc.exit_code


if __name__ == "__main__":
    sys.exit(main())
