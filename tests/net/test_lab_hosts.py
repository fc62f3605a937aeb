"""A host of the lab is as much its own as a machine would be."""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from qmigrate.core.errors import HostError, UsageError
from qmigrate.lab.lab import Lab, Way
from qmigrate.lab.topologies import TOPOLOGIES
from qmigrate.lab.topology import (
    Address,
    Cable,
    End,
    Node,
    NodeKind,
    Route,
    Topology,
)

pytestmark = pytest.mark.net
BOOT_ID = "/proc/sys/kernel/random/boot_id"
ANSWER_S = 2  # a host of the lab answers within 1 ms


def ssh(lab: Lab, from_host: str, to: str, *command: str, options: tuple[str, ...] = ()) -> str:
    config = ("-F", str(lab.ssh_config))
    return lab.run(from_host, ["ssh", *config, *options, to, *command]).stdout


def answers(lab: Lab, from_host: str, address: str) -> bool:
    command = ["busybox", "ping", "-c1", f"-W{ANSWER_S}", address]
    return lab.run(from_host, command, check=False).returncode == 0


@pytest.fixture
def whole_lab(lab: Lab) -> Iterator[Lab]:
    """The shared lab, whole again after the test: power, cables, rates."""
    yield lab
    for host in ("alpha", "beta"):
        lab.power_off(host)
        lab.power_on(host)


def test_every_address_answers_as_soon_as_the_lab_stands(spare_lab: Lab) -> None:
    spare_lab.up(TOPOLOGIES["same-segment"])
    for address in ("10.77.0.1", "10.77.0.2", "fd71:6d69:6772::1", "fd71:6d69:6772::2"):
        assert answers(spare_lab, "client", address), address
    assert answers(spare_lab, "alpha", "beta")


@pytest.mark.parametrize(
    ("from_host", "to"), [("client", "alpha"), ("client", "beta"), ("alpha", "beta")]
)
def test_ssh_takes_root_from_host_to_host(lab: Lab, from_host: str, to: str) -> None:
    assert ssh(lab, from_host, to, "hostname; id -u").split() == [to, "0"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("-o", "UserKnownHostsFile=/dev/null"), "Host key verification failed"),
        (
            ("-o", "HostName=10.77.0.2", "-o", "HostKeyAlias=alpha"),
            "HOST IDENTIFICATION HAS CHANGED",
        ),
        (("-o", "PubkeyAuthentication=no"), "Permission denied (publickey)"),
    ],
    ids=["unknown host key", "another host's key", "no key"],
)
def test_ssh_is_strict(lab: Lab, options: tuple[str, ...], words: str) -> None:
    with pytest.raises(HostError) as caught:
        ssh(lab, "client", "alpha", "true", options=options)
    assert words in (caught.value.problem.last_words or "")


def test_a_host_has_names_and_directories_of_its_own_and_shares_the_images(lab: Lab) -> None:
    private = ("/run/mark", "/var/log/mark", "/var/cache/mark", "/dev/shm/mark")
    image = lab.images / "disk.raw"
    lab.run("alpha", ["mkdir", *private])
    lab.run("alpha", ["sh", "-c", f"echo from-alpha >{image}"])
    try:
        for path in private:
            assert lab.run("beta", ["test", "-e", path], check=False).returncode == 1, path
            # The machine may have such a directory for reasons of its own: compare the inode.
            inode = lab.run("alpha", ["stat", "-c", "%d:%i", path]).stdout.strip()
            here = Path(path)
            assert not here.exists() or f"{here.stat().st_dev}:{here.stat().st_ino}" != inode
        assert lab.run("beta", ["cat", str(image)]).stdout == "from-alpha\n"
        for command in (["hostname"], ["cat", BOOT_ID], ["cat", "/etc/machine-id"]):
            assert lab.run("alpha", command).stdout != lab.run("beta", command).stdout, command
        assert lab.run("alpha", ["cat", BOOT_ID]).stdout != Path(BOOT_ID).read_text()
        assert lab.run("alpha", ["ls", "/sys/class/net"]).stdout.split() == ["br0", "lo", "uplink"]
        assert lab.run("alpha", ["touch", str(lab.ssh_config)], check=False).returncode == 1
    finally:
        image.unlink(missing_ok=True)
        lab.run("alpha", ["rmdir", *private])


