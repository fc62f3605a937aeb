"""A tunnel's building and removal, killed or refused at every step: the next run puts it right."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from typing import Any

import pytest
import trio

from netsetup import port_filters, relay_process, rtnl
from netsetup.errors import HostError, NetsetupError
from netsetup.homes import Home
from netsetup.mtu import Manner
from netsetup.relay import RelaySpec
from netsetup.rtnl import Rtnl
from netsetup.tunnel_spec import End, TunnelSpec, mirrored
from netsetup.tunnels import collect, create, list_tunnels, remove
from tests.support.netns import Namespace, add_bridge, fresh_namespace
from tests.support.sites import ALPHA, BETA, addressed, nothing_left

pytestmark = pytest.mark.net

_CHANGES = (
    "add", "set", "del", "replace", "property_add", "property_del", "add-filter", "del-filter",
)  # fmt: skip
FAR = ip_address("10.77.2.9")  # on the same cable: a route by Ethernet

VXLANS = {
    f"{end}, {manner}": TunnelSpec(
        "vxlan",
        ALPHA[version],
        BETA[version],
        Home("alpha", "br0"),
        end,
        key=7,
        manner=manner,
        guests=("web1", "web2"),
    )
    for end in End
    for manner, version in ((Manner.WHOLE, 4), (Manner.FRAGMENTS, 4), (Manner.TOLD, 6))
}

CARRIED = {
    f"{end}, {kind} by {backend}, {manner}": (
        TunnelSpec(
            kind,
            ALPHA[4],
            FAR,
            Home("alpha", "br0"),
            end,
            key=7,
            manner=manner,
            guests=("web1", "web2"),
        ),
        backend,
    )
    for end, kind, backend, manner in (
        (End.HOME, "etherip", "ebpf", Manner.WHOLE),
        (End.AWAY, "etherip", "ebpf", Manner.FRAGMENTS),
        (End.HOME, "gretap", "ebpf", Manner.FRAGMENTS),
        (End.AWAY, "etherip", "relay", Manner.FRAGMENTS),
    )
}
SPECS = {name: (spec, "kernel") for name, spec in VXLANS.items()} | CARRIED


class Steps:
    """Counts what changes the kernel's tables, and strikes before the step `at`."""

    def __init__(self, at: int, strike: Callable[[], None]) -> None:
        self.at, self.strike, self.count = at, strike, 0

    def __call__(self) -> None:
        self.count += 1
        if self.count == self.at:
            self.strike()


class Counted:
    """An `IPRoute` whose changing requests are steps."""

    def __init__(self, ip: Any, step: Steps) -> None:
        self._ip, self._step = ip, step

    def __getattr__(self, name: str) -> Any:
        whole = getattr(self._ip, name)
        if name not in ("link", "tc", "fdb", "brport", "vlan_filter"):
            return whole

        def call(command: str, *words: Any, **arguments: Any) -> Any:
            if command in _CHANGES:
                self._step()
            return whole(command, *words, **arguments)

        return call


@contextmanager
def stepping(step: Steps) -> Iterator[None]:
    """Make every changing request of this process a step."""
    patch = pytest.MonkeyPatch()
    opened, talked = rtnl._open_socket, port_filters._talk
    started = relay_process._start

    def talk(kind: int, body: bytes) -> None:
        step()
        talked(kind, body)

    def start(spec: RelaySpec) -> None:
        step()
        started(spec)

    patch.setattr(relay_process, "_start", start)
    patch.setattr(rtnl, "_open_socket", lambda: Counted(opened(), step))
    patch.setattr(port_filters, "_talk", talk)
    try:
        yield
    finally:
        patch.undo()


@contextmanager
def host() -> Iterator[Namespace]:
    """A host with both underlay addresses and a segment, entered."""
    with fresh_namespace() as place, place.entered():
        place.run("ip", "link", "add", "eth0", "type", "veth", "peer", "name", "far0")
        for name in ("eth0", "far0"):
            place.run("ip", "link", "set", name, "up")
        addressed(place, "eth0", "10.77.1.2/16", "fd77:1::2/32", "10.77.2.2/16", "fd77:2::2/32")
        add_bridge(place, "br0")
        # A bridge without any other port would take its address from the tunnel's.
        place.run("ip", "link", "add", "uplink", "type", "veth", "peer", "name", "far1")
        place.run("ip", "link", "set", "uplink", "master", "br0")
        yield place


def run(work: Callable[[Rtnl], Any]) -> Any:
    async def main() -> Any:
        async with Rtnl() as netlink:
            return await work(netlink)

    return trio.run(main)


def killed_at(at: int, work: Callable[[Rtnl], Any]) -> bool:
    """Do `work` in a child that is killed before its step `at`; False if it has no such step."""
    child = os.fork()
    if child == 0:
        try:
            with stepping(Steps(at, lambda: os.kill(os.getpid(), signal.SIGKILL))):
                run(work)
            os._exit(0)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert status == 0 or os.WIFSIGNALED(status), "the child failed by itself"
    return os.WIFSIGNALED(status)


