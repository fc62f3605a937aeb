"""What ``qmigrate lab`` takes and shows, and what a lab writes for ssh, without a lab."""

import argparse
import io
import json

import pytest

from qmigrate.cli import lab as command
from qmigrate.cli.context import Context
from qmigrate.cli.parser import build
from qmigrate.cli.render import Output
from qmigrate.core.errors import UsageError
from qmigrate.lab import sshd
from qmigrate.lab.hosts import HostSnapshot
from qmigrate.lab.state import LabState, LabStatus, NodeStatus, Places
from qmigrate.lab.topologies import TOPOLOGIES


def parse(*words: str) -> argparse.Namespace:
    root, _ = build((command,))
    return root.parse_args(["lab", *words])


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("up",), {"lab": "lab", "topology": "same-segment", "mtu": None, "rate": None}),
        (("--lab", "x", "up"), {"lab": "x"}),
        (("up", "--lab", "x"), {"lab": "x"}),
        (("up", "--rate", "1gbit", "--mtu", "1600"), {"rate": 10**9, "mtu": 1600}),
        (("up", "--rate", "2.5Mbit"), {"rate": 2_500_000}),
        (("status", "--json"), {"json": True}),
        (("topologies", "--json"), {"json": True}),
        (
            ("exec", "client", "--", "ls", "--json"),
            {"host": "client", "argv": ["ls", "--json"]},
        ),
        (("exec", "client", "ls", "-l"), {"host": "client", "argv": ["ls", "-l"]}),
    ],
)
def test_the_command_line_is_understood(
    words: tuple[str, ...], expected: dict[str, object]
) -> None:
    parsed = parse(*words)
    args = {**vars(parsed), "argv": command.inner(parsed) if "exec" in words else None}
    assert {name: args[name] for name in expected} == expected
    if "exec" in words:
        assert "json" not in args  # it is the inner command's


@pytest.mark.parametrize(
    "words", [("up", "--rate", "fast"), ("up", "--rate", "0mbit"), ("fly",), ()]
)
def test_what_makes_no_sense_is_refused(words: tuple[str, ...]) -> None:
    with pytest.raises(UsageError):
        parse(*words)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("up", "--topology", "moon"), "no topology 'moon'"),
        (("exec", "alpha"), "nothing to run"),
        (("exec", "alpha", "--"), "nothing to run"),
        (("status", "--lab", "../etc"), "no name for a lab"),
        (("status", "--lab", ""), "no name for a lab"),
    ],
)
def test_bad_input_is_an_error_before_anything_is_touched(
    words: tuple[str, ...], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        command.run(Context(out=Output()), parse(*words))


NODE = NodeStatus("alpha", "host", True, 7, "b00t", ("10.77.0.1/24",), 3, True, None, "in")
OFF = NodeStatus("beta", "host", False, None, None, ("10.77.0.2/24",), 0, None, None, None)
STATUS = LabStatus("lab", LabState.UP, "/run/x", "/var/x", "same-segment", 5, (NODE, OFF))


def shown(status: LabStatus, *, as_json: bool) -> str:
    stdout = io.StringIO()
    command.show(Context(out=Output(json=as_json, stdout=stdout)), status)
    return stdout.getvalue()


def test_status_shows_the_same_as_table_and_as_json() -> None:
    assert shown(STATUS, as_json=False).splitlines()[1:] == [
        "alpha\thost\ton\tlistens\tcut in\t3\t10.77.0.1/24",
        "beta\thost\toff\t-\twhole\t0\t10.77.0.2/24",
    ]
    document = json.loads(shown(STATUS, as_json=True))
    assert document["schema"] == "qmigrate.lab/1"
    assert document["state"] == "up"
    assert [node["cut"] for node in document["nodes"]] == ["in", None]


def test_topologies_are_listed_as_table_and_as_json() -> None:
    table, document = io.StringIO(), io.StringIO()
    command.run(Context(out=Output(stdout=table)), parse("topologies"))
    command.run(Context(out=Output(json=True, stdout=document)), parse("topologies"))
    known = json.loads(document.getvalue())
    assert known["schema"] == "qmigrate.lab.topologies/1"
    assert [t["name"] for t in known["topologies"]] == list(TOPOLOGIES)
    assert all(t["about"] for t in known["topologies"])
    assert len(table.getvalue().splitlines()) == 1 + len(TOPOLOGIES)


def test_known_hosts_names_each_host_by_name_and_by_every_address() -> None:
    alpha = TOPOLOGIES["same-segment"].node("alpha")
    line = sshd.known_hosts([(alpha, "ssh-ed25519 AAAAC3 alpha_host_ed25519\n")])
    assert line == "alpha,10.77.0.1,fd71:6d69:6772::1 ssh-ed25519 AAAAC3\n"


def test_ssh_config_points_at_the_labs_own_files_only() -> None:
    places = Places.of("x")
    text = sshd.ssh_config(places, TOPOLOGIES["same-segment"].hosts)
    options = dict(line.split(maxsplit=1) for line in text.splitlines() if line.startswith("    "))
    assert options["StrictHostKeyChecking"] == "yes"
    assert options["IdentityAgent"] == "none"
    assert options["UserKnownHostsFile"] == "/run/qmigrate-lab/x/ssh/known_hosts"
    assert options["IdentityFile"] == "/run/qmigrate-lab/x/ssh/id_ed25519"


def test_a_snapshot_counts_what_is_there_twice() -> None:
    before = HostSnapshot(("sleep 1",), ("br0 bridge",), (), (), ())
    after = HostSnapshot(("sleep 1", "sleep 1"), ("br0 bridge", "tap0 tun"), (), (), ())
    assert after.added_since(before) == ("processes: sleep 1", "links: tap0 tun")
    assert after.gone_since(before) == ()
    assert before.gone_since(after) == after.added_since(before)
    assert before.added_since(before) == ()
