"""QEMU's command line: taken apart without loss, read as QEMU reads it, changed by key."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qmigrate.core.argv import CommandLine, Option, parse_json, parse_text
from qmigrate.core.errors import BlockedError
from qmigrate.core.readconfig import parse_config

WORDS = st.one_of(
    st.text(max_size=20),
    st.sampled_from(
        [
            "-S", "-m", "--m", "-device", "e1000,id=a", '{"driver": "x"}', "-", "--", "disk.img",
            "-name", "a,,b", "-nosuch", "-drive", "if=none,,", "",
        ]
    ),
)  # fmt: skip


@given(st.lists(WORDS, max_size=12))
def test_any_argv_is_rendered_back_to_the_byte(argv: list[str]) -> None:
    assert CommandLine.parse(argv).render() == (tuple(argv) or ("",))


@given(st.text(alphabet="ab=,no.", max_size=30), st.sampled_from([None, "driver"]))
def test_any_text_is_rendered_back_to_the_byte(text: str, implied: str | None) -> None:
    assert parse_text(text, implied=implied).render() == text


@given(
    st.text(alphabet="abc", min_size=1), st.text(max_size=20), st.text(alphabet="a=,", max_size=9)
)
def test_what_is_put_is_what_is_read(key: str, value: str, before: str) -> None:
    text = parse_text(before, implied="driver").put(key, value).render()
    if not before.endswith(","):  # QEMU itself reads "a,,b" as one value
        assert parse_text(text, implied="driver").get(key) == value


@pytest.mark.parametrize(
    ("argv", "options"),
    [
        (["-S", "-m", "64"], [("S", None), ("m", "64")]),
        (["--S", "--m", "64"], [("S", None), ("m", "64")]),
        (["disk.img", "-S"], [("", "disk.img"), ("S", None)]),
        (["-append", "-x y"], [("append", "-x y")]),
        (["-nosuch", "-S"], [("nosuch", None), ("S", None)]),
        (["-nosuch", "value", "-S"], [("nosuch", "value"), ("S", None)]),
        (["-m"], [("m", None)]),
        (["-name", ""], [("name", "")]),
    ],
)
def test_a_known_option_takes_its_value_whatever_that_begins_with(
    argv: list[str], options: list[tuple[str, str | None]]
) -> None:
    line = CommandLine.parse(["qemu", *argv])
    assert [(o.flag, o.value) for o in line.options] == options


@pytest.mark.parametrize(
    ("option", "pairs"),
    [
        (Option("-device", "e1000,id=n0,mac=1"), {"driver": "e1000", "id": "n0", "mac": "1"}),
        (Option("-name", "a,,b,debug-threads=on"), {"guest": "a,b", "debug-threads": "on"}),
        (Option("-drive", "file=a,,b=c,if=none"), {"file": "a,b=c", "if": "none"}),
        (Option("-drive", "file=x,,,if=none"), {"file": "x,", "if": "none"}),
        (Option("-chardev", "socket,id=c,path=/s,server,nowait"), {"backend": "socket", "id": "c",
                                        "path": "/s", "server": "on", "wait": "off"}),
        (Option("-smp", "2"), {"cpus": "2"}),
        (Option("-smp", "sockets=2,cores=2"), {"sockets": "2", "cores": "2"}),
        (Option("-M", "q35,accel=tcg"), {"type": "q35", "accel": "tcg"}),
        (Option("-cpu", "qemu64,+avx,-sse,nodeid-msr"), {"model": "qemu64", "+avx": "on",
                                        "-sse": "on", "nodeid-msr": "on"}),
        (Option("-device", '{"driver":"e1000","multifunction":true,"bus":"p,1","addr":3}'),
         {"driver": "e1000", "multifunction": "on", "bus": "p,1", "addr": "3"}),
        (Option("-blockdev", "{'driver':'raw','file':{'driver':'file','filename':'it\\'s \"x\"'}}"),
         {"driver": "raw", "file.driver": "file", "file.filename": 'it\'s "x"'}),
        (Option("-object", '{"qom-type":"memory-backend-ram","id":"m","host-nodes":[0,1]}'),
         {"qom-type": "memory-backend-ram", "id": "m", "host-nodes.0": "0", "host-nodes.1": "1"}),
    ],
)  # fmt: skip
def test_values_are_read_as_qemu_reads_them(option: Option, pairs: dict[str, str]) -> None:
    assert {item.key: item.value for item in option.opts.items} == pairs


@pytest.mark.parametrize(
    ("option", "key", "value", "after"),
    [
        (Option("-device", "e1000,id=n0,x=,,"), "id", "n1", "e1000,id=n1,x=,,"),
        (Option("-device", "e1000,id=a,id=b"), "id", "c", "e1000,id=c"),
        (Option("-device", "e1000"), "addr", "03.0", "e1000,addr=03.0"),
        (Option("-machine", "q35,usb=on"), "type", "pc-q35-10.0", "pc-q35-10.0,usb=on"),
        (Option("-name", "a"), "guest", "b=c,d", "guest=b=c,,d"),
        (Option("-chardev", "socket,id=c,server"), "server", False, "socket,id=c,server=off"),
        (Option("-device", '{"driver": "e1000", "addr": 3}'), "addr", "4",
         '{"driver": "e1000", "addr": 4}'),
        (Option("-device", '{"driver": "e1000", "m": true}'), "m", "off",
         '{"driver": "e1000", "m": false}'),
        (Option("-blockdev", '{"driver": "raw", "file": {"filename": "a"}}'), "file.filename",
         "3", '{"driver": "raw", "file": {"filename": "3"}}'),
        (Option("-object", '{"id": "m", "nodes": [0, 1], "e": {}}'), "nodes.1", 7,
         '{"id": "m", "nodes": [0, 7], "e": {}}'),
        (Option("-device", '{"driver": "e1000"}'), "addr", "03.0",
         '{"driver": "e1000", "addr": "03.0"}'),
    ],
)  # fmt: skip
def test_one_key_changes_and_the_rest_keeps_its_spelling(
    option: Option, key: str, value: str | bool | int, after: str
) -> None:
    changed = option.put(key, value)
    assert changed.value == after
    assert changed.opts.get(key) == {True: "on", False: "off"}.get(value, str(value))  # type: ignore[call-overload]


def test_a_key_goes_with_all_that_is_below_it() -> None:
    assert Option("-blockdev", "raw,file.driver=file,file.x=1,node-name=n").without(
        "file"
    ).value == ("raw,node-name=n")
    nested = Option("-blockdev", '{"driver": "raw", "file": {"x": 1}, "filed": 2}')
    assert nested.without("file").value == '{"driver": "raw", "filed": 2}'
    assert nested.opts.under("file").get("x") == "1"


@pytest.mark.parametrize("text", ['{"driver": ', "{driver: 1}", '{"a": 1}}', "{" * 100000])
def test_half_json_is_refused_and_not_guessed_at(text: str) -> None:
    with pytest.raises(BlockedError):
        parse_json(text)


CONFIG = """\
# a comment
[machine]
  type = "q35"

[smp-opts]
  cpus = "2"
[device "n0"]
  driver = "e1000"
  mac = "52:54:00:00:00:01"
[chardev "a,b"]
  backend = "socket"
  path = "/run/x,y.sock"
"""


def test_a_config_file_stands_for_options() -> None:
    assert parse_config(CONFIG) == (
        Option("-machine", "type=q35"),
        Option("-smp", "cpus=2"),
        Option("-device", "id=n0,driver=e1000,mac=52:54:00:00:00:01"),
        Option("-chardev", "id=a,,b,backend=socket,path=/run/x,,y.sock"),
    )


@pytest.mark.parametrize("text", ['type = "q35"', "[machine]\n  type = q35", "[machine"])
def test_a_config_file_that_qemu_would_not_read_is_refused_with_its_line(text: str) -> None:
    with pytest.raises(BlockedError, match=r"line [12] "):
        parse_config(text)