def test_power_off_kills_all_that_runs_in_a_host_at_once(whole_lab: Lab) -> None:
    lab = whole_lab
    child = lab.popen("alpha", ["sleep", "1000"])
    lab.run("alpha", ["sh", "-c", "setsid sleep 1001 >/dev/null 2>&1 </dev/null &"])
    session = lab.popen(
        "client", ["ssh", "-F", str(lab.ssh_config), "alpha", "echo here; exec sleep 1002"],
        stdout=subprocess.PIPE,
    )  # fmt: skip
    assert session.stdout is not None
    assert session.stdout.readline() == b"here\n"
    inside, beside = lab.pids("alpha"), lab.pids("beta")
    assert len(inside) >= 6, "init, sshd, its session's two or three, three sleeps"
    ends = [os.pidfd_open(pid) for pid in inside]
    lab.power_off("alpha")
    assert lab.pids("alpha") == []
    for end in ends:
        os.close(end)
    assert child.returncode == -signal.SIGKILL
    assert lab.pids("beta") == beside
    with pytest.raises(HostError, match="no power"):
        lab.run("alpha", ["true"])
    status = {node.name: node for node in lab.status().nodes}
    assert (status["alpha"].powered, status["beta"].powered) == (False, True)
    lab.power_off("alpha")  # no error
    session.kill()
    session.communicate()


def test_power_on_starts_another_boot_of_the_same_host(whole_lab: Lab) -> None:
    lab = whole_lab
    before = ssh(lab, "client", "alpha", "cat", BOOT_ID, "/etc/machine-id").split()
    lab.run("alpha", ["touch", "/run/mark", "/var/cache/mark"])
    lab.power_off("alpha")
    lab.power_on("alpha")
    after = ssh(lab, "client", "alpha", "cat", BOOT_ID, "/etc/machine-id").split()
    assert after[0] != before[0]
    assert after[1] == before[1]
    marks = lab.run("alpha", ["ls", "/run/mark", "/var/cache/mark"], check=False)
    assert marks.returncode == 2
    assert answers(lab, "beta", "alpha")


def test_a_host_reaps_what_is_orphaned_in_it(lab: Lab) -> None:
    script = "for i in 1 2 3 4 5 6 7 8; do (exec sh -c 'exit 3' &) ; done"
    lab.run("alpha", ["sh", "-c", script])  # its pipes close when the last has ended
    [init, *_] = lab.pids("alpha")
    deadline = time.monotonic() + 10
    while (zombies := zombies_of(init)) and time.monotonic() < deadline:
        os.sched_yield()
    assert zombies == []


def zombies_of(parent: int) -> list[str]:
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    return [c for c in children if ") Z" in Path(f"/proc/{c}/stat").read_text()]


@pytest.mark.parametrize("rate_bps", [None, 80_000_000])
@pytest.mark.parametrize("way", list(Way))
def test_a_cut_cable_keeps_its_carrier_and_its_rate(
    whole_lab: Lab, way: Way, rate_bps: int | None
) -> None:
    lab = whole_lab
    lab.set_rate("alpha", rate_bps)
    sent, received = counted(lab, way)
    assert (sent, received) == {Way.BOTH: (0, 0), Way.IN: (1, 0), Way.OUT: (0, 1)}[way]
    assert lab.run("alpha", ["cat", "/sys/class/net/uplink/carrier"]).stdout == "1\n"
    [status] = [node for node in lab.status().nodes if node.name == "alpha"]
    assert (status.cut, status.rate_bps) == (way, rate_bps)
    lab.mend("alpha")
    assert answers(lab, "client", "alpha")
    [status] = [node for node in lab.status().nodes if node.name == "alpha"]
    assert (status.cut, status.rate_bps) == (None, rate_bps)


def counted(lab: Lab, way: Way) -> tuple[int, int]:
    """Cut alpha's cable; tell whether a datagram gets from alpha to client, and from client."""
    assert answers(lab, "client", "10.77.0.1")  # both know the other's hardware address now
    lab.cut("alpha", way)
    got = []
    for sender, receiver, address in (
        ("alpha", "client", "10.77.0.3"),
        ("client", "alpha", "10.77.0.1"),
    ):
        listen = (
            "import socket, sys; s = socket.socket(type=socket.SOCK_DGRAM); s.bind(('', 9))\n"
            "print('ready', flush=True); s.settimeout(0.5)\n"
            "try: print(len(s.recv(100)))\nexcept TimeoutError: print(0)"
        )
        send = f"import socket; socket.socket(type=2).sendto(b'x', ('{address}', 9))"
        with lab.popen(receiver, ["python3", "-c", listen], stdout=subprocess.PIPE) as listening:
            assert listening.stdout is not None
            assert listening.stdout.readline() == b"ready\n"
            lab.run(sender, ["python3", "-c", send])
            got.append(int(listening.stdout.read()))
    return got[0], got[1]


