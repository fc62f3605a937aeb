"""`netsetup probe` on two hosts at once, as two people would; and a forger on the wire between."""

import json
import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from netsetup.__main__ import main
from netsetup.adjacency import Adjacency, judge
from netsetup.errors import NoSuchLinkError
from netsetup.probe_frames import ETHERTYPE_PROBE, ProbeKind, encode
from netsetup.segments import View
from netsetup.traps import Side, TrapKind
from netsetup.windows import WINDOW_ALIAS
from tests.support.adjacency_pair import Ground, built, pair_on
from tests.support.adjacency_places import NETWORKS
from tests.support.netns import eventually, fresh_namespace, packet_socket

pytestmark = pytest.mark.net

NONCE = "00112233445566778899aabbccddeeff"
PROBE = (sys.executable, "-m", "netsetup", "probe")


@pytest.fixture
def ground(request: pytest.FixtureRequest) -> Iterator[Ground]:
    with built(NETWORKS[request.param]) as made:
        yield made


def both(ground: Ground, *more: str) -> tuple[dict[str, object], dict[str, object], list[int]]:
    """Return what `ask` on alpha and `respond` on beta print, and their exit codes."""
    beta = ground.beta.popen(
        *(*PROBE, "respond", "--bridge", "br0", "--nonce", NONCE, "--json", "--for", "6"), *more
    )
    alpha = ground.alpha.popen(
        *(*PROBE, "ask", "--bridge", "br0", "--nonce", NONCE, "--json"), *more
    )
    texts = [process.communicate(timeout=60)[0] for process in (alpha, beta)]
    return json.loads(texts[0]), json.loads(texts[1]), [alpha.returncode, beta.returncode]


