"""The inventory: what is understood, and that every fault is found with its place."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qmigrate.controller import inventory_text
from qmigrate.controller.inventory import Inventory, load
from qmigrate.controller.inventory_file import (
    Defaults,
    GuestSpec,
    destination_fault,
    locate,
    parse,
)
from qmigrate.controller.inventory_text import find, names
from qmigrate.core.errors import ConfigError, UsageError
from qmigrate.core.model import HostSpec

FULL = """\
[hosts.alpha]
ssh = "root@192.0.2.10"
python = "/usr/bin/python3.12"
sudo = false
migration_addresses = ["10.0.0.10", "fd00::10"]
port_range = [49152, 49215]

[hosts.beta]
[hosts.local]

[guests.web1]
host = "alpha"
addresses = ["192.0.2.80", "2001:db8::80"]
[guests."db 1"]
host = "ssh://admin@gamma:2222"

[defaults]
downtime_limit_ms = 20
max_downtime_ms = 300
bandwidth = "800Mbit"
"""


@pytest.fixture(autouse=True)
def nobodys_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep the inventory of whoever runs the tests out of them."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))
    monkeypatch.setattr(inventory_text, "SYSTEM_FILE", tmp_path / "etc" / "config.toml")
    for name in ("QMIGRATE_CONFIG", "QMIGRATE_SSH_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def test_a_full_file_becomes_nouns() -> None:
    found = parse(FULL, name="f")
    assert found.hosts == (
        HostSpec(
            "alpha",
            "root@192.0.2.10",
            None,
            "/usr/bin/python3.12",
            False,
            ("10.0.0.10", "fd00::10"),
            (49152, 49215),
        ),
        HostSpec("beta", "beta"),
        HostSpec("local", None),
    )
    assert found.guests == (
        GuestSpec("web1", "alpha", ("192.0.2.80", "2001:db8::80")),
        GuestSpec("db 1", "ssh://admin@gamma:2222", ()),
    )
    assert found.defaults == Defaults(20, 300, 100_000_000)


FAULTS = {
    "no TOML": ("[hosts.alpha\n", ["f:1:13: Expected ']'"]),
    "cut short": ('[hosts.alpha]\nssh = "x', ["f:2:9: "]),
    "an open list": ("[hosts.a]\nport_range = [1,", ["f:2:17: "]),
    "a table twice": ("[hosts.alpha]\n[hosts.alpha]\n", ["f:2:13: Cannot declare"]),
    "misspelt table": ("[host.alpha]\n", ["f:1:2: unknown key 'host'; did you mean 'hosts'?"]),
    "misspelt key": (
        '[hosts.alpha]\npyton = "x"\n',
        ["f:2:1: unknown key 'pyton'; did you mean 'python'?"],
    ),
    "unlike any key": ("[defaults]\nxyz = 1\n", ["f:2:1: unknown key 'xyz'; known: downtime_"]),
    "wrong type": (
        '[hosts.alpha]\n\nsudo = "yes"\n',
        ["f:3:1: expected bool, got str 'yes'"],
    ),
    "wrong type of optional": ("[hosts.alpha]\npython = 3\n", ["f:2:1: expected str"]),
    "a string where a list belongs": (
        '[hosts.alpha]\nmigration_addresses = "10.0.0.1"\n',
        ["f:2:1: expected a list, got str"],
    ),
    "wrong item": (
        '[guests.g]\naddresses = ["192.0.2.1", 7]\n',
        ["f:2:1: expected str, got int 7"],
    ),
    "not an address": (
        '[guests.g]\naddresses = [\n "192.0.2.1",\n "192.0.2.999"]\n',
        ["f:2:1: '192.0.2.999' is not an IP address"],
    ),
    "not a table": ('hosts = "alpha"\n', ["f:1:1: write [hosts.NAME] tables, not a string"]),
    "host not a table": ("[hosts]\nalpha = 1\n", ["f:2:1: write a table, not a number"]),
    "defaults not a table": ("defaults = []\n", ["f:1:1: write a table, not a list"]),
    "option as destination": (
        '[hosts.alpha]\nssh = "-oProxyCommand=reboot"\n',
        ["f:2:1: '-oProxyCommand=reboot' is not an ssh destination: ssh would read it as an"],
    ),
    "odd name": ('[hosts."a b"]\n', ["f:1:8: 'a b' cannot be a host's name"]),
    "same name but for case": (
        "[hosts.alpha]\n[hosts.Alpha]\n",
        ["f:2:8: host 'Alpha' differs from 'alpha' only in upper and lower case"],
    ),
    "same machine twice": (
        '[hosts.alpha]\nssh = "root@x"\n[hosts.beta]\nssh = "root@x"\n',
        ["f:3:8: host 'beta' is the same machine as 'alpha' (root@x)"],
    ),
    "this machine twice": (
        "[hosts.local]\n[hosts.localhost]\n",
        ["f:2:8: host 'localhost' is the same machine as 'local'"],
    ),
    "local over ssh": ('[hosts.local]\nssh = "x"\n', ["f:2:1: 'local' means this machine"]),
    "ports backwards": ("[hosts.a]\nport_range = [9, 1]\n", ["f:2:1: ports 9 to 1 are not"]),
    "three ports": ("[hosts.a]\nport_range = [1, 2, 3]\n", ["f:2:1: expected 2 items, got 3"]),
    "guest's host misspelt": (
        '[hosts.alpha]\n[guests.g]\nhost = "alpa"\n',
        ["f:3:1: no host 'alpa' in this file; did you mean 'alpha'?"],
    ),
    "guest's host unknown": (
        '[guests.g]\nhost = "zzz"\n',
        ["f:2:1: no host 'zzz' in this file; write a [hosts.zzz] table"],
    ),
    "rate without unit": ('[defaults]\nbandwidth = "800"\n', ["f:2:1: '800' is not a rate"]),
    "limits crossed": (
        "[defaults]\ndowntime_limit_ms = 500\nmax_downtime_ms = 300\n",
        ["f:3:1: 300 is less than downtime_limit_ms, 500"],
    ),
    "no time at all": ("[defaults]\ndowntime_limit_ms = 0\n", ["f:2:1: 0 is not between"]),
    "everything at once, in the file's order": (
        '[hosts.alpha]\nsudoo = true\nport_range = "x"\n[guets.g]\n[hosts.beta]\npython = 1\n',
        [
            "f:2:1: unknown key 'sudoo'; did you mean 'sudo'?",
            "f:3:1: expected a list",
            "f:4:2: unknown key 'guets'; did you mean 'guests'?",
            "f:6:1: expected str",
        ],
    ),
}


@pytest.mark.parametrize(("text", "expected"), FAULTS.values(), ids=FAULTS)
def test_every_fault_is_told_with_line_and_column(text: str, expected: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text, name="f")
    told = caught.value.problem.what.splitlines()
    assert [line[: len(e)] for line, e in zip(told, expected, strict=True)] == expected


PLACES = {
    "nested": ("[a.b]\nx = 1\ny = 2\n", ("a", "b", "y"), (3, 1)),
    "indented": ("[a]\n   x = 1\n", ("a", "x"), (2, 4)),
    "inline": ("a = {x = 1, yy = 2}\n", ("a", "yy"), (1, 13)),
    "dotted": ("a.b.c = 1\n", ("a", "b", "c"), (1, 5)),
    "quoted": ('[a."b.c"]\n', ("a", "b.c"), (1, 4)),
    "a name inside a longer one": ("[ax.x]\ny = 1\n", ("ax", "x"), (1, 5)),
    "second table of an array": ("[[a]]\nx = 1\n[[a]]\nx = 2\n", ("a", 1, "x"), (4, 1)),
    "several lines": ('a = """\nx = 1\n"""\nx = 2\n', ("x",), (4, 1)),
    "an item": ("a = [\n 1,\n 2]\n", ("a", 1), (1, 1)),
}


@pytest.mark.parametrize(("text", "path", "place"), PLACES.values(), ids=PLACES)
def test_a_key_path_is_located(
    text: str, path: tuple[str | int, ...], place: tuple[int, int]
) -> None:
    assert locate(text, path) == place


@given(st.text(alphabet='[]{}="\\\n\t .,#hostsguedflabx019-', max_size=60))
def test_any_text_is_an_inventory_or_a_config_error(text: str) -> None:
    try:
        parse(text, name="f")
    except ConfigError as exc:
        assert exc.problem.what.startswith("f:")  # noqa: PT017 - either end is right


DESTINATIONS = {
    "alpha": None,
    "root@alpha": None,
    "admin@192.0.2.1": None,
    "root@fd00::1": None,
    "ssh://root@alpha:2222": None,
    "ssh://[fd00::1]:22": None,
    "": "it is empty",
    "-oProxyCommand=x": "ssh would read it as an option",
    "a b": "it has a space",
    "a\x1b[0m": "it has a space or a control character",
    "alpha:2222": "a port is written as ssh://alpha:2222",
    "http://alpha": "only ssh:// is understood",
    "ssh://": "no host after",
    "alpha/beta": "a host has no slash",
}


@pytest.mark.parametrize(("text", "fault"), DESTINATIONS.items())
def test_what_can_be_an_ssh_destination(text: str, fault: str | None) -> None:
    assert (destination_fault(text) or "").startswith(fault or "")
    assert (destination_fault(text) is None) == (fault is None)


def test_a_word_is_a_host_of_the_inventory_else_this_machine_else_an_ssh_destination() -> None:
    alpha = HostSpec("alpha", "root@192.0.2.10")
    known = Inventory(hosts=(alpha,), ssh_config="c")
    assert known.host("alpha") is alpha
    assert known.host("localhost") == HostSpec("localhost", None)
    assert known.host("root@gamma") == HostSpec("root@gamma", "root@gamma", "c")
    with pytest.raises(UsageError, match="option"):
        known.host("-alpha")
    assert known.suggestion("alhpa") == "did you mean 'alpha'?"


def test_hosts_are_selected_once_and_by_default_all_of_them_or_this_machine() -> None:
    known = Inventory(hosts=(HostSpec("alpha", "a"), HostSpec("beta", "b")))
    assert [h.name for h in known.select(["beta", "beta"])] == ["beta"]
    assert known.select([]) == known.hosts
    assert Inventory().select([]) == (HostSpec("localhost", None),)


def test_the_first_file_in_order_of_precedence_is_read_alone(
    nobodys_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert find(None) is None
    assert load() == Inventory()
    places = {
        "etc/config.toml": "etc",
        "xdg/qmigrate/config.toml": "home",
        "env.toml": "env",
        "flag.toml": "flag",
    }
    for place, host in places.items():
        path = nobodys_home / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"[hosts.{host}]\n")
        if host == "env":
            monkeypatch.setenv("QMIGRATE_CONFIG", str(path))
        assert names(str(path) if host == "flag" else None) == (host,)
    assert load(config=str(path)).path == str(path)


def test_ssh_configuration_reaches_every_host_that_ssh_reaches(
    nobodys_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, ssh = nobodys_home / "c.toml", nobodys_home / "ssh_config"
    config.write_text("[hosts.alpha]\n[hosts.local]\n")
    ssh.touch()
    monkeypatch.setenv("QMIGRATE_SSH_CONFIG", str(ssh))
    found = load(config=str(config))
    assert found.hosts == (HostSpec("alpha", "alpha", str(ssh)), HostSpec("local", None))
    assert found.host("beta").ssh_config == str(ssh)
    with pytest.raises(UsageError, match="no such ssh configuration file"):
        load(ssh_config=str(nobodys_home / "missing"))


def test_a_file_that_was_asked_for_must_be_there(
    nobodys_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match=r"no such file \(from --config\)"):
        load(config=str(nobodys_home / "missing"))
    monkeypatch.setenv("QMIGRATE_CONFIG", str(nobodys_home))
    with pytest.raises(ConfigError, match=r"no such file \(from \$QMIGRATE_CONFIG\)"):
        load()


@pytest.mark.parametrize(
    ("raw", "what"),
    [
        (b"[hosts.a]\n# \xff\n", ":2:3: not UTF-8"),
        (b"#" * 2_000_000, "larger than"),
        (b"a = " + b"[" * 10_000, ": nested too deeply"),
    ],
    ids=["latin", "huge", "deep"],
)
def test_a_garbled_file_is_refused(nobodys_home: Path, raw: bytes, what: str) -> None:
    path = nobodys_home / "c.toml"
    path.write_bytes(raw)
    for read in (lambda: load(config=str(path)), lambda: names(str(path))):
        with pytest.raises(ConfigError, match=what):
            read()
