"""Two real hosts, by their agents alone: nothing of theirs is touched but a guest of our own.

The guest is thrown away at the end. Only the job's own processes and its link are struck, by the
job's own agents; no path is cut, no host loses its power.
"""

import contextlib
import math
import secrets
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator

from qmigrate.agent.requests import GetHostFacts, ReadLogs
from qmigrate.core.errors import HostError, NoSuchJobError, QmigrateError
from qmigrate.core.model import HostFacts, HostSpec
from qmigrate.core.throwaway import (
    Around,
    EndTiny,
    LookAround,
    LookTiny,
    PlaceTiny,
    StartTiny,
    TinySeen,
)
from qmigrate.core.tiny import Marks, compare_marks
from qmigrate.lab.selftest import traces
from qmigrate.lab.selftest.cells import Cell
from qmigrate.lab.selftest.commands import SAY_DEADLINE_S, Moved, Moving, moved
from qmigrate.lab.selftest.ground import Ground, Play, Seen
from qmigrate.lab.selftest.hands import Hands

LIFE_LOOKS = 50  # each a round trip and the read of a mebibyte
CLOCK_LOOKS = 5  # the quickest round trip says best how far a clock is apart
SETTLE_DEADLINE_S = 60.0  # for a job's agents to end by themselves
GUESTS = "/run/qmigrate/guests"
SETTLE_LOOK_S = 0.25  # nothing tells over SSH that a process has ended


@contextlib.contextmanager
def hosts_ground(
    first: HostSpec, second: HostSpec, files: tuple[str | None, str | None]
) -> Iterator["HostsGround"]:
    """Hold an agent on each host; `files` are the inventory and ssh configuration to pass on."""
    with Hands((first, second)) as hands:
        ground = HostsGround(hands, (first.name, second.name), files)
        try:
            yield ground
        finally:
            ground.clear()


