"""``qmigrate list`` over hosts that answer, fail and hang; only the hosts are played."""

import io
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

import pytest
import trio

from qmigrate.agent.requests import GuestList, ListGuests
from qmigrate.cli.context import Context
from qmigrate.cli.guests import notes, show, table
from qmigrate.cli.list import with_hint
from qmigrate.cli.render import Output
from qmigrate.controller.remote import StartTimings
from qmigrate.controller.session import LoginTimings
from qmigrate.controller.start import StartSteps
from qmigrate.controller.survey import HOST_DEADLINE_S, HostAnswer, Step, survey
from qmigrate.core.errors import AgentLostError, HostError, LoginError, UnreachableError
from qmigrate.core.model import Disk, Guest, HostSpec, Nic, Owner, RunState

WEB = Guest(
    pid=101,
    start_ticks=1,
    executable="/usr/bin/qemu-system-x86_64",
    argv=("qemu-system-x86_64", "-name", "web1"),
    name="web1",
    uuid="6f2c",
    state=RunState.RUNNING,
    memory_bytes=64 * 2**20,
    vcpus=2,
    qemu_version="10.0.2",
    accelerator="tcg",
    machine="pc-q35-10.0",
    disks=(
        Disk("virtio0", "n0", "/srv/images/web1.qcow2", "qcow2", False, 2**30),
        Disk("ide0", "n1", "/srv/seed.iso", "raw", True, 2**20),
    ),
    nics=(
        Nic("net0", "virtio-net-pci", "52:54:00:00:00:01", "n0", "tap", "tap0", "br0"),
        Nic("net1", "e1000", None, "n1", "user", None, None),
    ),
    monitor="/run/web1.sock",
    monitor_problem=None,
    monitor_fix=None,
)
DUMB = replace(
    WEB,
    pid=102,
    name=None,
    uuid=None,
    state=None,
    memory_bytes=None,
    vcpus=None,
    qemu_version=None,
    accelerator=None,
    machine=None,
    disks=(),
    nics=(),
    monitor=None,
    monitor_problem="it has no QMP socket",
    monitor_fix="start it with -qmp unix:/run/x.sock,server=on,wait=off",
    owner=Owner.UNIT,
    unit="vm.service",
)
ALPHA, BETA, GAMMA = (HostSpec(name, name) for name in ("alpha", "beta", "gamma"))


@dataclass
class Played:
    """An agent that answers what it was made with."""

    act: Callable[[], GuestList]
    timings: StartTimings

    async def call(self, request: ListGuests) -> GuestList:
        await trio.lowlevel.checkpoint()
        return self.act()


TIMINGS = StartTimings(LoginTimings(0.01, 0.02, 0.03), 0.0, StartSteps(0.04, 0.0, 0.05), 0.15)


@asynccontextmanager
async def open_played(spec: HostSpec) -> AsyncIterator[Played]:
    async with trio.open_nursery() as nursery:  # errors leave in groups, as from the real one
        nursery.start_soon(trio.sleep, 0.1)
        match spec.name:
            case "beta":
                raise LoginError("nobody is let in")
            case "gamma":
                await trio.sleep_forever()
            case "delta":
                raise ValueError("a defect")
            case "epsilon":
                yield Played(_lost, TIMINGS)
            case _:
                yield Played(lambda: GuestList((WEB, DUMB)), TIMINGS)


def _lost() -> GuestList:
    raise AgentLostError("the agent ended with status 1", last_words="MemoryError")


async def test_one_bad_host_hides_no_other(autojump_clock: trio.testing.MockClock) -> None:
    hosts = (BETA, GAMMA, ALPHA, HostSpec("epsilon", "e"))
    began = trio.current_time()
    beta, gamma, alpha, epsilon = await survey(hosts, open_played)
    assert trio.current_time() - began <= HOST_DEADLINE_S + 1  # side by side
    assert alpha.guests == (WEB, DUMB)
    assert (alpha.problem, alpha.exit_code) == (None, 0)
    assert [step.name for step in alpha.steps] == [
        "ssh configuration",
        "connect",
        "login",
        "python",
        "agent",
        "ask",
    ]
    for answer, what in (
        (beta, "nobody is let in"),
        (gamma, f"no complete answer within {HOST_DEADLINE_S:.0f} s"),
        (epsilon, "the agent ended with status 1"),
    ):
        assert answer.problem
        assert (answer.problem.what, answer.problem.host) == (what, answer.host.name)
        assert answer.exit_code == HostError.exit_code


async def test_a_defect_is_not_shown_as_a_hosts_fault(
    autojump_clock: trio.testing.MockClock,
) -> None:
    with pytest.raises(BaseExceptionGroup) as caught:
        await survey((ALPHA, HostSpec("delta", "d")), open_played)
    assert caught.group_contains(ValueError, match="a defect")