def unguarded_ports(place: Namespace) -> list[str]:
    """Return tunnel ports in a bridge through which a stranger's frame or a BPDU could pass."""
    found = []
    for line in place.run("bridge", "link", "show").splitlines():
        name = line.split()[1].rstrip(":").split("@")[0]
        if not name.startswith("qmt-"):
            continue
        links = place.run("ip", "link")
        device = name.replace("qmt-", "qmd-") if "@" in line.split()[1] else name
        if device not in links:
            inner = name.replace("qmt-", "qmv-")
            shown = place.run("tc", "filter", "show", "dev", inner, "ingress")
            relayed = "-relay-" in place.run("ip", "link", "show", "dev", inner)
            if "direct-action" not in shown and not relayed:
                found.append(f"{line}\n{shown}")
            continue
        shown = place.run("tc", "filter", "show", "dev", device, "ingress")
        if shown.count("direct-action") < 2 or shown.count("match ") < 3:
            found.append(f"{line}\n{shown}")
    return found


@pytest.mark.parametrize("next_run", ["create", "collect"])
@pytest.mark.parametrize(("spec", "backend"), SPECS.values(), ids=SPECS)
def test_killed_at_any_step_of_building_the_next_run_heals_or_removes(
    spec: TunnelSpec, backend: str, next_run: str
) -> None:
    with host() as place:
        before = nothing_left(place)
        steps = 0
        while killed_at(steps + 1, lambda netlink: create(netlink, spec, backend=backend)):
            steps += 1
            assert unguarded_ports(place) == []
            if next_run == "create":
                healed = run(lambda netlink: create(netlink, spec, backend=backend)).tunnel
                assert (healed.problems, healed.guests) == ((), ("web1", "web2"))
                run(lambda netlink: remove(netlink, spec.id))
            else:
                run(lambda netlink: collect(netlink, live_guests=()))
            assert nothing_left(place) == before, f"after step {steps}"
            assert run(list_tunnels) == ()
            assert relay_process.running(spec.id) is None
        assert steps >= 12
        run(lambda netlink: remove(netlink, spec.id))


@pytest.mark.parametrize(("spec", "backend"), SPECS.values(), ids=SPECS)
def test_killed_at_any_step_of_removing_the_next_run_removes_or_builds(
    spec: TunnelSpec, backend: str
) -> None:
    with host() as place:
        before = nothing_left(place)
        run(lambda netlink: create(netlink, spec, backend=backend))
        steps = 0
        while killed_at(steps + 1, lambda netlink: remove(netlink, spec.id)):
            steps += 1
            assert unguarded_ports(place) == []
            if steps % 2:
                run(lambda netlink: remove(netlink, spec.id))
                assert nothing_left(place) == before, f"after step {steps}"
            built = run(lambda netlink: create(netlink, spec, backend=backend)).tunnel
            assert built.problems == ()
        assert steps >= 3
        assert nothing_left(place) == before


class StruckError(OSError):
    """What the kernel might have said."""


def _strike() -> None:
    raise StruckError(5, "struck")


@pytest.mark.parametrize(("spec", "backend"), SPECS.values(), ids=SPECS)
def test_refused_at_any_step_nothing_is_left(spec: TunnelSpec, backend: str) -> None:
    with host() as place:
        before = nothing_left(place)
        for at in range(1, 100):
            step = Steps(at, _strike)
            with stepping(step):
                if step_passes(spec, backend):
                    break
            assert nothing_left(place) == before, f"after step {at}"
            assert relay_process.running(spec.id) is None
        assert at > 12
        run(lambda netlink: remove(netlink, spec.id))
        assert nothing_left(place) == before


def step_passes(spec: TunnelSpec, backend: str) -> bool:
    try:
        run(lambda netlink: create(netlink, spec, backend=backend))
    except NetsetupError:
        return False
    return True


def test_both_ends_of_a_tunnel_cannot_be_on_one_host() -> None:
    spec = VXLANS[f"{End.HOME}, {Manner.WHOLE}"]
    with host() as place:
        run(lambda netlink: create(netlink, spec))
        between = nothing_left(place)
        with pytest.raises(HostError, match="home end of tunnel"):
            run(lambda netlink: create(netlink, mirrored(spec)))
        assert nothing_left(place) == between


def test_a_build_waits_for_another_processs() -> None:
    spec = VXLANS[f"{End.AWAY}, {Manner.WHOLE}"]
    with host() as place:
        before = nothing_left(place)
        children = []
        for _ in range(4):
            child = os.fork()
            if child == 0:
                try:
                    for _ in range(5):
                        run(lambda netlink: create(netlink, spec))
                    os._exit(0)
                finally:
                    os._exit(1)
            children.append(child)
        assert [os.waitpid(child, 0)[1] for child in children] == [0] * 4
        (tunnel,) = run(list_tunnels)
        assert tunnel.problems == ()
        run(lambda netlink: remove(netlink, spec.id))
        assert nothing_left(place) == before