def test_a_rate_limits_what_a_cable_carries(whole_lab: Lab) -> None:
    lab = whole_lab
    lab.set_rate("alpha", 10_000_000)
    size_bytes, burst_bytes = 1_000_000, 256 * 1024
    receive = (
        "import socket; s = socket.create_server(('', 9)); print('ready', flush=True)\n"
        "c = s.accept()[0]; print(sum(iter(lambda: len(c.recv(65536)), 0)))"
    )
    send = f"import socket; socket.create_connection(('10.77.0.1', 9)).sendall(bytes({size_bytes}))"
    with lab.popen("alpha", ["python3", "-c", receive], stdout=subprocess.PIPE) as receiver:
        assert receiver.stdout is not None
        assert receiver.stdout.readline() == b"ready\n"
        started = time.monotonic()
        lab.run("client", ["python3", "-c", send])
        assert int(receiver.stdout.read()) == size_bytes
        took_s = time.monotonic() - started
    assert took_s >= (size_bytes - burst_bytes) * 8 / 10_000_000  # a lower bound: no load breaks it
    with pytest.raises(UsageError, match="cut it instead"):
        lab.set_rate("alpha", 0)


def test_a_snapshot_shows_what_a_job_left_and_nothing_once_it_is_gone(whole_lab: Lab) -> None:
    lab = whole_lab
    before = lab.snapshot_host("alpha")
    leave = (
        "mkdir -p /run/qmigrate/jobs && touch /run/qmigrate/jobs/7 && "
        "mkdir -p /run/mnt && mount -t tmpfs x /run/mnt && "
        "ip tuntap add tap9 mode tap && ip link set tap9 master br0"
    )
    lab.run("alpha", ["sh", "-c", leave])
    listen = "import socket; s = socket.socket(socket.AF_UNIX); s.bind('/run/x'); s.listen(); "
    listen += "t = socket.create_server(('', 7777)); print('ready', flush=True); t.accept()"
    listener = lab.popen("alpha", ["python3", "-c", listen], stdout=subprocess.PIPE)
    assert listener.stdout is not None
    assert listener.stdout.readline() == b"ready\n"
    added = lab.snapshot_host("alpha").added_since(before)
    assert {
        "links: tap9 tun master br0",
        "mounts: /run/mnt tmpfs",
        "files: /run/qmigrate/jobs",
        "files: /run/qmigrate/jobs/7",
        "listening: tcp 7777",
        "listening: unix /run/x",
        f"processes: python3 -c {listen}",
    } <= set(added)
    listener.kill()
    listener.communicate()
    undo = "rm -r /run/qmigrate; umount /run/mnt; ip link delete tap9"
    lab.run("alpha", ["sh", "-c", undo])
    after = lab.snapshot_host("alpha")
    assert (after.added_since(before), after.gone_since(before)) == ((), ())


def test_a_command_is_a_child_like_any_other(lab: Lab) -> None:
    with pytest.raises(HostError, match="exit status 3") as caught:
        lab.run("alpha", ["sh", "-c", "echo why >&2; exit 3"])
    assert caught.value.problem.last_words == "why"
    assert lab.run("alpha", ["tr", "a-z", "A-Z"], input="loud").stdout == "LOUD"
    with pytest.raises(HostError, match="no such command"):
        lab.run("alpha", ["no-such-command"])
    with pytest.raises(HostError, match=r"did not end in 0\.2 s"):
        lab.run("alpha", ["sleep", "1000"], timeout_s=0.2)
    child = lab.popen("alpha", ["sleep", "1000"])
    assert child.pid in lab.pids("alpha")
    child.terminate()
    assert child.wait() == -signal.SIGTERM
    with pytest.raises(UsageError, match="no host 'gamma'"):
        lab.run("gamma", ["true"])
    # What the thread entered, this process did not.
    assert socket.gethostname() != "alpha"
    assert not Path("/sys/class/net/uplink").exists()


def test_a_router_joins_two_segments_with_an_mtu_of_their_own(spare_lab: Lab) -> None:
    left = Node(
        "left",
        NodeKind.CLIENT,
        (),
        (Address("eth0", "10.1.0.2/24"),),
        (Route("default", "10.1.0.1"),),
    )
    right = Node(
        "right",
        NodeKind.CLIENT,
        (),
        (Address("eth0", "10.2.0.2/24"),),
        (Route("default", "10.2.0.1"),),
    )
    ports = (Address("p1", "10.1.0.1/24"), Address("p2", "10.2.0.1/24"))
    router = Node("router", NodeKind.ROUTER, (), ports)
    cables = tuple(
        Cable((End(name, "eth0"), End("router", port)), mtu=1600, rate_bps=10**9)
        for name, port in (("left", "p1"), ("right", "p2"))
    )
    spare_lab.up(Topology("routed", (left, right, router), cables))
    assert answers(spare_lab, "left", "10.2.0.2")
    whole = ["busybox", "ping", "-c1", f"-W{ANSWER_S}", "-s", str(1600 - 28), "10.2.0.2"]
    spare_lab.run("left", whole)
    assert spare_lab.run("router", ["cat", "/sys/class/net/p1/mtu"]).stdout == "1600\n"
    spare_lab.power_off("router")
    assert not answers(spare_lab, "left", "10.2.0.2")
    spare_lab.power_on("router")
    assert answers(spare_lab, "left", "10.2.0.2")