class HostsGround(Ground):
    """See the module."""

    def __init__(
        self, hands: Hands, hosts: tuple[str, str], files: tuple[str | None, str | None]
    ) -> None:
        self.hosts = hosts
        self._hands = hands
        self._name = f"selftest{secrets.token_hex(3)}"
        self._files = files
        self._clocks = {host: self._clock(host) for host in hosts}
        self._accelerator = self._common_accelerator()
        self._around: dict[str, tuple[str, ...]] = {}
        self._deaths: dict[tuple[str, str], float] = {}
        self._marks: Marks | None = None
        self._job = ""
        self._processes: list[subprocess.Popen[str]] = []

    def _clock(self, host: str) -> tuple[float, float]:
        """Return how far the host's clock is ahead of ours, and how wrong that may be."""
        found = []
        for _ in range(CLOCK_LOOKS):
            before_s = time.time()
            seen: TinySeen = self._hands.call(host, LookTiny(self._name, ask=False))
            after_s = time.time()
            middle_s = (before_s + after_s) / 2
            found.append(((after_s - before_s) / 2, seen.now_s - middle_s))
        error_s, ahead_s = min(found)
        return ahead_s, error_s

    def _common_accelerator(self) -> str:
        for host in self.hosts:
            facts: HostFacts = self._hands.call(host, GetHostFacts())
            if "kvm" not in facts.accelerators:
                return "tcg"
        return "kvm"

    def guest(self, cell: Cell) -> str:
        """Return the name of the guest to be thrown away."""
        return self._name

    def prepare(self, cell: Cell) -> None:
        """See `Ground`."""
        self._deaths, self._job, self._marks = {}, "", None
        for host in self.hosts:
            around: Around = self._hands.call(host, LookAround())
            self._around[host] = around.things
            self._hands.call(host, PlaceTiny(self._name))
        start = StartTiny(self._name, str(uuid.uuid4()), self._accelerator)
        self._hands.call(self.hosts[0], start)
        for _ in range(LIFE_LOOKS):
            marks = self._look(self.hosts[0]).marks
            if not marks.problem and marks.passes > 1:
                self._marks = marks
                return
        raise HostError("the throw-away guest does not come to life", host=self.hosts[0])

    def _look(self, host: str, *, ask: bool = True) -> TinySeen:
        seen: TinySeen = self._hands.call(host, LookTiny(self._name, ask=ask))
        return seen

    # The move

    def _command(self, words: tuple[str, ...]) -> list[str]:
        config, ssh_config = self._files
        more = [*(("--config", config) if config else ())]
        more += [*(("--ssh-config", ssh_config) if ssh_config else ())]
        return [sys.executable, "-m", "qmigrate", *words, *more]

    def begin(self, play: Play, words: tuple[str, ...]) -> Moving:
        """See `Ground`."""
        pipe = subprocess.PIPE
        process = subprocess.Popen(
            self._command(words), stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, text=True
        )
        self._processes.append(process)
        moving = Moving(process)
        self._job = moving.job_if_begun()
        return moving

    def run(self, *words: str) -> Moved:
        """See `Ground`."""
        try:
            done = subprocess.run(
                self._command(words),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=SAY_DEADLINE_S,
            )
        except subprocess.TimeoutExpired:
            raise HostError(f"qmigrate {words[0]} did not end in {SAY_DEADLINE_S:g} s") from None
        return moved(done.returncode, done.stdout, done.stderr)

    # What it came to

    def note_deaths(self) -> None:
        """See `Ground`."""
        for host in self.hosts:
            seen = self._look(host, ask=False)
            for trace in seen.traces:
                if not trace.lives:
                    self._deaths.setdefault((host, trace.name), time.time())

    def _ran(self) -> Iterator[traces.Ran]:
        """Yield when any copy ran, by our own clock."""
        for host in self.hosts:
            ahead_s, _ = self._clocks[host]
            for trace in self._look(host, ask=False).traces:
                death_s = self._deaths.get((host, trace.name), math.inf) + ahead_s
                for ran in traces.stretches(trace.text, trace.name, death_s, host):
                    yield traces.Ran(ran.trace, ran.from_s - ahead_s, ran.to_s - ahead_s, host)

    def runs_now(self) -> str:
        """See `Ground`."""
        return ", ".join(f"{ran.trace} on {ran.host}" for ran in self._ran() if ran.goes_on)

    def overlap(self) -> str:
        """See `Ground`; what clocks cannot tell apart is not called an overlap."""
        error_s = sum(error_s for _, error_s in self._clocks.values())
        return traces.overlap(self._ran(), error_s=error_s)

    def look(self, play: Play) -> Seen:
        """See `Ground`."""
        seen = {host: self._look(host) for host in self.hosts}
        if sum(len(one.copies) for one in seen.values()) != 1:
            self._settled()  # the other one's agent may stand still, or be about to end it
            seen = {host: self._look(host) for host in self.hosts}
        where, problem = [], ""
        for host, one in seen.items():
            where += [(host, copy.state or "") for copy in one.copies]
            if one.copies and self._marks is not None:
                problem = compare_marks(self._marks, one.marks)
                self._marks = one.marks
        return Seen(tuple(where), problem)

    def sweep(self, play: Play) -> tuple[str, ...]:
        """See `Ground`."""
        for host in self.hosts:
            self._hands.call(host, EndTiny(self._name))
        return self.left(play)

    def left(self, play: Play) -> tuple[str, ...]:
        """See `Ground`; what a guest lives on is its own."""
        left = self._settled()
        if left and play.cell.left:
            self.clean_up(play)
            left = self._settled()
        self.note_deaths()
        lives = any(self._look(host, ask=False).copies for host in self.hosts)
        return tuple(what for what in left if not (lives and GUESTS in what))

    def _settled(self) -> tuple[str, ...]:
        """Return what is still there when nothing more goes by itself, or in time."""
        until_s = time.monotonic() + SETTLE_DEADLINE_S
        while True:
            left = tuple(self._added())
            if not any("process " in what for what in left) or time.monotonic() > until_s:
                return left
            time.sleep(SETTLE_LOOK_S)  # noqa: TID251 - see there

    def _added(self) -> Iterator[str]:
        for host in self.hosts:
            around: Around = self._hands.call(host, LookAround())
            for what in around.things:
                if what not in self._around[host]:
                    yield f"{host}: {what}"

    def logs(self) -> str:
        """See `Ground`."""
        found = []
        for host in self.hosts if self._job else ():
            with contextlib.suppress(NoSuchJobError):
                logs = self._hands.call(host, ReadLogs(self._job))
                found += [f"{host} {file.name}:\n{file.text}" for file in logs.files]
        return "\n".join(found)

    def clear(self) -> None:
        """See `Ground`."""
        for process in self._processes:
            process.kill()
            process.wait()
            for stream in filter(None, (process.stdout, process.stderr)):
                stream.close()
        self._processes.clear()
        for host in self.hosts:
            with contextlib.suppress(QmigrateError):  # said by the cell already, if it matters
                self._hands.call(host, EndTiny(self._name, forget=True))