ANSWERS = (
    HostAnswer(ALPHA, (WEB, DUMB), None, 0, (Step("connect", 0.1), Step("ask", 0.01))),
    HostAnswer(BETA, (), LoginError("nobody is let in", host="beta").problem, 4, ()),
    HostAnswer(GAMMA, (), None, 0, (Step("ask", 0.5),)),
)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(
    *, json: bool = False, names: bool = False, verbose: int = 0, terminal: bool = False
) -> tuple[str, str]:
    stdout, stderr = (Terminal() if terminal else io.StringIO()), io.StringIO()
    out = Output(json=json, color=False, stdout=stdout, stderr=stderr)
    show(Context(out, verbose=verbose), ANSWERS, names=names)
    return stdout.getvalue(), stderr.getvalue()


def test_a_pipe_gets_everything_about_every_guest() -> None:
    out, err = shown()
    header, dumb, web = (line.split("\t") for line in out.splitlines())
    assert dict(zip(header, web, strict=True)) == {
        "GUEST": "web1",
        "HOST": "alpha",
        "STATE": "running",
        "MEMORY": "64 MiB",
        "VCPUS": "2",
        "QEMU": "10.0.2",
        "ACCEL": "tcg",
        "DISKS": "/srv/images/web1.qcow2, /srv/seed.iso ro",
        "NICS": "tap0@br0, user",
        "PID": "101",
        "UUID": "6f2c",
        "MACHINE": "pc-q35-10.0",
        "MONITOR": "/run/web1.sock",
        "NOTES": "-",
    }
    assert dumb[0] == "(pid 102)"
    assert dumb[-1] == (
        "it has no QMP socket (start it with -qmp unix:/run/x.sock,server=on,wait=off); "
        "a systemd unit restarts it: vm.service"
    )
    assert err == "error: beta: nobody is let in\nno QEMU runs on gamma\n"


TERMINAL = """\
GUEST      HOST   STATE    MEMORY  VCPUS  QEMU    ACCEL  DISKS                    NICS
(pid 102)  alpha  -             -      -  -       -      -                        -
web1       alpha  running  64 MiB      2  10.0.2  tcg    web1.qcow2, seed.iso ro  tap0@br0, user
"""


def test_a_terminal_gets_what_fits_and_the_notes_below(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    out, err = shown(terminal=True)
    assert out == TERMINAL
    assert err.splitlines()[:2] == [
        f"note: (pid 102) on alpha: {DUMB.monitor_problem} ({DUMB.monitor_fix})",
        "note: (pid 102) on alpha: a systemd unit restarts it: vm.service",
    ]


def test_names_are_for_programs_and_trouble_still_for_people() -> None:
    assert shown(names=True) == ("web1\n", "error: beta: nobody is let in\n")


def test_json_has_guests_hosts_errors_and_where_the_time_went() -> None:
    out, err = shown(json=True, verbose=1)
    found = json.loads(out)
    assert found["schema"] == "qmigrate.list/1"
    web = found["guests"][0]
    assert (web["host"], web["name"], web["state"]) == ("alpha", "web1", "running")
    assert (web["memory_bytes"], web["disks"][0]["size_bytes"]) == (64 * 2**20, 2**30)
    assert web["nics"][0]["bridge"] == "br0"
    assert found["guests"][1]["state"] is None
    assert [(host["host"], host["exit"]) for host in found["hosts"]] == [
        ("alpha", 0),
        ("beta", 4),
        ("gamma", 0),
    ]
    assert found["hosts"][1]["error"]["code"] == "login"
    assert found["hosts"][0]["steps"][0] == {"name": "connect", "duration_s": 0.1}
    assert not err


def test_verbose_tells_where_the_time_went() -> None:
    _, err = shown(verbose=1)
    assert err.splitlines()[-3:] == [
        "alpha: connect 100 ms, ask 10 ms",
        "beta: nothing was reached",
        "gamma: ask 500 ms",
    ]


def test_two_guests_of_one_name_are_told_apart_by_pid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    twins = HostAnswer(ALPHA, (WEB, replace(WEB, pid=7)), None, 0, ())
    stderr = io.StringIO()
    show(Context(Output(stdout=Terminal(), stderr=stderr)), [twins], names=False)
    assert stderr.getvalue() == (
        "note: web1 on alpha: another guest here has this name: say 101, its pid\n"
        "note: web1 on alpha: another guest here has this name: say 7, its pid\n"
    )


@pytest.mark.parametrize("owner", Owner)
def test_every_owner_but_none_is_noted(owner: Owner) -> None:
    assert len(list(notes(replace(WEB, owner=owner), ()))) == (owner is not Owner.NONE)


def test_a_row_has_a_cell_for_every_title() -> None:
    for whole in (True, False):
        for verbose in (True, False):
            found = table(ANSWERS, whole=whole, verbose=verbose)
            assert {len(row) for row in found.rows} == {len(found.titles)}
            assert set(found.right) - set(found.titles) <= {"PID"}


def test_a_misspelt_host_gets_a_suggestion_when_it_cannot_be_reached() -> None:
    problem = UnreachableError("no such name", host="alpah").problem
    lost = HostAnswer(HostSpec("alpah", "alpah"), (), problem, 4, ())
    hinted = with_hint(lost, lambda name: f"did you mean {name}?")
    assert hinted.problem
    assert hinted.problem.next_step == "did you mean alpah?"
    assert with_hint(ANSWERS[1], lambda _: "no") is ANSWERS[1]