@pytest.mark.parametrize("ground", ["same-segment"], indirect=True)
def test_each_of_two_terminals_says_that_the_segments_are_one(
    ground: Ground, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked, responded, codes = both(ground)
    assert codes == [0, 0]
    for half in (asked, responded):
        assert half["schema"] == "netsetup.probe/1"
        assert half["verdict"]["adjacency"] == "adjacent"
        assert half["verdict"]["mtu_bytes"] == 1500
        assert half["verdict"]["joined"] is True
        assert half["report"]["facts"]["ports"][0]["name"] == "eth0"
    names = [tmp_path / "alpha.json", tmp_path / "beta.json"]
    for name, half in zip(names, (asked, responded), strict=True):
        name.write_text(json.dumps(half))
    assert main(["probe", "judge", *map(str, names)]) == 0
    assert "adjacent: frames of 1500 bytes pass both ways" in capsys.readouterr().out


@pytest.mark.parametrize("ground", ["one way"], indirect=True)
def test_both_halves_together_say_which_direction_fails(
    ground: Ground, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked, responded, codes = both(ground)
    assert codes == [3, 7]  # alpha hears beta and is not answered; beta hears nobody
    assert asked["verdict"]["failed"] == ["this host"]
    names = [tmp_path / "alpha.json", tmp_path / "beta.json"]
    for name, half in zip(names, (asked, responded), strict=True):
        name.write_text(json.dumps(half))
    assert main(["probe", "judge", *map(str, names), "--json"]) == 3
    told = json.loads(capsys.readouterr().out)
    assert told["schema"] == "netsetup.adjacency/1"
    assert told["failed"] == ["alpha"]
    assert "no frame passes from alpha to beta" in told["why"]


@pytest.mark.parametrize("ground", ["two-subnets"], indirect=True)
def test_alone_nobody_says_that_segments_are_apart(ground: Ground) -> None:
    done = ground.alpha.popen(*PROBE, "ask", "--bridge", "br0", "--nonce", NONCE)
    out, _ = done.communicate(timeout=30)
    assert done.returncode == 7
    assert "unknown: the other side is not heard: it may not be listening" in out
    assert "eth0" in out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["ask", "--bridge", "br0", "--nonce", "12"], "16 octets"),
        (["ask", "--bridge", "br0", "--nonce", "twelve"], "no nonce"),
        (["ask", "--bridge", "a/b", "--nonce", NONCE], "interface's name"),
        (["ask", "--bridge", "br0", "--nonce", NONCE, "--vlan", "4095"], "VLAN 4095"),
        (["judge", "/nonexistent", "-"], "No such file"),
    ],
)
def test_what_cannot_be_is_exit_code_2(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["probe", *words]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", "{}", '{"schema": "x"}', '{"schema": "netsetup.probe/1"}'])
def test_a_file_that_is_no_report_is_exit_code_2(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = tmp_path / "report.json"
    name.write_text(text)
    assert main(["probe", "judge", str(name), str(name)]) == 2
    assert str(name) in capsys.readouterr().err


def test_a_bridge_that_is_not_there_is_exit_code_4_with_those_that_are() -> None:
    with fresh_namespace() as host:
        host.run("ip", "link", "add", "br7", "type", "bridge")
        done = host.popen(*PROBE, "ask", "--bridge", "br0", "--nonce", NONCE)
        _, err = done.communicate(timeout=30)
    assert done.returncode == 4
    assert "there is no bridge br0" in err
    assert "br7" in err


@pytest.mark.parametrize("ground", ["two-subnets"], indirect=True)
async def test_answers_forged_without_the_nonce_change_nothing(ground: Ground) -> None:
    """A stranger on alpha's wire answers every ask at once, with all but the nonce."""
    network = NETWORKS["two-subnets"]
    with ground.between.entered():
        wire = packet_socket("alpha", ETHERTYPE_PROBE)
    wire.settimeout(None)
    async with trio.open_nursery() as nursery:
        forged = 0

        async def forge() -> None:
            nonlocal forged
            while True:
                await trio.lowlevel.wait_readable(wire)
                ask = wire.recv(2000)
                for kind in ProbeKind:
                    answer = encode(
                        *(secrets.token_bytes(16), kind),
                        source=b"\x02evil!"[:6],
                        sender=b"stranger",
                        sequence=int.from_bytes(ask[30:34]),
                        size_bytes=int.from_bytes(ask[34:36]),
                        destination=ask[6:12],
                    )
                    wire.send(answer)
                wire.send(ask[:6] + b"\x02evil!"[:6] + ask[12:])  # its own frame, from another
                forged += 3

        nursery.start_soon(forge)
        async with pair_on(ground) as pair:
            verdict, _, _ = await pair.probe(network)
        nursery.cancel_scope.cancel()
    wire.close()
    assert forged >= 12
    assert verdict.adjacency is Adjacency.NOT_ADJACENT
    assert not verdict.joined
    assert {trap.kind for trap in verdict.traps} == {TrapKind.STRANGERS}


def links_of(ground: Ground) -> list[str]:
    return [
        place.run(*words)
        for place in (ground.alpha, ground.beta)
        for words in (("ip", "-d", "link", "show"), ("bridge", "fdb", "show"))
    ]


@pytest.mark.parametrize("view", View)
@pytest.mark.parametrize("ground", ["same-segment"], indirect=True)
async def test_nothing_is_left_and_the_bridge_is_as_it_was(ground: Ground, view: View) -> None:
    network = NETWORKS["same-segment as a port" if view is View.PORT else "same-segment"]
    async with pair_on(ground) as pair:
        await pair.probe(network)  # each bridge has learned the other's
        places = (ground.alpha, ground.beta)
        before = [place.run("ip", "-d", "link", "show") for place in places]
        async with pair.probers(network) as probers:
            during = ground.alpha.run("ip", "-d", "link", "show")
            assert (WINDOW_ALIAS in during) is (view is View.PORT)
            assert probers[0].view is view
        after = [place.run("ip", "-d", "link", "show") for place in places]
    timers = ("hello_timer", "gc_timer")
    strip = [[w for w in t.split() if not w.startswith(timers)] for t in (*before, *after)]
    kept = [[w for w in words if not w.replace(".", "").isdigit()] for words in strip]
    assert kept[:2] == kept[2:]


@pytest.mark.parametrize("ground", ["same-segment"], indirect=True)
async def test_a_prober_whose_process_is_killed_leaves_no_port(ground: Ground) -> None:
    asking = ground.alpha.popen(
        *(*PROBE, "ask", "--bridge", "br0", "--nonce", NONCE, "--view", "port")
    )
    with trio.fail_after(20):
        while WINDOW_ALIAS not in ground.alpha.run("ip", "link", "show"):
            assert asking.poll() is None
            await trio.sleep(0.01)
    asking.kill()
    asking.communicate()
    await eventually(
        lambda: WINDOW_ALIAS not in ground.alpha.run("ip", "link", "show"), "the port has gone"
    )


@pytest.mark.parametrize("ground", ["two-subnets"], indirect=True)
async def test_a_cancelled_ask_is_not_complete_and_proves_nothing(ground: Ground) -> None:
    async with pair_on(ground) as pair, pair.probers(NETWORKS["two-subnets"]) as (alpha, beta):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: beta.ask(mtu_bytes=1500))
            with trio.move_on_after(0.3):
                await alpha.ask(mtu_bytes=1500)
        verdict = judge(
            Side("alpha", await alpha.report()), Side("beta", await beta.report()), mtu_bytes=1500
        )
    assert verdict.adjacency is Adjacency.UNKNOWN
    assert "alpha stopped early" in verdict.why


@pytest.mark.parametrize("ground", ["same-segment"], indirect=True)
async def test_a_bridge_that_goes_while_it_is_probed_is_named(ground: Ground) -> None:
    network = NETWORKS["same-segment"]
    async with pair_on(ground) as pair, pair.probers(network) as (alpha, _):
        ground.alpha.run("ip", "link", "delete", "br0")
        with pytest.raises(NoSuchLinkError, match="there is no bridge br0"):
            await alpha.report()


def test_help_names_the_exit_codes() -> None:
    done = subprocess.run([*PROBE, "--help"], text=True, capture_output=True, check=True)
    assert "not adjacent (3)" in done.stdout
